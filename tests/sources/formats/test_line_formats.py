"""What is true of all formats of lines: whatever the texts are, each row is read once, in order, with its place."""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.sources.formats import content
from tests.sources.formats.reading import blocks_of, rows_of

Write = Callable[[Sequence[str]], bytes]


def as_jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def as_csv(texts: Sequence[str]) -> bytes:
    return delimited(texts, ",", csv.QUOTE_MINIMAL)


def as_quoted_tsv(texts: Sequence[str]) -> bytes:
    return delimited(texts, "\t", csv.QUOTE_ALL)


def delimited(texts: Sequence[str], delimiter: str, quoting: int) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["n", "text"])
    writer.writerows((index, text) for index, text in enumerate(texts))
    return sink.getvalue().encode()


def as_tsv(texts: Sequence[str]) -> bytes:
    return b"n\ttext\tend\r\n" + "".join(f"{index}\t{text}\t\r\n" for index, text in enumerate(texts)).encode()


def as_lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


ANY = st.text(st.characters(codec="utf-8"), max_size=30) | st.text(
    "a\u2028\x85\r\n\",\t'\\ \ufeff\x00\x0b\x1c", max_size=8
)
LINE = ANY.map(lambda text: text.replace("\n", ""))
FORMATS: dict[str, tuple[Write, st.SearchStrategy[str], dict[str, str]]] = {
    "jsonl": (as_jsonl, ANY, {}),
    "csv": (as_csv, ANY, {}),
    "quoted.tsv": (as_quoted_tsv, ANY, {"quote": '"'}),
    "tsv": (as_tsv, LINE.map(lambda text: text.replace("\t", "")), {}),
    "lines": (as_lines, LINE.filter(lambda text: text and text[-1] != "\r" and text[0] != "\ufeff"), {}),
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


def write(folder: str, name: str, content: bytes, pack: str) -> Path:
    path = Path(folder) / f"a.{name}{pack}"
    path.write_bytes(PACK[pack](content))
    return path


def options_of(name: str) -> dict[str, object]:
    from pipeline.config import CsvSpec

    return {"csv": CsvSpec(**FORMATS[name][2]), "format": "lines" if name == "lines" else "auto"}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.integers(1, 200), pack=st.sampled_from(["", "", "", ".gz", ".zst"]))
def test_what_was_written_is_read_once_and_exactly(name: str, data: st.DataObject, size: int, pack: str) -> None:
    as_bytes, texts, _ = FORMATS[name]
    written = data.draw(st.lists(texts, max_size=30))
    # Lines with a NUL before every other byte are Latin letters in UTF-16: nobody could tell.
    assume(content.encoding_of(as_bytes(written), "auto") == "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, name, as_bytes(written), pack)
        good, bad = rows_of(path, size=size, **options_of(name))
        assert [row["text"] for row in good] == written
        assert bad == []
        positions = [place for block in blocks_of(path, **options_of(name)) for place in block.positions.to_pylist()]
        cut = [
            place for block in blocks_of(path, size=size, **options_of(name)) for place in block.positions.to_pylist()
        ]
    assert cut == positions == sorted(set(positions))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300) | st.text('a",\t\r\n é', max_size=60).map(str.encode), size=st.integers(1, 100))
def test_whatever_the_bytes_are_spans_agree_with_the_whole(name: str, content: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, name, b"n,text\tn\n" + content, "")
        options = {**options_of(name), "max_row_bytes": 40}
        assert rows_of(path, size=size, **options) == rows_of(path, **options)


TEXTS = [f'text {index} é\u2028 "quoted", {index * 7919 % 10007}' for index in range(40)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pack", [".gz", ".zst"])
@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_a_prefix_and_one_bad_row(name: str, pack: str, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, name, FORMATS[name][0](TEXTS), pack)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        good, bad = rows_of(path, **options_of(name))
    assert [row["text"] for row in good] == TEXTS[: len(good)]
    assert len(bad) == (1 if share * len(whole) >= 1 else 0)
    assert all("truncated" in error for _, error in bad)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pack", [".gz", ".zst"])
@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_corrupt_byte_loses_nothing_without_a_word(name: str, pack: str, share: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, name, FORMATS[name][0](TEXTS), pack)
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= flip
        path.write_bytes(content)
        good, bad = rows_of(path, **options_of(name))
    # Both have checksums: what changed is either told, or nothing that is data.
    assert bad or [row["text"] for row in good] == TEXTS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pack", PACK)
def test_a_row_over_the_limit_costs_no_other(tmp_path: Path, name: str, pack: str) -> None:
    as_bytes, _, _ = FORMATS[name]
    path = write(str(tmp_path), name, as_bytes(["a", "x" * 5000, "b"]), pack)
    good, bad = rows_of(path, max_row_bytes=1000, **options_of(name))
    assert [row["text"] for row in good] == ["a", "b"]
    assert [error for _, error in bad] == ["the line is longer than limits.max_row_bytes (1000)"]
    assert bad[0][0] == as_bytes(["a", "x" * 5000, "b"]).rindex(b"\n", 0, as_bytes(["a", "x" * 5000]).index(b"xxx")) + 1
