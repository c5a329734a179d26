"""Token ids in, one vector per row out, in the order of the rows; a row that can't be encoded is named with its reason.

Equal rows are encoded once, batches are sorted by length under a token budget, a lack of memory halves the budget, a
failing batch is halved down to the row, and one that costs the engine its process is tried row by row. Takes token ids,
never text; knows nothing of files, Ray or tables.
"""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.base import Answer, DeviceLost, Engine, EngineLost, OutOfMemory, PackingEngine
from pipeline.encoder.engines.feed import feed_for
from pipeline.encoder.probe_tokens import are_known, probe_tokens
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError, RunError
from pipeline.model.architectures import ARCHITECTURES
from pipeline.model.folder import EncoderSpec, openvino_is_installed

BUDGET_TOKENS = {"cpu": 1024, "cuda": 131072}
"""Padded tokens per batch. On the CPU larger batches leave the cache."""
PACKED_BUDGET_TOKENS = 65536
"""Tokens per packed batch. A power of two, as its halves are: the sizes that a batch is filled up to."""
STATIC_BUDGET_TOKENS = {"cpu": 262144, "cuda": 4194304}
"""Padded tokens per batch of a static model. A token costs one row of a table: batches only spread what a call costs."""
STATIC_OVERHEAD_TOKENS = {"cpu": 4096, "cuda": 65536}
OVERHEAD_TOKENS = {"cpu": 32, "cuda": 4096}
"""One more batch costs about as much time as this many more tokens."""
COMPILING_OVERHEAD_TOKENS = 64
"""This is the overhead on an engine that compiles code for each new shape: it costs as much as some hundred tokens."""

MOST_LOST, MOST_HUNG = 16, 3
"""Rows of one call that may cost their engine its process, and of these, hang it: more are not the rows' fault."""

MOST_SAVED = 3
"""So many rows may fail here and not in a process of their own, before this process is held to be broken."""

OnProgress = Callable[[int, int], None]
"""Called after each batch with (rows settled, tokens encoded) since the last call; equal rows are settled together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    vectors: NDArray[np.float32]
    """[n, dim] in the order of the rows; NaN in failed rows."""
    failed: dict[int, str]
    """Row -> reason, the tokenizer's included."""
    rows_encoded: int
    """Distinct rows that the engine gave a vector for."""
    tokens: int
    """Their tokens."""
    padded_tokens: int
    """Their tokens with padding, or with what else fills up a batch."""
    engine_seconds: float
    turn: tuple[float, float] = (0.0, 0.0)
    """In Unix seconds: the engine worked on these rows, and on no others, from when to when."""
    waited_seconds: float = 0.0
    """Before its turn came."""


