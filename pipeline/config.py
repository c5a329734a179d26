"""One YAML file in, one `RunSpec` out: the typed, frozen description of a run that everything below takes.

Unknown keys, wrong types and values outside their range are errors that name the key, the value and the remedy. This
file knows nothing of storage, models or Ray; it only says what was asked for.
"""

import dataclasses
import difflib
import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import ConfigError
from pipeline.schema import is_reserved

Auto = Literal["auto"]

_INTEGER_BITS = 63
_FOLDER_KEY = re.compile(r"""(?![_.])[^\0-\x1f\x7f-\x9f\u2028\u2029/\\=%?*:;&#"<>|\[\]{}^`]+""")
"""Of a `key=value` folder: it stands there as it is, since of all readers only pyarrow unescapes it. What begins with "_" or
"." is hidden from pyarrow and Spark."""


@dataclass(frozen=True, kw_only=True)
class CsvSpec:
    """How the fields of csv and tsv files are told apart."""

    delimiter: str | None = None
    """One character; null is a comma in csv, a tab in tsv."""
    quote: str | None = None
    """One character, "" for none; null is `"` in csv, none in tsv."""
    escape: str | None = None
    """One character before quotes, delimiters and itself, and before N alone for null: a backslash for what Spark, PostgreSQL
    and MySQL write; null is none, and a quote inside quotes is written twice."""
    columns: tuple[str, ...] = ()
    """Names of the columns of files without a header line; empty takes the names from each file's first line."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in "\r\n"):
            raise ConfigError(f"source.csv.delimiter is {self.delimiter!r}; give one character, or null")
        if self.quote is not None and (len(self.quote) > 1 or self.quote in ("\r", "\n")):
            raise ConfigError(f'source.csv.quote is {self.quote!r}; give one character, "" for none, or null')
        if self.escape is not None and (len(self.escape) != 1 or self.escape in "\r\n"):
            raise ConfigError(f"source.csv.escape is {self.escape!r}; give one character, or null")
        if self.escape is not None and self.escape == self.delimiter:
            raise ConfigError(f"source.csv.escape and source.csv.delimiter are both {self.escape!r}: change one")
        if self.quote and self.quote == self.delimiter:
            raise ConfigError(f"source.csv.quote and source.csv.delimiter are both {self.quote!r}: change one")
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"source.csv.columns names a column twice: {list(self.columns)}")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Which part of a `dataset:` source is meant."""

    config: str | None = None
    """Null is the data set's default, or only, configuration."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is its default branch."""


Format = Literal["auto", "parquet", "jsonl", "csv", "tsv", "arrow", "lines", "text", "html"]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    path: str | tuple[str, ...]
    """One pattern or several: file, folder, or glob, on disk or in a store; or one `dataset:<name or folder>`."""
    text: str | tuple[str, ...]
    """The column to embed; several are joined by a newline, nulls skipped."""
    format: Format = "auto"
    """`lines` is a document per line, `text` and `html` one per file."""
    id: str | tuple[str, ...] | None = None
    """The column with the document's id, or several that make it together; null makes one from file and position."""
    keep: tuple[str, ...] = ()
    """Columns that go into the table as they are; `{source: origin}` instead of a list names them anew: the column `source`
    becomes `origin`."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """For kept columns with new names, by new name the one in the source; `keep` as a section says the same."""
    exclude: tuple[str, ...] = ()
    """Patterns of files and folders that are left out, such as `drafts` or `*/tmp-*.jsonl`; they match anywhere in a path,
    or from its root if they begin there."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """Arrow types of columns, by name: `{price: "decimal128(10, 2)"}`; they are guessed or read for the others."""
    on_null: Literal["dead_letter", "skip"] = "dead_letter"
    """What becomes of a row whose text is null."""
    where: str | None = None
    """An Arrow filter expression such as `lang == "en" and year >= 2020`; other rows are left out."""
    limit: int | None = None
    """Only the first rows, in path order, that pass `where`: for trials."""
    encoding: str = "auto"
    """The encoding of text files: `auto`, `utf-8`, `utf-16`, `latin-1`, `cp1252`, .. A byte order mark counts before it; auto
    is UTF-8 unless the first bytes are certainly UTF-16 or UTF-32."""
    csv: CsvSpec = field(default_factory=CsvSpec)
    dataset: DatasetSpec = field(default_factory=DatasetSpec)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `path`, one for each choice of `{a,b}`."""
        return tuple(
            each for path in ((self.path,) if isinstance(self.path, str) else self.path) for each in _braces(path)
        )

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def id_columns(self) -> tuple[str, ...]:
        """None of them: ids are made from file and position."""
        if self.id is None:
            return ()
        return (self.id,) if isinstance(self.id, str) else self.id

    def __post_init__(self) -> None:
        if any("\0" in pattern for pattern in self.patterns):
            raise ConfigError("source.path holds a NUL character: no path can")
        if not self.patterns or not all(self.patterns):
            raise ConfigError("source.path is empty: give a file, a folder or a pattern such as data/*.parquet")
        if not self.text_columns or not all(self.text_columns):
            raise ConfigError("source.text is empty: name the column that holds the text to embed")
        if self.id is not None and not (self.id_columns and all(self.id_columns)):
            raise ConfigError(
                "source.id is empty: name a column or several, or null to number rows by file and position"
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"source.limit is {self.limit}; give a whole number of at least 1, or null")
        if self.encoding != "auto" and not _is_text_encoding(self.encoding):
            raise ConfigError(
                f"source.encoding is {self.encoding!r}; give auto or a text encoding such as utf-8, utf-16 or latin-1"
            )
        for name, kind in self.schema.items():
            if not isinstance(kind, str):
                raise ConfigError(
                    f"{_dotted('source.schema', name)} is {_told(kind)}; expected the name of an Arrow type, such as int64"
                )
        for name in self.keep:
            if is_reserved(name):
                raise ConfigError(
                    f"source.keep names {name!r}, a column that the table writes itself (upper and lower case are one): "
                    "leave it out, or give it another name: `keep: {{{name}: original_{name}}}`"
                )
        for name in self.renamed:
            if name not in self.keep:
                raise ConfigError(f"source.renamed names {name!r}, which source.keep doesn't: add it there")
        if len(set(self.keep)) < len(self.keep):
            raise ConfigError(f"source.keep names a column twice: {list(self.keep)}")


