"""A function of tensors in, the same on memory and shapes that stay: on a GPU all its work is then one launch.

A CUDA graph, where there is CUDA; elsewhere, and where the function can't be recorded, it is called. Knows nothing of
models.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Outputs = tuple[Tensor, Sequence[Tensor]]

RECOVERS_FROM = (2, 12)
"""Where a recording fails, earlier releases of torch stay in it: a later lack of memory is an assertion in there, and rows
would be blamed for it. They don't record."""
WARM_UPS = 2
"""Calls before a recording: libraries choose and set up what can't be set up within one."""


def recovers(release: str) -> bool:
    """Whether this release of torch goes on after a recording that failed."""
    major, minor = release.split(".")[:2]
    return (int(major), int(minor)) >= RECOVERS_FROM


class Recording:
    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor], pool: Any) -> None:
        """`inputs`: the first it is for; their shapes and types stay. `pool`: memory that recordings share, which is safe
        as long as one stream replays them."""
        self._function = function
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph: torch.cuda.CUDAGraph | None = None
        self.refused = ""
        """Why it can't be recorded."""
        if self._inputs[0].is_cuda:
            if recovers(torch.__version__):
                self._record(pool)
            else:
                self.refused = f"torch {torch.__version__} can't recover from a recording that fails"

    def __call__(self, *inputs: Tensor) -> Outputs:
        """The outputs are overwritten by the next call."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        if self._graph is None:
            return self._function(*self._inputs)
        self._graph.replay()
        return self._outputs

    def _record(self, pool: Any) -> None:
        compute, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(compute)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._function(*self._inputs)
        compute.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                self._outputs = self._function(*self._inputs)
            self._graph = graph
        except RuntimeError as error:
            torch.cuda.set_stream(compute)  # a recording that fails leaves its own
            first = error.__context__ or error  # its end fails too, and says less
            self.refused = " ".join(f"{type(first).__name__}: {first}".split())[:200]
