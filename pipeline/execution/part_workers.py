"""An executor does the heavy parts of a commit.

Parts are rewritten, rows get other numbers, and versions are compared.
"""

from collections.abc import Iterator, Sequence

from pipeline.execution.costs import REWRITE_BYTES_PER_S, SCAN_ROWS_PER_S
from pipeline.execution.executor import Executor, Job
from pipeline.stages.row_keys import GetTokenizer
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import row_sources
from pipeline.table.compare import Difference
from pipeline.table.operations import compact
from pipeline.table.operations.compact import Rewrite
from pipeline.table.part import Part, raw_bytes
from pipeline.table.row_sources import Renumbering


class PartWorkers:
    """It implements table.workers.Workers."""

    def __init__(self, executor: Executor, job: Job) -> None:
        self._executor, self._job = executor, job

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]:
        seconds = raw_bytes(item.part for job in jobs for item in job.inputs) / REWRITE_BYTES_PER_S
        return list(self._executor.for_each(self._job, _rewrite, jobs, seconds=seconds, heavy=True))

    def renumber(self, jobs: Sequence[Renumbering]) -> list[Part]:
        seconds = sum(job.part.rows for job in jobs) / SCAN_ROWS_PER_S
        return list(self._executor.for_each(self._job, _renumber, jobs, seconds=seconds))

    def compare(self, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
        return self._executor.compare_versions(self._job, sides, renewed=renewed)


def _rewrite(job: Rewrite, spec: WorkerSpec, tokenizer: GetTokenizer) -> Iterator[Part]:
    yield compact.rewrite(spec.open_table(), job, spec.write.table.embedding_column, spec.write.table.encoding)


def _renumber(job: Renumbering, spec: WorkerSpec, tokenizer: GetTokenizer) -> Iterator[Part]:
    yield row_sources.renumber(spec.open_table(), job)
