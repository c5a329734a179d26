"""What a person can get wrong: one clear message and exit 2 before any work, or a dead letter and the rest embedded."""

import dataclasses
import functools
import gzip
import json
import os
import re
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from jobs import embed as job
from jobs.command import main_of
from pipeline import config
from pipeline.encoder.encoder import Encoder
from pipeline.errors import GateFailed, PipelineError, RunError
from pipeline.runs import prepare
from pipeline.stages import encode as stages
from pipeline.storage import Folder
from pipeline.table import layout, materialise, snapshot
from pipeline.table.quantize import quantize
from tests.inline import embed, read_table, spec_of, vectors_of
from tests.tiny import build_tiny_model


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"], "n": [1, 2]}), folder / "a.parquet")
    return folder


def outcome(tmp_path, capsys, raw, *flags) -> tuple[int, str]:
    """Exit code and message of a real command line."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    code = main_of(lambda: job.main([str(tmp_path / "run.yaml"), *flags]))
    return code, capsys.readouterr().err


def raw_of(corpus, model, table, **source) -> dict:
    return {
        "source": {"path": str(corpus), "id": "id", "text": "text"} | source,
        "model": {"path": str(model)},
        "table": {"path": str(table)},
    }


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"text": "txt"}, ["txt", "text"]),
        ({"id": "ids"}, ["ids", "id"]),
        ({"keep": ["title"]}, ["title"]),
        ({"text": "n"}, ["n", "int64"]),
        ({"path": "/nowhere/*.parquet"}, ["/nowhere/*.parquet"]),
        ({"format": "orc"}, ["source.format"]),
        ({"where": "n == 'x'"}, ["source.where", "n"]),
        ({"schema": {"text": "int7"}}, ["source.schema", "int7"]),
        ({"schema": {"m": "int8"}}, ["source.schema", "m"]),
        ({"path": "ftp://host/*.parquet"}, ["ftp://", "s3://"]),
    ],
)
def test_a_source_that_is_not_as_described_ends_with_exit_2(source, said, corpus, tiny_model, tmp_path, capsys):
    code, message = outcome(tmp_path, capsys, raw_of(corpus, tiny_model, tmp_path / "table", **source))
    assert code == 2
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    for piece in said:
        assert piece in message
    assert not (tmp_path / "table").exists()


def test_names_with_line_ends_make_no_message_of_several_lines(corpus, tiny_model, tmp_path, capsys):
    rows = [{"id": "a", "text": "x", "n": {"\r\n\x1b[2J": 1}}, {"id": "b", "text": "x", "n": "y"}]
    (corpus / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, message = outcome(tmp_path, capsys, raw_of(corpus / "b.jsonl", tiny_model, tmp_path / "table", keep=["n"]))
    assert (code, len(message.splitlines()), "\x1b" in message) == (2, 1, False), message


def test_a_folder_that_is_no_model_ends_with_exit_2(corpus, tmp_path, capsys):
    for path in [str(corpus), str(tmp_path / "nothing"), "package:no_such_package/model", "org/some-model"]:
        code, message = outcome(tmp_path, capsys, raw_of(corpus, path, tmp_path / "table"))
        assert (code, path in message) == (2, True), message


class RunsCode:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_weights_that_would_run_code_end_with_exit_2_and_run_none(corpus, tmp_path, capsys):
    model = build_tiny_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights | {"more": RunsCode(tmp_path / "marker")}, model / "pytorch_model.bin")
    code, message = outcome(tmp_path, capsys, raw_of(corpus, model, tmp_path / "table"))
    assert (code, "would call 'posix.mkdir'" in message, len(message.splitlines())) == (2, True, 1), message
    assert not (tmp_path / "marker").exists()


def test_a_table_inside_its_source_ends_with_exit_2(corpus, tiny_model, tmp_path, capsys):
    for table in [corpus, corpus / "table", tmp_path]:
        code, message = outcome(tmp_path, capsys, raw_of(corpus, tiny_model, table))
        assert (code, "table.path" in message) == (2, True), message


def test_a_kept_type_that_cannot_partition_ends_with_exit_2(corpus, tiny_model, tmp_path, capsys):
    pq.write_table(pa.table({"id": ["a"], "text": ["one"], "x": [[1.5]]}), corpus / "a.parquet")
    raw = raw_of(corpus, tiny_model, tmp_path / "table")
    raw["table"]["partition_by"] = ["x"]
    code, message = outcome(tmp_path, capsys, raw)
    assert (code, "partition_by" in message) == (2, True), message


@pytest.mark.slow
def test_an_unreachable_or_unknown_bucket_and_refused_keys_end_with_exit_2(corpus, tiny_model, moto, tmp_path, capsys):
    options = dict(moto.storage_options)
    nowhere = {"key": "k", "secret": "topsecretvalue", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    for place, given in [("s3://no-such-bucket/x", options), ("s3://bucket/x", nowhere)]:
        raw = raw_of(place + "/*.parquet", tiny_model, tmp_path / "table", storage_options=given)
        code, message = outcome(tmp_path, capsys, raw)
        assert code == 2, message
        assert place in message
        assert "topsecretvalue" not in message
        raw = raw_of(corpus, tiny_model, place)
        raw["table"]["storage_options"] = given
        code, message = outcome(tmp_path, capsys, raw)
        assert code == 2, message


def test_refused_keys_end_with_exit_2(tiny_model, rclone, tmp_path, capsys):
    bucket = rclone.make_bucket("refused")
    given = {**rclone.storage_options, "secret": "not-the-secret"}
    raw = raw_of(f"s3://{bucket}/x/*.parquet", tiny_model, tmp_path / "table", storage_options=given)
    code, message = outcome(tmp_path, capsys, raw)
    assert code == 2, message
    assert "not-the-secret" not in message


def test_another_model_on_a_published_table_ends_with_exit_2(corpus, tiny_model, tmp_path, capsys):
    embed(spec_of(corpus, tiny_model, tmp_path / "table"))
    raw = raw_of(corpus, tiny_model, tmp_path / "table")
    raw["model"]["prompt"] = "query: "
    code, message = outcome(tmp_path, capsys, raw)
    told = 'was built with other settings of the same model (model.prompt was "", is "query: ")'
    assert (code, told in message, "two models" in message) == (2, True, False)


def test_a_dry_run_changes_nothing_and_says_what_is_pending(corpus, tiny_model, tmp_path, capsys):
    raw = raw_of(corpus, tiny_model, tmp_path / "table")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert job.main([str(tmp_path / "run.yaml"), "--dry-run", "--json"]) == 10
    said = json.loads(capsys.readouterr().out)
    assert (said["files"], said["rows"], said["units"]) == (1, 2, 1)
    assert not (tmp_path / "table").exists()
    embed(spec_of(corpus, tiny_model, tmp_path / "table"))
    assert job.main([str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.fixture
def dirty(tmp_path) -> Path:
    """Good rows g0..g4 and every kind of bad one beside them."""
    folder = tmp_path / "dirty"
    folder.mkdir()
    good = [json.dumps({"id": f"g{n}", "text": f"good {n}"}).encode() for n in range(5)]
    bad = [
        b'{"id": "null text", "text": null}',
        b'{"id": null, "text": "null id"}',
        b'{"id": "broken utf-8", "text": "\xff\xfe"}',
        b'{"id": "surrogate", "text": "\\ud800"}',
        b'{"id": "cut',
        b"[1, 2]",
        b'{"id": "number", "text": 7}',
        json.dumps({"id": "long", "text": "x" * 5000}).encode(),
    ]
    (folder / "a.jsonl").write_bytes(b"\n".join(good[:2] + bad + good[2:3]) + b"\n")
    whole = gzip.compress(b"\n".join([good[3], *(b'{"id": "z", "text": "%d"}' % n for n in range(2000))]))
    (folder / "b.jsonl.gz").write_bytes(whole[:40])
    pq.write_table(pa.table({"id": ["g4", "empty"], "text": ["good 4", ""]}), folder / "c.parquet")
    (folder / "d.parquet").write_bytes(b"PAR1 not really")
    return folder


def test_bad_rows_become_dead_letters_and_the_rest_is_embedded(dirty, tiny_model, tmp_path):
    limits = {"max_failed_rows": 100, "max_failed_files": 2, "max_row_bytes": 1000}
    version = embed(spec_of(dirty, tiny_model, tmp_path / "table", limits=limits))
    ids = read_table(tmp_path / "table")["id"].to_pylist()
    assert {"g0", "g1", "g2", "g4", "empty"} <= set(ids)
    letters = pq.read_table(tmp_path / "table" / layout.dead_letters(1)).to_pylist()
    assert version.counts.failed == version.counts.failed_new == len(letters)
    by_file: dict[str, list[dict]] = {}
    for letter in letters:
        by_file.setdefault(Path(letter["path"]).name, []).append(letter)
    assert {name: len(found) for name, found in by_file.items()} == {"a.jsonl": 8, "b.jsonl.gz": 1, "d.parquet": 1}
    lines = (dirty / "a.jsonl").read_bytes()
    for letter in by_file["a.jsonl"]:
        assert lines[letter["position"] - 1 :][:1] == b"\n"
    for letter in letters:
        assert letter["error"]
        assert "\n" not in letter["error"]
        assert letter["stage"] == "read"


def test_too_many_bad_rows_publish_nothing_and_the_old_version_stays(dirty, corpus, tiny_model, tmp_path):
    embed(spec_of(corpus, tiny_model, tmp_path / "table"))
    before = read_table(tmp_path / "table")
    both = spec_of(
        corpus, tiny_model, tmp_path / "table",
        source={"path": [str(corpus), str(dirty)]}, limits={"max_failed_files": 2},
    )  # fmt: skip
    with pytest.raises(RunError, match=r"limits.max_failed_rows allows 0.01"):
        embed(both)
    table = both.table.path
    assert read_table(table).equals(before)
    limits = {"max_failed_rows": 100, "max_failed_files": 2}
    more = spec_of(corpus, tiny_model, table, source={"path": [str(corpus), str(dirty)]}, limits=limits)
    assert embed(more).version == 2


def test_duplicate_ids_publish_nothing_and_the_message_names_some(corpus, tiny_model, tmp_path):
    pq.write_table(pa.table({"id": ["b", "c"], "text": ["other", "x"]}), corpus / "b.parquet")
    with pytest.raises(GateFailed, match="'b'"):
        embed(spec_of(corpus, tiny_model, tmp_path / "table"))
    assert not (tmp_path / "table" / "data").exists()


def test_a_file_that_breaks_does_not_quietly_delete_its_rows(tiny_model, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "ab":
        rows = [{"id": f"{name}{n}", "text": f"text {n}"} for n in range(50)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    spec = spec_of(folder, tiny_model, tmp_path / "table", limits={"max_failed_rows": 0.1, "max_failed_files": 1})
    embed(spec)
    (folder / "b.parquet").write_bytes((folder / "b.parquet").read_bytes()[:300])
    assert job.embed(spec).exit_code == 3
    assert read_table(tmp_path / "table").num_rows == 100
    with pytest.raises(RunError, match="max_failed_rows"):
        embed(dataclasses.replace(spec, table=dataclasses.replace(spec.table, path=str(tmp_path / "another"))))
    assert not (tmp_path / "another" / "data").exists()


def test_partition_values_too_long_for_a_key_are_refused_before_the_commit(corpus, tiny_model, tmp_path):
    names = list("abcd")
    table = pa.table({"id": ["a"], "text": ["one"]} | {name: ["x" * 250] for name in names})
    pq.write_table(table, corpus / "a.parquet")
    with pytest.raises(GateFailed, match="longer than storage allows"):
        embed(spec_of(corpus, tiny_model, tmp_path / "table", table={"partition_by": names}))
    assert snapshot.versions(Folder(str(tmp_path / "table"))) == []


def test_a_table_path_that_cannot_be_written_ends_with_exit_2(corpus, tiny_model, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for table in (tmp_path / "file", "/proc/nowhere"):
        code, message = outcome(tmp_path, capsys, raw_of(corpus, tiny_model, table))
        assert (code, str(table) in message) == (2, True), message


CUT = {"max_tokens": 16, "overlap_tokens": 2, "border": "word"}


@pytest.mark.parametrize("chunk", [None, {**CUT, "rows": "documents"}, {**CUT, "rows": "chunks"}])
def test_a_row_that_overflows_float16_is_a_dead_letter_and_the_rest_is_published(tmp_path, chunk):
    rows = [{"id": f"d{n}", "text": f"the market {n} " + "oil " * (n % 30)} for n in range(500)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = build_tiny_model(tmp_path / "model", normalize=False, dense=8, activation="Identity")
    spec = spec_of(tmp_path / "a.jsonl", model, tmp_path / "float32", chunk=chunk)
    embed(spec)
    table = read_table(spec.table.path)
    names = np.array(table["doc_id" if chunk and chunk["rows"] == "chunks" else "id"].to_pylist())
    sizes = np.abs(vectors_of(table)).max(axis=1)
    # Scale the vectors such that the largest number of all, and of no other document, is beyond the largest float16.
    largest = names[sizes.argmax()]
    others = sizes[names != largest].max()
    assert sizes.max() > 1.001 * others
    scale_dense(model, 65510 / np.sqrt(sizes.max() * others))
    half = spec_of(tmp_path / "a.jsonl", model, tmp_path / "float16", chunk=chunk, table={"dtype": "float16"})
    version = embed(half)
    assert (version.counts.documents, version.counts.failed) == (499, 1)
    found = read_table(half.table.path)
    assert found.num_rows == (names != largest).sum()
    assert np.isfinite(vectors_of(found)).all()
    (letter,) = dead_letters_of(half)
    assert (letter["id"], letter["stage"]) == (largest, "encode")
    assert re.search(r"its vector does not fit into float16: a number of \d+\.?\d* is larger than 65504; set table.dtype "
                     "to float32$", letter["error"])  # fmt: skip
    assert prepare.prepare(half, writes=False).plan.changes_nothing


def scale_dense(model: Path, factor: float) -> None:
    path = model / "2_Dense" / "model.safetensors"
    save_file({name: weight * float(factor) for name, weight in load_file(path).items()}, path)


def dead_letters_of(spec) -> list[dict]:
    found = [path for path in Path(spec.table.path).rglob("*.parquet") if "dead" in str(path)]
    return [row for path in found for row in pq.read_table(path).to_pylist()]


@hypothesis.given(
    vectors=arrays(
        np.float32, st.tuples(st.integers(0, 5), st.integers(1, 4)), elements=st.floats(width=32, allow_nan=True)
    )
)
def test_what_float16_takes_passes_the_gate_and_the_rest_has_a_reason(vectors):
    whole = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    codes = quantize(vectors, "float16")
    good = np.isfinite(codes).all(axis=1) & codes.any(axis=1)
    reasons = stages._unfit(vectors, "float16")
    assert sorted(reasons) == np.flatnonzero(whole & ~good).tolist()
    assert all("does not fit into float16" in reason for reason in reasons.values())
    assert stages._unfit(vectors, "float32") == {}


def test_a_vector_that_is_not_finite_is_refused_at_the_gate(corpus, tiny_model, tmp_path, monkeypatch):
    encode = Encoder.encode

    def infinite(self, tokens, on_progress=None):
        encoded = encode(self, tokens, on_progress)
        return dataclasses.replace(encoded, vectors=encoded.vectors * np.float32(np.inf))

    monkeypatch.setattr(Encoder, "encode", infinite)
    with pytest.raises(GateFailed, match="not finite"):
        embed(spec_of(corpus, tiny_model, tmp_path / "table", table={"dtype": "float16"}))


def test_a_commit_that_was_not_materialised_is_finished_by_the_next_command(corpus, tiny_model, tmp_path, monkeypatch):
    spec = spec_of(corpus, tiny_model, tmp_path / "table")

    def dies(*_):
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(materialise, "materialise", dies)
        with pytest.raises(RuntimeError):
            embed(spec)
    assert not (tmp_path / "table" / "data").exists()
    assert embed(spec).version == 1
    assert read_table(tmp_path / "table").num_rows == 2
    assert snapshot.versions(Folder(spec.table.path)) == [1]


KEYS = ["source.path", "source.text", "source.id", "source.keep", "source.where", "source.schema", "source.format",
        "source.csv.delimiter", "model.path", "model.prompt_name", "table.path", "table.partition_by",
        "table.embedding_column"]  # fmt: skip
ODD = ["", "/", ".", "..", "*", "[", "**", "~", "~nobody/x", "\0", "a\nb", "package:", "package:..", "memory://", "file://",
       "x://y", "://", "dataset:", "x" * 300, "x/" * 3000, "\ufeff", "e\u0301", "%s", "{0}", "list<", "n >",
       "n > 'x'"]  # fmt: skip


@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    key=st.sampled_from(KEYS), text=st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
def test_any_text_in_any_key_is_planned_or_refused_in_words(corpus, tiny_model, tmp_path, monkeypatch, key, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = raw_of(corpus, tiny_model, tmp_path / "table", keep=["n"], csv={})
    *sections, name = key.split(".")
    place = functools.reduce(dict.__getitem__, sections, raw)
    place[name] = {"n": text} if name == "schema" else [text] if name in ("keep", "partition_by") else text
    told = refusal(lambda: prepare.prepare(config.from_mapping(raw), writes=False))
    assert told is None or (told.exit_code == 2 and len(str(told).splitlines()) == 1), told


def refusal(call) -> PipelineError | None:
    try:
        call()
    except PipelineError as error:
        return error
    return None
