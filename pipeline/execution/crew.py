"""Who does the work of a reindex: this process what is small, a cluster that starts when there is enough to do the rest.

Comes in: pieces of work as functions of one item, and how many rows they read. Goes out: what they give. Knows no changes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import ResourceSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution import pools
from pipeline.runs import prepare
from pipeline.runs.prepare import Prepared
from pipeline.stages.encode import Settings
from pipeline.table.compare import Difference
from pipeline.table.operations import compact
from pipeline.table.operations.compact import Rewrite
from pipeline.table.part import Part
from pipeline.table.row_sources import Renumbering
from pipeline.table.workers import WorkersHere

if TYPE_CHECKING:  # Ray loads only when there is work for it.
    from pipeline.execution.ray.flow import Cluster, ClusterWorkers

ROWS_HERE = 200_000
"""So many source rows are read, and ten times as many live ones looked through, before a cluster would have started."""
KEYS_HERE = 2_000_000
"""Wanted rows, and live ones whose place they may take, whose keys this process holds (57 bytes each); more meet in the
cluster's shuffle."""


class Crew:
    """Who does the work of a run: this process, and a cluster from when there is enough to do."""

    def __init__(self, resources: ResourceSpec) -> None:
        self._resources = resources
        self._stack = contextlib.ExitStack()
        self._cluster: Cluster | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cluster(self) -> "Cluster":
        if self._cluster is None:
            from pipeline.execution.ray.flow import Cluster

            self._cluster = self._stack.enter_context(Cluster(self._resources))
        return self._cluster


class Hands:
    """A crew at work on one prepared run."""

    def __init__(self, prepared: Prepared, crew: Crew) -> None:
        self._prepared, self._crew = prepared, crew
        self.settings = prepare.settings_for(prepared, pools.ALONE)
        self._tokenizer = functools.cache(lambda: Tokenizer(self.settings.encoder, 1))

    def each(
        self,
        do: Callable[[Any, Settings, Callable[[], Tokenizer]], Iterator[Any]],
        items: Sequence[Any],
        *,
        rows: int,
    ) -> Iterator[Any]:
        """What `do` gives for each item, in any order; `rows` are read for all of them."""
        if rows <= ROWS_HERE or len(items) < 2:
            for item in items:
                yield from do(item, self.settings, self._tokenizer)
        elif items:
            yield from self.workers().each(do, items)

    def workers(self) -> "ClusterWorkers":
        from pipeline.execution.ray.flow import ClusterWorkers

        prepared, cluster = self._prepared, self._crew.cluster()
        return ClusterWorkers(
            cluster,
            prepared.table,
            lambda: prepare.settings_for(prepared, cluster.pools()),
            prepared.spec.table.embedding_column,
        )

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]:
        if not compact.fit_here(jobs):
            return self.workers().rewrite(jobs)
        return self._here().rewrite(jobs)

    def renumber(self, jobs: Sequence[Renumbering]) -> list[Part]:
        if sum(job.part.rows for job in jobs) > KEYS_HERE:
            return self.workers().renumber(jobs)
        return self._here().renumber(jobs)

    def compare(self, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
        if sum(part.rows for part, _ in sides) > KEYS_HERE:
            return self.workers().compare(sides, renewed=renewed)
        return self._here().compare(sides, renewed=renewed)

    def _here(self) -> WorkersHere:
        return WorkersHere(self._prepared.table, self._prepared.spec.table.embedding_column)
