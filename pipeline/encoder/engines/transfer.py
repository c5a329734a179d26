"""Arrays in, tensors on the device out, and the other way round, while the device computes.

A GPU's copies go through pinned memory on streams of their own, so that neither side waits for them. On the CPU there is
nothing to copy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoder.engines.base import Answer
from pipeline.encoder.engines.device import translated_errors


class Transfer:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._inward = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._outward = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def to_device(self, *arrays: NDArray[Any]) -> Sequence[Tensor]:
        """Copies of the arrays on the device; work that is given to it from now on sees them."""
        if self._inward is None:
            return [torch.from_numpy(array) for array in arrays]
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._inward):
            tensors = [torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True) for array in arrays]
        compute.wait_stream(self._inward)
        for tensor in tensors:
            tensor.record_stream(compute)
        return tensors

    def to_host(self, tensor: Tensor) -> Answer:
        """An answer that waits until the device is done with the float32 tensor, and returns it."""
        if self._outward is None:
            result: NDArray[np.float32] = tensor.numpy()
            return lambda: result
        self._outward.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outward):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._outward)
        tensor.record_stream(self._outward)

        def answer() -> NDArray[np.float32]:
            with translated_errors():
                done.synchronize()
            vectors: NDArray[np.float32] = host.numpy()
            return vectors

        return answer
