"""All figures of a report together, as they go from report.py, which collects them, to page.py, which shows them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.reports.drift import Drift
from pipeline.reports.feeds import FeedState
from pipeline.reports.letters import Letters
from pipeline.reports.texts import TextFigures
from pipeline.reports.vectors import VectorFigures
from pipeline.reports.versions import VersionFigures
from pipeline.runs.verify import Verification


@dataclass(frozen=True, kw_only=True)
class Model:
    """It says what made the vectors of the version."""

    place: Mapping[str, str]
    """It is the model section's path, and a revision if there is one. It is empty where that was not recorded."""
    digest: str
    dim: int
    dtype: str
    precision: str
    similarity: str
    prompt: str
    max_seq_length: int | None
    chunk: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Checks:
    int8: str | None
    """It says how the int8 model agrees with float32. It is None for other precisions."""
    verified: Verification | str | None
    """It is a reason where the table could not be verified, and None where nobody asked."""

    def to_dict(self) -> dict[str, Any]:
        verified = self.verified.to_dict() if isinstance(self.verified, Verification) else self.verified
        return {"int8": self.int8, "verified": verified}


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    table: str
    made: str
    """It is the UTC time of the report in ISO 8601."""
    model: Model
    versions: tuple[VersionFigures, ...]
    """They are the newest versions, oldest first. The report is on the last one."""
    price_per_hour: float | None
    files: int
    size: int
    """They are the bytes of the version's files."""
    pool: str | None
    """It says which rows were looked at. It is None for a version without rows, as are the figures of texts and vectors."""
    texts: TextFigures | None
    vectors: VectorFigures | None
    snippets: Mapping[str, str] = field(default_factory=dict)
    """They are the beginnings of some texts, by id."""
    drift: Drift | str
    """It is a sentence where there is nothing to compare."""
    letters: Letters
    checks: Checks
    feeds: tuple[FeedState, ...] | None
    """They are None where only the table was given, which doesn't know its feeds."""
    seconds: float = 0.0
    """It took so long to collect the figures."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "made": self.made,
            "model": asdict(self.model),
            "versions": [one.to_dict() for one in self.versions],
            "price_per_hour": self.price_per_hour,
            "files": self.files,
            "bytes": self.size,
            "pool": self.pool,
            "texts": self.texts.to_dict() if self.texts is not None else None,
            "vectors": self.vectors.to_dict() if self.vectors is not None else None,
            "drift": self.drift.to_dict() if isinstance(self.drift, Drift) else self.drift,
            "dead_letters": self.letters.to_dict(),
            "checks": self.checks.to_dict(),
            "feeds": [one.to_dict() for one in self.feeds] if self.feeds is not None else None,
            "seconds": self.seconds,
        }
