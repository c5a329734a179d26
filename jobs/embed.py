"""Make a table equal to its sources: embed what is new, drop what is gone, publish a version.

    python -m jobs.embed CONFIG.yaml [--set key=value ...] [--dry-run] [--json]

Exit codes: 0 done, or nothing to do; 1 failed, nothing published, work kept; 2 bad configuration or input, found before
any work; 3 done, with new dead letters; 10 (--dry-run) changes pending. Killed at any moment, the same command goes on.
"""

import sys
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.command import main_of, parser
from pipeline import run
from pipeline.config import RunSpec, load
from pipeline.errors import SourceChanged
from pipeline.metrics import Progress

if TYPE_CHECKING:
    from pipeline.dataflow import Cluster

CHANGES_PENDING = 10


def embed(spec: RunSpec) -> run.Summary:
    """Bring the table up to date and say what was done. Raises PipelineError."""
    started = time.perf_counter()
    prepared = run.prepare(spec, writes=True)
    if prepared.plan.changes_nothing:
        return _nothing_to_do(prepared)
    from pipeline.dataflow import Cluster  # Ray loads only when there is work.

    with Cluster(spec.resources) as cluster:
        try:
            encoded = _encode(prepared, cluster)
        except SourceChanged:
            # A file was replaced under our hands: plan what stands there now, once.
            prepared = run.prepare(spec, writes=True)
            if prepared.plan.changes_nothing:
                return _nothing_to_do(prepared)
            encoded = _encode(prepared, cluster)
        timings = run.timings(prepared, encoded)
        version, published = run.publish(prepared, cluster, uuid.uuid4().hex[:12], timings)
    total = {"total": time.perf_counter() - started}
    return run.summarise(prepared, version, encoded, timings | published | total)


def _nothing_to_do(prepared: run.Prepared) -> run.Summary:
    return run.summarise(prepared, prepared.parent, run.NOTHING_ENCODED, {"plan": prepared.plan_s})


def _encode(prepared: run.Prepared, cluster: "Cluster") -> run.Encoded:
    tasks = prepared.plan.tasks
    with Progress(units=len(tasks), rows=prepared.rows_to_do) as progress:
        return run.encode(prepared, cluster, progress)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser(__doc__, dry_run=True).parse_args(argv)
    spec = load(arguments.config, arguments.set)
    if arguments.dry_run:
        described = run.describe_plan(run.prepare(spec, writes=False))
        arguments.show(described, run.plan_text(described))
        return CHANGES_PENDING if described["changes_pending"] else 0
    summary = embed(spec)
    arguments.show(summary.to_dict(), str(summary))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main_of(main))
