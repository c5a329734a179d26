"""A configuration is complete and well typed, or the message says what is wrong with which key."""

from pathlib import Path

import pytest
import yaml

from pipeline import config
from pipeline.errors import ConfigError

MINIMAL = {"source": {"path": "a", "text": "body"}, "model": {"path": "m"}, "table": {"path": "t"}}
CONF = Path(__file__).parents[1] / "conf"


def given(section: str, **keys: object) -> dict[str, object]:
    return MINIMAL | {section: MINIMAL.get(section, {}) | keys}


def test_a_minimal_configuration_has_the_documented_defaults():
    spec = config.from_mapping(MINIMAL)
    assert (spec.source.format, spec.source.id, spec.source.keep) == ("auto", None, ())
    assert (spec.table.embedding_column, spec.table.dtype, spec.table.keep_text) == ("embedding", "float32", True)
    assert (spec.limits.max_failed_rows, spec.limits.unit_rows, spec.limits.max_row_bytes) == (0.01, 8192, 16777216)
    assert (spec.resources.ray_address, spec.resources.encoders) == (None, "auto")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "source is missing"),
        ({"source": {"path": "a", "text": "b"}, "model": {"path": "m"}}, "table is missing"),
        (given("source", text=""), "source.text is empty"),
        ({**MINIMAL, "sorce": {}}, "unknown key 'sorce'; did you mean 'source'"),
        (given("source", colum="x"), "unknown key 'source.colum'"),
        (given("table", embeding_column="x"), "did you mean 'embedding_column'"),
        (given("source", path=7), "source.path is 7; expected a string or a list of strings"),
        (given("source", keep="title"), "source.keep is 'title'; expected a list of strings"),
        (given("source", keep=["embedding"]), "table.embedding_column 'embedding' is also in source.keep"),
        (given("source", keep=["source"]), "a column that the table writes itself"),
        (given("source", keep=["a", "a"]), "names a column twice"),
        (given("source", where=["x > 1"]), "source.where is a list; expected a string or null"),
        (given("source", limit=0), "source.limit is 0; give a whole number of at least 1"),
        (given("source", id=[]), "source.id is empty"),
        (given("source", schema={"a": 1}), "source.schema.a is 1; expected the name of an Arrow type"),
        (given("source", on_null="drop"), "source.on_null is 'drop'; expected dead_letter | skip"),
        (given("source", csv={"delimiter": "::"}), "source.csv.delimiter is '::'; give one character"),
        (given("source", csv={"quote": ",", "delimiter": ","}), "are both ','"),
        (given("source", csv={"columns": ["a", "a"]}), "source.csv.columns names a column twice"),
        (given("source", dataset={"splitt": "x"}), "unknown key 'source.dataset.splitt'; did you mean 'split'"),
        (given("source", format="orc"), "source.format is 'orc'; expected auto | parquet | jsonl | csv"),
        (given("model", max_seq_length=0), "model.max_seq_length is 0"),
        (given("model", prompt="a", prompt_name="b"), "both given"),
        (given("model", normalize="yes"), "model.normalize is 'yes'; expected true or false or null"),
        (given("model", precision="int8"), "model.precision is 'int8'; expected float32 | float16 | bfloat16"),
        (given("table", path="s3://"), "table.path is 's3://'"),
        (given("table", partition_by=["a", "a"]), "table.partition_by names a column twice"),
        (given("source", storage_options="AKIASECRET"), "source.storage_options is str; expected a section"),
        (given("table", partition_by=["id"]), "names 'id', a column that the table writes itself"),
        (given("resources", encoders=0), "resources.encoders is 0"),
        (given("resources", encoders=True), "resources.encoders is True; expected a whole number or auto"),
        (given("resources", gpus_per_encoder=-1), "resources.gpus_per_encoder is -1"),
        (given("limits", unit_rows=0), "limits.unit_rows is 0"),
        (given("limits", max_failed_rows="many"), "limits.max_failed_rows is 'many'; expected a number"),
        ({**MINIMAL, "chunk": {}}, "chunk.max_tokens is missing"),
        ({**MINIMAL, "chunk": {"max_tokens": 8, "overlap_tokens": 8}}, "chunk.overlap_tokens is 8; give 0 or more"),
        ({**MINIMAL, "chunk": 256}, "chunk is 256; expected a section with keys or null"),
        (
            {**MINIMAL, "chunk": {"max_tokens": 8, "rows": "pages"}},
            "chunk.rows is 'pages'; expected chunks | documents",
        ),
        ({**MINIMAL, "chunkk": {"max_tokens": 8}}, "did you mean 'chunk'"),
        ({**MINIMAL, "source": ["a"]}, "source must be a section"),
    ],
)
def test_what_is_wrong_is_named(raw, said):
    with pytest.raises(ConfigError) as caught:
        config.from_mapping(raw)
    assert said in str(caught.value)


