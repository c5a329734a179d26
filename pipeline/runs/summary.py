"""A summary gives the figures of what a run did, or would do.

It is made for a person (`str`), for machines (`to_dict`) and for notebooks.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.progress import ShownInNotebooks, counted, per_second, size
from pipeline.runs import advice, kept_types
from pipeline.runs.guard import told_unread
from pipeline.runs.prepared import Prepared
from pipeline.runs.unread_files import UnreadFile
from pipeline.runs.what_runs import WhatRuns, what_runs
from pipeline.table import calibration, dead_letters, layout, publication, snapshot
from pipeline.table.operations import vacuum
from pipeline.table.operations.merge_rows import Upkeep
from pipeline.table.record import Effort
from pipeline.table.snapshot import Snapshot

NOTICEABLE = 0.005
"""A summary mentions this share of clipped numbers. Ranges that are measured on 1,024 texts leave 0.2 % of such
texts' numbers outside."""
ADDED_UP = ("new", "changed", "deleted", "encoded", "failed_new", "tokens", "truncated")
"""These counts of two versions after one another are added up to those of both."""
NOT_EXCLUSIVE = (
    "this object store ignores create-only writes: two runs that publish at once are told apart unless a write takes "
    f"longer than {publication.SETTLE_S:g} s, so let the scheduler see to one run at a time"
)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """It is what the encoding part of a run leaves behind, beside its records."""

    busy_share: float
    """It is the share that the encoders spent encoding of the time from their first to their last slice. It is 0 if
    nothing was encoded."""
    rows: int
    """This run recorded so many source rows."""
    effort: Effort
    """It is the effort of this run's slices."""
    seconds: float
    """They last from the encoders' first slice to the last record."""
    start_s: float
    """They pass before the first slice, while Ray starts and workers import and load the model."""
    workers: str
    """It says who worked, and why they were chosen."""
    engines: str
    """It names the engines that computed the vectors."""
    told: tuple[str, ...] = ()
    """It is what the tokenizers want a person to be told."""


NOTHING_ENCODED = Encoded(busy_share=0.0, rows=0, effort=Effort(), seconds=0.0, start_s=0.0, workers="", engines="")


@dataclass(frozen=True, kw_only=True)
class RunSummary(ShownInNotebooks):
    """It holds the figures that every run that can publish a version has, and the lines in which a person reads them."""

    table: str
    version: int
    published: bool
    counts: snapshot.Counts
    docs_per_s: float
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    runs: WhatRuns | None = None
    """It is what ran."""

    @property
    def exit_code(self) -> int:
        return 3 if self.published and self.counts.failed_new else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}

    def __str__(self) -> str:
        if self.published:
            runs = self.runs.lines() if self.runs is not None else []
            lines = [f"published version {self.version} of {self.table}", *self._figures(), *runs]
        else:
            lines = [
                f"{self._idle()}: {self.table} is at version {self.version} with {counted(self.counts.rows, 'row')}"
            ]
        return "\n".join([*lines, *self._remarks(), *(f"  note       {note}" for note in self.notes)])

    def _figures(self) -> list[str]:
        """Return the lines about what was published."""
        raise NotImplementedError

    def _idle(self) -> str:
        """Return what is said of a run that published nothing."""
        return "nothing to do"

    def _remarks(self) -> list[str]:
        """Return the lines that follow the figures, whether something was published or not."""
        return []

    def _rows(self, unchanged: str) -> str:
        counts = self.counts
        return (
            f"  rows       {counts.rows:,}: {counts.new:,} new, {counts.changed:,} changed, {counts.deleted:,} deleted, "
            f"{counts.unchanged:,} {unchanged}"
        )

    def _failed(self, new: str) -> str:
        failed = f"  failed     {self.counts.failed:,} without a vector ({self.counts.failed_new:,} of them {new})"
        return failed + (f"; see {self.table}/{layout.dead_letters(self.version)}" if self.counts.failed else "")

    def _seconds(self) -> str:
        return "  seconds    " + ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())


