"""What a contestant is told, what it answers to a turn, and how those that keep all texts in memory take theirs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import corpora

WARM_UP = 32
"""Texts that are embedded before the first turn."""
BATCH_SIZES = (8, 32, 128)
"""A contestant that finds its own batch size tries these."""
TRIED_S = 1.5
"""It tries each for about so many seconds."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    corpus: str
    """A folder as corpora.write leaves it."""
    model: str
    threads: int
    precision: str = "float32"
    engine: str = "auto"
    batch_size: int = 32
    """Texts at a time. With 0 a contestant tries some sizes before its first turn, and takes the fastest."""
    models: str = ""
    """In this folder a contestant finds, or leaves, the models that it makes of the given one."""
    long: bool = False
    """Ours choose engine, form of attention and batch size by measuring, as they do where there is more to encode than
    the share of a corpus that fits a benchmark. What they found is kept on the node, and later turns find it."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    documents: int
    seconds: float
    """From the first text's encoding to the last vector at its place."""
    start_s: float = 0.0
    """What had to be started anew for this turn before."""
    padding: float | None = None
    """Share of the tokens computed that is padding, where it is known."""
    parts: dict[str, float] | None = None
    """Seconds by part, where they are known; of a ceiling, operations per second."""


Contestant = Callable[..., Turn]
"""Called with what a line on stdin says (`rows`, `batch_size`, `save`), once per turn."""
Save = dict[str, Any] | None
"""{"path": a file, "rows": [row of the corpus, ..]}: after the turn the vectors of these rows are in the file, float32
[rows, dim], as numpy writes them."""
Encode = Callable[[list[str], int], Sequence[Any]]
"""It embeds texts, so many at a time, and returns a vector for each."""


def in_memory(encode: Encode, settings: Settings) -> Contestant:
    """Embed the corpus's texts, which are in memory, in each turn."""
    texts = corpora.corpus_texts(Path(settings.corpus))
    encode(texts[:WARM_UP], 32)
    own = settings.batch_size
    if not own:
        own = _fastest(encode, texts)
        encode(texts, own)  # Engines make code for each shape that they meet for the first time.

    def turn(rows: int | None = None, batch_size: int = own, save: Save = None) -> Turn:
        some = texts if rows is None else texts[:: max(1, len(texts) // rows)]
        started, busy = time.perf_counter(), time.process_time()
        vectors = encode(some, batch_size)
        ended, busy = time.perf_counter(), time.process_time() - busy
        keep(vectors, save)
        return Turn(documents=len(some), seconds=ended - started, parts={"batch": float(batch_size), "core s": busy})

    return turn


def keep(vectors: Sequence[Any], save: Save) -> None:
    """Write the vectors that `save` asks for. `vectors` are those of all rows of the corpus, in its order."""
    if save:
        np.save(save["path"], np.array([vectors[row] for row in save["rows"]], np.float32))


def _fastest(encode: Encode, texts: list[str]) -> int:
    some = texts[:: -(-len(texts) // 64)]
    started = time.perf_counter()
    encode(some, 32)
    count = round(TRIED_S / (time.perf_counter() - started) * len(some))
    some = texts[:: max(1, len(texts) // max(count, 128))]
    return min(BATCH_SIZES, key=lambda size: _second(encode, some, size))


def _second(encode: Encode, texts: list[str], size: int) -> float:
    """The seconds of the second time."""
    encode(texts, size)
    started = time.perf_counter()
    encode(texts, size)
    return time.perf_counter() - started
