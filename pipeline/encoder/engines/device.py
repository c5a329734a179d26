"""A device's name in, torch made ready for it; torch's errors in, ours out.

Sets what torch holds for the whole process: the number of threads and the precision of float32 products.
"""

import contextlib
from collections.abc import Iterator

import torch

from pipeline.encoder.engines.base import DeviceLost, OutOfMemory
from pipeline.errors import InputError


def ready_device(name: str, threads: int) -> torch.device:
    """`cpu` with this many threads, or `cuda`; InputError for others, and where torch finds no GPU."""
    if name not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; expected 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("the encoder was given a GPU, but torch finds none: check driver and torch build")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    return torch.device(name)


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""The allocators of the CPU, of CUDA and of its libraries say these; the last two stand behind "CUDA error"."""


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise OutOfMemory or, for a device that is lost, DeviceLost in the place of torch's errors; others pass through."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            _free_cached_memory()
            raise OutOfMemory(text) from None
        if "CUDA error" in text:
            raise DeviceLost(f"the GPU failed and this process can't use it any more: {text}") from None
        raise


def _free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