class Encoder:
    """Keeps what it learns about memory: `budget_tokens` only ever shrinks.

    Threads may encode at once: one has the engine, while others prepare rows for it or finish theirs.
    """

    def __init__(self, engine: Engine, budget_tokens: int, overhead_tokens: int = OVERHEAD_TOKENS["cpu"]) -> None:
        """`budget_tokens`: tokens per batch, padding included; `overhead_tokens`: what one more batch costs, in
        tokens."""
        self.engine = engine
        self.settings = ""
        """Why a faster engine was refused, and how this one was set up and why; see tuning.py."""
        self.apart: Engine | None = None
        """An engine in a process of its own, for a row that this one refuses. On a GPU an error may be the device's fault and
        not the row's."""
        self._saved = 0
        self._turn = threading.Lock()
        self._feed = feed_for(engine)
        self.budget_tokens = budget_tokens
        self.overhead_tokens = overhead_tokens

    @property
    def description(self) -> str:
        """The engine's name, and how it was set up if anything was measured."""
        return f"{self.engine.name}, {self.settings}" if self.settings else self.engine.name

    def encode(self, tokens: TokenRows, on_progress: OnProgress | None = None) -> Embeddings:
        """Encode all rows that have tokens."""
        distinct = _distinct_rows(tokens)
        work = _Work(tokens, distinct, np.full((len(distinct.rows), self.engine.dim), np.nan, np.float32))
        ready = time.perf_counter()
        with self._turn:
            waited, began = time.perf_counter() - ready, time.time()
            self._run(work, on_progress)
            turn = began, time.time()
        return replace(work.result(), turn=turn, waited_seconds=waited)

    def _run(self, work: "_Work", on_progress: OnProgress | None) -> None:
        pending = self._batches(work.lengths)
        running: deque[tuple[NDArray[np.int64], Answer]] = deque()
        while pending or running:
            while pending and len(running) < self._feed.in_flight:
                batch = pending.pop()
                running.append((batch, self._start(work, batch)))
            batch, answer = running.popleft()
            try:
                tokens_done = self._finish(work, batch, answer)
            except OutOfMemory as error:
                if len(batch) > 1:
                    # Others of the old size may be running: they don't halve it once more.
                    self.budget_tokens = max(min(self.budget_tokens, self._feed.size(work.lengths[batch]) // 2), 1)
                    rest = np.concatenate([batch, *pending])
                    pending = [rest[rows] for rows in self._batches(work.lengths[rest])]
                    continue
                tokens_done = work.fail(batch, f"out of memory with {work.lengths[batch[0]]} tokens: {error}")
            except EngineLost as error:
                alone = work.lost(batch, hung=error.hung)
                if alone:  # not by halves: each would cost a process more
                    pending += alone
                    continue
                tokens_done = work.fail(batch, f"the encoder's process {error}, with no other row in work")
            except RunError:  # the device is lost: no row is at fault
                raise
            except Exception as error:
                if len(batch) > 1:
                    pending += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                    continue
                tokens_done = self._judged(work, batch, error)
            if on_progress is not None:
                on_progress(int(work.copies[batch].sum()), tokens_done)

    def _batches(self, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The batches in the order in which a stack wants them: the first to do is the last."""
        return self._feed.batches(lengths, self.budget_tokens, self.overhead_tokens)[::-1]

    def _start(self, work: "_Work", batch: NDArray[np.int64]) -> Answer:
        """Begin with a batch. An error is kept until the batch's turn to answer: the batches before it may need the
        memory."""
        started = time.perf_counter()
        try:
            return self._feed.start(*work.rows(batch))
        except Exception as error:
            return _raising(error)
        finally:
            work.engine_seconds += time.perf_counter() - started

    def _finish(self, work: "_Work", batch: NDArray[np.int64], answer: Answer) -> int:
        started = time.perf_counter()
        try:
            vectors = answer()
        finally:
            work.engine_seconds += time.perf_counter() - started
        return work.store(batch, vectors, self._feed.size(work.lengths[batch]))

    def _judged(self, work: "_Work", batch: NDArray[np.int64], error: Exception) -> int:
        """Settle a single row that the engine refused."""
        refused = f"the encoder refused the row: {type(error).__name__}: {error}"
        if self.apart is None:
            return work.fail(batch, refused)
        ids, starts, lengths = work.rows(batch)
        row = ids[starts[0] : starts[0] + lengths[0]][None]
        try:
            vectors = self.apart.encode(row, lengths.astype(np.int32))
        except EngineLost as lost:
            return work.fail(batch, f"{refused}; alone, in a process of its own, the encoder {lost}")
        except RunError:
            raise
        except Exception:
            return work.fail(batch, refused)
        self._saved += 1
        if self._saved > MOST_SAVED:
            raise DeviceLost(f"{self._saved} rows failed that a process of its own encodes, the last with {error}")
        return work.store(batch, vectors, row.size)


def _raising(error: Exception) -> Answer:
    def answer() -> NoReturn:
        raise error

    return answer


@dataclass(frozen=True, eq=False)
class _Distinct:
    rows: NDArray[np.int64]
    """The first row of each group of equal rows."""
    group: NDArray[np.int64]
    """[n]: the group of each row, -1 where a row has no tokens."""
    copies: NDArray[np.int64]
    """Rows in each group."""


def _distinct_rows(tokens: TokenRows) -> _Distinct:
    """Group the rows with equal ids, exactly: by their bytes, not by a hash."""
    raw = tokens.ids.tobytes()
    bounds = (tokens.offsets * tokens.ids.itemsize).tolist()
    number: dict[bytes, int] = {}
    group = np.fromiter(
        (number.setdefault(raw[a:b], len(number)) if b > a else -1 for a, b in itertools.pairwise(bounds)),
        np.int64,
        len(tokens),
    )
    present = np.flatnonzero(group >= 0)
    groups = group[present]
    # Groups are numbered as they are met: the first row of one has a higher number than all rows before it.
    first = np.diff(np.maximum.accumulate(groups), prepend=-1) > 0
    return _Distinct(present[first], group, np.bincount(groups, minlength=len(number)))


class _Work:
    """The distinct rows of one call, their vectors and what became of them."""

    def __init__(self, tokens: TokenRows, distinct: _Distinct, vectors: NDArray[np.float32]) -> None:
        self.lengths = tokens.lengths[distinct.rows]
        self.copies = distinct.copies
        self.engine_seconds = 0.0
        self._tokens = tokens
        self._distinct = distinct
        self._starts = tokens.offsets[:-1][distinct.rows]
        self._vectors = vectors
        self._reasons: dict[int, str] = {}
        self._lost_at: set[int] = set()
        self._fatal = self._hanging = 0
        self._rows_encoded = 0
        self._tokens_encoded = 0
        self._padded_tokens = 0

    def rows(self, batch: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """All token ids, where in them the batch's rows start, and their lengths."""
        return self._tokens.ids, self._starts[batch], self.lengths[batch]

    def store(self, batch: NDArray[np.int64], vectors: NDArray[np.float32], size: int) -> int:
        """Keep the vectors that are vectors; `size` is what the engine went through. Returns the tokens of the rows."""
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        good = finite & vectors.any(axis=1)
        self._vectors[batch[good]] = vectors[good]
        for position in np.flatnonzero(~good):
            kind = "holds nothing but zeros" if finite[position] else "holds NaN or infinity"
            self._reasons[int(batch[position])] = f"the vector {kind}"
        tokens = int(self.lengths[batch].sum())
        self._rows_encoded += int(good.sum())
        self._tokens_encoded += tokens
        self._padded_tokens += size
        return tokens

    def lost(self, batch: NDArray[np.int64], *, hung: bool) -> list[NDArray[np.int64]]:
        """The batches of one row to try now that this batch cost the engine's process: none where it is one row that hung
        it, or that ended it before. A process may also end by chance, but hardly twice at one row.

        Raises RunError where too many rows do so.
        """
        if len(batch) > 1:
            return np.split(batch[::-1], len(batch))
        row = int(batch[0])
        if row not in self._lost_at and not hung:
            self._lost_at.add(row)
            return [batch]
        self._fatal += 1
        self._hanging += hung
        if self._fatal > MOST_LOST or self._hanging > MOST_HUNG:
            raise RunError(
                f"{self._fatal} rows of one slice end or hang the encoder's process ({self._hanging} hang it), each with no "
                "other row in work: this is hardly the rows' fault; look at memory and device, or, if the encoder is just "
                "slow, raise limits.unit_timeout_s"
            )
        return []

    def fail(self, batch: NDArray[np.int64], reason: str) -> int:
        """Give up on the one row of the batch."""
        self._reasons[int(batch[0])] = reason
        return 0

    def result(self) -> Embeddings:
        group = self._distinct.group
        present = group >= 0
        vectors = self._vectors
        if len(self._distinct.rows) < len(group):  # Else each row is a group of its own, in the same order.
            vectors = (
                vectors.take(group, axis=0) if len(vectors) else np.empty((len(group), vectors.shape[1]), np.float32)
            )
            vectors[~present] = np.nan
        failed = {int(row): "the text has no tokens" for row in np.flatnonzero(~present)} | self._tokens.failed
        for number, reason in self._reasons.items():
            failed |= {int(row): reason for row in np.flatnonzero(group == number)}
        return Embeddings(
            vectors=vectors,
            failed=dict(sorted(failed.items())),
            rows_encoded=self._rows_encoded,
            tokens=self._tokens_encoded,
            padded_tokens=self._padded_tokens,
            engine_seconds=self.engine_seconds,
        )


def build_encoder(spec: EncoderSpec, device: str, threads: int, *, packs: bool = True) -> Encoder:
    """The encoder of `spec` on `device` (`cpu` or `cuda`) with torch's threads set to `threads`.

    Without `packs` an engine that takes packed rows is not looked for, as for callers that have matrices.
    """
    if spec.is_static:
        table = _static_engine(spec, device, threads)
        return Encoder(table, STATIC_BUDGET_TOKENS[device], STATIC_OVERHEAD_TOKENS[device])
    prompt_length = 0 if spec.include_prompt else Tokenizer(spec, threads).prompt_length
    token_types = token_types_of(spec)
    if device == "cpu" and (
        spec.precision == "int8" or (spec.precision == "float32" and spec.engine in ("auto", "made", "openvino"))
    ):
        graph = _openvino_engine(spec, threads, prompt_length, token_types=token_types)
        if graph is not None:
            return Encoder(graph, BUDGET_TOKENS[device], COMPILING_OVERHEAD_TOKENS)
    if spec.precision == "int8" or spec.engine == "openvino":
        raise InputError(
            f"model.precision {spec.precision!r} on model.engine {spec.engine!r} runs on CPUs, not {device!r}"
        )
    from pipeline.encoder.engines.torch import TorchEngine

    padded = TorchEngine(spec, device, threads, prompt_length, token_types=token_types)
    if not packs or device != "cuda" or spec.precision == "float32":
        return encoder_of(padded, device)
    # The kernels for packed rows know half precision only.
    from pipeline.encoder.engines.packed_torch import packed_if_proven

    engine, refused = packed_if_proven(padded, spec)
    encoder = encoder_of(engine, device)
    encoder.settings = "; ".join(refused)
    return encoder


def encoder_of(engine: Engine, device: str) -> Encoder:
    """The encoder of a transformer on torch, with the batches that it has where nothing was measured."""
    if isinstance(engine, PackingEngine):
        return Encoder(engine, PACKED_BUDGET_TOKENS)
    return Encoder(engine, BUDGET_TOKENS[device], OVERHEAD_TOKENS[device])


def _static_engine(spec: EncoderSpec, device: str, threads: int) -> Engine:
    if device == "cpu":
        from pipeline.encoder.engines.numpy_static import NotPlain, NumpyStaticEngine

        with contextlib.suppress(NotPlain):
            return NumpyStaticEngine(spec)
    from pipeline.encoder.engines.static import StaticEngine

    return StaticEngine(spec, device, threads)


def token_types_of(spec: EncoderSpec) -> bool:
    """Whether the transformer is to be given token types: where the tokenizer has them and they make a difference."""
    return ARCHITECTURES[spec.model_type].adds_token_types and probe_tokens(spec).token_types


def graph_is_made(spec: EncoderSpec) -> bool:
    """Whether an OpenVINO graph of the model was made on this node, so that an encoder starts without torch."""
    if spec.precision != "float32" or not openvino_is_installed() or not are_known(spec):
        return False
    from pipeline.encoder.engines.kept_graph import is_made

    return is_made(spec, token_types=token_types_of(spec))


def _openvino_engine(spec: EncoderSpec, threads: int, prompt_length: int, *, token_types: bool) -> Engine | None:
    """The engine; None where `auto` has to do without, since it is not installed or gives other vectors than torch."""
    if spec.engine == "auto" and not openvino_is_installed():
        return None
    if spec.engine == "made" and not graph_is_made(spec):
        return None
    from pipeline.encoder.engines.graph import Unsupported
    from pipeline.encoder.engines.kept_graph import float32_graph
    from pipeline.encoder.engines.openvino import OpenVinoEngine

    if spec.precision == "int8":
        if spec.int8 is None or not spec.int8.file:
            raise InputError(
                "model.precision 'int8' means a table's own quantised model, and this one has none yet: run "
                "`python -m jobs.embed` first"
            )
        return OpenVinoEngine(spec, Path(spec.int8.file), threads, prompt_length)
    try:
        return OpenVinoEngine(spec, float32_graph(spec, token_types=token_types), threads, prompt_length)
    except Unsupported as reason:
        if spec.engine == "openvino":
            raise InputError(f"model.engine 'openvino' can't run this model ({reason}): leave it out") from None
        return None
