"""A summary says what a reindex did, row by row and file by file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.progress import ShownInNotebooks, per_second, size
from pipeline.runs.prepared import Prepared
from pipeline.runs.row_changes import Changes, StaleFile
from pipeline.runs.summary import Encoded, first_failures, notes_of
from pipeline.table import layout
from pipeline.table.operations.merge_rows import Upkeep
from pipeline.table.snapshot import Counts, Snapshot


@dataclass(frozen=True, kw_only=True)
class Reindexed(ShownInNotebooks):
    """It says what a reindex did, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    published: bool
    counts: Counts
    to_encode: int
    """This run had to encode so many distinct texts."""
    reusable: int
    """So many new and changed rows have a text with a vector, or share their text with another such row."""
    upkeep: Upkeep
    stale_files: tuple[StaleFile, ...]
    docs_per_s: float
    seconds: Mapping[str, float]
    failures: tuple[str, ...] = ()
    """They tell the first few of the rows that failed in files that were read, with the reasons."""
    resumed: int = 0
    """So many distinct texts were encoded before, by a run that did not publish."""
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 3 if self.stale_files or (self.published and self.counts.failed_new) else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}

    def __str__(self) -> str:
        counts, upkeep = self.counts, self.upkeep
        if not self.published:
            lines = [f"nothing to do: {self.table} is at version {self.version} with {counts.rows:,} rows"]
        else:
            seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            lines = [
                f"published version {self.version} of {self.table}",
                f"  rows       {counts.rows:,}: {counts.new:,} new, {counts.changed:,} changed, {counts.deleted:,} deleted, "
                f"{counts.unchanged:,} untouched",
                f"  failed     {counts.failed:,} without a vector ({counts.failed_new:,} of them in files that were read)"
                + (f"; see {self.table}/{layout.dead_letters(self.version)}" if counts.failed else ""),
                *(f"             {reason}" for reason in self.failures),
                f"  texts      {self.to_encode:,} encoded, {self.reusable:,} rows with a "
                f"vector that was there{self._resumed()}, {per_second(self.docs_per_s)} docs/s",
                f"  files      {upkeep.written:,} written ({size(upkeep.written_bytes)}), {upkeep.rewritten:,} of the table "
                f"written anew ({size(upkeep.rewritten_bytes)}), {upkeep.dropped:,} dropped, {upkeep.untouched:,} untouched "
                f"({size(upkeep.untouched_bytes)}); {size(upkeep.kept_bytes)} stay in the trash until --clean",
                f"  seconds    {seconds}",
            ]
        lines += [f"  stale      {item.path}: {item.reason}; its rows stay" for item in self.stale_files[:5]]
        if len(self.stale_files) > 5:
            lines.append(f"  stale      {len(self.stale_files) - 5:,} more files that can't be read")
        return "\n".join(lines + [f"  note       {note}" for note in self.notes])

    def _resumed(self) -> str:
        return f" ({self.resumed:,} texts from a run that did not publish)" if self.resumed else ""


def summarise_rows(
    prepared: Prepared,
    changes: Changes,
    version: Snapshot,
    upkeep: Upkeep,
    encoded: Encoded,
    timings: Mapping[str, float],
) -> Reindexed:
    return Reindexed(
        table=prepared.table.url,
        version=version.version,
        published=version.version != prepared.parent.version,
        counts=version.counts,
        to_encode=changes.to_encode,
        reusable=len(changes.upserts) - changes.to_encode,
        upkeep=upkeep,
        stale_files=changes.stale_files,
        docs_per_s=encoded.rows / encoded.seconds if encoded.seconds else 0.0,
        seconds=timings,
        failures=first_failures(prepared, version, _sources_read(changes)),
        resumed=len(changes.staged),
        notes=notes_of(prepared, encoded, version, changes.to_encode + len(changes.staged)),
    )


def _sources_read(changes: Changes) -> set[int]:
    numbers = {number for numbers in changes.numbers for number in numbers}
    return numbers - {number for part in changes.unchanged_spans for number in part.numbers}


def nothing_to_reindex(prepared: Prepared, stale_files: Sequence[StaleFile] = (), **seconds: float) -> Reindexed:
    """Return the summary of a run that changed nothing."""
    return Reindexed(
        table=prepared.table.url,
        version=prepared.parent.version,
        published=False,
        counts=prepared.parent.counts,
        to_encode=0,
        reusable=0,
        upkeep=Upkeep(untouched=len(prepared.parent.parts)),
        stale_files=tuple(stale_files),
        docs_per_s=0.0,
        seconds={"plan": prepared.plan_s, **seconds},
    )