@dataclass(frozen=True, kw_only=True)
class Summary(RunSummary):
    """It says what an embedding run did, for a person (`str`) and for machines (`to_dict`)."""

    padding_share: float
    busy_share: float
    """It is the share that the encoders spent encoding of the time from their first to their last slice."""
    tokens_per_s: float
    output_bytes: int
    retried: int
    """So many dead letters were tried again."""
    recovered: int
    """So many of the retried dead letters have a vector now."""
    failures: tuple[str, ...] = ()
    """They tell the first few of the rows that are new among the failed ones, with the reasons."""
    resumed: int = 0
    """So many source rows of this version were finished before, by a run that did not publish. The speeds leave them
    out."""
    files: int = 0
    """The source has so many files."""
    unread_files: tuple[UnreadFile, ...] = ()
    """They can't be read to their end. A build counts them among its dead letters; by row, what the table has of them
    stays as it is."""
    by_row: bool = False
    """The table was followed by row; otherwise it was built, or dead letters were tried again, by units."""
    to_encode: int = 0
    """A run by row had to encode so many distinct texts."""
    reusable: int = 0
    """By row: so many new and changed rows have a text with a vector, or share their text with another such row."""
    upkeep: Upkeep | None = None
    """By row: it is what became of the table's files."""

    @property
    def exit_code(self) -> int:
        return 3 if self.unread_files else super().exit_code

    def _figures(self) -> list[str]:
        counts = self.counts
        return [
            self._rows("unchanged" if self.by_row else f"unchanged ({counts.reused:,} in reused units)"),
            *self._documents(),
            self._failed("new"),
            *(f"             {reason}" for reason in self.failures),
            *([] if self.by_row else self._unread()),
            *self._retried(),
            *self._resumed(),
            f"  texts      {counts.encoded:,} encoded, {counted(counts.tokens, 'token')}, "
            f"{counted(counts.truncated, 'text')} truncated"
            + (f", {counted(self.reusable, 'row')} with a vector that was there" if self.by_row else ""),
            *([files_line(self.upkeep)] if self.upkeep is not None else []),
            f"  speed      {per_second(self.docs_per_s)} docs/s, {self.tokens_per_s:,.0f} tokens/s, padding "
            f"{self.padding_share:.1%}, encoders busy {self.busy_share:.0%}",
            self._seconds(),
            f"  output     {size(self.output_bytes)} in {self.table}/{layout.DATA}",
        ]

    def _idle(self) -> str:
        return "nothing changed" if self.retried else "nothing to do"

    def _remarks(self) -> list[str]:
        return [*([] if self.published else self._retried()), *(stale_lines(self.unread_files) if self.by_row else [])]

    def _unread(self) -> list[str]:
        return [f"  unread     {told_unread(self.unread_files, self.files)}"] if self.unread_files else []

    def _retried(self) -> list[str]:
        if not self.retried:
            return []
        return [f"  retried    {self.retried:,} that had failed: {self.recovered:,} have a vector now"]

    def _resumed(self) -> list[str]:
        if not self.resumed:
            return []
        what = counted(self.resumed, "text" if self.by_row else "row")
        were, them = ("was", "it") if self.resumed == 1 else ("were", "them")
        return [f"  resumed    {what} that {were} finished before; the speed leaves {them} out"]

    def _documents(self) -> list[str]:
        """Return the lines about documents that the rows don't tell by themselves."""
        counts = self.counts
        chunked = [f"  documents  {counts.documents:,} in these rows"] if counts.documents != counts.rows else []
        if counts.skipped:
            left_out = "by source.where, by source.on_null, or as a lakehouse table's deleted rows"
            return [*chunked, f"  left out   {counts.skipped:,} {left_out}"]
        return chunked


def stale_lines(files: Sequence[UnreadFile]) -> list[str]:
    """Return the lines about files that can't be read, and of which the table keeps what it has."""
    lines = [stale_line(item) for item in files[:5]]
    return lines + (
        [f"  stale      {counted(len(files) - 5, 'more file')} that can't be read"] if len(files) > 5 else []
    )


def stale_line(item: UnreadFile) -> str:
    what = (
        f"about {counted(item.rows, 'row')} of it {'is' if item.rows == 1 else 'are'} missing"
        if item.rows
        else "its rows stay"
    )
    return f"  stale      {item.path}: {item.reason}; {what}"


def files_line(upkeep: Upkeep) -> str:
    """Return the line about what a run by row did to the files of the table."""
    when = f"until `status --clean`, after {vacuum.OLD_DAYS:g} days"
    stays = f"; {size(upkeep.kept_bytes)} stay in the trash {when}" if upkeep.kept_bytes else ""
    return (
        f"  files      {upkeep.written:,} written ({size(upkeep.written_bytes)}), {upkeep.rewritten:,} of the table "
        f"written anew ({size(upkeep.rewritten_bytes)}), {upkeep.dropped:,} dropped, {upkeep.untouched:,} untouched "
        f"({size(upkeep.untouched_bytes)}){stays}"
    )


def summarise(
    prepared: Prepared,
    version: Snapshot,
    encoded: Encoded,
    timings: Mapping[str, float],
    unread: Sequence[UnreadFile] = (),
) -> Summary:
    """Summarise a run that published `version`. If it had nothing to do, `version` is the parent."""
    effort = encoded.effort
    return Summary(
        table=prepared.table.url,
        version=version.version,
        published=version.version != prepared.parent.version,
        counts=version.counts,
        padding_share=1 - effort.tokens_encoded / effort.tokens_padded if effort.tokens_padded else 0.0,
        busy_share=encoded.busy_share,
        docs_per_s=encoded.rows / encoded.seconds if encoded.seconds else 0.0,
        tokens_per_s=encoded.effort.tokens / encoded.seconds if encoded.seconds else 0.0,
        seconds=timings,
        output_bytes=sum(part.size for part in version.parts),
        retried=prepared.plan.rows_to_retry,
        recovered=_recovered_rows(prepared, version),
        failures=first_failures(prepared, version, {number for unit in prepared.plan.added for number in unit.sources}),
        resumed=_resumed_rows(prepared) if version.version != prepared.parent.version else 0,
        notes=notes_of(prepared, encoded, version, version.counts.rows - version.counts.reused),
        runs=ran(prepared, encoded, version, version.counts.rows - version.counts.reused),
        files=len(prepared.corpus.files),
        unread_files=tuple(unread),
    )


