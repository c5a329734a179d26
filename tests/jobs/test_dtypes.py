"""Quantised tables end to end: codes are the oracle's with the table's own ranges, which are measured once."""

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import pipeline
from jobs import embed as job
from jobs import search
from pipeline.config import RunSpec
from pipeline.errors import GateFailed, InputError, RunError, SourceChanged
from pipeline.runs import by_units, guard, prepare, summary
from pipeline.runs import embed as runs
from pipeline.runs import prepared as prepared_run
from pipeline.runs.calibrate import calibrate
from pipeline.stages import encode, sample
from pipeline.stages.flow import MEASURE
from pipeline.table import calibration, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.part import QUANTISED
from pipeline.table.quantize import PACKED, SCALAR, outside
from pipeline.table.record import Effort
from tests import inline
from tests.inline import read_table, spec_of, vectors_of
from tests.tiny import build_tiny_model, load_oracle

TOPICS = ["the market", "a game of the team", "the president", "rain in the city", "water and oil"]


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two files of 60 rows each: rows of one unit, texts that mostly differ."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "ab":
        write_rows(folder / f"{name}.jsonl", [f"{name}{n:02}" for n in range(60)])
    return folder


@pytest.fixture(scope="session")
def odd_model(tmp_path_factory) -> Path:
    """Of 20 dimensions: no whole number of bytes."""
    return build_tiny_model(tmp_path_factory.mktemp("odd") / "model", seed=3, dense=20)


