"""A transformer's graph on OpenVINO, on the CPU: padded token ids in, float32 vectors out.

What follows the transformer runs on torch, as in the torch engine. Knows no texts, no batching and no retries.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoder.engines.device import ready_device, translated_errors
from pipeline.encoder.engines.graph import Compiled
from pipeline.encoder.engines.head import Head
from pipeline.model.folder import EncoderSpec


class OpenVinoEngine:
    """Implements engines.base.CompilingEngine. Sets torch's thread count for the whole process."""

    name = "openvino"

    def __init__(self, spec: EncoderSpec, graph: Path, threads: int, prompt_length: int = 0) -> None:
        """`graph`: the file that kept_graph.float32_graph gave, or a quantised one; `prompt_length` as in
        TorchEngine."""
        self.dim = spec.dim
        self.longest = spec.max_seq_length
        ready_device("cpu", threads)
        self._graph = Compiled(graph, threads)
        self._head = Head(spec, prompt_length)

    @torch.inference_mode()
    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        width = ids.shape[1]
        tokens = ids.astype(np.int64)
        hidden = self._graph.run(tokens, (np.arange(width) < lengths[:, None]).astype(np.int64))
        with translated_errors():
            sizes = None if int(lengths.min()) == width else torch.from_numpy(lengths)
            vectors: NDArray[np.float32] = self._head(torch.from_numpy(hidden), torch.from_numpy(tokens), sizes).numpy()
            return vectors