def first_failures(prepared: Prepared, version: Snapshot, sources: Collection[int]) -> tuple[str, ...]:
    """Tell the first few dead letters of these sources, if this run published the version."""
    if version.version == prepared.parent.version or not version.counts.failed_new:
        return ()
    return dead_letters.reasons(dead_letters.of_sources(dead_letters.read(prepared.table, version), sources))


def _resumed_rows(prepared: Prepared) -> int:
    """Count the source rows that earlier runs recorded and did not publish."""
    return sum(record.num_rows for records in prepared.plan.records.values() for record in records)


def notes_of(prepared: Prepared, encoded: Encoded, version: Snapshot, texts: int) -> tuple[str, ...]:
    """Return what a person should be told beside the figures, whatever kind of run it was. So many `texts` were tokenized
    for the version."""
    effort, surveyed = encoded.effort, prepared.survey
    notes = [*prepared.encoder.notes, *surveyed.left_out, *surveyed.remarks, *widened(prepared)]
    if prepared.survey.snapshot is not None:
        notes.append(f"read {prepared.survey.snapshot}")
    if version.version != prepared.parent.version:
        notes += advice.about_ids(prepared)
        notes += advice.about_length(prepared, version.counts.truncated, texts)
    notes += encoded.told
    if prepared.vectors.int8 is not None:
        notes.append(str(prepared.vectors.int8))
    ranges = prepared.vectors.calibration
    if ranges is not None and ranges.rows < calibration.STEADY:
        notes.append(
            f"the value ranges of {prepared.spec.table.dtype} were measured on {counted(ranges.rows, 'text')} only: other "
            "texts' values may be clipped; a table that begins with more texts keeps more of them"
        )
    if effort.clipped > NOTICEABLE * effort.coded:
        notes.append(
            f"{effort.clipped / effort.coded:.1%} of the {prepared.spec.table.dtype} numbers of this run lie outside the "
            "table's value ranges and were clipped: its first texts were not like these; build the table anew, in another "
            "table.path, to have ranges of both"
        )
    if not prepared.target.exclusive:
        notes.append(NOT_EXCLUSIVE)
    return tuple(notes)


def ran(prepared: Prepared, encoded: Encoded, version: Snapshot, texts: int) -> WhatRuns:
    """Describe what ran. So many `texts` were tokenized for the version."""
    published = version.version != prepared.parent.version
    return what_runs(
        prepared,
        engine=encoded.engines,
        workers=encoded.workers,
        truncated=version.counts.truncated if published else 0,
        texts=texts if published else 0,
    )


def widened(prepared: Prepared) -> list[str]:
    """Return what is said of columns that take another type, with the cost once."""
    told = [kept_types.told(change) for change in prepared.target.widened]
    return [f"other types: {'; '.join(told)}; {kept_types.cost(prepared.parent)}"] if told else []


def _recovered_rows(prepared: Prepared, version: Snapshot) -> int:
    """Count the retried rows that the version holds. Its lists are long, and most runs need not read them."""
    if not prepared.plan.retried:
        return 0
    before, now = prepared.parent.tallies(), version.tallies()
    return sum(now[unit].documents - before[unit].documents for unit in prepared.plan.retried)


def both(first: Summary, then: Summary) -> Summary:
    """Summarise a run by row after which dead letters were tried again, as one run that may have published twice."""
    counts = asdict(then.counts) if then.published else asdict(first.counts)
    if first.published and then.published:
        counts |= {name: counts[name] + getattr(first.counts, name) for name in ADDED_UP}
        counts["unchanged"] = counts["rows"] - counts["new"] - counts["changed"]
    seconds = {
        name: first.seconds.get(name, 0.0) + then.seconds.get(name, 0.0) for name in {**first.seconds, **then.seconds}
    }
    total = then.seconds.get("total", first.seconds.get("total"))
    faster = first if first.docs_per_s else then
    return replace(
        first,
        version=then.version,
        published=first.published or then.published,
        counts=snapshot.Counts(**counts),
        seconds=seconds | ({"total": total} if total is not None else {}),
        docs_per_s=faster.docs_per_s,
        tokens_per_s=faster.tokens_per_s,
        padding_share=faster.padding_share,
        busy_share=faster.busy_share,
        output_bytes=then.output_bytes,
        retried=then.retried,
        recovered=then.recovered,
        resumed=first.resumed + then.resumed,
        notes=tuple(dict.fromkeys([*first.notes, *then.notes])),
    )


def nothing_to_do(prepared: Prepared) -> Summary:
    """Summarise a run whose plan changes nothing."""
    return summarise(prepared, prepared.parent, NOTHING_ENCODED, {"plan": prepared.plan_s})
