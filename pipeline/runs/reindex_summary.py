"""A summary says what a run by row did, row by row and file by file: a reindex, or an embedding run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.progress import counted, per_second
from pipeline.runs.by_row import Outcome
from pipeline.runs.prepared import Prepared
from pipeline.runs.row_changes import Changes
from pipeline.runs.summary import (
    NOTHING_ENCODED,
    RunSummary,
    Summary,
    files_line,
    first_failures,
    notes_of,
    ran,
    stale_lines,
    summarise,
)
from pipeline.runs.unread_files import UnreadFile
from pipeline.table.operations.merge_rows import Upkeep


@dataclass(frozen=True, kw_only=True)
class Reindexed(RunSummary):
    """It says what a reindex did, for a person (`str`) and for machines (`to_dict`)."""

    to_encode: int
    """This run had to encode so many distinct texts."""
    reusable: int
    """So many new and changed rows have a text with a vector, or share their text with another such row."""
    upkeep: Upkeep
    stale_files: tuple[UnreadFile, ...]
    failures: tuple[str, ...] = ()
    """They tell the first few of the rows that failed in files that were read, with the reasons."""
    resumed: int = 0
    """So many distinct texts were encoded before, by a run that did not publish."""

    @property
    def exit_code(self) -> int:
        return 3 if self.stale_files else super().exit_code

    def _figures(self) -> list[str]:
        return [
            self._rows("untouched"),
            self._failed("in files that were read"),
            *(f"             {reason}" for reason in self.failures),
            f"  texts      {self.to_encode:,} encoded, {counted(self.reusable, 'row')} with a "
            f"vector that was there{self._resumed()}, {per_second(self.docs_per_s)} docs/s",
            files_line(self.upkeep),
            self._seconds(),
        ]

    def _remarks(self) -> list[str]:
        return stale_lines(self.stale_files)

    def _resumed(self) -> str:
        return f" ({counted(self.resumed, 'text')} from a run that did not publish)" if self.resumed else ""


def summarise_rows(prepared: Prepared, done: Outcome) -> Reindexed:
    """Summarise a run by row that published a version."""
    changes, version, encoded = done.changes, done.version, done.encoded
    return Reindexed(
        table=prepared.table.url,
        version=version.version,
        published=version.version != prepared.parent.version,
        counts=version.counts,
        to_encode=changes.to_encode,
        reusable=len(changes.upserts) - changes.to_encode,
        upkeep=done.upkeep,
        stale_files=changes.stale_files,
        docs_per_s=encoded.rows / encoded.seconds if encoded.seconds else 0.0,
        seconds=done.seconds,
        failures=first_failures(prepared, version, sources_read(changes)),
        resumed=len(changes.staged),
        notes=notes_of(prepared, encoded, version, changes.to_encode + len(changes.staged)),
        runs=ran(prepared, encoded, version, changes.to_encode + len(changes.staged)),
    )


def summarise_embedded_rows(prepared: Prepared, done: Outcome) -> Summary:
    """Summarise an embedding run that followed a table by row. It may have published nothing."""
    changes, version = done.changes, done.version
    plan = replace(prepared.plan, added=(), retried={}, records={})
    told = summarise(replace(prepared, plan=plan), version, done.encoded, done.seconds, changes.stale_files)
    return replace(
        told,
        by_row=True,
        to_encode=changes.to_encode,
        reusable=len(changes.upserts) - changes.to_encode,
        upkeep=done.upkeep,
        failures=first_failures(prepared, version, sources_read(changes)),
        resumed=len(changes.staged),
        notes=notes_of(prepared, done.encoded, version, changes.to_encode + len(changes.staged)),
        runs=ran(prepared, done.encoded, version, changes.to_encode + len(changes.staged)),
    )


def sources_read(changes: Changes) -> set[int]:
    """Return the numbers of the sources that were read, in the version that was made."""
    numbers = {number for numbers in changes.numbers for number in numbers}
    return numbers - {number for part in changes.unchanged_spans for number in part.numbers}


def nothing_to_reindex(
    prepared: Prepared, stale_files: Sequence[UnreadFile] = (), seconds: Mapping[str, float] | None = None
) -> Reindexed:
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
        seconds=seconds or {"plan": prepared.plan_s},
        runs=ran(prepared, NOTHING_ENCODED, prepared.parent, 0),
    )
