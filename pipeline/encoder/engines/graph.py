"""A transformer as an OpenVINO graph: a file in; token ids in, the last layer's token vectors out.

All of OpenVINO's settings stand here, and where a model's float32 graph is kept on this node. Loads neither torch nor
transformers; how a graph is made is tracing.py's and int8.py's business.
"""

import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from pipeline.model.cache import kept
from pipeline.model.folder import EncoderSpec

FORMAT = 2
"""Raised when a graph is made otherwise: graphs that are kept on nodes are then made anew."""
PROOF_WIDTH = 512
"""Of the longest batch that a graph is proven with."""
KEPT_SHAPES = 256
"""Compiled code for so many shapes of a matrix is kept, some 100 kB each."""

_NAME, _REFUSED = "graph.xml", "unsupported"


class Unsupported(Exception):
    """The architecture can't be computed so, or not with the same result."""


class Compiled:
    """A graph, ready to run on `threads` cores."""

    def __init__(self, file: Path, threads: int) -> None:
        settings = {
            # Or a processor that has bfloat16 would use it, unasked.
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
    """The graph as OpenVINO has it in memory."""
    return _core().read_model(file)


def save_graph(graph: Any, file: Path) -> None:
    """Write `file` and the weights beside it, as they are: OpenVINO would make float16 of float32."""
    openvino.save_model(graph, file, compress_to_fp16=False)


def float32_graph(spec: EncoderSpec, *, token_types: bool) -> Path:
    """The file of the model's float32 graph on this node, made and proven by now or by this call.

    `token_types`: as in TorchEngine. Raises Unsupported where torch and the graph don't agree, InputError where the model
    doesn't load.
    """
    if spec.needs_all_layers:
        raise Unsupported("a module reads the token vectors of all layers")
    width = min(spec.max_seq_length or PROOF_WIDTH, PROOF_WIDTH)

    def make(folder: Path) -> None:
        from pipeline.encoder.engines.tracing import (
            trace,  # torch and transformers load only where there is no graph yet
        )

        try:
            trace(spec, folder / _NAME, token_types=token_types, width=width)
        except Unsupported as reason:  # kept, too: finding out takes seconds
            (folder / _REFUSED).write_text(str(reason), encoding="utf-8")

    folder = kept("graphs", _key(spec, token_types, width), make)
    if (folder / _REFUSED).exists():
        raise Unsupported((folder / _REFUSED).read_text(encoding="utf-8"))
    return folder / _NAME


def _key(spec: EncoderSpec, token_types: bool, width: int) -> str:
    content = {
        "format": FORMAT,
        "model": spec.origin.digest,
        "transformer": spec.transformer,
        "width": width,
        "token_types": token_types,
        "versions": [version(package) for package in ("openvino", "transformers", "torch")],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
