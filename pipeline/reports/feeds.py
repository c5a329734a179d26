"""Each feed of a configuration is asked which version its store shows, and how many changes it is behind."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import RunSpec
from pipeline.errors import PipelineError, one_line
from pipeline.redaction import redacted
from pipeline.runs.feed_opened import opened
from pipeline.table.net_changes import count_changes


@dataclass(frozen=True, kw_only=True)
class FeedState:
    name: str
    store: str
    shown: int | None
    """Readers see this version of the table. It is None where nothing is shown, or nobody answers."""
    behind_versions: int | None
    behind_changes: int | None
    """So many changes of rows are in the versions that the store lacks."""
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(spec: RunSpec, current: int) -> tuple[FeedState, ...]:
    """Ask every feed. One that can't be asked says why."""
    return tuple(_state(spec, name, current) for name in spec.feeds)


def _state(spec: RunSpec, name: str, current: int) -> FeedState:
    shown = versions = changes = None
    problem: str | None = None
    try:
        with opened(spec, name, None, writes=False) as found:
            marker = found.live.marker if found.live else None
            if marker is None or not marker.applied:
                problem = "it shows nothing of this table yet"
            else:
                shown, versions = marker.applied, max(0, current - marker.applied)
                changes = count_changes(found.table, marker.applied, current)
    except PipelineError as error:
        problem = one_line(redacted(str(error)), 300)
    return FeedState(
        name=name,
        store=spec.feeds[name].store,
        shown=shown,
        behind_versions=versions,
        behind_changes=changes,
        problem=problem,
    )
