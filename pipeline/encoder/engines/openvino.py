"""A transformer's graph on OpenVINO, on the CPU: padded token ids in, float32 vectors out.

What follows the transformer runs on numpy where it can, else on torch, as in the torch engine. Knows no texts, no batching
and no retries.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.base import GraphForm
from pipeline.encoder.engines.graph import Compiled, has_bfloat16, may_fuse
from pipeline.encoder.engines.numpy_head import NumpyHead, is_plain_head
from pipeline.model.folder import EncoderSpec

FUSED_FROM = 64
"""Attention is fused for rows of at least so many tokens where nothing was measured: an AMD EPYC and an Intel Xeon are faster
with it from there on, and code for a new shape takes 5 ms longer to make."""


class OpenVinoEngine:
    """Implements engines.base.CompilingEngine and FormingEngine. Where the head runs on torch, it sets torch's thread count
    for the whole process."""

    name = "openvino"

    def __init__(self, spec: EncoderSpec, graph: Path, threads: int, prompt_length: int = 0) -> None:
        """`graph`: the file that kept_graph.float32_graph gave, or a quantised one; `prompt_length` as in
        TorchEngine."""
        self.dim = spec.dim
        self.longest = spec.max_seq_length
        self.may_fuse = may_fuse(graph)
        self.may_bfloat16 = spec.precision == "int8" and has_bfloat16()
        # Where nothing was measured it is bfloat16, so that an int8 model is judged by the less exact of its forms.
        self.form = GraphForm(fused_from=FUSED_FROM if self.may_fuse else None, bfloat16=self.may_bfloat16)
        self._file, self._threads = graph, threads
        self._compiled: dict[tuple[bool, bool], Compiled] = {}
        self._head = _head(spec, threads, prompt_length)

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        width = ids.shape[1]
        tokens = ids.astype(np.int64)
        hidden = self._graph(width).run(tokens, (np.arange(width) < lengths[:, None]).astype(np.int64))
        return self._head(hidden, tokens, lengths)

    def _graph(self, width: int) -> Compiled:
        """The graph for rows of this width. Each form of it is compiled when it is first needed, and kept."""
        start, bfloat16 = self.form.fused_from, self.form.bfloat16 and self.may_bfloat16
        fused = self.may_fuse and start is not None and width >= start
        if (fused, bfloat16) not in self._compiled:
            self._compiled[fused, bfloat16] = Compiled(self._file, self._threads, fused=fused, bfloat16=bfloat16)
        return self._compiled[fused, bfloat16]

    def settle(self, form: GraphForm) -> None:
        """Compute in this form, and give back the memory of those that it doesn't need."""
        self.form = form
        for fused, bfloat16 in list(self._compiled):
            if bfloat16 != form.bfloat16 or form.fused_from == (None if fused else 0):
                del self._compiled[fused, bfloat16]


_Head = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]], NDArray[np.float32]]


def _head(spec: EncoderSpec, threads: int, prompt_length: int) -> _Head:
    """Return the head for (hidden [n, width, hidden], ids [n, width], lengths [n]), without torch where that is enough."""
    if is_plain_head(spec):
        return NumpyHead(spec)
    from pipeline.encoder.engines.head import head_on_cpu

    return head_on_cpu(spec, threads, prompt_length)
