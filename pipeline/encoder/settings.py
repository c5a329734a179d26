"""What an encoder is built from: its model, its device, and what a user decided for speed alone."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pipeline.model.folder import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The user has decided these settings. None is left to a measurement; see tuning.py."""

    fused_attention: bool | None = None
    bfloat16_in_int8: bool | None = None
    batch_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    spec: EncoderSpec
    device: str
    """It is `cpu` or `cuda`."""
    threads: int
    fixed: Fixed = Fixed()


def libraries() -> list[str]:
    """Return the versions of the libraries that compute, "" for one that is not installed: what was measured with others
    says nothing."""
    return [_version(package) for package in ("torch", "openvino")]


def gpu(device: str) -> str:
    """Return the name of the GPU, "" on a CPU: what was measured on another one says nothing."""
    if device != "cuda":
        return ""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
