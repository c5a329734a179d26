"""How many tokens a batch had best hold: measured once for a model, a device and a number of threads, and kept on this node.

Comes in: an encoder and what it was built from. Goes out: its budget. Only speed depends on it.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline import identity
from pipeline.encoder.encoder import Encoder
from pipeline.encoder.token_rows import TokenRows
from pipeline.model.cache import kept
from pipeline.model.folder import EncoderSpec

CANDIDATES = {"cpu": (512, 1024, 2048, 4096), "cuda": (16384, 32768, 65536, 131072, 262144)}
"""Tokens. Small batches pay for each call, large ones leave the cache."""
NEAR = 0.97
"""The smallest budget that reaches this share of the best rate is taken: a small batch wastes less padding and
memory."""
TURNS = 3
SLOWEST_S = 0.25
"""Where the smallest batch takes longer, nothing is measured: the cost of a call doesn't matter, and it would take
long."""


def best_budget(encoder: Encoder, spec: EncoderSpec, device: str, threads: int) -> int:
    """Tokens per batch. The encoder's own budget where its model is so slow, or its device so full, that it can't be
    measured."""
    key = identity.digest(
        {
            "encoder": spec.identity(),
            "engine": [encoder.engine.name, version("torch")],
            "device": device,
            "threads": threads,
            "candidates": CANDIDATES[device],
        }
    )

    def measure(folder: Path) -> None:
        (folder / "budget.json").write_text(json.dumps(_measured(encoder, spec, CANDIDATES[device])))

    found: int = json.loads((kept("budgets", key, measure) / "budget.json").read_text())
    return found


def _measured(encoder: Encoder, spec: EncoderSpec, candidates: tuple[int, ...]) -> int:
    rows = _rows(candidates[-1], spec.max_seq_length or 128)
    given = encoder.budget_tokens
    if _seconds(encoder, rows.slice(0, _rows_within(rows, candidates[0])), candidates[0]) > SLOWEST_S:
        encoder.budget_tokens = given
        return given
    took = {budget: [] for budget in candidates}  # type: dict[int, list[float]]
    for _ in range(TURNS):  # the budgets take turns, so that a noisy moment meets all of them
        for budget in candidates:
            took[budget].append(_seconds(encoder, rows, budget))
            if encoder.budget_tokens < budget:  # out of memory: none larger either
                encoder.budget_tokens = given
                return min(given, budget // 2)
    encoder.budget_tokens = given
    fastest = min(min(seconds) for seconds in took.values())
    return next(budget for budget in candidates if NEAR * min(took[budget]) <= fastest)


def _seconds(encoder: Encoder, rows: TokenRows, budget: int) -> float:
    encoder.budget_tokens = budget
    started = time.perf_counter()
    encoder.encode(rows)
    return time.perf_counter() - started


def _rows(tokens: int, longest: int) -> TokenRows:
    """Different rows of mixed lengths, about so many tokens. Token 1 to 99 are words or special ones in every
    vocabulary."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(min(8, longest), min(128, longest) + 1, max(1, tokens // min(68, longest)))
    return TokenRows.of([chance.integers(1, 100, length).astype(np.int32) for length in lengths])


def _rows_within(rows: TokenRows, tokens: int) -> int:
    return max(1, int(np.searchsorted(rows.offsets, tokens, side="right")) - 1)
