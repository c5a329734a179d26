"""A data set by name: which data files make up one split of it, and in which format of ours they are.

Comes in: a SourceSpec whose path is `dataset:<name or folder>`. Goes out: paths that storage reads as they stand; those
on the Hub are pinned to a commit. The `datasets` library decides, with the rules of `load_dataset`, but nothing is
prepared: the rows never pass through it. It is loaded only here, and only when a data set is named.
"""

import contextlib
import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.config import Format, SourceSpec
from pipeline.errors import InputError
from pipeline.machine.folders import temporary_folder
from pipeline.storage import hub, list_pattern, open_pinned

_PREFIX = "dataset:"
_FIRST_LINE_BYTES = 2**20
_READABLE = "parquet, JSON Lines, csv, text and arrow"


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    paths: tuple[str, ...]
    """Absolute paths or URLs, one file each, in the data set's order."""
    format: Format
    """Never "auto"."""


def is_dataset(spec: SourceSpec) -> bool:
    """Whether the source is a data set by name; InputError if it is one among other paths."""
    named = [pattern for pattern in spec.patterns if pattern.startswith(_PREFIX)]
    if named and len(spec.patterns) > 1:
        raise InputError(f"source.path lists {named[0]!r} among other paths: give one data set alone")
    return bool(named)


def data_files(spec: SourceSpec) -> DataFiles:
    """The files of split `source.dataset.split`; a `source.format` other than auto is taken at its word.

    Raises InputError for an unknown name, configuration, split or revision, and for what this program doesn't read or
    would read otherwise than the data set's own description says.
    """
    name = spec.patterns[0].removeprefix(_PREFIX)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if spec.dataset.revision is not None:
            raise InputError(
                f"source.dataset.revision {spec.dataset.revision!r} is given, but {name!r} is a folder: leave it out"
            )
        saved = _saved_to_disk(folder.resolve(), spec)
        return saved or _resolved(str(folder.resolve()), None, spec)
    if not hub.NAME.fullmatch(name):
        raise InputError(
            f"source.path {spec.patterns[0]!r} names neither a folder that exists nor a data set on the Hub: expected "
            "dataset:<folder> or dataset:<organisation>/<name>"
        )
    # The commit is looked up here, so that the library neither asks other services of the Hub nor falls back on what
    # it once prepared.
    commit = hub.resolve_data_set(name, spec.dataset.revision)
    return _resolved(commit.name, commit.sha, spec)


# --- a folder written by save_to_disk


def _saved_to_disk(folder: Path, spec: SourceSpec) -> DataFiles | None:
    """None if it is another kind of folder."""
    split, known = spec.dataset.split, _read_object(folder / "dataset_dict.json")
    if known is not None:
        if split not in known.get("splits", ()):
            raise _unknown("split", split, known.get("splits", ()), folder)
        folder = folder / split
    state = _read_object(folder / "state.json")
    if state is None or "_data_files" not in state:
        return None
    if spec.dataset.config is not None:
        raise InputError(f"source.dataset.config is given, but {str(folder)!r} was saved without any: leave it out")
    if known is None and split != (state.get("_split") or "train"):
        raise _unknown("split", split, [state.get("_split") or "train"], folder)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{str(folder)!r} was saved with a selection of its rows beside the data: save it again with a newer datasets"
        )
    paths = [folder / str(file["filename"]) for file in state["_data_files"]]
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise InputError(f"{str(folder / 'state.json')!r} names {path.name!r}, which is not there: save it again")
    return DataFiles(paths=tuple(map(str, paths)), format=_format(spec, "arrow"))


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not valid JSON ({error}): save the data set again") from None
    return value if isinstance(value, dict) else {}


# --- everything else


def _resolved(name: str, revision: str | None, spec: SourceSpec) -> DataFiles:
    builder = _builder(name, revision, spec)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _FORMATS:
        raise InputError(f"data set {name!r} is made of {kind} files; of data sets, {_READABLE} can be read")
    _refuse_other_options(builder.config, kind, name)
    splits: Mapping[str, Any] = builder.config.data_files or {}
    if spec.dataset.split not in splits:
        raise _unknown("split", spec.dataset.split, splits, name)
    paths = tuple(map(str, splits[spec.dataset.split]))
    archives = [path for path in paths if path.lower().endswith((".zip", ".tar", ".tar.gz"))]
    if archives:
        raise InputError(
            f"data set {name!r} has the archive {archives[0]!r}: unpack it, and give the files as the source"
        )
    return DataFiles(paths=paths, format=_FORMATS[kind](builder.config, paths, spec, name))


def _builder(name: str, revision: str | None, spec: SourceSpec) -> Any:
    """The library's own description of the data set; nothing of it stays on the disk but what the Hub's cache keeps."""
    try:
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetNotFoundError
    except ImportError as error:
        raise InputError(f"dataset: needs the package datasets: {error}") from None
    config = spec.dataset.config
    with temporary_folder() as empty, _without_progress_bars(), hub.quiet():
        try:
            return load_dataset_builder(name, config, revision=revision, cache_dir=str(empty))
        except DatasetNotFoundError as error:
            raise InputError(
                f"{_one_line(error)} A private or gated one needs a token (HF_TOKEN) on every node."
            ) from None
        except Exception as error:  # a dozen types, from ValueError to those of the HTTP client
            if isinstance(error, RuntimeError) and "script" in str(error):
                raise InputError(
                    f"data set {name!r} is made by a script of its own, which is never run: give its files as the source"
                ) from None
            known = _configs(name, revision, str(empty))
            if isinstance(error, ValueError) and config not in known and len(known) > (config is None):
                raise _unknown("config", config, known, name) from None
            raise InputError(f"data set {name!r} can't be resolved: {_one_line(error)}") from None