def write_rows(path: Path, names: list[str], topic: str = "") -> None:
    rows = [
        {"id": name, "text": f"{topic or TOPICS[n % 5]} {n} {name}", "lang": "en" if n % 3 else "de"}
        for n, name in enumerate(names)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    # Files of another kind make units of their own.
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def table_spec(corpus: Path, model: Path, table: Path, dtype: str, **sections):
    return spec_of(corpus, model, table, table={"dtype": dtype, "partition_by": ["lang"]}, **sections)


def ranges_file(table: Path) -> Path:
    (path,) = (table / "meta" / "calibration").glob("*/ranges.json")
    return path


def ranges_of(table: Path) -> np.ndarray:
    content = json.loads(ranges_file(table).read_text())
    return np.array([content["minimum"], content["maximum"]], np.float32)


def oracle_codes(vectors: np.ndarray, dtype: str, ranges: np.ndarray | None) -> np.ndarray:
    from sentence_transformers.util import quantize_embeddings

    return quantize_embeddings(vectors, dtype, ranges=ranges)


@pytest.mark.parametrize("dtype", [*SCALAR, *PACKED])
def test_codes_are_those_of_sentence_transformers_with_the_tables_ranges(corpus, odd_model, tmp_path, dtype):
    inline.embed(table_spec(corpus, odd_model, tmp_path / "float", "float32"))
    inline.embed(table_spec(corpus, odd_model, tmp_path / "table", dtype))
    rows = read_table(tmp_path / "table")
    floats, codes = vectors_of(read_table(tmp_path / "float")), vectors_of(rows)
    ranges = ranges_of(tmp_path / "table") if dtype in SCALAR else None
    # Both runs encode the same batches, so that not even a value on the border of two steps may differ.
    expected = oracle_codes(floats, dtype, ranges)
    assert codes.dtype == expected.dtype
    assert np.array_equal(codes, expected)
    if ranges is not None:
        # The sample was cut into other batches than the run.
        assert np.allclose(ranges, [floats.min(axis=0), floats.max(axis=0)], atol=1e-6)
    direct = oracle_codes(load_oracle(odd_model).encode(rows["text"].to_pylist()), dtype, ranges)
    differing = codes.view(np.uint8) != direct.view(np.uint8)
    assert differing.mean() < 0.01


@pytest.mark.parametrize("dtype", [*SCALAR, *PACKED])
def test_a_single_file_says_how_its_codes_are_read_back(corpus, odd_model, tmp_path, dtype):
    spec = table_spec(corpus, odd_model, tmp_path / "table", dtype)
    inline.embed(spec)
    write_rows(corpus / "b.jsonl", [f"b{n:02}" for n in range(50)])
    version = inline.embed(spec)  # parts were merged, and rewritten without the rows that left
    files = list((tmp_path / "table" / "data").rglob("*.parquet"))
    assert files
    for schema in [*(pq.read_schema(file) for file in files), pipeline.read(tmp_path / "table").schema]:
        told = json.loads(schema.metadata[QUANTISED])
        assert (told["column"], told["dtype"], told["dim"]) == ("embedding", dtype, 20)
        if dtype in SCALAR:
            assert np.array_equal(np.float32([told["minimum"], told["maximum"]]), ranges_of(tmp_path / "table"))
    (entry,) = version.embeddings
    assert (entry["dtype"], entry["dim"]) == (dtype, 20)
    if dtype in SCALAR:
        assert tmp_path / "table" / entry["calibration"]["path"] == ranges_file(tmp_path / "table")
    else:
        assert entry["calibration"] is None
    rows = pipeline.read(tmp_path / "table").to_table().sort_by("id")
    assert rows.select(["id", "embedding"]).equals(read_table(tmp_path / "table").select(["id", "embedding"]))
    assert rows.num_rows == 110


def test_a_code_takes_a_byte_in_the_file_not_four(corpus, odd_model, tmp_path):
    inline.embed(table_spec(corpus, odd_model, tmp_path / "table", "int8"))
    for file in (tmp_path / "table" / "data").rglob("*.parquet"):
        group = pq.read_metadata(file).row_group(0)
        vectors = next(
            c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith("embedding")
        )
        assert vectors.has_dictionary_page
        assert not vectors.is_stats_set


def test_a_float_table_has_no_metadata_and_no_calibration(corpus, tiny_model, tmp_path):
    version = inline.embed(table_spec(corpus, tiny_model, tmp_path / "table", "float32"))
    assert snapshot.hex_to_schema(version.schema).metadata is None
    assert version.embeddings[0]["calibration"] is None
    assert version.fingerprint_of["calibration"] is None
    assert not (tmp_path / "table" / "meta" / "calibration").exists()


@pytest.mark.parametrize("dtype", ["int8", "ubinary"])
def test_readers_agree_on_ids_and_codes(corpus, odd_model, tmp_path, dtype):
    import duckdb
    import pandas
    import polars
    import pyarrow.dataset as pads

    spec = table_spec(corpus, odd_model, tmp_path / "table", dtype)
    inline.embed(spec)
    pattern = f"{tmp_path}/table/data/**/*.parquet"
    query = f"select id, lang, embedding from read_parquet('{pattern}', hive_partitioning=true)"
    frame = pandas.read_parquet(tmp_path / "table" / "data")
    frame["embedding"], frame["lang"] = (
        [list(map(int, codes)) for codes in frame["embedding"]],
        frame["lang"].astype(str),
    )
    found = {
        "pandas": pa.Table.from_pandas(frame, preserve_index=False),
        "pyarrow": pads.dataset(tmp_path / "table" / "data", partitioning="hive").to_table(),
        "polars": polars.read_parquet(pattern, hive_partitioning=True).to_arrow(),
        "duckdb": duckdb.sql(query).to_arrow_table(),
    }
    expected = read_table(tmp_path / "table")
    vectors = vectors_of(expected)
    assert vectors.dtype == (np.int8 if dtype == "int8" else np.uint8)
    assert len(np.unique(vectors, axis=0)) > 30
    for name, table in found.items():
        rows = table.sort_by("id")
        assert rows["id"].to_pylist() == expected["id"].to_pylist(), name
        assert rows["lang"].to_pylist() == expected["lang"].to_pylist(), name
        assert np.array_equal(np.array(rows["embedding"].to_pylist()), vectors), name


def test_a_later_run_uses_the_same_ranges_and_encodes_only_what_is_new(corpus, tiny_model, tmp_path):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "int8")
    first = inline.embed(spec)
    before = ranges_file(tmp_path / "table").stat()
    write_rows(corpus / "c.jsonl.gz", [f"c{n}" for n in range(30)], topic="안녕 하세요 中文 you your year")
    assert pipeline.plan(spec).fingerprint == first.fingerprint
    second = inline.embed(spec)
    after = ranges_file(tmp_path / "table").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert second.fingerprint == first.fingerprint
    assert (second.counts.new, second.counts.reused) == (30, 120)
    inline.embed(table_spec(corpus, tiny_model, tmp_path / "float", "float32"))
    floats, ranges = vectors_of(read_table(tmp_path / "float")), ranges_of(tmp_path / "table")
    assert (floats < ranges[0]).any() or (floats > ranges[1]).any()
    assert np.array_equal(vectors_of(read_table(tmp_path / "table")), oracle_codes(floats, "int8", ranges))


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_run_that_died_after_the_calibration_goes_on_with_it(corpus, tiny_model, tmp_path, stop_after):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "int8", limits={"unit_rows": 40})
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=stop_after)
    before = ranges_file(tmp_path / "table").stat().st_mtime_ns
    planned = pipeline.plan(spec)
    assert planned.fingerprint is not None
    assert prepare.prepare(spec, writes=False).rows_to_do in (None, 120 - 40 * stop_after)
    version = inline.embed(spec)
    assert ranges_file(tmp_path / "table").stat().st_mtime_ns == before
    assert version.fingerprint == planned.fingerprint
    # Each row once, over both runs: their records count into the version.
    assert (version.counts.rows, version.counts.encoded) == (120, 120)


