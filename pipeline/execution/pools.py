"""How many readers, encoders and writers a run has, and what each may use. Chosen from a cluster's nodes in ray/flow.py."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pools:
    """How many of what, and what each may use."""

    device: str
    encoders: int
    cpus_per_encoder: int
    gpus_per_encoder: float
    tokenizers: int
    writers: int
    cpus_per_task: float
    """Logical CPUs of a tokenizer or writer task."""

    def describe(self) -> str:
        use = f"{self.gpus_per_encoder:g} GPU" if self.device == "cuda" else f"{self.cpus_per_encoder} CPU"
        return f"{self.encoders} x {use} encoders, {self.tokenizers} tokenizers, {self.writers} writers"


ALONE = Pools(
    device="cpu", encoders=1, cpus_per_encoder=1, gpus_per_encoder=0.0, tokenizers=1, writers=1, cpus_per_task=1.0
)
"""This process."""