def _configs(name: str, revision: str | None, cache: str) -> list[str]:
    from datasets import get_dataset_config_names

    with contextlib.suppress(Exception):  # the first failure is the one to tell
        return list(get_dataset_config_names(name, revision=revision, cache_dir=cache))
    return []


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


# --- formats


def _format(spec: SourceSpec, found: Format) -> Format:
    return found if spec.format == "auto" else spec.format


def _plain(found: Format) -> Any:
    return lambda config, paths, spec, name: _format(spec, found)


def _json_format(config: Any, paths: tuple[str, ...], spec: SourceSpec, name: str) -> Format:
    if config.field is not None:
        raise InputError(
            f"data set {name!r} keeps its rows under the key {config.field!r} of JSON files: convert them to JSON Lines"
        )
    suspect = [path for path in paths if path.lower().endswith((".json", ".json.gz"))]
    if spec.format == "auto" and suspect and not _is_json_lines(suspect[0], spec):
        raise InputError(f"{suspect[0]!r} of data set {name!r} is one JSON value, not JSON Lines: convert it")
    return _format(spec, "jsonl")


def _is_json_lines(path: str, spec: SourceSpec) -> bool:
    """By the first line that is not blank: a whole JSON object. A line too long to look at is taken for one."""
    file = list_pattern(path, spec.storage_options)[0]
    with contextlib.closing(open_pinned(file, spec.storage_options, _FIRST_LINE_BYTES)) as opened:
        packed = path.lower().endswith(".gz")
        start = _start(cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if packed else opened)
    line, newline, _ = start.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return line.startswith(b"{") and not newline and len(start) == _FIRST_LINE_BYTES


def _start(file: BinaryIO) -> bytes:
    try:
        return file.read(_FIRST_LINE_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return b""


def _text_format(config: Any, paths: tuple[str, ...], spec: SourceSpec, name: str) -> Format:
    if config.sample_by == "paragraph":
        raise InputError(
            f"data set {name!r} is a document per paragraph, which can't be read: give its files as the source"
        )
    return _format(spec, "text" if config.sample_by == "document" else "lines")


def _csv_format(config: Any, paths: tuple[str, ...], spec: SourceSpec, name: str) -> Format:
    """Refuses what the data set's description says otherwise than `source.csv`: a guess could shift every field."""
    found: Format = _format(spec, "tsv" if config.sep == "\t" and spec.csv.delimiter is None else "csv")
    ours = {
        "delimiter": (config.sep, spec.csv.delimiter or ("\t" if found == "tsv" else ",")),
        "quote": (config.quotechar, ("" if found == "tsv" else '"') if spec.csv.quote is None else spec.csv.quote),
        "columns": (list(config.names or ()), list(spec.csv.columns)),
    }
    said = {"delimiter": spec.csv.delimiter, "quote": spec.csv.quote, "columns": spec.csv.columns or None}
    for key, (theirs, own) in ours.items():
        if theirs != own and said[key] is None:
            raise InputError(
                f"data set {name!r} reads its csv files with {key} {theirs!r}, but source.csv makes that {own!r}: set "
                f"source.csv.{key} to {theirs!r}, or to what it should be"
            )
    return found


# fmt: off
_OPTIONS: Mapping[str, frozenset[str]] = {
    "parquet": frozenset(["batch_size", "columns", "fragment_scan_options", "on_bad_files"]),
    "json": frozenset([
        "field", "encoding_errors", "use_threads", "block_size", "chunksize", "newlines_in_values", "on_mixed_types",
        "parse_agent_traces",
    ]),
    "csv": frozenset([
        "sep", "delimiter", "quotechar", "names", "column_names", "engine", "verbose", "memory_map", "float_precision",
        "chunksize", "encoding_errors", "on_bad_lines", "error_bad_lines", "warn_bad_lines", "date_format",
        "mangle_dupe_cols",
    ]),
    "text": frozenset(["sample_by", "encoding_errors", "chunksize", "keep_linebreaks"]),
    "arrow": frozenset(),
}
# fmt: on
"""For each builder, the options that are looked at here, or change neither which rows there are nor what a value says."""
_COMMON_OPTIONS = frozenset(["name", "version", "data_dir", "data_files", "description", "features"])


def _refuse_other_options(config: Any, kind: str, name: str) -> None:
    """What the data set's description asks of the library's reader and ours doesn't do."""
    for option in dataclasses.fields(config):
        given = getattr(config, option.name)
        if option.name in _OPTIONS[kind] | _COMMON_OPTIONS or given in (option.default, [], {}):
            continue
        if (option.name, str(given).lower()) not in (("encoding", "utf-8"), ("encoding", "utf8")):
            raise InputError(
                f"data set {name!r} reads its {kind} files with {option.name} = {given!r}, which this program doesn't: "
                "convert them, or give its files as the source if that does not matter"
            )


_FORMATS: Mapping[str, Any] = {
    "parquet": _plain("parquet"),
    "json": _json_format,
    "csv": _csv_format,
    "text": _text_format,
    "arrow": _plain("arrow"),
}
"""By the library's name of a builder."""


# --- errors


def _unknown(what: str, value: str | None, known: Any, where: object) -> InputError:
    names = ", ".join(repr(str(name)) for name in known) or "none"
    given = f"has no {what} {value!r}" if value is not None else f"has several {what}s"
    return InputError(f"data set {str(where)!r} {given}: set source.dataset.{what} to one of {names}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
