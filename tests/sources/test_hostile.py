"""Hostile files: each ends itself and no run, whatever it asks of memory and time, and its good neighbours are read."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config import LimitSpec, SourceSpec
from pipeline.sources import isolated
from pipeline.sources.formats import compression, registry, scan
from pipeline.sources.listing import list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.work import Unit

GOOD = "a good text"


def read(folder: Path, **options: Any) -> tuple[list[str], dict[str, list[str]]]:
    """The texts, and the errors by name of the file."""
    spec = SourceSpec(**{"path": str(folder), "text": "text", **options})
    found = survey(list_sources(spec), spec)
    texts: list[str] = []
    errors: dict[str, list[str]] = {}
    for number, spans in enumerate(found.spans):
        unit = Unit(unit_id=f"u{number}", spans=spans, sources=tuple(range(len(spans))))
        for piece in read_slices(
            unit, SliceSpec(schema=found.schema, source=spec, carried=spec.keep, limits=LimitSpec(), rows=1000)
        ):
            texts += piece.documents.column("text").to_pylist()
            for letter in piece.dead_letters.to_pylist():
                errors.setdefault(Path(letter["path"]).name, []).append(letter["error"])
    return texts, errors


def report(folder: Path) -> None:
    """Prints the texts, the files with errors, and the most memory of this process and of its children, in KiB."""
    texts, errors = read(folder)
    isolated.close()
    # What a process says of itself in its rusage begins with what its maker had.
    own = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    print(json.dumps([texts, sorted(errors), own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))


def write_parquet(path: Path, text: Any, **options: Any) -> None:
    pq.write_table(pa.table({"text": text}), path, **options)


def parquet_row(path: Path, size: int) -> None:
    write_parquet(path, ["x" * size, "short"], compression="zstd", use_dictionary=False)


def parquet_dictionary(path: Path, size: int) -> None:
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["x" * size]))
    write_parquet(path, shared, compression="zstd")


def arrow_row(path: Path, size: int) -> None:
    table = pa.table({"text": ["x" * size, "short"]})
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


def html_formats(path: Path, size: int) -> None:
    """Elements that stay open are opened again in each paragraph."""
    path.write_text("<p>" + "".join(f"<font size={number}>" for number in range(size)) + "<p>x" * size)


BOMBS = {
    "row.parquet": (parquet_row, 700 * 2**20),
    "dictionary.parquet": (parquet_dictionary, 100 * 2**20),
    "row.arrow": (arrow_row, 700 * 2**20),
    "page.html": (html_formats, 6000),
}


def here(code: str) -> str:
    """What a process says that runs the code."""
    head = "from pathlib import Path; from tests.sources import test_hostile as t\n"
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", head + code], check=True, cwd=root, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.startswith("row.") else ()) for name in BOMBS]
)
def test_a_bomb_takes_at_most_a_gibibyte_and_is_told_by_name(tmp_path: Path, name: str) -> None:
    make, size = BOMBS[name]
    bomb = tmp_path / name
    here(f"t.{make.__name__}(Path({str(bomb)!r}), {size})")
    assert bomb.stat().st_size < 2**20
    good = tmp_path / f"zz{bomb.suffix}"
    if bomb.suffix == ".html":
        good.write_text(f"<p>{GOOD}")
    elif bomb.suffix == ".arrow":
        arrow_row(good, 1)
    else:
        write_parquet(good, [GOOD])
    # In processes of their own, so that what it takes to make a bomb does not count.
    texts, names, own, childrens = json.loads(here(f"t.report(Path({str(tmp_path)!r}))"))
    assert texts == (["x", "short"] if bomb.suffix == ".arrow" else [GOOD])
    assert names == [name]
    assert own * 1024 < 2**29
    assert childrens * 1024 < 2**30


def test_a_child_that_is_silent_for_too_long_loses_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page in which each cell closes what thousands of others left open."""
    (tmp_path / "a.html").write_text("<p>" + "".join(f"<b id={number}>" for number in range(3000)) + "<p>x" * 3000)
    (tmp_path / "b.html").write_text(f"<p>{GOOD}")
    monkeypatch.setattr(isolated, "DEADLINE_S", 1.0)
    begun = time.perf_counter()
    texts, errors = read(tmp_path)
    assert time.perf_counter() - begun < 20
    assert GOOD in texts
    assert len(texts) + len(errors) == 2


def test_a_child_that_is_killed_loses_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        write_parquet(tmp_path / f"{name}.parquet", [f"{name}{row}" for row in range(500)])
    real = isolated._Reader.receive
    killed = []

    def receive(child: Any, *within: float) -> Any:
        kind, answer = real(child, *within)
        if kind == "blocks" and not killed and any(b"b100" in (packed[0] or b"") for packed in answer):
            killed.append(child)
            child._process.kill()
        return kind, answer

    monkeypatch.setattr(isolated._Reader, "receive", receive)
    texts, errors = read(tmp_path)
    assert killed
    assert set(errors) == {"b.parquet"}
    assert len(texts) + len(errors["b.parquet"]) == 1500
    assert {text[0] for text in texts} == {"a", "b", "c"}
    assert "SIGKILL" in errors["b.parquet"][0]


