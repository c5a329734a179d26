"""A precision stands for `auto` before anything else is known of a run: a table keeps its own, whatever machine it is on.

A run comes in, and goes out with a precision that is named. This file loads no torch.
"""

from dataclasses import replace
from typing import Any

from pipeline.config import RunSpec
from pipeline.machine.processor import has_gpus
from pipeline.model.folder import encoder_spec
from pipeline.storage import Folder, before_work
from pipeline.table import snapshot


def settled(spec: RunSpec, *, new_model: bool = False) -> RunSpec:
    """Return the run with the precision that `auto` stands for.

    It is that of the table, unless a `new_model` may take the place of the table's. A new table gets float32 on CPUs; on
    GPUs it gets float16, or bfloat16 for a model that overflows in float16. Raises InputError.
    """
    if spec.model.precision != "auto":
        return spec
    with before_work():
        found = None if new_model else _of_table(spec)
        precision: Any = found or (_half(spec) if _on_gpus(spec) else "float32")
    return replace(spec, model=replace(spec.model, precision=precision))


def _of_table(spec: RunSpec) -> str | None:
    table = Folder(spec.table.path, spec.table.storage_options)
    newest = max(snapshot.versions(table), default=0)
    known = snapshot.read_alone(table, newest).fingerprint_of.get("encoder", {}) if newest else {}
    return known.get("precision")


def _on_gpus(spec: RunSpec) -> bool:
    asked = spec.resources.gpus_per_encoder
    return spec.model.engine != "openvino" and (has_gpus() if isinstance(asked, str) else bool(asked))


def _half(spec: RunSpec) -> str:
    from pipeline.encoder.half_precision import half_precision

    encoder = encoder_spec(spec.model)
    return half_precision(encoder) if encoder.model_type else "float32"
