"""The model as it was quantised to int8 for a table: made once, created once, then only read.

Comes in and goes out: the graph's content, and how it agrees with float32. What the graph is, and who quantises, is not
known here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.encoder.agreement import Agreement, Quantised, digest_of
from pipeline.errors import InputError, StorageError
from pipeline.model.cache import kept
from pipeline.model.folder import EncoderSpec
from pipeline.storage import Folder
from pipeline.table import layout


def create(table: Folder, path: str, graph: bytes, made: Quantised) -> None:
    """Let `made` be the table's model, unless another run's is: what counts is what `load` gives from now on."""
    table.write(layout.int8_graph(path, made.digest), graph)  # whole before it is named
    table.create_once(path, json.dumps({"format": layout.FORMAT, **asdict(made)}).encode())


def load(table: Folder, path: str) -> Quantised | None:
    """What stands at `path`; None before it was made. InputError if it is something else."""
    content = table.read(path)
    if content is None:
        return None
    try:
        raw = json.loads(content)
        return Quantised(digest=raw["digest"], measured_on=raw["measured_on"], agreement=Agreement(**raw["agreement"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{table.url}/{path} is not what this program wrote: put it back from a copy of the table, or, if the table has "
            "no version yet, delete it"
        ) from None


def stored(table: Folder, embedding: Mapping[str, Any]) -> Quantised | None:
    """What an entry of a snapshot's `embeddings` names; None for other precisions.

    Raises InputError if it is gone or not the one that the table was built with.
    """
    named = embedding.get("int8")
    if named is None:
        return None
    found = load(table, named["path"])
    if found is None or found.digest != named["digest"]:
        raise InputError(
            f"the int8 model that the table was built with stands in {table.url}/{named['path']}, which is "
            f"{'gone' if found is None else 'another file now'}: put it back from a copy of the table"
        )
    return found


def encoder_here(encoder: EncoderSpec, table: Folder, path: str | None) -> EncoderSpec:
    """The encoder with the table's int8 model, described at `path`, on this node; as it is where it has none.

    Raises InputError if the model is gone or damaged.
    """
    if encoder.int8 is None or path is None:
        return encoder
    return replace(encoder, int8=replace(encoder.int8, file=str(_fetch(table, path, encoder.int8.digest))))


def _fetch(table: Folder, path: str, digest: str) -> Path:
    """The graph's file on this node, copied by now or by this call; InputError if it is gone or damaged."""
    from pipeline.encoder.engines.int8 import graph_file, unpack

    def copy(folder: Path) -> None:
        where = layout.int8_graph(path, digest)
        content = table.read(where)
        if content is None or digest_of(content) != digest:
            raise InputError(
                f"the table's int8 model in {table.url}/{where} is {'gone' if content is None else 'damaged'}: put it back "
                "from a copy of the table"
            )
        unpack(content, folder)

    try:
        return graph_file(kept("int8", digest, copy))
    except OSError as error:
        raise StorageError(
            f"the table's int8 model can't be copied to this node ({error.strerror or error}): make room in its cache folder"
        ) from None
