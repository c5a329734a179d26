"""The versions of a table, each with what changed in it, how fast it was made and what its compute cost."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.record import READERS
from pipeline.table.snapshot import Snapshot

MOST_VERSIONS = 200
"""So many of the newest versions are read."""
WALL = ("plan", "calibrate", "start", "flow")
"""These stages follow one another, and their seconds pass on the clock."""
WORKERS = ("read", "tokenize", "encode", "write")
"""These stages work side by side, and their seconds are sums over the workers."""


@dataclass(frozen=True, kw_only=True)
class VersionFigures:
    version: int
    time: str
    rows: int
    new: int
    changed: int
    deleted: int
    failed: int
    encoded: int
    tokens: int
    rows_of: int | None
    """The version rolled the table back to that one."""
    purge: bool
    model: str
    """It is the fingerprint of the vectors."""
    seconds: dict[str, float]
    """They are by stage, and end before the commit. They are empty for rollbacks and purges."""
    tokens_per_s: float | None
    docs_per_s: float | None
    padding_share: float | None
    busy_share: float | None
    """The speeds and shares are None for versions of programs that did not record them, or that encoded nothing."""
    price: float | None

    @property
    def wall_s(self) -> float:
        """The seconds that were recorded of the run on the clock."""
        return sum(self.seconds.get(stage, 0.0) for stage in WALL)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(table: Folder, last: int, price_per_hour: float | None) -> tuple[VersionFigures, ...]:
    """Return the newest versions up to `last`, oldest first."""
    numbers = [number for number in snapshot.versions(table) if number <= last][-MOST_VERSIONS:]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda number: snapshot.read_alone(table, number), numbers)
        return tuple(_figures(version, price_per_hour) for version in found)


def _figures(version: Snapshot, price_per_hour: float | None) -> VersionFigures:
    counts, timings = version.counts, version.timings
    seconds = {stage: float(timings[stage]) for stage in (*WALL, *WORKERS) if stage in timings}
    wall = sum(seconds.get(stage, 0.0) for stage in WALL)
    return VersionFigures(
        version=version.version,
        time=version.time,
        rows=counts.rows,
        new=counts.new,
        changed=counts.changed,
        deleted=counts.deleted,
        failed=counts.failed,
        encoded=counts.encoded,
        tokens=counts.tokens,
        rows_of=version.rows_of,
        purge=version.run == "purge",
        model=version.fingerprint,
        seconds=seconds,
        tokens_per_s=timings.get("tokens_per_s"),
        docs_per_s=timings.get("docs_per_s"),
        padding_share=timings.get("padding_share"),
        busy_share=timings.get("busy_share"),
        price=wall / 3600 * price_per_hour if price_per_hour is not None and seconds else None,
    )
