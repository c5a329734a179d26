"""A published table knows how it was made, so that its path alone can stand for a configuration.

What a person gives a command comes in: a configuration file, documents that have one beside them, or the folder or URL of
a table. A `RunSpec` goes out. That of a table alone says what search and verify need, and its source is empty. This file
loads neither torch nor Ray.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import config
from pipeline.config import RunSpec
from pipeline.errors import InputError, looked_for
from pipeline.model.origin import locate
from pipeline.storage import MAGIC, Folder, is_remote, local_path
from pipeline.table import layout, snapshot
from pipeline.table.snapshot import Snapshot

_CONFIGURATIONS = (".yaml", ".yml", ".json")
_NO_SOURCE = {"path": "-", "text": "-"}
"""A table alone is read from no source, though a RunSpec has one."""


def table_of(given: str, overrides: Sequence[str] = ()) -> Folder:
    """Return the folder of a table, which its path, its configuration or its documents name. Raises InputError."""
    place = standing_for(given)
    if not is_table(place):
        table = configured(place, overrides).table
    else:
        if _is_no_table(place):
            raise none_published(place)
        raw = {"source": _NO_SOURCE, "model": {"path": "-"}, "table": {"path": place}}
        table = config.from_mapping(raw, overrides).table
    return Folder(table.path, table.storage_options)


def spec_of(given: str, overrides: Sequence[str] = ()) -> RunSpec:
    """Return the run of a configuration file or of documents that have one, or the run that made a published table.

    The overrides hold in all cases: `model.path` says where the model of a table stands now. Raises InputError, also
    where the table's model is not there any more, or is another one.
    """
    place = standing_for(given)
    if not is_table(place):
        return configured(place, overrides)
    version = snapshot.current(table_of(place, overrides))
    if not version.version:
        raise none_published(place)
    spec = config.from_mapping(_recorded(place, version), overrides)
    _check_model(spec, place, version)
    return spec


def configured(given: str, overrides: Sequence[str] = ()) -> RunSpec:
    """Return the run of a configuration file, or of documents that have one beside them. Raises InputError."""
    place = standing_for(given)
    if place == given and _is_named_otherwise(given):
        from pipeline.runs import first_spec

        if _has_versions(given):
            raise InputError(
                f"{given!r} is a table: this needs the configuration, which says where the documents are; give that"
            )
        if os.path.lexists(local_path(given)) and first_spec.is_source(given):
            beside = first_spec.looked_for_beside(given)
            raise InputError(
                f"{given!r} is no configuration{beside}: `python -m jobs.init {shlex.quote(given)}` writes one"
            )
    return config.load(place, overrides)


def standing_for(given: str) -> str:
    """Return the configuration that stands beside documents and is for them; whatever else was given stands for itself.

    A table stands for itself, too. `embed` wrote such a configuration when it was given the documents.
    """
    if not _is_named_otherwise(given) or _has_versions(given):
        return given
    from pipeline.runs import first_spec  # It looks into files of many formats, which takes a while to import.

    return first_spec.configuration_of(given) or given


def none_published(given: str) -> InputError:
    """Return the error that a table has no published version, which names the configuration that was looked for."""
    from pipeline.runs import first_spec

    beside = first_spec.looked_for_beside(given) if not is_remote(given) else ""
    return InputError(
        f"table {given!r} has no published version{beside}: run `python -m jobs.embed` first, or check the path"
    )


def _is_named_otherwise(given: str) -> bool:
    """Say whether something has no name of a configuration."""
    return not given.lower().endswith(_CONFIGURATIONS) or bool(MAGIC.search(given))


def _has_versions(given: str) -> bool:
    return not is_remote(given) and os.path.isdir(os.path.join(local_path(given), layout.VERSIONS))


def _is_no_table(given: str) -> bool:
    """Say whether a folder on a disk has nothing that runs write, so that it is no table, not even one that begins."""
    if is_remote(given):
        return False
    return not any(os.path.isdir(os.path.join(local_path(given), name)) for name in (layout.META, layout.STAGING))


def is_table(given: str) -> bool:
    """Say whether a folder or URL of a table was given, and not a configuration. Raises InputError for a name of nothing."""
    if is_remote(given):
        return True
    if os.path.lexists(given) or given.endswith(_CONFIGURATIONS):
        return os.path.isdir(given)
    if os.path.isdir(local_path(given)):  # This is a file: URL, or has a ~.
        return True
    from pipeline.runs import first_spec

    where = f"{looked_for(given)}{first_spec.meant(given)}"
    raise InputError(f"{given!r} does not exist{where}: give a configuration file, or the folder or URL of a table")


def _recorded(given: str, version: Snapshot) -> dict[str, Any]:
    """Return the sections that the version was made with."""
    words, output, embedding = version.fingerprint_of, version.output_spec, version.embeddings[0]
    encoder: Mapping[str, Any] = words["encoder"]
    table = {name: output[name] for name in ("partition_by", "embedding_column", "keep_text") if name in output}
    model = {name: encoder[name] for name in ("max_seq_length", "prompt", "normalize", "precision") if name in encoder}
    return {
        "source": _NO_SOURCE | {"keep": list(output.get("keep", ()))},
        "model": {"path": ""} | dict(embedding.get("model") or {}) | model | {"truncate_dim": embedding["dim"]},
        "table": {"path": given, "dtype": words["dtype"]} | table,
        "chunk": words.get("chunk"),
    }


def _check_model(spec: RunSpec, given: str, version: Snapshot) -> None:
    """Raise InputError unless the model that made the table is where the specification says."""
    place = "give the place of its model with --set model.path=.., or a configuration in place of the table"
    if not spec.model.path:
        raise InputError(f"table {given!r} was published by a program that did not record where its model is: {place}")
    try:
        origin, _ = locate(spec.model)
    except InputError as error:
        raise InputError(f"the model of table {given!r} can't be had: {error}; or {place}") from None
    expected = version.fingerprint_of["encoder"]["model"]
    if origin.digest != expected:
        raise InputError(
            f"the model in {spec.model.path!r} is not the one that table {given!r} was built with (its digest is "
            f"{origin.digest[:12]}, the table's is {expected[:12]}): {place}"
        )
