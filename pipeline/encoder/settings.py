"""What an encoder is built from: its model, its device, and what a user decided for speed alone."""

from dataclasses import dataclass

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
