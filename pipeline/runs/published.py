"""A configuration names a published table and the very model that it was built with.

A `RunSpec` comes in. The table's folder, its current version and the model's `EncoderSpec` go out, or an InputError
where they don't belong together. This file loads neither torch nor Ray.
"""

from dataclasses import dataclass, replace

from pipeline import identity
from pipeline.config import RunSpec
from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec, Int8Graph, encoder_spec
from pipeline.runs.vector_spec import what_differs
from pipeline.storage import Folder
from pipeline.table import calibration, int8, snapshot
from pipeline.table.calibration import Calibration
from pipeline.table.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Published:
    spec: RunSpec
    table: Folder
    version: Snapshot
    encoder: EncoderSpec
    """It has the table's int8 model, if the table has one. The file of that model is not fetched yet."""
    int8_path: str | None
    calibration: Calibration | None
    """The int8 and uint8 vectors were quantised with it."""

    def encoder_here(self) -> EncoderSpec:
        """Return the encoder that made the table's vectors, with all of its files on this node."""
        return int8.encoder_here(self.encoder, self.table, self.int8_path)


def is_published(spec: RunSpec) -> bool:
    return bool(snapshot.versions(Folder(spec.table.path, spec.table.storage_options)))


def published(spec: RunSpec) -> Published:
    """Find the published table. Raises InputError where there is no version, or where another model or other model
    settings made it."""
    table = Folder(spec.table.path, spec.table.storage_options)
    version = snapshot.current(table)
    if not version.version:
        raise InputError(f"table {spec.table.path!r} has no published version: run `python -m jobs.embed` first")
    encoder = encoder_spec(spec.model, version.fingerprint_of.get("encoder"))
    ranges = calibration.stored(table, version.embeddings[0])
    quantised = int8.stored(table, version.embeddings[0])
    if quantised is not None and encoder.precision == "int8":
        encoder = replace(encoder, int8=Int8Graph(digest=quantised.digest))
    vectors = identity.vectors_spec(
        encoder.identity(), spec.table.dtype, spec.chunk_identity, ranges.digest if ranges else None
    )
    if identity.digest(vectors) != version.fingerprint:
        differs = what_differs(version.fingerprint_of, vectors)
        raise InputError(f"table {spec.table.path!r} was built with {differs}: use the table's settings")
    path = version.embeddings[0]["int8"]["path"] if encoder.int8 else None
    return Published(spec=spec, table=table, version=version, encoder=encoder, int8_path=path, calibration=ranges)
