"""A worker reads, encodes or writes slices, in whatever process it runs.

A task or a slice row comes in, and how many workers it has ended already. Slice rows go out, or a refusal with the
reason. A worker never raises for bad data. Who gives out the work, and what counts the strikes, is not known here.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import pyarrow as pa

from pipeline import schema
from pipeline.encoder import light, probes
from pipeline.encoder.deadline import Deadline
from pipeline.encoder.encoder import Encoder, graph_is_made
from pipeline.encoder.engines.base import DeviceLost, FormingEngine
from pipeline.encoder.isolated import IsolatedEngine
from pipeline.encoder.probe_tokens import probe_tokens
from pipeline.encoder.token_rows import arrow_to_tokens
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.encoder.tuning import tuned, untuned
from pipeline.errors import PipelineError, RunError
from pipeline.model.lean import FOR_TOKENIZERS, hide
from pipeline.stages import slice_row
from pipeline.stages.flow import Encode, Flow
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import layout
from pipeline.work import Task

MOST_STRIKES = 5
"""One piece of work may end so many workers before the run ends instead. Without a limit new ones would start for
ever."""
DEVICE_LOST = 71
"""A process that lost its device ends with this code, EX_OSERR of sysexits.h."""
TOLD_EVERY_S = 0.5
"""Progress is told at intervals of so many seconds. A call costs a core half a millisecond, and a batch takes ten."""

Tell = Callable[[int, int], None]
"""It hears (documents, tokens) that were encoded since the last call."""


def read_task(task: Task, spec: WorkerSpec, flow: Flow, tokenizer: Tokenizer, strikes: int) -> Iterator[pa.Table]:
    """Yield the slice rows of a task. The last is a refusal where the task can't be read to its end."""
    unit_id = task.unit.unit_id
    if strikes >= MOST_STRIKES:
        yield slice_row.refuse(unit_id, fatal("read", strikes, [span.file.path for span in task.unit.spans]))
        return
    slices = flow.read(task, spec, tokenizer)
    while True:
        try:
            with Deadline(spec.limits.unit_timeout_s):  # The deadline does not run while the next stage works.
                piece = next(slices, None)
        except PipelineError as error:
            yield slice_row.refuse(unit_id, str(error))
            return
        if piece is None:
            return
        yield piece


def write_row(row: pa.Table, spec: WorkerSpec, flow: Flow, strikes: int) -> pa.Table:
    """Return what the flow's write stage says of a slice."""
    assert flow.write is not None
    unit_id, _ = slice_row.key_of(row)
    if strikes >= MOST_STRIKES:
        row = slice_row.refuse(unit_id, fatal("write", strikes, row.column("paths")[0].as_py() or []))
    try:
        with Deadline(spec.limits.unit_timeout_s):
            return flow.write(row, spec)
    except PipelineError as error:
        return flow.write(slice_row.refuse(unit_id, str(error)), spec)