class Measured(inline.InProcess):
    """An executor that always measures this."""

    def __init__(self, measured: calibration.Measurement) -> None:
        super().__init__()
        self._measured = measured

    def flow(self, job, tasks, flow, on_progress):
        assert flow is MEASURE
        yield sample.measured(self._measured)


def test_of_two_first_runs_the_faster_one_decides_for_both(corpus, tiny_model, tmp_path):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "int8")
    slower = prepare.prepare(spec, writes=True)
    version = inline.embed(spec)
    texts = frozenset([b"a", b"b"])
    measured = calibration.Measurement(texts=texts, units=frozenset(), minimum=(-1.0,) * 32, maximum=(1.0,) * 32)
    slower = calibrate(slower, Measured(measured))
    assert slower.vectors.fingerprint == version.fingerprint
    assert np.array_equal(slower.vectors.calibration.ranges, ranges_of(tmp_path / "table"))


def test_a_file_that_is_replaced_while_it_is_measured_is_planned_again(corpus, tiny_model, tmp_path):
    prepared = prepare.prepare(table_spec(corpus, tiny_model, tmp_path / "table", "int8"), writes=True)
    write_rows(corpus / "b.jsonl", ["b0", "b1"])
    with pytest.raises(SourceChanged, match=r"b\.jsonl"):
        calibrate(prepared, inline.InProcess())
    assert not (tmp_path / "table" / "meta" / "calibration").exists()


@pytest.mark.parametrize(("dtype", "rows"), [("float32", 25), ("float16", 50), ("uint8", 100), ("binary", 807)])
def test_a_slice_holds_so_many_bytes_of_vectors_as_they_travel(corpus, tiny_model, tmp_path, monkeypatch, dtype, rows):
    prepared = prepare.prepare(table_spec(corpus, tiny_model, tmp_path / "table", dtype), writes=False)
    monkeypatch.setattr(prepared_run, "VECTOR_BYTES", 3200 + 31)
    corpus = replace(prepared.corpus, survey=replace(prepared.survey, rows_estimate=10_000))
    prepared = replace(prepared, corpus=corpus)
    assert prepared.worker_spec(inline.POOLS).read.slice_rows == rows
    monkeypatch.setattr(prepared_run, "FLOAT_BYTES", 3200)
    assert prepared.worker_spec(inline.POOLS).read.slice_rows == 25


