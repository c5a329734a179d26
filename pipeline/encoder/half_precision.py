"""Which half precision a model can compute in: float16, which is nearer to float32, unless the model's values overflow in it.

A model in, a name out. The built-in probe texts are encoded in float16 on the CPU, in a process of its own, so that the caller
loads no torch; an overflow depends on the model and not on the device. What came out is kept on the node.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.encoder.isolated import IsolatedEngine
from pipeline.encoder.probes import TEXTS
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError
from pipeline.machine.quotas import cores
from pipeline.model.cache import kept
from pipeline.model.folder import EncoderSpec

HalfPrecision = Literal["float16", "bfloat16"]

TIMEOUT_S = 600.0
"""The process may take so long to load the model, or to encode a batch: half precision is slow on CPUs."""
_NAME = "precision"


def half_precision(spec: EncoderSpec) -> HalfPrecision:
    """Return float16, or bfloat16 where a probe text has no finite vector in float16. Raises InputError for a model that
    can't be loaded."""
    exact = replace(spec, precision="float16", engine="torch", int8=None)

    def make(folder: Path) -> None:
        (folder / _NAME).write_text("float16" if _is_finite(exact) else "bfloat16", encoding="ascii")

    found = (kept("half-precision", exact.origin.digest, make) / _NAME).read_text(encoding="ascii")
    return "bfloat16" if found == "bfloat16" else "float16"


def _is_finite(spec: EncoderSpec) -> bool:
    rows = Tokenizer(spec, 1).tokenize(TEXTS)
    lengths = rows.lengths[rows.lengths > 0].astype(np.int32)
    ids = np.zeros((len(lengths), lengths.max()), np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = rows.ids
    with IsolatedEngine(spec, "cpu", cores(), TIMEOUT_S) as engine:
        try:
            return bool(np.isfinite(engine.encode(ids, lengths)).all())
        except InputError:  # An engine refuses a model that gives no finite vectors for its own trial.
            return False
