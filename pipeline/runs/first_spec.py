"""Somebody names files and nothing else, and a complete configuration for them is chosen, said and written down.

The path of a source comes in, with what the person chose. A `Chosen` goes out: the configuration as YAML with comments, and
the lines that tell what was chosen and why. Nothing is chosen that is not in both. This file loads neither torch nor Ray.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline import config
from pipeline.config import RunSpec, SourceSpec
from pipeline.errors import InputError, PipelineError, looked_for
from pipeline.model.origin import bundled_here
from pipeline.runs import first_yaml
from pipeline.runs.other_sources import check_free
from pipeline.runs.text_lengths import TextLengths, text_lengths
from pipeline.sources.formats import registry
from pipeline.sources.roles import Roles, roles_of
from pipeline.sources.seen import Seen, look_at
from pipeline.storage import MAGIC, is_remote, local_path

FROM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
TABLE_ENDING, CONFIG_ENDING = ".embeddings", ".yaml"
_SPECIAL = re.compile(r"(dataset|delta|iceberg|hudi):")
_READ_ONLY = ("hf://", "dataset:")
_HEAD_BYTES = 2**16
_SECTION = re.compile(rb"""^[ \t{]*["']?(source|model|table)["']?\s*:""", re.MULTILINE)
"""A configuration has such a line, whatever the name of its file is."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """It is what a person chose; the rest is chosen here."""

    model: str | None = None
    text: tuple[str, ...] = ()
    id: tuple[str, ...] | None = None
    """An empty one is the choice of no column."""
    table: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All other keys of the configuration that the person gave, by section."""

    def __bool__(self) -> bool:
        return self != Wishes()

    @property
    def model_path(self) -> str | None:
        """It is the model as the configuration has it, wherever a later command starts."""
        if self.model is None or "://" in self.model:
            return self.model
        local = local_path(self.model)
        return local if os.path.isdir(local) else self.model

    @property
    def table_path(self) -> str | None:
        """It is the table as the configuration has it."""
        return self.table if self.table is None or is_remote(self.table) else local_path(self.table)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    source: str
    """The absolute path, pattern or URL."""
    place: str
    """The configuration belongs into this file."""
    model: str
    model_reason: str
    table: str
    seen: Seen
    roles: Roles
    lengths: TextLengths | str
    """How long the texts are in tokens, or why nobody knows."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the person gave, by section: they take the place of what would stand there, or beside it."""

    @property
    def yaml(self) -> str:
        return first_yaml.written(self)

    def spec(self) -> RunSpec:
        """Return the run that the YAML describes. Raises ConfigError where the settings make none."""
        return config.from_mapping(yaml.safe_load(self.yaml))

    def told(self, *, writes: bool) -> str:
        """Return what a person reads of it; with `writes` it was written down."""
        return first_yaml.told(self, writes=writes)


# --- which files


def is_source(given: str) -> bool:
    """Say whether a command was given documents, and not a configuration: a folder, a pattern, a URL of a store, a file of
    a known format.

    Raises InputError for a name that stands for nothing, and for a file that is neither.
    """
    if given.lower().endswith((".yaml", ".yml", ".json")) and not MAGIC.search(given):
        return False
    if _SPECIAL.match(given) or is_remote(given) or os.path.isdir(local_path(given)):
        return True
    if os.path.lexists(local_path(given)):
        return _has_format(given) or _is_unknown(given)
    if MAGIC.search(given):
        return True
    raise InputError(
        f"{given!r} does not exist{looked_for(given)}: give a configuration (a .yaml file), or the folder, file, pattern or "
        "URL of documents"
    )


def _is_unknown(given: str) -> bool:
    """Return False for a configuration, whatever its name is. Raises InputError for a file that looks like none."""
    path = Path(local_path(given))
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False  # Reading it as a configuration tells why.
    if b"\0" in head or not _SECTION.search(head):
        raise InputError(
            f"the format of {given!r} is unknown, and it is no configuration (a .yaml file): files of documents end with "
            f"{', '.join(registry.suffixes())}"
        )
    return False


def _has_format(path: str) -> bool:
    try:
        registry.format_of(path, "auto")
    except InputError:
        return False
    return True


def place_of(given: str) -> str:
    """Return the file of the configuration for a source: beside it, or in the working directory where that can't be."""
    base = _base(_absolute(given))
    name = base.rstrip("/").rpartition("/")[2] + CONFIG_ENDING
    beside = os.path.dirname(base)
    if is_remote(base) or _SPECIAL.match(given) or not os.access(beside, os.W_OK):
        return os.path.abspath(name)
    return os.path.join(beside, name)


def configuration_of(given: str) -> str | None:
    """Return the configuration that was written for a source, or None where none stands beside it."""
    try:
        place, source = place_of(given), SourceSpec(path=_absolute(given), text="text")
        said = _says(place)
        read = said.get("source") if isinstance(said, Mapping) else None
        path = read.get("path") if isinstance(read, Mapping) else None
        found = SourceSpec(path=path if isinstance(path, str) else tuple(path or ()), text="text").patterns
    except (PipelineError, TypeError):  # The source has no name, or the file says nothing of a source.
        return None
    return place if found == source.patterns else None


def meant(given: str) -> str:
    """Ask for a message whether the configuration was meant that stands where that of such documents would; "" where there is
    none."""
    try:
        place = place_of(given)
    except InputError:  # The source has no name.
        return ""
    return f" (did you mean {place!r}?)" if os.path.isfile(place) else ""


def looked_for_beside(given: str) -> str:
    """Say for a message which configuration of documents was looked for; "" where there can be none."""
    try:
        return meant(given) or f", and no configuration {place_of(given)!r} is there"
    except InputError:
        return ""


def _absolute(given: str) -> str:
    """Return the source as the configuration has it, wherever a later command starts."""
    if _SPECIAL.match(given) or is_remote(given):
        return given.rstrip("/") or given
    path = local_path(given)
    # A name that is there stands for itself, whatever a pattern would make of it.
    return MAGIC.sub(r"[\g<0>]", path) if MAGIC.search(path) and os.path.lexists(path) else path


def _base(source: str) -> str:
    """Return the path beside which table and configuration stand, less their endings: a folder, or a file without its
    endings. Raises InputError for a source that has no name."""
    path = _SPECIAL.sub("", source)
    if is_remote(path):
        scheme, _, rest = path.partition("://")
        pieces = rest.strip("/").split("/")
    else:
        scheme, pieces = "", path.replace("[[]", "\0").split("/")
    fixed = next((index for index, piece in enumerate(pieces) if MAGIC.search(piece)), len(pieces))
    pieces = [piece.replace("\0", "[") for piece in pieces[:fixed]]
    if not any(pieces) or (scheme and len(pieces) < 2):
        raise InputError(
            f"source {source!r} has no name beside which a table could stand: write a configuration for it"
        )
    if fixed == len(pieces) and _has_format(pieces[-1]) and not os.path.isdir(path):
        stem = re.sub(r"\.(gz|zst)$", "", pieces[-1], flags=re.IGNORECASE)
        pieces[-1] = stem.rpartition(".")[0] or stem
    return (f"{scheme}://" if scheme else "") + "/".join(pieces)


def _table(source: str, base: str, output: str | None) -> str:
    """Return the table beside the source, named after it, or after the file that its configuration is written to."""
    folder, slash, name = base.rstrip("/").rpartition("/")
    if output is not None:
        name = os.path.splitext(os.path.basename(output))[0]
    return (
        os.path.abspath(name + TABLE_ENDING) if source.startswith(_READ_ONLY) else folder + slash + name + TABLE_ENDING
    )


# --- the choice


def choose(given: str, wishes: Wishes, overrides: Sequence[str] = (), output: str | None = None) -> Chosen:
    """Look at the source and choose. What the overrides give, such as `source.encoding=cp1252`, becomes part of the choice.

    With an `output`, which is the file of the configuration, the table has its name. Raises InputError where the source can't
    be read or leaves the choice open, and where the table is that of another source.
    """
    source = _absolute(given)
    wishes, asked = _with_settings(wishes, source, overrides)
    for value in (source, wishes.table or "", wishes.model or ""):
        if "${" in value:
            raise InputError(f"{value!r} holds ${{, which a configuration takes for a variable: rename it")
    base = _base(source)
    _check_no_table(given, source)
    table = wishes.table_path or _table(source, base, output)
    if not _SPECIAL.match(source) and not source.startswith(_READ_ONLY):
        check_free(table, asked.table.storage_options, source)
    seen = look_at(asked.source)
    roles = roles_of(seen, wishes.text, wishes.id)
    model, reason = _model(wishes)
    chosen = Chosen(
        source=source,
        place=output or place_of(given),
        model=model,
        model_reason=reason,
        table=table,
        seen=seen,
        roles=roles,
        lengths=text_lengths(seen, roles.text, replace(asked.model, path=model)),
        settings=wishes.settings,
    )
    chosen.spec()
    return chosen


def _with_settings(wishes: Wishes, source: str, overrides: Sequence[str]) -> tuple[Wishes, RunSpec]:
    """Return the wishes with what the overrides give, and a run that has all of that and nothing chosen yet.

    Raises ConfigError for overrides that make no run, and InputError for a key that was given twice.
    """
    settings = config.of_overrides(overrides)
    read = {"path": source, "text": "text", "front_matter": "columns"}
    asked = config.from_mapping({"source": read, "model": {"path": "-"}, "table": {"path": "-"}}, overrides)
    if "path" in settings.get("source", {}):
        raise InputError("--set source.path is for a configuration: give the documents themselves as the argument")
    for option, section, key, value in (
        ("model", "model", "path", asked.model.path),
        ("text", "source", "text", asked.source.text_columns),
        ("id", "source", "id", asked.source.id_columns),
        ("table", "table", "path", asked.table.path),
    ):
        given = settings.get(section) or {}
        if key not in given:
            continue
        if getattr(wishes, option) not in (None, ()):
            raise InputError(f"--{option} and --set {section}.{key} are both given: leave one of them out")
        del given[key]
        wished: Mapping[str, Any] = {option: value}
        wishes = replace(wishes, **wished)
    settings = {section: given for section, given in settings.items() if given != {}}
    return replace(wishes, settings=settings), asked


def _check_no_table(given: str, source: str) -> None:
    if not is_remote(source) and os.path.isdir(os.path.join(source, "meta", "versions")):
        raise InputError(
            f"{given!r} is a table that was embedded already: give its documents, or look at it with "
            f"`python -m jobs.status {given}`"
        )


def _model(wishes: Wishes) -> tuple[str, str]:
    if wishes.model_path is not None:
        return wishes.model_path, "as you said"
    if (bundled := bundled_here()) is not None:
        return bundled, "small, and installed here"
    return FROM_HUB, "small, and fetched from the Hugging Face Hub once"


# --- the file


def for_source(given: str, wishes: Wishes, overrides: Sequence[str] = (), *, writes: bool) -> Chosen | None:
    """Choose a configuration for a source, unless it has one: None says that it has.

    With `writes` what was chosen is written down. Raises InputError for a file that stands in the place of the configuration
    and is none of this source, and for wishes that differ from it.
    """
    place = place_of(given)
    if os.path.lexists(place):
        _check_own(place, _absolute(given), wishes)
        return None
    chosen = choose(given, wishes, overrides)
    if writes:
        write(chosen, place)
    return chosen


def _check_own(place: str, source: str, wishes: Wishes) -> None:
    try:
        spec = config.load(place)
    except PipelineError as error:
        raise InputError(
            f"the configuration of {source!r} would be {place!r}, where something else stands ({error}): mend or move it, or "
            "give a configuration of another name"
        ) from None
    if spec.source.patterns != SourceSpec(path=source, text="text").patterns:
        raise InputError(
            f"the configuration of {source!r} would be {place!r}, but that is for {', '.join(spec.source.patterns)}: give it "
            f"as the argument to use it, or have one of another name with `python -m jobs.init '{source}' --output OTHER.yaml`"
        )
    for option, key, wished, stands in (
        ("--model", "model.path", wishes.model_path, spec.model.path),
        ("--text", "source.text", wishes.text or None, spec.source.text_columns),
        ("--id", "source.id", wishes.id, spec.source.id_columns),
        ("--table", "table.path", wishes.table_path, spec.table.path),
    ):
        if wished is not None and wished != stands:
            raise InputError(
                f"{option} differs from {key} in {place!r}, which is there for this source already: change it there, or leave "
                "the option out"
            )


def write(chosen: Chosen, place: str) -> bool:
    """Write the configuration, and say whether it was not there yet. Raises InputError where another file stands there, or
    none can be written."""
    try:
        with open(place, "x", encoding="utf-8") as file:
            file.write(chosen.yaml)
    except FileExistsError:
        if _says(place) == yaml.safe_load(chosen.yaml):
            return False
        raise InputError(
            f"{place!r} is there and says something else: it is left as it is; give another file with --output, or move it"
        ) from None
    except OSError as error:
        raise InputError(f"{place!r} can't be written: {error.strerror}; give another file with --output") from None
    return True


def _says(place: str) -> object:
    try:
        found: object = yaml.safe_load(Path(place).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found
