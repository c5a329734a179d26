"""A configuration is complete and well typed, or the message says what is wrong with which key."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import config, typed_yaml
from pipeline.config import load
from pipeline.errors import ConfigError

MINIMAL = {"source": {"path": "a", "text": "body"}, "model": {"path": "m"}, "table": {"path": "t"}}
CONF = Path(__file__).parents[1] / "conf"


def with_keys(section: str, **keys: object) -> dict[str, object]:
    return MINIMAL | {section: MINIMAL.get(section, {}) | keys}


def test_a_minimal_configuration_has_the_documented_defaults():
    spec = config.from_mapping(MINIMAL)
    assert (spec.source.format, spec.source.id, spec.source.keep) == ("auto", None, ())
    assert (spec.table.embedding_column, spec.table.dtype, spec.table.keep_text) == ("embedding", "float32", True)
    assert (spec.limits.max_failed_rows, spec.limits.unit_rows, spec.limits.max_row_bytes) == (0.01, 8192, 16777216)
    assert spec.limits.max_failed_files == 0.1
    assert (spec.resources.ray_address, spec.resources.encoders) == (None, "auto")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "source is missing"),
        ({"source": {"path": "a", "text": "b"}, "model": {"path": "m"}}, "table is missing"),
        (with_keys("source", text=""), "source.text is empty"),
        ({**MINIMAL, "sorce": {}}, "unknown key 'sorce'; did you mean 'source'"),
        (with_keys("source", colum="x"), "unknown key 'source.colum'"),
        (with_keys("table", embeding_column="x"), "did you mean 'embedding_column'"),
        (with_keys("source", path=7), "source.path is 7; expected a string or a list of strings"),
        (with_keys("source", keep=7), "source.keep is 7; expected a list of strings"),
        (with_keys("source", keep=["embedding"]), "table.embedding_column 'embedding' is also in source.keep"),
        (with_keys("source", keep=["source"]), "a column that the table writes itself"),
        (with_keys("source", keep=["a", "a"]), "names a column twice"),
        (with_keys("source", where=["x > 1"]), "source.where is a list; expected a string or null"),
        (with_keys("source", limit=0), "source.limit is 0; give a whole number of at least 1"),
        (with_keys("source", id=[]), "source.id is empty"),
        (with_keys("source", schema={"a": 1}), "source.schema.a is 1; expected the name of an Arrow type"),
        (with_keys("source", on_null="drop"), "source.on_null is 'drop'; expected dead_letter | skip"),
        (with_keys("source", csv={"delimiter": "::"}), "source.csv.delimiter is '::'; give one character"),
        (with_keys("source", csv={"quote": ",", "delimiter": ","}), "are both ','"),
        (with_keys("source", csv={"columns": ["a", "a"]}), "source.csv.columns names a column twice"),
        (with_keys("source", dataset={"splitt": "x"}), "unknown key 'source.dataset.splitt'; did you mean 'split'"),
        (with_keys("source", format="orc"), "source.format is 'orc'; expected auto | parquet | jsonl | csv"),
        (with_keys("model", max_seq_length=0), "model.max_seq_length is 0"),
        (with_keys("model", prompt="a", prompt_name="b"), "both given"),
        (with_keys("model", normalize="yes"), "model.normalize is 'yes'; expected true or false or null"),
        (
            with_keys("model", precision="int4"),
            "model.precision is 'int4'; expected auto | float32 | float16 | bfloat16",
        ),
        (with_keys("table", path="s3://"), "table.path is 's3://'"),
        (with_keys("table", partition_by=["a", "a"]), "table.partition_by names a column twice"),
        (with_keys("source", storage_options="AKIASECRET"), "source.storage_options is str; expected a section"),
        (with_keys("table", partition_by=["id"]), "names 'id', a column that the table writes itself"),
        (with_keys("resources", encoders=0), "resources.encoders is 0"),
        (with_keys("resources", encoders=True), "resources.encoders is True; expected a whole number or auto"),
        (with_keys("resources", gpus_per_encoder=-1), "resources.gpus_per_encoder is -1"),
        (with_keys("resources", gpus_per_encoder=1.5), "resources.gpus_per_encoder is 1.5"),
        (with_keys("limits", unit_rows=0), "limits.unit_rows is 0"),
        (with_keys("limits", max_failed_rows="many"), "limits.max_failed_rows is 'many'; expected a number"),
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
    raw = with_keys("source", storage_options={"key": "${SECRET_KEY}"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    spec = config.load(tmp_path / "run.yaml", ["limits.unit_rows=64", "table.path=elsewhere", "source.keep=[title]"])
    assert spec.source.storage_options == {"key": "s3cr3t"}
    assert (spec.limits.unit_rows, spec.table.path, spec.source.keep) == (64, "elsewhere", ("title",))


def test_a_secret_is_not_in_what_a_spec_prints(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cr3t")
    options = {"key": "${SECRET_KEY}"}
    raw = with_keys("source", storage_options=options) | {"table": {"path": "t", "storage_options": options}}
    assert "s3cr3t" not in repr(config.from_mapping(raw))


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(ConfigError, match=r"table.path uses \$\{NO_SUCH_VARIABLE_HERE\}"):
        config.from_mapping(with_keys("table", path="${NO_SUCH_VARIABLE_HERE}"))


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


@pytest.mark.parametrize("text", ["{key: ${KEY}}", "[a, ${KEY}]", "{a: b, key: ${KEY} }"])
def test_a_variable_without_quotes_within_braces_is_told(tmp_path, text):
    (tmp_path / "run.yaml").write_text(f"source:\n  storage_options: {text}\n")
    with pytest.raises(ConfigError, match=r'in line 2: .*; write \$\{KEY\} in quotes, as in \{key: "\$\{KEY\}"\}'):
        config.load(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"--set 'source\.storage_options'.*write \$\{KEY\} in quotes"):
        config.from_mapping(MINIMAL, [f"source.storage_options={text}"])
    (tmp_path / "run.yaml").write_text("source: {key: secret, a\n")
    with pytest.raises(ConfigError) as raised:
        config.load(tmp_path / "run.yaml")
    assert "; write $" not in str(raised.value)


def test_a_variable_that_is_not_set_is_told_with_how_to_set_it(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"table\.path uses \$\{NO_SUCH_KEY\}, .*`export NO_SUCH_KEY=\.\.`"):
        config.from_mapping(MINIMAL, ["table.path=${NO_SUCH_KEY}"])


def test_messages_on_relative_paths_name_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"does not exist in the working directory '{tmp_path}'"):
        config.load("none.yaml")
    for path in (str(tmp_path / "none.yaml"), "~/none.yaml"):
        with pytest.raises(ConfigError) as raised:
            config.load(path)
        assert "working directory" not in str(raised.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    leaves: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    branches: Mapping[str, Branch]


def test_a_section_may_hold_named_sections_whose_keys_are_checked():
    read = typed_yaml.build(Tree, {"branches": {"low": {"leaves": 3}, "high": {}}})
    assert read.branches == {"low": Branch(leaves=3), "high": Branch(leaves=1)}
    for raw, said in (
        ({"low": {"leafs": 3}}, "unknown key 'branches.low.leafs'; did you mean 'leaves'"),
        ({"low": {"leaves": "x"}}, "branches.low.leaves is 'x'; expected a whole number"),
        ({"low": 3}, "branches.low must be a section with keys, not 3"),
    ):
        with pytest.raises(ConfigError, match=said):
            typed_yaml.build(Tree, {"branches": raw})


def specs_in(spec: type) -> list[type]:
    inner = [
        found
        for hint in get_type_hints(spec).values()
        for found in (hint, *get_args(hint))
        if dataclasses.is_dataclass(found)
    ]
    return [spec, *(nested for found in inner for nested in specs_in(found))]


@pytest.mark.parametrize("spec", specs_in(config.RunSpec), ids=lambda spec: spec.__name__)
def test_every_key_has_a_help_string_in_whole_sentences(spec):
    body = ast.parse(textwrap.dedent(inspect.getsource(spec))).body[0].body
    assert spec.__doc__.endswith(".")
    for at, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            below = body[at + 1]
            assert isinstance(below, ast.Expr), f"{spec.__name__}.{node.target.id} has no string under it"
            assert re.fullmatch(r"(?s)(?:[A-Z]|`).*\.", below.value.value), below.value.value


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    config.load(path)


def test_what_can_hold_a_secret_is_not_shown():
    told = []
    for raw in (
        {**MINIMAL, "source": [{"storage_options": {"secret": "s3cr3t"}}]},
        with_keys("source", path={"storage_options": {"secret": "s3cr3t"}}),
        with_keys("source", keep=[{"secret": "s3cr3t"}]),
    ):
        with pytest.raises(ConfigError) as caught:
            config.from_mapping(raw)
        told.append(str(caught.value))
    assert "s3cr3t" not in " ".join(told)


def test_overrides_that_can_t_be_show_no_value(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(with_keys("source", storage_options={"key": "k"})))
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


def test_what_stands_twice_may_be_an_alias(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOTHER", "another")
    raw = with_keys("source", storage_options={"key": "k", "endpoint_url": "http://localhost"})
    raw["table"]["storage_options"] = raw["source"]["storage_options"]
    text = yaml.safe_dump(raw)
    assert "*id001" in text
    (tmp_path / "run.yaml").write_text(text)
    spec = config.load(tmp_path / "run.yaml", ["table.storage_options.key=${ANOTHER}"])
    assert spec.source.storage_options == raw["source"]["storage_options"]
    assert spec.table.storage_options == raw["source"]["storage_options"] | {"key": "another"}


@pytest.mark.parametrize(("section", "key"), [("source", "path"), ("model", "path"), ("table", "path")])
def test_no_path_holds_a_nul(section, key):
    with pytest.raises(ConfigError, match="NUL"):
        config.from_mapping(with_keys(section, **{key: "a\0b"}))


# --- hostile texts and values ------------------------------------------------------------------------------------------

APPLY = "!!python/object/apply:os.mkdir [{}]"
BAD_VALUES = {
    "[": "not valid YAML",
    "{[a]: b}": "not valid YAML",
    "!own x": "could not determine a constructor",
    "=": "could not determine a constructor",
    "!a%0Ab x": "not valid YAML",
    "&a [*a]": "aliases",
    "&a {b: *a}": "aliases",
    "{a: 1, a: 2}": "a key comes twice",
    "[" * 5000: "nested too deeply",
    "9" * 5000: "a number",
    "0x" + "f" * 5000: "more than 63 bits",
    "9223372036854775808": "more than 63 bits",
    "2026-99-99": "a date",
    "!!int x": "a number",
    "!!timestamp x": "its tag",
    "!!bool x": "its tag",
    "!!set [x]": "its tag",
    '"\\ud800"': "half of a surrogate pair",
    "\0": "can't be parsed",
}


@pytest.mark.parametrize("text", BAD_VALUES, ids=lambda text: text[:12])
@pytest.mark.parametrize("key", ["source.text", "limits.unit_rows", "source.storage_options.key"])
def test_a_value_that_can_t_be_is_refused_in_words_in_a_file_and_in_an_override(tmp_path, key, text):
    said = BAD_VALUES[text]
    section, *middle, name = key.split(".")
    inner = f"{{{name}: {text}}}"
    for above in middle:
        inner = f"{{{above}: {inner}}}"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MINIMAL))
    (tmp_path / "bad.yaml").write_text(f"{section}: {inner}\n")
    for name, overrides in (("run.yaml", [f"{key}={text}"]), ("bad.yaml", [])):
        # A value that YAML takes is refused already because it stands on the command line.
        secret = "|into the environment" if overrides and "storage_options" in key else ""
        with pytest.raises(ConfigError, match=said + secret) as caught:
            config.load(tmp_path / name, overrides)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500


def test_a_tag_that_would_run_code_is_refused_and_runs_none(tmp_path):
    tag = APPLY.format(tmp_path / "marker")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MINIMAL))
    (tmp_path / "bad.yaml").write_text(f"source: {tag}\n")
    for name, overrides in (("run.yaml", [f"source.text={tag}"]), ("bad.yaml", [])):
        with pytest.raises(ConfigError, match="could not determine a constructor"):
            config.load(tmp_path / name, overrides)
    assert not (tmp_path / "marker").exists()


def test_a_number_that_no_float_holds_is_refused():
    for number in (10**400, -(10**400), 10**19):
        with pytest.raises(ConfigError, match="more than 63 bits"):
            config.from_mapping(with_keys("limits", unit_timeout_s=number))


YAML_TEXTS = st.text(max_size=40) | st.text("{}[]:,-?!&*|>'\"%@` \n#~=<ab0.x", max_size=40)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**500), 2**500)
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(["", "a", "id", "ID", "float32", "${NO_SUCH_VARIABLE_HERE}", "\ud800"])
    | st.dates()
    | st.binary(max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | SCALARS, inner, max_size=3),
    max_leaves=8,
)
KEYS = [f"{section.name}.{key}" for section in dataclasses.fields(config.RunSpec) for key in [
    "path", "text", "id", "keep", "schema", "where", "limit", "csv", "dataset", "storage_options", "format", "max_tokens",
    "partition_by", "embedding_column", "dtype", "encoders", "gpus_per_encoder", "max_failed_rows", "unit_timeout_s", "x",
]]  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=YAML_TEXTS, key=st.sampled_from(KEYS))
def test_any_text_is_a_configuration_or_an_error_in_words(tmp_path, text, key):
    section, name = key.split(".")
    for content in (text, f"{section}: {{{name}: {text}}}"):
        (tmp_path / "run.yaml").write_text(content, encoding="utf-8", errors="surrogatepass")
        in_words(lambda: config.load(tmp_path / "run.yaml"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MINIMAL))
    in_words(lambda: config.load(tmp_path / "run.yaml", [f"{key}={text}"]))
    in_words(lambda: config.load(tmp_path / "run.yaml", [text]))


@settings(deadline=None)
@given(raw=VALUES, key=st.sampled_from(KEYS), value=VALUES)
def test_any_values_are_a_configuration_or_an_error_in_words(raw, key, value):
    section, name = key.split(".")
    in_words(lambda: config.from_mapping(raw))
    in_words(lambda: config.from_mapping(with_keys(section, **{name: value})))
    in_words(lambda: config.from_mapping(MINIMAL | {section: value}))


def in_words(load) -> None:
    try:
        assert isinstance(load(), config.RunSpec)
    except ConfigError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        message.encode()


# --- secrets on the command line

PLACES = ["source.storage_options", "table.storage_options", "model.storage_options", "source.csv.storage_options"]
LEAVES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="${}[]'\"#&*!|>%@`:,"), min_size=8)


@settings(deadline=None)
@given(
    place=st.sampled_from(PLACES),
    keys=st.lists(st.sampled_from(["key", "secret", "client_kwargs"]), max_size=3),
    secret=LEAVES,
)
def test_a_command_line_takes_no_secret_wherever_it_stands(place, keys, secret, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "secret.yaml"
    path.write_text("source: {path: a, text: t}\nmodel: {path: m}\ntable: {path: t}\n")
    value: object = f"Hush{secret}"
    for depth in range(len(keys) + 1):
        nested = value
        for key in reversed(keys[depth:]):
            nested = {key: nested}
        where = ".".join([place, *keys[:depth]])
        override = f"{where}={json.dumps(nested)}"
        with pytest.raises(ConfigError, match="environment") as caught:
            load(path, [override])
        assert "Hush" not in str(caught.value)
        assert "${" in str(caught.value)
    section, _, rest = place.partition(".")
    inside: object = value
    for key in reversed([*rest.split("."), *keys]):
        inside = {key: inside}
    with pytest.raises(ConfigError, match="environment") as caught:
        load(path, [f"{section}={json.dumps(inside)}"])
    assert "Hush" not in str(caught.value)


def test_a_command_line_takes_names_of_variables(tmp_path, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text("source: {path: a, text: t}\nmodel: {path: m}\ntable: {path: t}\n")
    monkeypatch.setenv("STORE_KEY", "one")
    monkeypatch.setenv("STORE_SECRET", "two")
    spec = load(
        path,
        [
            "source.storage_options.key=${STORE_KEY}",
            'table.storage_options={"secret": "${STORE_SECRET}", "anon": true, "token": null}',
            "model.storage_options.secret=${STORE_KEY}${STORE_SECRET}",
        ],
    )
    assert spec.source.storage_options == {"key": "one"}
    assert spec.table.storage_options == {"secret": "two", "anon": True, "token": None}
    assert spec.model.storage_options == {"secret": "onetwo"}


@pytest.mark.parametrize("text", ["source.storage_options: {secret: Hush}", "source.storage_options {Hush}"])
def test_what_is_no_override_is_not_shown(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("source: {path: a, text: t}\nmodel: {path: m}\ntable: {path: t}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, [text])
    assert "{" not in str(caught.value)


def test_half_of_a_folder_of_documents_may_fail_where_no_limit_is_given():
    def limits(form: str, **given: float) -> tuple[float, float]:
        found = config.from_mapping(
            {**MINIMAL, "source": {**MINIMAL["source"], "format": form}, "limits": given or None}
        ).limits
        return found.max_failed_rows, found.max_failed_files

    assert limits("auto") == limits("jsonl") == (0.01, 0.1)
    assert limits("documents") == (0.5, 0.5)
    assert limits("documents", max_failed_rows=0.01) == (0.01, 0.5)