def test_any_failure_of_a_format_is_a_dead_letter_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    real = registry.blocks

    def failing(opened: Any, span: Any, *rest: Any) -> Any:
        yield from real(opened, span, *rest)
        if span.file.path.endswith("a.jsonl"):
            raise ZeroDivisionError("of a format's own making")

    monkeypatch.setattr(registry, "blocks", failing)
    texts, errors = read(tmp_path)
    assert texts == ["a.jsonl", "b.jsonl"]
    assert errors == {"a.jsonl": ["the file can't be read from here on: ZeroDivisionError: of a format's own making"]}


@pytest.mark.parametrize("seed", range(3))
def test_damaged_dictionary_pages_are_dead_letters(tmp_path: Path, seed: int) -> None:
    """Every byte of the column chunk of a kept dictionary column, damaged in some way."""
    rows = 60
    table = pa.table(
        {"text": [f"t{row}" for row in range(rows)], "cat": pa.array(["x", "y", None, "z"] * 15).dictionary_encode()}
    )
    good = tmp_path / "good"
    pq.write_table(table, good, compression="none", row_group_size=20)
    content = good.read_bytes()
    chunk = pq.ParquetFile(good).metadata.row_group(1).column(1)
    good.unlink()
    pq.write_table(table, tmp_path / "zz.parquet")
    for place in range(chunk.dictionary_page_offset + seed, chunk.data_page_offset + 40, 3):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF >> seed
        (tmp_path / "a.parquet").write_bytes(damaged)
        texts, errors = read(tmp_path, keep=("cat",))
        assert len(texts) + len(errors.get("a.parquet", ())) == 2 * rows
        assert set(errors) <= {"a.parquet"}


def zstd_of_spaces(size: int, byte: bytes = b" ") -> bytes:
    """A frame of blocks that repeat one byte: 4 bytes stand for 128 KiB."""
    count = size // 2**17
    block = [((2**17 << 3) | (1 << 1) | last).to_bytes(3, "little") + byte for last in (0, 1)]
    return (0xFD2FB528).to_bytes(4, "little") + b"\0" + bytes([7 << 3]) + block[0] * (count - 1) + block[1]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.csv.zst", "a.tsv.zst", "a.txt.zst"])
def test_planning_unpacks_no_more_than_its_sample(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(zstd_of_spaces(64 * 2**30))
    (tmp_path / f"b{name[1:-4]}").write_text("text\n" + '{"text": "x"}\n' if "jsonl" in name else "text\nx\n")
    spec = SourceSpec(path=str(tmp_path), text="text")
    begun = time.perf_counter()
    with contextlib.suppress(Exception):
        survey(list_sources(spec), spec)
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.csv.zst", "a.tsv.zst"])
@pytest.mark.parametrize("byte", [b" ", b"\n", b'"', b","])
def test_reading_ends_soon_where_a_file_unpacks_without_end(
    tmp_path: Path, name: str, byte: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_MOST_BLANKS", 2**16)
    (tmp_path / name).write_bytes(zstd_of_spaces(64 * 2**30, byte))
    (tmp_path / f"b{name[1:-4]}").write_text('{"text": "x"}\n' if "jsonl" in name else "text\nx\n")
    begun = time.perf_counter()
    texts, errors = read(tmp_path)
    assert time.perf_counter() - begun < 30
    assert texts == ["x"]
    assert list(errors) == [name]
    reason = "blank lines" if byte == b"\n" else "20,000 times its size"
    assert reason in str(errors)


def test_what_repeats_itself_is_unpacked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal lines are the most that honest rows can be packed: zstd makes one byte of twelve thousand."""
    monkeypatch.setattr(compression, "_TRUSTED_BYTES", 2**20)
    line = b'{"text": "' + b"a" * 100 + b'"}\n'
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(line * 400_000))
    texts, errors = read(tmp_path)
    assert (len(texts), errors) == (400_000, {})


def test_blank_lines_between_rows_cost_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_MOST_BLANKS", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}' + "\n" * 1000 + '{"text": "y"}' + " \n" * 1000 + '{"text": "z"}')
    assert read(tmp_path) == (["x", "y", "z"], {})


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD])
    code = (
        "import sys, os, signal; from pathlib import Path; from tests.sources import test_hostile as t\n"
        "from pipeline.sources import isolated\n"
        f"t.read(Path({str(tmp_path)!r}))\n"
        "print(isolated._idle[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    child = int(done.stdout)
    for _ in range(50):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the child outlived its parent")
