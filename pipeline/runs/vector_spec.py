"""A vector spec says what makes the vectors of a table, and is compared with what made them.

A run's configuration, the table and its current version come in. A `VectorSpec` goes out. This file loads neither
torch nor Ray.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline import identity
from pipeline.config import RunSpec
from pipeline.encoder.agreement import Quantised
from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec, Int8Graph
from pipeline.storage import Folder
from pipeline.table import calibration, int8, layout
from pipeline.table.calibration import Calibration
from pipeline.table.quantize import SCALAR
from pipeline.table.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """It is all that changes a vector of the table, as far as it is known. The ranges of int8 and uint8 are measured
    once."""

    encoder: EncoderSpec
    """It has the table's int8 model, if the table has one."""
    words: Mapping[str, Any]
    """They are what `identity.vectors_spec` returns."""
    fingerprint: str
    """It is the digest of `words`. No unit of the table has it while `needs_calibration` holds."""
    ranges_path: str | None
    """The calibration stands, or will stand, at this path in the table. It is None for dtypes without ranges."""
    calibration: Calibration | None
    """It is None for dtypes without ranges, too."""
    needs_ranges: bool
    """The dtype has ranges, and the table has none yet."""
    int8_path: str | None
    """The int8 model is described, or will be, at this path in the table. It is None for other precisions."""
    int8: Quantised | None
    needs_int8: bool
    """The precision is int8, and the table has no model of it yet."""

    @property
    def needs_calibration(self) -> bool:
        return self.needs_ranges or self.needs_int8


def describe(
    spec: RunSpec, encoder: EncoderSpec, table: Folder, parent: Snapshot, output: str | None = None
) -> VectorSpec:
    """Describe the vectors as far as they are known, with the calibration that the table's version names.

    The calibration of a table without a version has a key that only `output` completes. It is there if an earlier run
    of this very configuration measured it.
    """
    encoder = replace(encoder, int8=None)  # The int8 file is known by all but itself.
    int8_path, quantised = _describe_int8(spec, encoder, table, parent, output)
    if quantised is not None:
        encoder = replace(encoder, int8=Int8Graph(digest=quantised.digest))
    needs_int8 = encoder.precision == "int8" and quantised is None
    words = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity)
    path: str | None = None
    found: Calibration | None = None
    if spec.table.dtype in SCALAR and not needs_int8:
        named = parent.embeddings[0]["calibration"] if parent.version else None
        if named is not None:
            path, found = named["path"], calibration.stored(table, parent.embeddings[0])
        elif output is not None:
            path = layout.calibration(_calibration_key(spec, words, output))
            found = calibration.load(table, path, encoder.dim)
    if found is not None:
        words = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity, found.digest)
    return VectorSpec(
        encoder=encoder,
        words=words,
        fingerprint=identity.digest(words),
        ranges_path=path,
        calibration=found,
        needs_ranges=spec.table.dtype in SCALAR and found is None,
        int8_path=int8_path,
        int8=quantised,
        needs_int8=needs_int8,
    )


def _describe_int8(
    spec: RunSpec, encoder: EncoderSpec, table: Folder, parent: Snapshot, output: str | None
) -> tuple[str | None, Quantised | None]:
    """Return (where the int8 model is described, what stands there), by the table's version or an earlier run."""
    if encoder.precision != "int8":
        return None, None
    named = parent.embeddings[0].get("int8") if parent.version else None
    if named is not None:
        return named["path"], int8.stored(table, parent.embeddings[0])
    if output is None:
        return None, None
    words = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity)
    path = layout.int8_model(_calibration_key(spec, words, output))
    return path, int8.load(table, path)


def _calibration_key(spec: RunSpec, words: Mapping[str, Any], output: str) -> str:
    """Return the key of the calibration of a table without a version.

    It consists of what makes a vector, what makes a row, and the source as the user describes it. The files found
    there are left out, so that a run that died goes on though one more file has arrived.
    """
    source = spec.source
    described = {
        "path": source.patterns,
        "format": source.format,
        "dataset": asdict(source.dataset),
        "limit": source.limit,
    }
    return identity.digest({"vectors": words, "output": output, "source": described})


def check_same_vectors(spec: RunSpec, parent: Snapshot, vectors: VectorSpec) -> None:
    """Raise InputError if the version holds vectors of another model, of other settings or of other ranges."""
    if parent.version and parent.fingerprint != vectors.fingerprint:
        raise InputError(
            f"table {spec.table.path!r} was built with {what_differs(parent.fingerprint_of, vectors.words)}; use the table's "
            "settings or another table.path, or let `python -m jobs.reindex` build the table anew with --new-model"
        )


def what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what made the vectors of a table, where something else would make them now, and what that means. Both are what
    `identity.vectors_spec` returns."""
    old, new = _by_sections(before), _by_sections(json.loads(json.dumps(now)))
    changes = "; ".join(differences(old, new))
    if old["model"].get("files") != new["model"]["files"]:
        return f"another model ({changes}): vectors of two models don't compare"
    return f"other settings of the same model ({changes}): its vectors don't compare with those that would be made now"


def _by_sections(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return them under the names that the configuration has for them, with the digest of the model's files as `files`."""
    encoder = {"files" if name == "model" else name: value for name, value in words.get("encoder", {}).items()}
    return {name: value for name, value in words.items() if name != "encoder"} | {"model": encoder}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield a phrase such as `chunk.max_tokens was 256, is 128` for each setting that differs."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{above}{name}.")
        elif old != new:
            yield f"{above}{name} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}.."
