"""An OpenLineage server hears which sources a table is made of, by which run, and how that ended.

What a run is of comes in, and three kinds of events go out: START, then COMPLETE, FAIL or ABORT, with the sources as inputs
and the table as output. A server that can't be reached costs a run some seconds and a warning, and never its end.
"""

import datetime
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import extras
from pipeline.errors import ConfigError, one_line
from pipeline.progress import Progress
from pipeline.redaction import redacted, redacted_url
from pipeline.telemetry_spec import LineageSpec

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunState

PRODUCER = "https://pypi.org/project/embedding-pipeline"
_VARIABLES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__TYPE")
"""Each of these says by itself that somebody listens."""
TIMEOUT_S = 5.0
HUB = "dataset:"
"""A source that begins so is a data set by its name."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LineageJob:
    """It is what events say of a run from its beginning."""

    run: str
    """It is a UUID."""
    command: str
    sources: Sequence[str]
    table: str
    release: str


def wanted(spec: LineageSpec) -> bool:
    """Say whether anybody is to hear of runs. Raises ConfigError where the configuration says so and the client is missing."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    if spec.url is None and not any(os.environ.get(name) for name in _VARIABLES):
        return False
    try:
        import openlineage.client  # noqa: F401
    except ModuleNotFoundError:
        missing = f"the OpenLineage client is missing: {extras.install('lineage')}"
        if spec.url is not None:
            raise ConfigError(f"lineage.url is given, and {missing}, or leave it out") from None
        _log.warning("the environment asks for OpenLineage events, and %s", missing)
        return False
    return True


class Lineage:
    """It tells a server of one run."""

    def __init__(self, spec: LineageSpec, job: LineageJob) -> None:
        self._spec, self._job = spec, job
        self._reachable = True
        self._client = self._opened()

    def start(self) -> None:
        from openlineage.client.event_v2 import RunState

        self._emit(RunState.START, {}, None)

    def end(self, run: Progress, error: BaseException | None) -> None:
        """Tell how the run ended: with an error, or with what it knows of its table."""
        from openlineage.client.event_v2 import RunState
        from openlineage.client.facet_v2 import error_message_run

        if error is None:
            self._emit(RunState.COMPLETE, {}, run)
            return
        message = one_line(str(error)) or type(error).__name__
        told = {"errorMessage": error_message_run.ErrorMessageRunFacet(message=message, programmingLanguage="PYTHON")}
        self._emit(RunState.FAIL if isinstance(error, Exception) else RunState.ABORT, told, run)

    def close(self) -> None:
        if self._client is not None:
            self._client.close(TIMEOUT_S)

    def _opened(self) -> "OpenLineageClient | None":
        from openlineage.client import OpenLineageClient
        from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

        if self._spec.url is None:
            return OpenLineageClient()
        key = os.environ.get("OPENLINEAGE_API_KEY")
        auth = ApiKeyTokenProvider({"apiKey": key}) if key else TokenProvider({})
        # The server is asked once: a run is not to wait for it.
        settings = HttpConfig(url=self._spec.url, timeout=TIMEOUT_S, auth=auth, retry={"total": 0})
        return OpenLineageClient(transport=HttpTransport(settings))

    def _emit(self, state: "RunState", facets: Mapping[str, Any], run: Progress | None) -> None:
        """Send an event. The first one that nobody takes is the last."""
        from openlineage.client.event_v2 import Job, Run, RunEvent
        from openlineage.client.facet_v2 import job_type_job, processing_engine_run

        if self._client is None or not self._reachable:
            return
        job = self._job
        engine = processing_engine_run.ProcessingEngineRunFacet(version=job.release, name="embedding-pipeline")
        kind = job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="EMBEDDING_PIPELINE", jobType=job.command
        )
        event = RunEvent(
            eventType=state,
            eventTime=datetime.datetime.now(datetime.UTC).isoformat(),
            run=Run(runId=job.run, facets={"processing_engine": engine, **facets}),
            job=Job(
                namespace=self._spec.namespace,
                name=f"{job.command} {dataset_name(job.table)}",
                facets={"jobType": kind},
            ),
            producer=PRODUCER,
            inputs=_inputs(job.sources),
            outputs=_outputs(job.table, run),
        )
        try:
            self._client.emit(event)
        except Exception as error:  # The client's transports raise what their libraries do.
            self._reachable = False
            _log.warning("the OpenLineage server took no event of this run: %s", one_line(redacted(str(error))))


def _inputs(sources: Sequence[str]) -> "list[InputDataset]":
    from openlineage.client.event_v2 import InputDataset

    return [InputDataset(namespace=dataset_namespace(one), name=dataset_name(one)) for one in sources]


def _outputs(table: str, run: Progress | None) -> "list[OutputDataset]":
    """Return the table, with the version and rows that the run has published."""
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, output_statistics_output_dataset

    facts = run.facts if run is not None else {}
    version, rows = facts.get("version"), facts.get("table_rows")
    known = version is not None and rows is not None
    counted = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
    return [
        OutputDataset(
            namespace=dataset_namespace(table),
            name=dataset_name(table),
            facets={"version": dataset_version_dataset.DatasetVersionDatasetFacet(str(version))} if known else {},
            outputFacets={"outputStatistics": counted} if known else {},
        )
    ]


def dataset_namespace(place: str) -> str:
    """Return the store of a place, such as `s3://bucket`, `dataset` for one on the Hub, and `file` for a path on a disk."""
    scheme, store, _ = _parted(place)
    return f"{scheme}://{store}" if store else scheme


def dataset_name(place: str) -> str:
    """Return the place within its store: the absolute path on a disk, the path without its first slash elsewhere."""
    return _parted(place)[2]


def _parted(place: str) -> tuple[str, str, str]:
    """Part a place into its scheme, its bucket or host, and its path. Paths hold whatever characters they like."""
    shown = redacted_url(place)
    if shown.startswith(HUB):
        return HUB.removesuffix(":"), "", shown.removeprefix(HUB)
    scheme, is_url, rest = shown.partition("://")
    if not is_url or scheme == "file":
        return "file", "", os.path.abspath(os.path.expanduser(rest if is_url else shown))
    store, _, path = rest.partition("/")
    return scheme, store, path or "/"