def test_a_dry_run_before_the_calibration_loads_neither_torch_nor_ray_and_says_so(corpus, tiny_model, tmp_path):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "uint8")
    config = tmp_path / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "source": {"path": str(corpus), "id": "id", "text": "text"},
                "model": {"path": str(tiny_model)},
                "table": {"path": str(tmp_path / "table"), "dtype": "uint8", "partition_by": ["lang"]},
            }
        )
    )
    program = (
        "import sys; from jobs import embed\n"
        f"code = embed.main([{str(config)!r}, '--dry-run'])\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == job.CHANGES_PENDING, done.stderr
    assert "first      measure what int8 needs on about 1,024 texts" in done.stdout
    before = pipeline.plan(spec)
    assert (before.fingerprint, before.units_to_encode) == (None, 1)
    assert not (tmp_path / "table").exists()
    version = inline.embed(spec)
    after = pipeline.plan(spec)
    assert (after.fingerprint, after.changes_pending) == (version.fingerprint, False)
    assert "value ranges" not in str(after)


def test_vectors_of_another_dtype_model_or_ranges_are_refused(corpus, tiny_model, odd_model, tmp_path):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "int8")
    inline.embed(spec)
    for other in ("uint8", "float32", "ubinary"):
        with pytest.raises(InputError, match=f'dtype was "int8", is "{other}"'):
            prepare.prepare(replace(spec, table=replace(spec.table, dtype=other)), writes=True)
    with pytest.raises(InputError, match=r"built with another model \(.*: vectors of two models don't compare"):
        prepare.prepare(table_spec(corpus, odd_model, tmp_path / "table", "int8"), writes=True)
    path = ranges_file(tmp_path / "table")
    content = path.read_text()
    path.unlink()
    with pytest.raises(InputError, match=r"built with stand in .*/meta/calibration/.*gone: put it back"):
        prepare.prepare(spec, writes=True)
    with pytest.raises(InputError, match="which is gone"):
        search.search(spec, "x", 1)
    path.write_text(content.replace('"rows": 120', '"rows": 121'))
    with pytest.raises(InputError, match=r"ranges\.json, which is another file now: put it back"):
        prepare.prepare(spec, writes=True)
    path.write_text(content)
    assert prepare.prepare(spec, writes=True).plan.changes_nothing


@pytest.mark.parametrize("dtype", [*SCALAR, "float16"])
@pytest.mark.parametrize("query", ["the market 30", "rain", "a game of the team 16 a16"])
def test_the_best_hit_is_that_of_the_float_table(corpus, tiny_model, tmp_path, dtype, query):
    found = {}
    for name in ("float32", dtype):
        spec = table_spec(corpus, tiny_model, tmp_path / name, name)
        inline.embed(spec)
        found[name] = search.search(spec, query, 3).to_pylist()
    best, other = found["float32"][0], found[dtype][0]
    assert other["id"] == best["id"]
    assert abs(other["score"] - best["score"]) < 0.01


@pytest.mark.parametrize("dtype", PACKED)
def test_a_text_of_a_binary_table_is_found_by_its_signs(corpus, odd_model, tmp_path, dtype):
    spec = table_spec(corpus, odd_model, tmp_path / "table", dtype)
    inline.embed(spec)
    rows = read_table(tmp_path / "table")
    signs = (
        np.unpackbits(vectors_of(rows).view(np.uint8) ^ (0x80 if dtype == "binary" else 0), axis=1, count=20) * 2.0 - 1
    )
    query = load_oracle(odd_model).encode([rows["text"][11].as_py()])[0]
    scores = signs @ query / (np.linalg.norm(signs, axis=1) * np.linalg.norm(query))
    found = search.search(spec, rows["text"][11].as_py(), 5)
    assert np.allclose(found["score"].to_numpy(), np.sort(scores)[::-1][:5], atol=1e-5)
    assert scores[11] >= np.sort(scores)[-3]


