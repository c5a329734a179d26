"""An OpenVINO graph's file in; token ids in, the token vectors of the transformer's last layer out.

All of OpenVINO's settings stand here. This file loads neither torch nor transformers, and doesn't know how a graph is made.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

NOT_FUSED = "not_fused"
"""A file of this name beside a graph says that it gives other vectors where its attention is fused."""
KEPT_SHAPES = 256
"""Compiled code for so many shapes of a matrix is kept, some 100 kB each."""


class Unsupported(Exception):
    """The architecture can't be computed so, or not with the same result."""


class Compiled:
    """A graph, ready to run on `threads` cores."""

    def __init__(self, file: Path, threads: int, *, fused: bool = False, bfloat16: bool = False) -> None:
        """`fused`: attention is one piece of code, made for the graph, and not OpenVINO's own operators. Which is faster
        depends on the processor and on the width of the rows. `bfloat16`: whatever is not an int8 product is computed so."""
        settings = {
            # Without this, a processor that has bfloat16 would use it, unasked.
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # The encoders of one machine would all be pinned to its first cores.
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
            "SNIPPETS_MODE": "ENABLE" if fused else "DISABLE",
        }
        self._request = _core().compile_model(file, "CPU", settings).create_infer_request()

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """ids and mask int64 [n, width] -> float32 [n, width, hidden], good until the next call."""
        hidden: NDArray[np.float32] = self._request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]
        return hidden


def may_fuse(file: Path) -> bool:
    """Whether the graph's attention may be fused, as far as is known."""
    return not (file.parent / NOT_FUSED).exists()


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _core() -> Any:
    return openvino.Core()


def read_graph(file: Path) -> Any:
    """The graph in the form that OpenVINO has in memory."""
    return _core().read_model(file)


def save_graph(graph: Any, file: Path) -> None:
    """Write `file` and the weights beside it, as they are: OpenVINO would make float16 of float32."""
    openvino.save_model(graph, file, compress_to_fp16=False)