class SliceEncoder:
    """It is an encoder at work. It loads the model once, proves it on the probe texts, then encodes slices.

    What goes wrong while it starts is kept and given as the answer to every slice. A worker that raises here would be
    started again for ever. Threads may call `encode` at once.
    """

    def __init__(self, flow: Flow, name: str, tell: Tell) -> None:
        """The `name` tells this encoder from the others of the run. `tell` hears of progress."""
        assert flow.encode is not None
        self._flow, self._encode, self._name, self._tell = flow, flow.encode, name, tell
        self._encoder: Encoder | None = None
        self._is_tuned, self._tuning = False, threading.Lock()
        self._gate = _Gate()
        self._refused = ""

    def load(self, spec: WorkerSpec, died: int = 0) -> None:
        """Build the encoder. So many others `died` while they did so."""
        try:
            if died >= MOST_STRIKES:
                raise RunError(
                    f"{died} encoders died while they loaded the model: is there memory for it on every node?"
                )
            with Deadline(spec.limits.unit_timeout_s):
                self._spec = spec = replace(spec, encode=replace(spec.encode, encoder=spec.encoder_here()))
                self._setup = spec.encode.setup
                without_torch = self._light()
                self._encoder = without_torch or self._first()
                self._is_tuned = without_torch is not None or spec.encode.encoder.is_static
        except PipelineError as error:
            self._refused = str(error)
        except Exception as error:
            self._refused = f"{type(error).__name__}: {_first_line(error)}"

    def encode(self, row: pa.Table, strikes: int) -> pa.Table:
        """Return the answer of the flow's encode stage to a slice. One that ended a worker is encoded in a process of
        its own."""
        if self._encoder is None:
            return self._refuse(row, f"encoder: {self._refused}")
        if strikes >= MOST_STRIKES:
            return self._refuse(row, fatal("encode", strikes, row.column("paths")[0].as_py() or []))
        if strikes:
            with self._gate.alone():
                return self._encode_apart(row, self._encoder)
        with self._gate.shared(), Deadline(self._spec.limits.unit_timeout_s) as deadline:
            with self._tuning:
                encoder = self._tuned(row, self._encoder)
            deadline.renew()
            return self._encoded(row, encoder, deadline.renew)

    def _light(self) -> Encoder | None:
        """An encoder that needs no torch, where one is wanted and gives the table's vectors."""
        given = self._spec.encode
        if given.encoder.engine not in ("numpy", "light"):
            return None
        if given.encoder.engine == "light" and graph_is_made(given.encoder):
            self._setup = replace(self._setup, spec=replace(given.encoder, engine="made"))
            return None
        known = given.probes or standing_probes(self._spec)
        encoder = light.light_encoder(given.encoder, given.threads, known)
        if encoder is None:
            return None
        encoder.budget_tokens = given.fixed.batch_tokens or encoder.budget_tokens
        if not known and self._flow.proves:
            hide(FOR_TOKENIZERS)  # From here on this process has no torch.
            prove(encoder, self._spec)
        return encoder

    def _first(self) -> Encoder:
        """An encoder of which nothing was measured yet."""
        encoder = untuned(self._setup)
        try:
            return self._proven(encoder)
        except RunError:
            # The table may be of a processor without bfloat16.
            if not (isinstance(encoder.engine, FormingEngine) and encoder.engine.form.bfloat16):
                raise
            self._setup = replace(self._setup, fixed=replace(self._setup.fixed, bfloat16_in_int8=False))
            return self._proven(untuned(self._setup))

    def _proven(self, encoder: Encoder) -> Encoder:
        if self._flow.proves:
            prove(encoder, self._spec)
        return encoder

    def _tuned(self, row: pa.Table, encoder: Encoder) -> Encoder:
        """Return the encoder at its fastest for texts as long as those of the first slice, and keep it."""
        if self._is_tuned or row.column("refused")[0].is_valid:
            return encoder
        lengths = arrow_to_tokens(slice_row.from_cell(row, "tokens").column(schema.TOKENS)).lengths
        if not lengths.any():
            return encoder
        self._is_tuned = True
        given = self._spec.encode
        before = encoder.settings
        try:
            found = tuned(encoder, self._setup, lengths[lengths > 0], measures=given.measures)
            self._encoder = self._proven(found) if found.settings != before else found
        except DeviceLost as error:
            _leave(error)
        except Exception as error:  # What is only for speed must not end a run.
            self._encoder = untuned(self._setup)
            self._encoder.settings = f"as it comes, as measuring failed: {type(error).__name__}: {_first_line(error)}"
        if given.device == "cuda":
            self._encoder.apart = self._apart()
        return self._encoder

    def _apart(self) -> IsolatedEngine:
        """An engine whose process starts when a row needs it, and ends with this one."""
        given = self._spec.encode
        return IsolatedEngine(given.encoder, given.device, given.threads, self._spec.limits.unit_timeout_s)

    def _encode_apart(self, row: pa.Table, encoder: Encoder) -> pa.Table:
        """Encode a suspect in a child, so that it ends the child and not this process. Only those of its rows that do
        so fail."""
        with self._apart() as engine:
            apart = Encoder(engine, encoder.budget_tokens, encoder.overhead_tokens)
            return self._encoded(row, apart, lambda: None)

    def _encoded(self, row: pa.Table, encoder: Encoder, on_batch: Callable[[], None]) -> pa.Table:
        rows = tokens = 0
        told = time.monotonic()

        def on_progress(new_rows: int, new_tokens: int) -> None:
            nonlocal rows, tokens, told
            on_batch()
            rows, tokens = rows + new_rows, tokens + new_tokens
            if time.monotonic() - told >= TOLD_EVERY_S:
                self._tell(rows, tokens)
                rows, tokens, told = 0, 0, time.monotonic()

        encode: Encode = self._encode
        try:
            return encode(row, encoder, self._spec, self._name, on_progress)
        except DeviceLost as error:
            _leave(error)
        except RunError as error:
            return self._refuse(row, f"encoder: {error}")
        finally:
            if rows:
                self._tell(rows, tokens)

    def _refuse(self, row: pa.Table, reason: str) -> pa.Table:
        return self._flow.refuse(slice_row.key_of(row)[0], reason)


class _Gate:
    """Threads pass it together, or one of them alone.

    A slice that ended a worker is encoded while no other is: its child may need the memory of the whole device, and what
    another slice does to this process must not count against it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._is_shut = 0, False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._is_shut = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._is_shut = False
                self._changed.notify_all()


def _leave(error: DeviceLost) -> NoReturn:
    """End this process. Another takes its place and its slices; any other end may wait for the device for ever."""
    sys.stderr.write(f"this encoder ends: {error}\n")
    sys.stderr.flush()
    os._exit(DEVICE_LOST)


def standing_probes(spec: WorkerSpec) -> tuple[tuple[float, ...], ...]:
    """Return the probe vectors of the first encoder of a table that begins, or none."""
    standing = spec.open_table().read(layout.probe_vectors(spec.write.fingerprint))
    return probes.from_json(standing) if standing is not None else ()


def prove(encoder: Encoder, spec: WorkerSpec) -> None:
    """Encode the probe texts and compare with the vectors of the table, or of the first encoder of this model.

    Raises RunError when they differ.
    """
    vectors = encoder.encode(probe_tokens(spec.encode.encoder).rows, None).vectors
    expected = spec.encode.probes
    if not expected:
        path, content = layout.probe_vectors(spec.write.fingerprint), probes.to_json(vectors)
        standing = spec.open_table().create_once(path, content)
        expected = probes.from_json(standing) if standing is not None else ()
    if expected:
        probes.check(vectors, expected, spec.encode.encoder.precision)


def fatal(stage: str, strikes: int, paths: Sequence[str]) -> str:
    """Say why a run ends over a unit or slice that workers die of, rather than let it end one more of them."""
    files = ", ".join(repr(path) for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return (
        f"{strikes} workers died, or hung for limits.unit_timeout_s, as they were to {stage} rows of {files}: is there memory "
        "for it? the logs of the workers say more; nothing was published, finished work is kept"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