def test_chunks_and_means_of_chunks_are_measured_as_they_stand_in_the_table(tiny_model, tmp_path):
    rows = [{"id": f"d{n}", "text": " ".join(f"{TOPICS[k % 5]} {n} {k}" for k in range(40))} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for form in ("chunks", "documents"):
        chunk = {"max_tokens": 32, "overlap_tokens": 4, "rows": form}
        for dtype in ("int8", "float32"):
            spec = spec_of(
                tmp_path / "a.jsonl", tiny_model, tmp_path / form / dtype, table={"dtype": dtype}, chunk=chunk
            )
            inline.embed(spec)
        floats, ranges = vectors_of(read_table(tmp_path / form / "float32")), ranges_of(tmp_path / form / "int8")
        assert np.allclose(ranges, [floats.min(axis=0), floats.max(axis=0)], atol=1e-6)
        assert json.loads(ranges_file(tmp_path / form / "int8").read_text())["rows"] == len(floats)


def test_rows_that_fail_and_rows_that_where_leaves_out_are_not_measured(tiny_model, tmp_path):
    lines = [json.dumps({"id": f"d{n}", "text": f"the market {n}", "n": n}) for n in range(300)]
    lines[2] = json.dumps({"id": "bad", "text": None, "n": 200})
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "no json", ""]))
    spec = spec_of(
        tmp_path / "a.jsonl",
        tiny_model,
        tmp_path / "table",
        table={"dtype": "int8"},
        source={"where": "n >= 150"},
        limits={"max_failed_rows": 9},
    )
    version = inline.embed(spec)
    assert version.counts.rows == 150
    assert json.loads(ranges_file(tmp_path / "table").read_text())["rows"] == 150


def test_where_few_rows_pass_the_sample_goes_on(tiny_model, tmp_path):
    """The first round takes few texts of each of 200 files; only the last one has rows that pass."""
    (tmp_path / "in").mkdir()
    for number in range(200):
        rows = [{"id": f"{number}-{n}", "text": f"the city {n}", "n": number} for n in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"{number:03}.parquet")
    spec = spec_of(
        tmp_path / "in", tiny_model, tmp_path / "table", table={"dtype": "int8"}, source={"where": "n == 199"}
    )
    assert inline.embed(spec).counts.rows == 20
    assert json.loads(ranges_file(tmp_path / "table").read_text())["rows"] == 20


def write_texts(path: Path, texts: list[str]) -> Path:
    rows = [{"id": f"{n:05}", "text": text, "lang": "en"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def clipped_share(tiny_model: Path, source: Path, folder: Path, ranges: np.ndarray) -> float:
    inline.embed(spec_of(source, tiny_model, folder / "float"))
    return float(outside(vectors_of(read_table(folder / "float")), ranges).mean())


def various(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    words = " ".join(TOPICS).split()
    return [f"{' '.join(draw.choice(words, draw.integers(3, 9)))} {n}" for n in range(count)]


@pytest.mark.parametrize("same", [1100, 2900])
def test_equal_texts_at_the_head_of_a_file_leave_the_ranges_of_the_others(tiny_model, tmp_path, same):
    source = write_texts(tmp_path / "a.jsonl", ["n/a"] * same + various(3000 - same))
    inline.embed(spec_of(source, tiny_model, tmp_path / "table", table={"dtype": "int8"}))
    codes = vectors_of(read_table(tmp_path / "table"))
    assert len(np.unique(codes, axis=0)) > 0.9 * (3000 - same)
    assert clipped_share(tiny_model, source, tmp_path, ranges_of(tmp_path / "table")) < 0.002


def test_a_sorted_file_is_measured_to_its_end(tiny_model, tmp_path):
    korean = [" ".join(np.random.default_rng(n).choice(list("서울날씨가한국어중문"), 8)) for n in range(1400)]
    source = write_texts(tmp_path / "a.jsonl", [*various(1100), *korean])
    inline.embed(spec_of(source, tiny_model, tmp_path / "table", table={"dtype": "int8"}))
    assert clipped_share(tiny_model, source, tmp_path, ranges_of(tmp_path / "table")) < 0.005


@pytest.mark.parametrize("change", [{"text": "lang"}, {"limit": 2}, {"where": "id < '00003'"}])
def test_ranges_of_an_attempt_with_another_source_are_not_taken(tiny_model, tmp_path, change):
    source = write_texts(tmp_path / "a.jsonl", various(300))
    if "text" in change:
        rows = [{"id": f"{n}", "text": text, "lang": f"e{n % 3}"} for n, text in enumerate(various(300))]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(inline.Died):
        inline.embed(
            spec_of(source, tiny_model, tmp_path / "table", table={"dtype": "int8"}, source=change), stop_after=0
        )
    first = ranges_file(tmp_path / "table")
    spec = spec_of(source, tiny_model, tmp_path / "table", table={"dtype": "int8"})
    version = inline.embed(spec)
    path = tmp_path / "table" / version.embeddings[0]["calibration"]["path"]
    assert path != first
    assert json.loads(path.read_text())["rows"] == 300
    # From now on the version's own ranges count, whatever the source looks like and whatever else stands there.
    narrowed = prepare.prepare(replace(spec, source=replace(spec.source, limit=100)), writes=True)
    assert narrowed.vectors.fingerprint == version.fingerprint


def test_a_file_that_arrives_after_a_crash_costs_nothing_that_was_done(corpus, tiny_model, tmp_path):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "int8", limits={"unit_rows": 40})
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=1)
    before = ranges_file(tmp_path / "table").read_bytes()
    write_rows(corpus / "z.jsonl.gz", [f"z{n}" for n in range(30)])
    assert prepare.prepare(spec, writes=False).vectors.fingerprint is not None
    version = inline.embed(spec)
    assert ranges_file(tmp_path / "table").read_bytes() == before
    assert (version.counts.rows, version.counts.encoded) == (150, 150)


def damaged(source: Path, tiny_model: Path, table: Path) -> RunSpec:
    """An attempt died and left ranges of two texts, for a source that has 400 now."""
    spec = spec_of(source, tiny_model, table, table={"dtype": "int8"})
    lines = source.read_text()
    source.write_text("".join(lines.splitlines(keepends=True)[:2]))
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=0)
    source.write_text(lines)
    return spec