def test_overrides_and_environment_fill_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cr3t")
    raw = given("source", storage_options={"key": "${SECRET_KEY}"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    spec = config.load(tmp_path / "run.yaml", ["limits.unit_rows=64", "table.path=elsewhere", "source.keep=[title]"])
    assert spec.source.storage_options == {"key": "s3cr3t"}
    assert (spec.limits.unit_rows, spec.table.path, spec.source.keep) == (64, "elsewhere", ("title",))


def test_a_secret_is_not_in_what_a_spec_prints(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cr3t")
    options = {"key": "${SECRET_KEY}"}
    raw = given("source", storage_options=options) | {"table": {"path": "t", "storage_options": options}}
    assert "s3cr3t" not in repr(config.from_mapping(raw))


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(ConfigError, match=r"table.path uses \$\{NO_SUCH_VARIABLE_HERE\}"):
        config.from_mapping(given("table", path="${NO_SUCH_VARIABLE_HERE}"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "a: !!python/object:os.system {}\n", ""])
def test_a_file_that_is_no_configuration_is_one_error(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        config.load(tmp_path / "run.yaml")


def test_a_missing_file_and_a_broken_override_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MINIMAL))
    for override in ["limits", "limits.=3", "source.path.x=3", "a=["]:
        with pytest.raises(ConfigError, match="--set"):
            config.load(tmp_path / "run.yaml", [override])


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    config.load(path)


def test_what_can_hold_a_secret_is_not_shown():
    told = []
    for raw in (
        {**MINIMAL, "source": [{"storage_options": {"secret": "s3cr3t"}}]},
        given("source", path={"storage_options": {"secret": "s3cr3t"}}),
        given("source", keep=[{"secret": "s3cr3t"}]),
    ):
        with pytest.raises(ConfigError) as caught:
            config.from_mapping(raw)
        told.append(str(caught.value))
    assert "s3cr3t" not in " ".join(told)


def test_overrides_that_can_t_be_show_no_value(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given("source", storage_options={"key": "k"})))
    for override in ("source.storage_options.key.x=s3cr3t", "=s3cr3t"):
        with pytest.raises(ConfigError) as caught:
            config.load(tmp_path / "run.yaml", [override])
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: &a {b: *a}", "a: " + "[" * 5000, "source: {schema: {1: int64}, path: a, text: b}"]
)
def test_odd_files_are_configuration_errors(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        config.load(tmp_path / "run.yaml")


BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases .* more than 10,000 values"),
        ("limits: &x {unit_rows: *x}\n", "aliases .* more than 10,000 values"),
        ("limits: {unit_rows: 5}\nlimits: {unit_rows: 6}\n", "line 2: a key comes twice"),
        ("limits: {unit_rows: 5, unit_rows: 6}\n", "line 1: a key comes twice"),
        ("limits: {unit_rows: " + "9" * 5000 + "}\n", "number"),
        ("limits: {unit_rows: 2026-99-99}\n", "date"),
    ],
)
def test_what_yaml_reads_too_kindly_is_refused(tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.load(tmp_path / "run.yaml")


def test_what_stands_twice_may_be_an_alias(tmp_path):
    raw = given("source", storage_options={"key": "k", "endpoint_url": "http://localhost"})
    raw["table"]["storage_options"] = raw["source"]["storage_options"]
    text = yaml.safe_dump(raw)
    assert "*id001" in text
    (tmp_path / "run.yaml").write_text(text)
    spec = config.load(tmp_path / "run.yaml", ["table.storage_options.key=another"])
    assert spec.source.storage_options == raw["source"]["storage_options"]
    assert spec.table.storage_options == raw["source"]["storage_options"] | {"key": "another"}


@pytest.mark.parametrize(("section", "key"), [("source", "path"), ("model", "path"), ("table", "path")])
def test_no_path_holds_a_nul(section, key):
    with pytest.raises(ConfigError, match="NUL"):
        config.from_mapping(given(section, **{key: "a\0b"}))
