"""The number of cores that each encoder has is measured before a long run on CPUs, where the user leaves it open.

A prepared run and an executor come in. The run goes out with the arrangement, or as it was.
"""

from dataclasses import replace

from pipeline import progress
from pipeline.execution.arrangement import Size
from pipeline.execution.executor import Executor
from pipeline.progress import Phase
from pipeline.runs.prepared import Prepared

ARRANGED_FROM_S = 600.0
"""Measuring takes some seconds for each arrangement, once for a node and a model, and is worth it from so many seconds
of encoding on."""


def arranged(prepared: Prepared, executor: Executor) -> Prepared:
    """Return the run with the fastest number of cores for each encoder, where it is long enough to measure that."""
    free = prepared.spec.resources.encoders == prepared.spec.resources.cpus_per_encoder == "auto"
    # Pools may start a cluster, which a run this long needs in any case.
    if not free or prepared.encoder.is_static or prepared.expected_core_s < ARRANGED_FROM_S:
        return prepared
    pools = executor.pools(prepared)
    cpus = pools.encoders * pools.cpus_per_encoder
    if pools.device != "cpu" or cpus < 2 or prepared.expected_core_s < ARRANGED_FROM_S * cpus:
        return prepared
    # It loads what encoders load, and most runs need nothing of it.
    from pipeline.execution.side_by_side import measure

    progress.current().begin(Phase.CALIBRATING, "the cores of an encoder")
    size = Size(tokens=max(1, round(prepared.load.tokens)), encoder_bytes=prepared.encoder_bytes)
    return replace(prepared, arrangement=executor.with_all_cpus(prepared, measure, size))
