"""An OpenVINO graph's file in; token ids in, the token vectors of the transformer's last layer out.

All of OpenVINO's settings stand here. This file loads neither torch nor transformers, and doesn't know how a graph is made.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

KEPT_SHAPES = 256
"""Compiled code for so many shapes of a matrix is kept, some 100 kB each."""


class Unsupported(Exception):
    """The architecture can't be computed so, or not with the same result."""


class Compiled:
    """A graph, ready to run on `threads` cores."""

    def __init__(self, file: Path, threads: int) -> None:
        settings = {
            # Without this, a processor that has bfloat16 would use it, unasked.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # The encoders of one machine would all be pinned to its first cores.
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
            # Attention by its own operators: the code that would be made to fuse them is no faster, and slow to make.
            "SNIPPETS_MODE": "DISABLE",
        }
        self._request = _core().compile_model(file, "CPU", settings).create_infer_request()

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """ids and mask int64 [n, width] -> float32 [n, width, hidden], good until the next call."""
        hidden: NDArray[np.float32] = self._request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]
        return hidden


@functools.cache
def _core() -> Any:
    return openvino.Core()


def read_graph(file: Path) -> Any:
    """The graph in the form that OpenVINO has in memory."""
    return _core().read_model(file)


def save_graph(graph: Any, file: Path) -> None:
    """Write `file` and the weights beside it, as they are: OpenVINO would make float16 of float32."""
    openvino.save_model(graph, file, compress_to_fp16=False)