def test_a_first_version_with_many_clipped_numbers_is_not_published(tiny_model, tmp_path):
    spec = damaged(write_texts(tmp_path / "a.jsonl", various(400)), tiny_model, tmp_path / "table")
    with pytest.raises(
        RunError, match=r"% of 12,800 numbers lie outside .*ranges\.json .*delete that file and run again"
    ):
        inline.embed(spec)
    assert not snapshot.versions(prepare.prepare(spec, writes=False).table)
    ranges_file(tmp_path / "table").unlink()
    assert inline.embed(spec).counts.rows == 400


def test_it_ends_as_soon_as_that_is_sure(tiny_model, tmp_path):
    prepared = prepare.prepare(
        spec_of(write_texts(tmp_path / "a.jsonl", various(9)), tiny_model, tmp_path / "t"), writes=False
    )
    half = Effort(coded=50_000, clipped=1_999)
    guard.check_clipped(prepared, half, done=0.5)
    guard.check_clipped(prepared, Effort(coded=9_999, clipped=9_999), done=1.0)
    with pytest.raises(RunError, match=r"4\.0% of 50,000"):
        guard.check_clipped(prepared, half + Effort(clipped=2), done=0.5)
    with pytest.raises(RunError, match=r"4\.0% of 50,000"):
        guard.check_clipped(prepared, half)
    target = replace(prepared.target, parent=replace(prepared.parent, version=1))
    guard.check_clipped(replace(prepared, target=target), half)


