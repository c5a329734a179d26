"""Pools say how many readers, encoders and writers a run has, and what each may use.

The numbers come from a cluster's nodes or from this machine's cores. This file knows no Ray and no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config import ResourceSpec
from pipeline.errors import ConfigError
from pipeline.execution import costs
from pipeline.progress import counted

MOST_CPUS_PER_TASK = 0.99
"""Reading must not ask for as many CPUs as an encoder, or Ray makes one stage of both where their pools are of one size."""


TASKS_PER_ENCODER = 2
"""An encoder has one slice in work and one at hand, or in preparation."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """It says how many workers of each kind there are, and what each may use."""

    device: str
    encoders: int
    cpus_per_encoder: int
    gpus_per_encoder: float
    tokenizers: int
    writers: int
    cpus_per_task: float
    """A tokenizer or writer task has so many logical CPUs."""
    light: bool = False
    """There is so little to encode that a start without torch is worth a slower encoder; see costs.LIGHT_S."""

    @property
    def slices_at_once(self) -> int:
        """An encoder prepares one slice, or finishes it, while its GPU computes another. On a CPU that would take the
        engine's own cores."""
        return 2 if self.device == "cuda" else 1

    @property
    def most_unrecorded(self) -> int:
        """So many slices may be encoded, or in work at an encoder, without being recorded: what a crash can cost."""
        return TASKS_PER_ENCODER * self.encoders + self.writers

    def at_most(self, encoders: int | None, tasks: int) -> "Pools":
        """Return these pools with no more encoders than the limit and the tasks; None is no limit at all."""
        return self if encoders is None else replace(self, encoders=max(1, min(self.encoders, encoders, tasks)))

    def describe(self) -> str:
        others = f"{counted(self.tokenizers, 'tokenizer')}, {counted(self.writers, 'writer')}"
        return f"{self.describe_encoders()}, {others}"

    def describe_encoders(self) -> str:
        use = f"{self.gpus_per_encoder:g} GPU" if self.device == "cuda" else f"{self.cpus_per_encoder} CPU"
        return f"{self.encoders} x {use} {'encoder' if self.encoders == 1 else 'encoders'}"


@dataclass(frozen=True, kw_only=True)
class Load:
    """It is what a row of a run costs those who read, encode and write it."""

    tokens: float = costs.TOKENS_GUESSED
    """A row has about so many tokens."""
    weights: int = 0
    """The layers of the transformer have so many weights; a static model has none."""
    vector_bytes: int = 1536
    """A row's vector has so many bytes in the table."""
    threads: int | None = None
    """An encoder on CPUs is fastest with so many cores, where that was measured; see arrangement.py."""

    @property
    def gpu_rows_per_s(self) -> float:
        """A GPU encodes about so many rows a second."""
        tokens: float = costs.GPU_TOKENS_PER_S
        if self.weights:
            tokens = min(tokens, costs.GPU_FLOPS / (2 * self.weights))
        return tokens / max(1.0, self.tokens)

    @property
    def read_s(self) -> float:
        """A core reads and tokenizes a row in about so many seconds."""
        return 1 / costs.READ_ROWS_PER_S + self.tokens / costs.TOKENIZE_TOKENS_PER_S

    @property
    def write_s(self) -> float:
        """A core writes a row in about so many seconds."""
        return costs.WRITE_ROW_S + self.vector_bytes / costs.WRITE_BYTES_PER_S


USUAL = Load()
"""It stands for rows of which nothing is known."""
ALONE = Pools(
    device="cpu", encoders=1, cpus_per_encoder=1, gpus_per_encoder=0.0, tokenizers=1, writers=1, cpus_per_task=1.0
)
"""It stands for this process alone."""