_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
MOST_PATTERNS = 1000


def _braces(pattern: str) -> list[str]:
    """The patterns that `{a,b}` stands for. Braces without a comma are plain characters, as in a shell."""
    found = [pattern]
    while any(map(_BRACES.search, found)):
        found = [each for one in found for each in _choices(one)]
        if len(found) > MOST_PATTERNS:
            raise ConfigError(f"source.path {pattern!r} stands for more than {MOST_PATTERNS:,} patterns: use wildcards")
    return found


def _choices(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    return [pattern[: match.start()] + choice + pattern[match.end() :] for choice in match[1].split(",")]


def _is_text_encoding(name: str) -> bool:
    try:
        return "a\n".encode(name).decode(name) == "a\n"
    except (LookupError, ValueError):
        return False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    path: str
    """A local folder, a Hub id, an object store's URL, or `package:<python package>/<folder>`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id; null is its default branch."""
    max_seq_length: int | None = None
    """Null takes the model's own; the number includes special tokens and prompt."""
    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    """True adds a final normalisation, null and false leave the model's own modules as they are."""
    truncate_dim: int | None = None
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What multiplies the matrices. Auto takes openvino on CPUs where it is installed, gives torch's vectors and has work
    enough."""
    precision: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """int8 is openvino's, on CPUs, quantised once per table."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For a model at an object store's URL."""

    def __post_init__(self) -> None:
        if "\0" in self.path:
            raise ConfigError("model.path holds a NUL character: no path can")
        for name in ("max_seq_length", "truncate_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model.{name} is {value}; give a whole number of at least 1, or null")
        if self.prompt is not None and self.prompt_name is not None:
            raise ConfigError("model.prompt and model.prompt_name are both given: leave one out")


@dataclass(frozen=True, kw_only=True)
class ChunkSpec:
    """Long documents become several rows, each with a vector of its own."""

    max_tokens: int
    """Of a chunk, special tokens and prompt included."""
    overlap_tokens: int = 0
    """Tokens that a chunk repeats of the one before it, at most."""
    border: Literal["word", "sentence"] = "word"
    """Where a chunk may end; a sentence that fills less than half a chunk, or none, ends it at a word."""
    rows: Literal["chunks", "documents"] = "chunks"
    """`documents` writes one row per document: the mean of its chunks' vectors."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"chunk.max_tokens is {self.max_tokens}; give a whole number of at least 1")
        if not 0 <= self.overlap_tokens < self.max_tokens:
            raise ConfigError(
                f"chunk.overlap_tokens is {self.overlap_tokens}; give 0 or more, and less than chunk.max_tokens "
                f"({self.max_tokens})"
            )


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    path: str
    partition_by: tuple[str, ...] = ()
    embedding_column: str = "embedding"
    dtype: Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"] = "float32"
    """Of the vectors' numbers: int8 and uint8 are steps of each dimension's range, measured once; binary and ubinary signs."""
    keep_text: bool = True
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if "\0" in self.path:
            raise ConfigError("table.path holds a NUL character: no path can")
        if self.path.rstrip("/") in ("", "s3:", "s3a:"):
            raise ConfigError(
                f"table.path is {self.path!r}: give a folder, or an s3:// address with a bucket and a folder"
            )
        if not self.embedding_column:
            raise ConfigError("table.embedding_column is empty: name the column of the vectors")
        named = [("partition_by", name) for name in self.partition_by] + [("embedding_column", self.embedding_column)]
        for key, name in named:
            if is_reserved(name):
                raise ConfigError(
                    f"table.{key} names {name!r}, a column that the table writes itself (upper and lower case are one): "
                    "choose another"
                )
        for name in self.partition_by:
            if not _FOLDER_KEY.fullmatch(name):
                raise ConfigError(
                    f"table.partition_by names {name!r}, which can't begin the name of a folder that all readers read alike: "
                    "rename the column in the source; its name may begin with neither _ nor ., and hold no control "
                    'characters and none of / \\ = % ? * : ; & # " < > | [ ] { } ^ `'
                )
        if len(set(self.partition_by)) < len(self.partition_by):
            raise ConfigError(f"table.partition_by names a column twice: {list(self.partition_by)}")
        if self.embedding_column in self.partition_by:
            raise ConfigError(f"table.embedding_column {self.embedding_column!r} is also in table.partition_by")


@dataclass(frozen=True, kw_only=True)
class ResourceSpec:
    ray_address: str | None = None
    """Null starts a local Ray for this run only."""
    encoders: int | Auto = "auto"
    cpus_per_encoder: int | Auto = "auto"
    gpus_per_encoder: float | Auto = "auto"
    tokenizers: int | Auto = "auto"
    writers: int | Auto = "auto"

    def __post_init__(self) -> None:
        for name in ("encoders", "cpus_per_encoder", "tokenizers", "writers"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ConfigError(f"resources.{name} is {value}; give a whole number of at least 1, or auto")
        gpus = self.gpus_per_encoder
        if gpus != "auto" and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise ConfigError(
                f"resources.gpus_per_encoder is {gpus}; give 0, a share of a GPU below 1, a whole number, or auto"
            )


@dataclass(frozen=True, kw_only=True)
class LimitSpec:
    """A limit on rows below 1 is a share, else a count."""

    max_failed_rows: float = 0.01
    """Of all rows of the source."""
    max_deleted_rows: float = 0.2
    """Of the table's rows, that one reindex may take from it."""
    max_row_bytes: int = 16 * 2**20
    unit_rows: int = 8192
    unit_timeout_s: float = 1800
    wait_s: float = 0
    """For a table that another run works on; then this one ends and has done nothing."""
    lease_s: float = 300
    """After its last sign of life a run still has the table; where it can be seen to be dead, no longer."""

    def __post_init__(self) -> None:
        for name in ("max_failed_rows", "max_deleted_rows", "wait_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; give 0 or more")
        for name in ("max_row_bytes", "unit_rows", "unit_timeout_s", "lease_s"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    source: SourceSpec
    model: ModelSpec
    table: TableSpec
    chunk: ChunkSpec | None = None
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    limits: LimitSpec = field(default_factory=LimitSpec)

    @property
    def carried(self) -> tuple[str, ...]:
        """Source columns that go with the text: kept columns, then partition columns that aren't kept."""
        extra = tuple(name for name in self.table.partition_by if name not in self.source.keep)
        return self.source.keep + extra

    @property
    def chunk_identity(self) -> dict[str, Any] | None:
        """What of the chunking changes a vector: all of it."""
        return dataclasses.asdict(self.chunk) if self.chunk is not None else None

    @property
    def rows_are_chunks(self) -> bool:
        return self.chunk is not None and self.chunk.rows == "chunks"

    def __post_init__(self) -> None:
        if self.table.embedding_column in self.source.keep:
            raise ConfigError(
                f"table.embedding_column {self.table.embedding_column!r} is also in source.keep: rename one of them"
            )
        alike: dict[str, str] = {}
        for name in (*self.carried, self.table.embedding_column):
            other = alike.setdefault(name.lower(), name)
            if other != name:
                raise ConfigError(
                    f"the table would have the columns {other!r} and {name!r}, which many readers (DuckDB, Spark) take for "
                    "one, since they differ only in upper and lower case: rename one of them, or leave it out"
                )


MOST_VALUES = 10_000
"""Of a configuration, each alias counted as what it stands for."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would quietly take the last, and aliases that make a few lines stand
    for billions of values."""

    def construct_document(self, node: yaml.Node) -> Any:
        if _values(node, {}) > MOST_VALUES:
            problem = f"its aliases (*name) make more than {MOST_VALUES:,} values of it"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = "a key comes twice in one section"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values the node stands for; infinity for one that stands in itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


def _unshared(value: Any) -> Any:
    """A copy in which nothing stands in two places: an override of one of them mustn't change the other."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read a run's YAML file, apply `section.key=value` overrides, fill `${VAR}` from the environment.

    Raises ConfigError for anything that is not a complete, well-typed description of a run.
    """
    what = f"configuration file {str(path)!r}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{what} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} can't be read: {error}") from None
    raw = _parse(text, what)
    if not isinstance(raw, dict):
        raise ConfigError(f"{what} holds no sections; expected source:, model: and table:")
    for override in overrides:
        _apply_override(raw, override)
    return from_mapping(raw)


def _parse(text: str, what: str) -> Any:
    """The values of a YAML text. ConfigError says of `what` where and why it is none, and shows nothing of it: it may hold a
    secret."""
    try:
        return _unshared(yaml.load(text, _Loader))
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it can't be parsed"
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{what} is not valid YAML{where}: {' '.join(problem.split())[:200]}") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # what PyYAML lets out
        raise ConfigError(
            f"{what} holds a number or a date that can't be, or a value that is not what its tag says"
        ) from None


def from_mapping(raw: Mapping[str, Any]) -> RunSpec:
    """The same for a mapping that is already in memory."""
    try:
        return cast(RunSpec, _build(RunSpec, _fill_environment(dict(raw), "") if isinstance(raw, Mapping) else raw, ""))
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply, or in itself") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {key.strip()!r} is not of the form section.key=value")
    node = raw
    for name in path[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key.strip()!r}: {name!r} is not a section")
    node[path[-1]] = _parse(text, f"--set {key.strip()!r}: the value")


def _fill_environment(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill_environment(item, _dotted(where, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_environment(item, where) for item in value]
    if isinstance(value, tuple):
        return tuple(_fill_environment(item, where) for item in value)
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        raise ConfigError(f"{where} is a whole number of more than {_INTEGER_BITS} bits: give a smaller one")
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{where} uses ${{{match[1]}}}, but the environment has no variable {match[1]}: set it")
        return os.environ[match[1]]

    filled = re.sub(r"\$\{(\w+)\}", variable, value)
    try:
        filled.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{where} holds half of a surrogate pair, or bytes that are not UTF-8: no text has that"
        ) from None
    return filled


def _build(spec: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or 'the configuration'} must be a section with keys, not {_told(raw)}")
    if spec is SourceSpec and isinstance(raw.get("keep"), Mapping):
        raw = _renamed(raw, where)
    hints = get_type_hints(spec)
    fields = {item.name: item for item in dataclasses.fields(spec)}
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {_dotted(where, key)!r}; {hint}")
    values = {}
    for name, item in fields.items():
        if name in raw:
            values[name] = _convert(raw[name], hints[name], _dotted(where, name))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_dotted(where, name)} is missing; it is required")
    return spec(**values)


def _renamed(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The section of the source with `keep: {old: new}` as a list of the new names, and what they are in the source."""
    keep = raw["keep"]
    if not all(isinstance(name, str) for pair in keep.items() for name in pair):
        raise ConfigError(
            f"{_dotted(where, 'keep')} is a section of something else than names: expected `column: new name`"
        )
    new = {value: name for name, value in keep.items() if value != name}
    return {**raw, "keep": list(keep.values()), "renamed": {**raw.get("renamed", {}), **new}}


def _dotted(where: str, key: object) -> str:
    name = str(key) if str(key).isprintable() else repr(key)
    return f"{where}.{name}" if where else name


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, or ConfigError; no guessing beyond int -> float, list -> tuple, a string for a
    list of one, and Path -> str."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _build(cast(type, hint), value if value is not None else {}, where)
    if origin is Union or origin is types.UnionType:
        for option in get_args(hint):
            if _matches(value, option):
                return _convert(value, option, where)
        expected = " or ".join(_describe(option) for option in get_args(hint))
        raise ConfigError(f"{where} is {_told(value)}; expected {expected}")
    if not _matches(value, hint):
        # Options hold secrets: of a wrong value only its type may be told.
        given = type(value).__name__ if "storage_options" in where else _told(value)
        raise ConfigError(f"{where} is {given}; expected {_describe(hint)}")
    if origin is tuple:
        return (value,) if isinstance(value, str) else tuple(value)
    return float(value) if hint is float else value


def _told(value: Any) -> str:
    """A wrong value as messages may show it: sections and lists can hold a secret somewhere."""
    return "a section" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else repr(value)


def _matches(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if origin is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, str) or (
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        )
    if origin is not None:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return " | ".join(str(option) for option in get_args(hint))
    if origin is tuple:
        return "a list of strings"
    if dataclasses.is_dataclass(hint):
        return "a section with keys"
    if origin is not None:
        return "a section whose keys are strings"
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
