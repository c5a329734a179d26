"""How many cores an encoder on CPUs should have is measured, with as many encoders at work as a machine would have.

What an encoder is built from, the cores of a machine and the size of the work come in. The arrangement goes out, and is kept
on the node. Which runs are worth it is not known here.
"""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Barrier

import numpy as np
from numpy.typing import NDArray

from pipeline import identity
from pipeline.encoder.encoder import BUDGET_TOKENS
from pipeline.encoder.isolated import IsolatedEngine
from pipeline.encoder.settings import libraries
from pipeline.execution.arrangement import Arrangement, Size, candidates, choice
from pipeline.machine.processor import processor
from pipeline.machine.quotas import memory_bytes
from pipeline.model.cache import kept
from pipeline.stages.worker_spec import WorkerSpec

MEASURED_S = 1.5
"""The encoders of an arrangement work for about so long."""
MEMORY_SHARE = 0.7
"""Encoders may have this share of the machine's memory, as on a cluster: the rest is for its object store and others."""
WORSE = 0.9
"""Where more cores each give less than this share of the best rate, still more are not tried."""


def measure(size: Size, spec: WorkerSpec, cpus: int) -> Arrangement:
    """Return the fastest arrangement on the `cpus` cores of this machine, measured now or before."""
    encoder, memory = spec.encoder_here(), memory_bytes()
    held = cpus if memory is None else max(1, int(MEMORY_SHARE * memory // size.encoder_bytes))
    tried = candidates(cpus, held)
    known = {
        "encoder": encoder.identity() | {"int8": None},
        "engine": [encoder.engine, *libraries()],
        "processor": processor(),
        "candidates": [list(each) for each in tried],
        "tokens": size.tokens.bit_length(),
    }

    def make(folder: Path) -> None:
        rates: list[tuple[int, int, float]] = []
        for encoders, threads in tried:
            rate = _tokens_per_s(spec, encoders, threads, size.tokens)
            rates.append((encoders, threads, rate))
            if rate < WORSE * max(found for _, _, found in rates):
                break
        (folder / "arrangement.json").write_text(json.dumps(asdict(choice(rates))))

    folder = kept("arrangements", identity.digest(known), make)
    return Arrangement(**json.loads((folder / "arrangement.json").read_text()))


def _tokens_per_s(spec: WorkerSpec, encoders: int, threads: int, tokens: int) -> float:
    """Return the rate of so many encoders that work at the same time, each in a process of its own. Where they can't
    work, it is 0."""
    encoder, timeout_s = spec.encoder_here(), spec.limits.unit_timeout_s
    ids, lengths = _batch(tokens, threads)
    begin = Barrier(encoders)

    def rate(engine: IsolatedEngine) -> float:
        try:
            engine.encode(ids, lengths)  # It loads the model, and makes the code for this shape.
        except Exception:
            begin.abort()
            raise
        begin.wait()
        started, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < MEASURED_S or not done:
            engine.encode(ids, lengths)
            done += ids.size
        return done / max(passed, 1e-9)

    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(IsolatedEngine(encoder, "cpu", threads, timeout_s)) for _ in range(encoders)]
        with ThreadPoolExecutor(encoders) as pool:
            try:
                return sum(pool.map(rate, engines))
            except Exception:  # Too many for the memory, or a machine that has not so many cores: others are taken.
                return 0.0


def _batch(tokens: int, threads: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return ids and lengths of a batch of made-up rows of so many tokens, larger where more cores share it."""
    rows = max(1, min(threads, 4) * BUDGET_TOKENS["cpu"] // tokens)
    # Tokens 1 to 99 are words or special ones in every vocabulary.
    ids = np.random.default_rng(0).integers(1, 100, (rows, tokens)).astype(np.int32)
    return ids, np.full(rows, tokens, np.int32)