def choose_pools(
    spec: ResourceSpec, nodes: Sequence[Mapping[str, float]], encoder_bytes: int = 0, load: Load = USUAL
) -> Pools:
    """Fill in `auto` from the CPUs, the GPUs and the bytes of memory of each node, and from what a row costs.

    Encoders, of which each holds about `encoder_bytes`, are as many as the memory holds, unless a number is given. A CPU
    encoder whose best number of cores was not measured has one: two in step wait for each other whenever anything else
    runs on a core. It has more where the memory holds fewer encoders than there are cores. Raises ConfigError for what
    the cluster can't give, since Ray itself would wait for it for ever.
    """
    cpus, gpus = int(sum(node.get("CPU", 0) for node in nodes)), sum(node.get("GPU", 0) for node in nodes)
    gpus_each = _given(spec.gpus_per_encoder, otherwise=1.0 if gpus else 0.0)
    cpus_each = int(_given(spec.cpus_per_encoder, otherwise=_cores_each(spec, nodes, encoder_bytes, load)))
    room = sum(_encoders_on(node, cpus_each, gpus_each) for node in nodes)
    # A logical CPU stays for reading and writing, since encoders on all of them would wait for their input for ever.
    room = min(room, (cpus - 1) // cpus_each)
    held = sum(_encoders_on(node, cpus_each, gpus_each, encoder_bytes) for node in nodes)
    encoders = int(_given(spec.encoders, otherwise=max(1, min(room, held))))
    if encoders > room:
        raise ConfigError(
            f"resources ask for {encoders} encoders of {cpus_each} CPUs and {gpus_each:g} GPUs each; the cluster's "
            f"{cpus} CPUs (one of them kept for reading and writing) and {gpus:g} GPUs have room for {room}: lower "
            "encoders, cpus_per_encoder or gpus_per_encoder"
        )
    spare = cpus - encoders * cpus_each
    auto_tokenizers, auto_writers = around_encoders(encoders, gpus_each, spare, load)
    tokenizers = int(_given(spec.tokenizers, otherwise=auto_tokenizers))
    writers = int(_given(spec.writers, otherwise=auto_writers))
    per_task = min(MOST_CPUS_PER_TASK, spare / (tokenizers + writers))
    return Pools(
        device="cuda" if gpus_each else "cpu",
        encoders=encoders,
        cpus_per_encoder=cpus_each,
        gpus_per_encoder=gpus_each,
        tokenizers=tokenizers,
        writers=writers,
        cpus_per_task=max(0.01, math.floor(per_task * 100) / 100),
    )


def _cores_each(spec: ResourceSpec, nodes: Sequence[Mapping[str, float]], encoder_bytes: int, load: Load) -> int:
    """Return how many cores an encoder has, where the user leaves it open."""
    if any(node.get("GPU", 0) for node in nodes) and spec.gpus_per_encoder != 0:
        return 1
    if load.threads is not None:
        return load.threads
    if spec.encoders != "auto":
        return 1
    held = max(1, sum(_encoders_on(node, 1, 0.0, encoder_bytes) for node in nodes))
    return max(1, (int(sum(node.get("CPU", 0) for node in nodes)) - 1) // held)


def _given(value: float | str, otherwise: float) -> float:
    return otherwise if isinstance(value, str) else value


def _encoders_on(node: Mapping[str, float], cpus_each: int, gpus_each: float, encoder_bytes: int = 0) -> int:
    """Return how many encoders fit on a node. A share is of one GPU: with 0.3 each, two GPUs have six, and a seventh
    would wait for ever."""
    by_cpu, gpus = int(node.get("CPU", 0)) // cpus_each, int(node.get("GPU", 0))
    if encoder_bytes and "memory" in node:
        by_cpu = min(by_cpu, int(node["memory"] // encoder_bytes))
    if not gpus_each:
        return by_cpu
    return min(by_cpu, gpus * int(1 / gpus_each + 1e-6) if gpus_each < 1 else gpus // int(gpus_each))


def around_encoders(encoders: int, gpus_each: float, spare: int, load: Load) -> tuple[int, int]:
    """Choose (tokenizers, writers) for so many encoders, where so many `spare` cores are left beside them.

    Around GPUs both kinds can do what the GPUs give, and somewhat more. Where the cores are too few for that, both get their
    share, so that neither waits for the other. On CPUs one of each serves many encoders, since a transformer takes far
    longer for a row than they do.
    """
    if not gpus_each:
        return max(1, encoders // 16), max(1, encoders // 4)
    rows_per_s = costs.FEEDING_SPARE * encoders * gpus_each * load.gpu_rows_per_s
    tokenizers, writers = rows_per_s * load.read_s, rows_per_s * load.write_s
    if math.ceil(tokenizers) + math.ceil(writers) <= spare:
        return math.ceil(tokenizers), math.ceil(writers)
    few = max(1, min(spare - 1, round(spare * writers / (tokenizers + writers))))
    return max(1, spare - few), few