def test_a_later_run_with_clipped_numbers_says_so_in_its_summary(tiny_model, tmp_path):
    source = write_texts(tmp_path / "a.jsonl", TOPICS[:3])
    spec = spec_of(source, tiny_model, tmp_path / "table", table={"dtype": "uint8"})
    first = inline.embed(spec)
    write_texts(source, [*TOPICS[:3], *various(400)])
    prepared = prepare.prepare(spec, writes=True)
    units, written = {unit.unit_id for unit in prepared.plan.added}, []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replace_units, "publish", lambda attempt, work, *_: written.extend(work.done) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            by_units.embed_units(prepared, inline.InProcess(), 0.0)
    assert {unit.unit_id for unit, _ in written} == units
    effort = sum((item.effort for _, items in written for item in items), Effort())
    told = str(runs.embed(spec, inline.InProcess()))  # It goes by row.
    assert "of the uint8 numbers of this run lie outside the table's value ranges" in told
    second = snapshot.current(prepared.table)
    assert second.fingerprint == first.fingerprint
    share = clipped_share(tiny_model, source, tmp_path, ranges_of(tmp_path / "table"))
    assert effort.clipped / effort.coded == pytest.approx(share, abs=1e-3)
    encoded = replace(summary.NOTHING_ENCODED, effort=effort)
    (note,) = [line for line in summary.summarise(prepared, second, encoded, {}).notes if "lie outside" in line]
    assert note.startswith(f"{share:.1%} of the uint8 numbers of this run lie outside")
    quiet = replace(encoded, effort=replace(effort, clipped=effort.coded // 1000))
    assert "lie outside" not in str(summary.summarise(prepared, second, quiet, {}))


@pytest.mark.parametrize("texts", [[], ["alone"], ["alone"] * 50])
def test_too_few_rows_end_the_run_with_what_to_do(tiny_model, tmp_path, texts):
    rows = [{"id": "bad", "text": None}, *({"id": text, "text": text} for text in texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", table={"dtype": "int8"})
    with pytest.raises(RunError, match=f"{len(set(texts))} of the source's rows gave a vector.*table.dtype to float32"):
        inline.embed(spec)
    assert not (tmp_path / "table" / "meta" / "calibration").exists()


def test_zero_vectors_are_refused_though_their_codes_look_like_others(corpus, tiny_model, tmp_path, monkeypatch):
    spec = table_spec(corpus, tiny_model, tmp_path / "table", "int8")
    whole = encode.vectors_of

    def zeroed(*args):
        encoded, vectors, failed = whole(*args)
        return encoded, vectors * (np.arange(len(vectors)) != 3)[:, None], failed

    monkeypatch.setattr(encode, "vectors_of", zeroed)
    with pytest.raises(GateFailed, match="not finite or are zero"):
        inline.embed(spec)


@pytest.mark.slow
def test_ray_measures_the_same_ranges_and_gives_the_same_table(corpus, tiny_model, ray_address, tmp_path):
    here, there = (tmp_path / name for name in ("here", "there"))
    inline.embed(table_spec(corpus, tiny_model, here, "int8"))
    spec = table_spec(corpus, tiny_model, there, "int8", resources={"ray_address": ray_address, "encoders": 1})
    summary = job.embed(spec)
    assert (summary.counts.rows, summary.counts.failed) == (120, 0)
    assert summary.seconds["calibrate"] > 0
    # The vectors that were measured left no probes of their own.
    (probed,) = (there / "staging" / "probes").iterdir()
    assert probed.stem == prepare.prepare(spec, writes=False).vectors.fingerprint
    assert np.allclose(ranges_of(there), ranges_of(here), atol=1e-6)
    apart = np.abs(vectors_of(read_table(there)).astype(int) - vectors_of(read_table(here)))
    assert apart.max() <= 1
    write_rows(corpus / "c.jsonl.gz", [f"c{n}" for n in range(10)])
    again = job.embed(spec)
    assert (again.counts.new, again.counts.reused) == (10, 120)
    assert "calibrate" not in again.seconds


@pytest.mark.slow
def test_a_refusing_encoder_ends_the_calibration_on_ray(corpus, tiny_model, ray_address, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    spec = table_spec(corpus, model, tmp_path / "table", "int8", resources={"ray_address": ray_address})
    weights = load_file(model / "model.safetensors")
    weights.popitem()  # the file is whole, so that only who loads it can tell
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"encoder: .* lack 1 tensors"):
        job.embed(spec)
    assert not (tmp_path / "table" / "meta").exists()


def test_the_summary_tells_of_few_texts(tiny_model, tmp_path):
    write_rows(tmp_path / "a.jsonl", [f"d{n}" for n in range(12)])
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", table={"dtype": "int8"})
    inline.embed(spec)
    assert "measured on 12 texts only" in str(summary.nothing_to_do(prepare.prepare(spec, writes=True)))
