"""A run that is under way is told to those whom its configuration names: Prometheus and OpenLineage.

A spec comes in, and a function that hears the summary goes out for as long as the run works. Ports and files are tried
before any work.
"""

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pipeline import extras, progress
from pipeline.config import RunSpec
from pipeline.errors import PipelineError, RunError, TableBusy
from pipeline.progress import Progress
from pipeline.redaction import redacted_url
from pipeline.table import snapshot

INTERRUPTED = 130

_log = logging.getLogger(__name__)


class Summary(Protocol):
    """It is what runs say of themselves in the end."""

    @property
    def version(self) -> int: ...
    @property
    def counts(self) -> snapshot.Counts: ...
    @property
    def exit_code(self) -> int: ...


Result = TypeVar("Result", bound=Summary)


def tell_summary(summary: Result) -> Result:
    """Tell what a run made of its table, and return its summary."""
    counts = summary.counts
    progress.current().know(
        version=summary.version,
        table_rows=counts.rows,
        table_dead_letters=counts.failed,
        dead_letters=counts.failed_new,
        exit_code=summary.exit_code,
    )
    return summary


@contextlib.contextmanager
def observed(spec: RunSpec) -> Iterator[None]:
    """Tell of the run of this spec while the block works. Raises ConfigError and InputError where that can't be."""
    run = progress.current()
    table = redacted_url(spec.table.path)
    # The simulation draws its own UUIDs, and a run that is told has to be the one that is not.
    name = str(uuid.UUID(bytes=os.urandom(16), version=4))
    run.know(run=name, table=table)
    with contextlib.ExitStack() as stack:
        ends = [*_metrics(spec, run, table, stack), *_lineage(spec, run, name, stack)]
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            for end in ends:
                end(error)


End = Callable[[BaseException | None], None]
"""It is told how the run ended."""


def exit_code(run: Progress, error: BaseException | None) -> int:
    """Return the code that a command ends with after this run."""
    if error is None:
        return int(run.facts.get("exit_code", 0))
    if isinstance(error, PipelineError):
        return error.exit_code
    return RunError.exit_code if isinstance(error, Exception) else int((error.args or (INTERRUPTED,))[0])


def _metrics(spec: RunSpec, run: Progress, table: str, stack: contextlib.ExitStack) -> Iterator[End]:
    given = spec.metrics
    if not given.wanted:
        return
    from pipeline.telemetry import exposition
    from pipeline.telemetry.metrics import RunMetrics, merged

    exposition.check_installed()
    metrics = RunMetrics(run.work, table, _release())
    if given.textfile is not None:
        exposition.check_writable(given.textfile)
    stack.enter_context(run.heard_by(metrics))
    if given.port is not None:
        stack.enter_context(exposition.served(given.address, given.port, metrics.samples))

    def end(error: BaseException | None) -> None:
        metrics.end(exit_code(run, error))
        # A run that found another one at work has nothing to say; the other one has.
        if given.textfile is not None and not isinstance(error, TableBusy):
            before = exposition.read_file(given.textfile)
            found = merged(before, metrics.samples(), run.work, table)
            if reason := exposition.write_file(given.textfile, found):
                _log.warning("metrics.textfile could not be written: %s", reason)

    yield end


def _lineage(spec: RunSpec, run: Progress, name: str, stack: contextlib.ExitStack) -> Iterator[End]:
    from pipeline.telemetry import lineage

    if not lineage.wanted(spec.lineage):
        return
    job = lineage.LineageJob(
        run=name, command=run.work, sources=spec.source.places, table=spec.table.path, release=_release()
    )
    told = lineage.Lineage(spec.lineage, job)
    stack.callback(told.close)
    told.start()
    yield lambda error: told.end(run, error)


def _release() -> str:
    from importlib import metadata

    try:
        return metadata.version(extras.PROJECT)
    except metadata.PackageNotFoundError:  # The code was copied, and nothing was installed.
        return "unknown"
