"""A summary gives the figures of what a feed did, or would do: for a person (`str`) and for machines (`to_dict`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.feeds.store import Guarantees, Rejection
from pipeline.feeds.verify import Verification
from pipeline.progress import ShownInNotebooks, counted, per_second, size

SHOWN = 3


@dataclass(kw_only=True)
class FeedSummary(ShownInNotebooks):
    """It is filled while the feed works."""

    feed: str
    store: str
    name: str
    """Readers find the rows under this name."""
    version: int
    """The store should hold this version of the table."""
    action: str = "nothing to do"
    planned: bool = False
    """Nothing was done: this is what would be."""
    pending: bool = False
    """A planned feed would change something."""
    generation: str = ""
    generations: tuple[Mapping[str, Any], ...] = ()
    """They are all that stand in the store."""
    sent: int = 0
    """So many rows were sent."""
    deleted: int = 0
    """So many ids were deleted."""
    sent_bytes: int = 0
    """So many bytes of vectors were sent."""
    read_bytes: int = 0
    """So many bytes of columns were read from the table by this process."""
    rejected: list[Rejection] = field(default_factory=list)
    """The store refuses these rows of the version, which are the feed's dead letters."""
    new_rejected: int = 0
    """So many of them were refused by this run."""
    switched: bool = False
    verification: Verification | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    guarantees: Guarantees | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        return self.verification is not None and not self.verification.passed

    @property
    def exit_code(self) -> int:
        if self.planned:
            return 10 if self.pending else 0
        if self.differs:
            return 1
        return 3 if self.new_rejected else 0

    def _held(self) -> str:
        """Say which version the generation holds. What is only planned leaves it as its marker in the store has it."""
        if not self.planned:
            return f"version {self.version}"
        found = next((one for one in self.generations if one["name"] == self.generation), None)
        if found is None or found["version"] is None:
            return "without a marker"
        if found["target"] is None:
            return f"version {found['version']}"
        return (
            f"on its way from version {found['version']} to {found['target']}"
            if found["version"]
            else (f"which a load of version {found['target']} fills")
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "feed": self.feed,
            "store": self.store,
            "name": self.name,
            "version": self.version,
            "action": self.action,
            "generation": self.generation,
            "generations": list(self.generations),
            "sent": self.sent,
            "deleted": self.deleted,
            "sent_bytes": self.sent_bytes,
            "read_bytes": self.read_bytes,
            "rejected": len(self.rejected),
            "new_rejected": self.new_rejected,
            "rejections": [{"id": one.id, "reason": one.reason} for one in self.rejected[:SHOWN]],
            "switched": self.switched,
            "verification": self.verification.to_dict() if self.verification else None,
            "seconds": self.seconds,
            "guarantees": _said(self.guarantees),
            "notes": self.notes,
            "exit_code": self.exit_code,
        } | ({"pending": self.pending} if self.planned else {})

    def __str__(self) -> str:
        lines = [f"feed {self.feed} ({self.store} {self.name}): {self.action}"]
        if self.generation:
            lines.append(f"  generation {self.generation}, {self._held()}{', shown now' if self.switched else ''}")
        if self.sent or self.deleted:
            verb = "would send" if self.planned else "sent"
            lines.append(
                f"  rows       {verb} {self.sent:,}, {'would delete' if self.planned else 'deleted'} {self.deleted:,}"
            )
        if self.sent_bytes and (busy := self.seconds.get("send")):
            rate = f"{per_second(self.sent / busy)} rows/s, {size(self.sent_bytes / busy)}/s of vectors"
            lines.append(f"  speed      {rate}")
        if self.rejected:
            told = "; ".join(f"{one.id!r}: {one.reason}" for one in self.rejected[:SHOWN])
            lines.append(f"  refused    {counted(len(self.rejected), 'row')} ({self.new_rejected:,} now): {told}")
        if self.verification is not None:
            lines.append(f"  verified   {self.verification}")
        if self.seconds:
            lines.append(f"  seconds    {', '.join(f'{name} {value:.1f}' for name, value in self.seconds.items())}")
        lines += [f"  note       {note}" for note in self.notes]
        return "\n".join(lines)


_LACKS = {
    "atomic_marker": "rows change one after the other: readers can meet a sync that is half done",
    "fences": "the store can't stop a feeder that was frozen and wakes after a newer sync: let one run at a time",
    "atomic_switch": "readers of the name may find nothing while generations change places",
    "keeps_bits": "vectors come back within 1e-5, not bit by bit",
    "tested_on_server": "this kind of feed was not run against a real server by its makers",
}


def lacking(guarantees: Guarantees) -> list[str]:
    """Say what a store can't give."""
    return [told for name, told in _LACKS.items() if not getattr(guarantees, name)]


def _said(guarantees: Guarantees | None) -> dict[str, bool] | None:
    return None if guarantees is None else {name: bool(getattr(guarantees, name)) for name in _LACKS}
