"""A worker process of this machine answers the driver's questions until its pipe closes.

Run as a module it is the child. One that only reads and writes never loads torch. The first slice to encode makes it
load the model.
"""

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution.local import handing
from pipeline.execution.worker import SliceEncoder, read_task, write_row
from pipeline.machine.child import connect, sendable
from pipeline.model.lean import FOR_MODELS, FOR_TOKENIZERS, hide
from pipeline.stages.flow import Flow
from pipeline.stages.worker_spec import WorkerSpec


class WorkerProcess:
    """It is what a child knows: the run's spec and flow, its tokenizer, its encoder and the task that it is reading."""

    def __init__(self, connection: Connection, name: str, spec: WorkerSpec, flow: Flow) -> None:
        self._connection, self._name, self._flow = connection, name, flow
        self._spec = replace(spec, encode=replace(spec.encode, encoder=spec.encode.encoder.here()))
        read = spec.read
        self._tokenizer = functools.cache(
            lambda: Tokenizer(self._spec.encode.encoder, read.threads, read.expected_chars)
        )
        self._encoder: SliceEncoder | None = None
        self._slices: Iterator[pa.Table] = iter(())

    def answer(self, question: tuple[Any, ...]) -> object:
        """Answer one of the driver's questions, which is (verb, arguments ..)."""
        verb, *given = question
        if verb == "load":
            (died,) = given
            hide(FOR_MODELS)
            self._encoder = SliceEncoder(self._flow, self._name, self._tell)
            self._encoder.load(self._spec, died)
            return None
        if verb == "encode":
            row, strikes = given
            assert self._encoder is not None
            return self._encoder.encode(row, strikes)
        if verb == "read":
            task, strikes = given
            hide(FOR_TOKENIZERS)
            self._slices = read_task(task, self._spec, self._flow, self._tokenizer(), strikes)
            return next(self._slices, None)
        if verb == "next":
            return next(self._slices, None)
        if verb == "write":
            row, strikes = given
            return write_row(row, self._spec, self._flow, strikes)
        assert verb == "alone"
        do, item, threads = given
        return do(item, self._spec, threads)

    def _tell(self, rows: int, tokens: int) -> None:
        self._connection.send(("progress", (rows, tokens)))


def main(connection: Connection) -> None:
    """Take name, spec and flow, then answer questions until the pipe closes.

    Each answer is ("answer", value), or ("error", exception) where the question can't be answered.
    """
    try:
        name, spec, flow = connection.recv()
        pa.set_cpu_count(spec.read.threads)
        worker = WorkerProcess(connection, name, spec, flow)
    except EOFError:
        return
    except Exception as error:
        connection.send(("error", sendable(error)))
        return
    while True:
        try:
            question = tuple(handing.opened(item) for item in handing.receive(connection))
        except (EOFError, OSError):
            return
        try:
            handing.send(connection, ("answer", worker.answer(question)))
        except Exception as error:
            connection.send(("error", sendable(error)))


if __name__ == "__main__":
    main(connect(sys.argv[1]))
