"""A published table knows how it was made, so that its path alone can stand for a configuration.

What a person gives a command comes in: a configuration file, or the folder or URL of a table. A `RunSpec` goes out. That of
a table alone says what search and verify need, and its source is empty. This file loads neither torch nor Ray.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import config
from pipeline.config import RunSpec
from pipeline.errors import InputError, looked_for
from pipeline.model.origin import locate
from pipeline.storage import Folder, is_remote, local_path
from pipeline.table import snapshot
from pipeline.table.snapshot import Snapshot

_NO_SOURCE = {"path": "-", "text": "-"}
"""A table alone is read from no source, though a RunSpec has one."""


def table_of(given: str, overrides: Sequence[str] = ()) -> Folder:
    """Return the folder of a table, which its path or its configuration names. Raises InputError."""
    if not is_table(given):
        table = config.load(given, overrides).table
    else:
        raw = {"source": _NO_SOURCE, "model": {"path": "-"}, "table": {"path": given}}
        table = config.from_mapping(raw, overrides).table
    return Folder(table.path, table.storage_options)


def spec_of(given: str, overrides: Sequence[str] = ()) -> RunSpec:
    """Return the run of a configuration file, or the one that made a published table.

    The overrides hold in both cases: `model.path` says where the model of a table stands now. Raises InputError, also
    where the table's model is not there any more, or is another one.
    """
    if not is_table(given):
        return config.load(given, overrides)
    table = table_of(given, overrides)
    version = snapshot.current(table)
    if not version.version:
        raise InputError(
            f"table {given!r} has no published version: run `python -m jobs.embed` first, or check the path"
        )
    spec = config.from_mapping(_recorded(given, version), overrides)
    _check_model(spec, given, version)
    return spec


def is_table(given: str) -> bool:
    """Say whether a folder or URL of a table was given, and not a configuration. Raises InputError for a name of nothing."""
    if is_remote(given):
        return True
    if os.path.lexists(given) or given.endswith((".yaml", ".yml", ".json")):
        return os.path.isdir(given)
    if os.path.isdir(local_path(given)):  # This is a file: URL, or has a ~.
        return True
    raise InputError(
        f"{given!r} does not exist{looked_for(given)}: give a configuration file, or the folder or URL of a table"
    )


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
