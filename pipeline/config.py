"""A configuration comes in, a YAML file or a mapping, and a `RunSpec` goes out, typed and frozen, for everything below.

Every key is a field of one of the specs, its default is the field's, and the string under the field is its help. From
these `make docs-update` makes docs/configuration.md and the JSON Schema for editors. A new key is therefore one field
with its string; only a value that its type doesn't rule out needs a check in `__post_init__`. How values are read and
what is said of wrong ones stands in typed_yaml.py. This file knows nothing of storage, models or Ray; it only says what
was asked for.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import typed_yaml
from pipeline.csv_spec import CsvSpec
from pipeline.errors import ConfigError
from pipeline.feed_spec import FeedSpec
from pipeline.redaction import redacted
from pipeline.schema import PAGES, is_reserved
from pipeline.telemetry_spec import LineageSpec, MetricsSpec
from pipeline.typed_yaml import choices, dotted, told
from pipeline.work import FormatName

Auto = Literal["auto"]
SECRET_SECTIONS = frozenset(["storage_options", "options"])
"""What stands in sections of these names may be secret: a command line may give it as `${VAR}` alone."""
Format = Literal["auto", FormatName, "documents"]

MAX_FAILED_DOCUMENTS = 0.5
"""In a folder of documents this share may fail where nobody set a limit."""
LAKES = ("delta:", "iceberg:", "hudi:")
"""A path with one of these in front leads to a lakehouse table."""

_FOLDER_KEY = re.compile(r"""(?![_.])[^\0-\x1f\x7f-\x9f\u2028\u2029/\\=%?*:;&#"<>|\[\]{}^`]+""")
"""A column with such a name can begin a `key=value` folder. The name stands there unescaped, because pyarrow alone
among the readers unescapes it; pyarrow and Spark hide what begins with "_" or "."."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """This section chooses the part of a data set that `source.path: dataset:<name>` reads."""

    config: str | None = None
    """The data set's configuration has this name; null takes its default, or its only one."""
    split: str = "train"
    """The rows come from this split."""
    revision: str | None = None
    """This is a branch, a tag or a commit on the Hub; null takes the default branch."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """This section says which files hold the documents, and what their columns mean."""

    path: str | tuple[str, ...]
    """These files are read: a file, a folder with all below it, a pattern such as `corpus/*.parquet`, or a list of
    them, on disk or in a store. `dataset:<name or folder>` reads a data set instead, `delta:<folder>` and
    `iceberg:<folder or metadata file>` the rows of a lakehouse table."""
    text: str | tuple[str, ...]
    """This column is embedded; several are joined by a newline, and nulls among them are skipped."""
    format: Format = "auto"
    """The files have this format, and auto goes by their suffixes. `documents` does so too, but takes only what people write
    to be read: texts, Markdown, HTML, PDF, Word, PowerPoint, EPUB, notebooks and e-mail. `lines` takes each line for a
    document, `text` and `html` each file."""
    id: str | tuple[str, ...] | None = None
    """This column identifies a document, or several columns do together; null makes ids from file and position, so that rows
    whose place changes come back as new ones. The table's `id` is a string; `keep` carries the column under its own name and
    with its own type, or as `{id: number}` under another one."""
    keep: tuple[str, ...] = ()
    """These columns are carried into the table unchanged, whatever their type. `{source: origin}` in place of a list gives
    them new names: the column `source` becomes `origin`."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Kept columns have these names in the source, by their new ones; `keep` as a section says the same."""
    exclude: tuple[str, ...] = ()
    """Files and folders that match one of these patterns are left out, such as `drafts` or `*/tmp-*.jsonl`. A pattern
    matches anywhere in a path, or from its root if it begins there."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """These columns have these Arrow types, as in `{price: "decimal128(10, 2)"}`; others are read or guessed."""
    on_null: Literal["dead_letter", "skip"] = "dead_letter"
    """A row whose text is null becomes a dead letter, or is skipped and counted."""
    where: str | None = None
    """Only rows that pass this filter are embedded, such as `lang == "en" and year >= 2020`."""
    limit: int | None = None
    """Only so many rows that pass `where` are read, the first in path order: for trials."""
    encoding: str = "auto"
    """Text files have this encoding: `auto`, `utf-8`, `utf-16`, `latin-1`, `cp1252`, .. A byte order mark counts before it;
    auto is UTF-8 unless the first bytes are certainly UTF-16 or UTF-32."""
    front_matter: Literal["text", "columns"] = "text"
    """The front matter of Markdown files (YAML between `---`, TOML between `+++`) is part of their text, or becomes columns
    that `keep`, `id`, `where` and `text` can name."""
    snapshot: int | str | None = None
    """This state of a lakehouse table is read: the number of a version of a Delta table; the id of a snapshot of an Iceberg
    table, or the name of a branch or a tag. Null takes the current one."""
    csv: CsvSpec = field(default_factory=CsvSpec)
    """It says how the fields of csv and tsv files are told apart."""
    dataset: DatasetSpec = field(default_factory=DatasetSpec)
    """It chooses the part of a `dataset:` source."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """They go to the fsspec filesystem of the source's store, as in `{key: .., secret: .., endpoint_url: ..}`."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `path`, one for each choice of `{a,b}`."""
        return tuple(each for path in _several(self.path) for each in choices("source.path", path))

    @property
    def places(self) -> tuple[str, ...]:
        """The patterns, without the word in front that says what kind of table stands there."""
        return tuple(pattern.removeprefix(prefix_of(pattern)) for pattern in self.patterns)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return _several(self.text)

    @property
    def has_pages(self) -> bool:
        """The files are asked for as documents some of which have pages, whatever is there at the moment."""
        paged = all(place.lower().endswith((".pdf", ".pptx")) for place in self.places)
        return self.format in ("documents", "pdf", "pptx") or (self.format == "auto" and paged)

    @property
    def id_columns(self) -> tuple[str, ...]:
        """These columns make the id; where there are none, it is made from file and position."""
        return () if self.id is None else _several(self.id)

    def __post_init__(self) -> None:
        _check_no_nul("source.path", *self.patterns)
        if not self.patterns or not all(self.patterns):
            raise ConfigError("source.path is empty: give a file, a folder or a pattern such as data/*.parquet")
        if not self.text_columns or not all(self.text_columns):
            raise ConfigError("source.text is empty: name the column that holds the text to embed")
        if self.id is not None and not (self.id_columns and all(self.id_columns)):
            raise ConfigError(
                "source.id is empty: name a column or several, or null to number rows by file and position"
            )
        _check_counts("source", self, "limit", otherwise=", or null")
        if self.snapshot is not None and not any(map(prefix_of, self.patterns)):
            raise ConfigError(
                f"source.snapshot is {self.snapshot!r}, but source.path names no lakehouse table: expected delta:<folder> or "
                "iceberg:<folder>, or leave it out"
            )
        if self.encoding != "auto" and not _is_text_encoding(self.encoding):
            raise ConfigError(
                f"source.encoding is {self.encoding!r}; give auto or a text encoding such as utf-8, utf-16 or latin-1"
            )
        for name, kind in self.schema.items():
            if not isinstance(kind, str):
                raise ConfigError(
                    f"{dotted('source.schema', name)} is {told(kind)}; expected the name of an Arrow type, such as int64"
                )
        _check_free("source.keep", self.keep, "leave it out, or give it another name, as in `keep: {source: origin}`")
        for name in self.renamed:
            if name not in self.keep:
                raise ConfigError(f"source.renamed names {name!r}, which source.keep doesn't: add it there")
        _check_distinct("source.keep", self.keep)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """The section as it is written down, with `keep: {old: new}` as a list of the new names and what they were."""
        keep = raw.get("keep")
        if not isinstance(keep, Mapping):
            return raw
        if not all(isinstance(name, str) for pair in keep.items() for name in pair):
            raise ConfigError("source.keep is a section of something else than names: expected `column: new name`")
        new = {value: name for name, value in keep.items() if value != name}
        return {**raw, "keep": list(keep.values()), "renamed": {**raw.get("renamed", {}), **new}}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """This section names the model and says how it computes."""

    path: str
    """The model is a local folder, a Hub id, an object store's URL, or `package:<python package>/<folder>`. A Hub id without
    an organisation means a model of `sentence-transformers`."""
    revision: str | None = None
    """This is a branch, a tag or a commit of a Hub id; null takes the default branch."""
    max_seq_length: int | None = None
    """The model reads so many tokens of a text, special ones and prompt included; null takes the model's own number."""
    prompt: str | None = None
    """This text is put before every document, "" is none; null takes the one that `prompt_name` or the model names."""
    prompt_name: str | None = None
    """The model's prompt of this name is put before every document; null takes its `document`, else its default one."""
    normalize: bool | None = None
    """True makes every vector unit length, after all modules; null and false leave them as the model's modules do."""
    truncate_dim: int | None = None
    """Vectors are cut to so many numbers after all modules, as Matryoshka models allow; null takes the model's own."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """It multiplies the matrices. On CPUs auto takes openvino for float32 where it is installed, gives torch's vectors,
    and there is work enough to be worth its start. For a few texts of a plain BERT it takes numpy, which gives torch's
    vectors and starts some seconds sooner."""
    precision: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "float32"
    """The transformer computes in it. float16 and bfloat16 are for GPUs; int8 is for CPUs, needs openvino, and is
    quantised once per table. auto keeps that of the table; a new one gets float32, and where this machine has GPUs
    float16, or bfloat16 for a model that overflows in float16."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """They go to the fsspec filesystem of the store that a model's URL names."""

    def __post_init__(self) -> None:
        _check_no_nul("model.path", self.path)
        _check_counts("model", self, "max_seq_length", "truncate_dim", otherwise=", or null")
        if self.prompt is not None and self.prompt_name is not None:
            raise ConfigError("model.prompt and model.prompt_name are both given: leave one out")


@dataclass(frozen=True, kw_only=True)
class ChunkSpec:
    """This section, which may be left out, cuts long documents into chunks, each with a vector of its own."""

    max_tokens: int
    """A chunk has at most so many tokens, special tokens and prompt included."""
    overlap_tokens: int = 0
    """A chunk repeats at most so many tokens of the one before it."""
    border: Literal["word", "sentence"] = "word"
    """A chunk ends at such a border. Where a sentence fills less than half a chunk, or more than one, it ends at a word
    after all."""
    rows: Literal["chunks", "documents"] = "chunks"
    """The table has a row per chunk, or a row per document whose vector is the mean of its chunks' vectors."""
    pages: bool | Auto = "auto"
    """The rows have columns `page` and `last_page`, the pages of the document on which the chunk begins and ends, null where
    it has no pages. Auto has them where `source.format` is documents, pdf or pptx, or `source.path` ends so."""

    def __post_init__(self) -> None:
        _check_counts("chunk", self, "max_tokens")
        if not 0 <= self.overlap_tokens < self.max_tokens:
            raise ConfigError(
                f"chunk.overlap_tokens is {self.overlap_tokens}; give 0 or more, and less than chunk.max_tokens "
                f"({self.max_tokens})"
            )


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """This section says where the table stands and what its rows hold."""

    path: str
    """The table is this folder, on a disk or in a store."""
    partition_by: tuple[str, ...] = ()
    """These columns become `key=value` folders of the table: columns of the files, or folders of the source."""
    embedding_column: str = "embedding"
    """The column of the vectors has this name."""
    dtype: Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"] = "float32"
    """Vectors are stored in it. int8 and uint8 hold steps of each dimension's range, which is measured once per table;
    binary and ubinary hold signs, a bit per dimension."""
    encoding: Literal["plain", "byte_stream_split"] = "plain"
    """Numbers of float32 vectors are laid out so in the files. byte_stream_split is smaller and quicker to write, but
    some readers can't read it; changing it encodes nothing anew."""
    keep_text: bool = True
    """True stores the text beside its vector."""
    report: bool = False
    """True leaves a report on each version that is published, an HTML file in meta/reports of the table. It shows ids and
    beginnings of texts."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """They go to the fsspec filesystem of the table's store."""

    def __post_init__(self) -> None:
        _check_no_nul("table.path", self.path)
        if self.path.rstrip("/") in ("", "s3:", "s3a:"):
            raise ConfigError(
                f"table.path is {self.path!r}: give a folder, or an s3:// address with a bucket and a folder"
            )
        if not self.embedding_column:
            raise ConfigError("table.embedding_column is empty: name the column of the vectors")
        _check_free("table.partition_by", self.partition_by, "choose another")
        _check_free("table.embedding_column", (self.embedding_column,), "choose another")
        for name in self.partition_by:
            if not _FOLDER_KEY.fullmatch(name):
                raise ConfigError(
                    f"table.partition_by names {name!r}, which can't begin the name of a folder that all readers read alike: "
                    "rename the column in the source; its name may begin with neither _ nor ., and hold no control "
                    'characters and none of / \\ = % ? * : ; & # " < > | [ ] { } ^ `'
                )
        _check_distinct("table.partition_by", self.partition_by)
        if self.encoding != "plain" and self.dtype != "float32":
            # DuckDB can't read float16 that is split, and bytes can't be split at all.
            raise ConfigError(
                f"table.encoding is {self.encoding!r}, which is for vectors of float32 alone, and table.dtype is "
                f"{self.dtype!r}: leave table.encoding out"
            )
        if self.embedding_column in self.partition_by:
            raise ConfigError(f"table.embedding_column {self.embedding_column!r} is also in table.partition_by")


@dataclass(frozen=True, kw_only=True)
class ResourceSpec:
    """This section says what a run may use; the summary tells what auto chose."""

    ray_address: str | None = None
    """The run joins the Ray cluster at this address, and `auto` finds a running one. Null works with processes of
    this machine, or with a Ray of its own where there is much to do; `local` always starts such a Ray."""
    encoders: int | Auto = "auto"
    """So many encoders work side by side; auto has as many as the cluster has room for."""
    cpus_per_encoder: int | Auto = "auto"
    """An encoder has so many CPU cores. Auto is 1, or more where memory holds fewer encoders than there are cores. Before a
    run on CPUs of ten minutes or more it is measured which number is the fastest, unless `encoders` is given."""
    gpus_per_encoder: float | Auto = "auto"
    """An encoder has so many GPUs, or a share of one below 1; auto is 1 where the cluster has GPUs, else 0."""
    batch_tokens: int | Auto = "auto"
    """An encoder computes so many tokens, with padding, at a time. Auto is measured on each node where there is much to
    encode; the summary tells what was found."""
    fused_attention: bool | Auto = "auto"
    """On openvino attention is one piece of code. Auto measures from which width of rows on that is faster on the node."""
    bfloat16_in_int8: bool | Auto = "auto"
    """With `model.precision: int8`, what is not an int8 product is computed in bfloat16, on processors that have
    it. Auto measures on each node whether that is faster."""
    tokenizers: int | Auto = "auto"
    """So many workers read and tokenize; auto goes by what the encoders take."""
    writers: int | Auto = "auto"
    """So many workers write parts; auto goes by what the encoders give."""

    def __post_init__(self) -> None:
        whole = ("encoders", "cpus_per_encoder", "batch_tokens", "tokenizers", "writers")
        _check_counts("resources", self, *whole, otherwise=", or auto")
        gpus = self.gpus_per_encoder
        if gpus != "auto" and not (0 <= gpus <= 1 or (math.isfinite(gpus) and gpus > 1 and gpus == int(gpus))):
            raise ConfigError(
                f"resources.gpus_per_encoder is {gpus}; give 0, a share of a GPU below 1, a whole number, or auto"
            )


@dataclass(frozen=True, kw_only=True)
class LimitSpec:
    """This section bounds what a run may lose, take or wait for. A limit on rows or files below 1 is a share, else a
    count."""

    max_failed_rows: float = 0.01
    """If more of the source's rows fail, nothing is published. Where `source.format` is documents, and no limit is given, it
    is 0.5: in people's folders some are scanned, locked or damaged, and each of them is named."""
    max_failed_files: float = 0.1
    """If more of the source's files turn out to be unreadable, wholly or from some place on, nothing is published. The
    rows that they are known or estimated to hold count for `max_failed_rows` too. It is 0.5 where that is."""
    max_deleted_rows: float = 0.2
    """If a reindex would delete more of the table's rows, it publishes nothing until `--allow-deletes` is given."""
    max_row_bytes: int = 16 * 2**20
    """A row that is larger becomes a dead letter and is never held whole."""
    unit_rows: int = 8192
    """A slice, which is encoded and recorded in one piece, has at most so many rows."""
    unit_timeout_s: float = 1800
    """A worker that makes no progress for so many seconds counts as hanging and is ended."""
    wait_s: float = 0
    """A reindex waits for so many seconds for a table that another one works on, then ends and has done nothing."""
    lease_s: float = 300
    """For so many seconds after its last sign of life a reindex has the table, unless it can be seen to be dead."""

    def __post_init__(self) -> None:
        for least, names in (
            (0, ("max_failed_rows", "max_failed_files", "max_deleted_rows", "wait_s")),
            (1, ("max_row_bytes", "unit_rows", "unit_timeout_s", "lease_s")),
        ):
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    expected = f"at least {least}" if least else "0 or more"
                    raise ConfigError(f"limits.{name} is {getattr(self, name)}; give {expected}")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run is described by its sections."""

    source: SourceSpec
    """It says which files hold the documents, and what their columns mean."""
    model: ModelSpec
    """It names the model and says how it computes."""
    table: TableSpec
    """It says where the table stands and what its rows hold."""
    chunk: ChunkSpec | None = None
    """It cuts long documents into chunks; where it is left out, a model reads the beginning of a long document."""
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    """It says what the run may use."""
    limits: LimitSpec = field(default_factory=LimitSpec)
    """It bounds what the run may lose, take or wait for."""
    feeds: Mapping[str, FeedSpec] = field(default_factory=dict)
    """These vector databases hold the table's rows, each under a name of its own."""
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    """It gives the figures of a run to Prometheus."""
    lineage: LineageSpec = field(default_factory=LineageSpec)
    """It tells an OpenLineage server what a table is made of."""

    @property
    def carried(self) -> tuple[str, ...]:
        """These source columns go with the text: kept columns, then partition columns that aren't kept."""
        extra = tuple(name for name in self.table.partition_by if name not in self.source.keep)
        return self.source.keep + extra

    @property
    def chunk_identity(self) -> dict[str, Any] | None:
        """All of the chunking that changes vectors is part of their identity."""
        if self.chunk is None:
            return None
        return {name: value for name, value in dataclasses.asdict(self.chunk).items() if name != "pages"}

    @property
    def rows_have_pages(self) -> bool:
        """Each row of the table is a chunk, and tells the pages that it stands on."""
        if self.chunk is None or not self.rows_are_chunks:
            return False
        return self.source.has_pages if self.chunk.pages == "auto" else self.chunk.pages

    @property
    def rows_are_chunks(self) -> bool:
        return self.chunk is not None and self.chunk.rows == "chunks"

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sections as they are written down, with the limits that a folder of documents has where none are given."""
        source, limits = raw.get("source"), raw.get("limits") or {}
        if not isinstance(source, Mapping) or source.get("format") != "documents" or not isinstance(limits, Mapping):
            return raw
        usual = dict.fromkeys(("max_failed_rows", "max_failed_files"), MAX_FAILED_DOCUMENTS)
        return {**raw, "limits": {**usual, **limits}}

    def __post_init__(self) -> None:
        if self.table.embedding_column in self.source.keep:
            raise ConfigError(
                f"table.embedding_column {self.table.embedding_column!r} is also in source.keep: rename one of them"
            )
        if self.rows_have_pages:
            taken = [name for name in (*self.carried, self.table.embedding_column) if name.lower() in PAGES]
            if taken:
                raise ConfigError(
                    f"the rows of chunks have a column {taken[0]!r} of their own: give yours another name, as in "
                    f"`keep: {{{taken[0]}: number}}`, or set chunk.pages to false"
                )
        alike: dict[str, str] = {}
        for name in (*self.carried, self.table.embedding_column):
            other = alike.setdefault(name.lower(), name)
            if other != name:
                raise ConfigError(
                    f"the table would have the columns {other!r} and {name!r}, which many readers (DuckDB, Spark) take for "
                    "one, since they differ only in upper and lower case: rename one of them, or leave it out"
                )


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read a run's YAML file, apply `section.key=value` overrides, fill `${VAR}` from the environment.

    Raises ConfigError for anything that is not a complete, well-typed description of a run.
    """
    return typed_yaml.load(RunSpec, path, overrides, SECRET_SECTIONS)


def from_mapping(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSpec:
    """Make the run of a mapping in memory, as `load` makes it of a file. Raises ConfigError likewise."""
    return typed_yaml.build(RunSpec, raw, overrides)


def of_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the sections that `section.key=value` overrides give, to be written down as they are.

    Raises ConfigError for what is no such override, and for a value that may be secret, also within a URL.
    """
    raw = typed_yaml.of_overrides(overrides, SECRET_SECTIONS)
    for override in overrides:
        key, _, value = override.partition("=")
        if redacted(value) != value:
            raise ConfigError(
                f"--set {key.strip()} gives a password or a key, which is not written into a configuration: put it into the "
                "environment, and give it as ${VARIABLE}"
            )
    return raw


def prefix_of(pattern: str) -> str:
    """The word in front of a path that leads to a lakehouse table; empty for other paths."""
    return next((prefix for prefix in LAKES if pattern.startswith(prefix)), "")


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _check_no_nul(key: str, *paths: str) -> None:
    if any("\0" in path for path in paths):
        raise ConfigError(f"{key} holds a NUL character: no path can")


def _check_counts(section: str, spec: object, *names: str, otherwise: str = "") -> None:
    """Raise ConfigError for a field with a whole number below 1; `otherwise` names what may stand there instead."""
    for name in names:
        value = getattr(spec, name)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{section}.{name} is {value}; give a whole number of at least 1{otherwise}")


def _check_distinct(key: str, columns: tuple[str, ...]) -> None:
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{key} names a column twice: {list(columns)}")


def _check_free(key: str, columns: tuple[str, ...], remedy: str) -> None:
    for name in columns:
        if is_reserved(name):
            raise ConfigError(
                f"{key} names {name!r}, a column that the table writes itself (upper and lower case are one): {remedy}"
            )


def _is_text_encoding(name: str) -> bool:
    try:
        return "a\n".encode(name).decode(name) == "a\n"
    except (LookupError, ValueError):
        return False
