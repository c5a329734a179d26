"""A summary gives the figures of what a run did, or would do.

It is made for a person (`str`), for machines (`to_dict`) and for notebooks.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.progress import ShownInNotebooks, per_second, size
from pipeline.runs import advice, kept_types
from pipeline.runs.guard import told_unread
from pipeline.runs.prepared import Prepared
from pipeline.runs.unread_files import UnreadFile
from pipeline.table import calibration, dead_letters, layout, publication, snapshot
from pipeline.table.record import Effort
from pipeline.table.snapshot import Snapshot

NOTICEABLE = 0.005
"""A summary mentions this share of clipped numbers. Ranges that are measured on 1,024 texts leave 0.2 % of such
texts' numbers outside."""
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

    @property
    def exit_code(self) -> int:
        return 3 if self.published and self.counts.failed_new else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}

    def __str__(self) -> str:
        if self.published:
            lines = [f"published version {self.version} of {self.table}", *self._figures()]
        else:
            lines = [f"{self._idle()}: {self.table} is at version {self.version} with {self.counts.rows:,} rows"]
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
    """They can't be read to their end, among those that the table did not know."""

    @property
    def exit_code(self) -> int:
        return 3 if self.published and self.unread_files else super().exit_code

    def _figures(self) -> list[str]:
        counts = self.counts
        return [
            self._rows(f"unchanged ({counts.reused:,} in reused units)"),
            *self._documents(),
            self._failed("new"),
            *(f"             {reason}" for reason in self.failures),
            *([f"  unread     {told_unread(self.unread_files, self.files)}"] if self.unread_files else []),
            *self._retried(),
            *self._resumed(),
            f"  texts      {counts.encoded:,} encoded, {counts.tokens:,} tokens, {counts.truncated:,} texts truncated",
            f"  speed      {per_second(self.docs_per_s)} docs/s, {self.tokens_per_s:,.0f} tokens/s, padding "
            f"{self.padding_share:.1%}, encoders busy {self.busy_share:.0%}",
            self._seconds(),
            f"  output     {size(self.output_bytes)} in {self.table}/{layout.DATA}",
        ]

    def _idle(self) -> str:
        return "nothing changed" if self.retried else "nothing to do"

    def _remarks(self) -> list[str]:
        return [] if self.published else self._retried()

    def _retried(self) -> list[str]:
        if not self.retried:
            return []
        return [f"  retried    {self.retried:,} that had failed: {self.recovered:,} have a vector now"]

    def _resumed(self) -> list[str]:
        if not self.resumed:
            return []
        return [f"  resumed    {self.resumed:,} rows that were finished before; the speed leaves them out"]

    def _documents(self) -> list[str]:
        """Return the lines about documents that the rows don't tell by themselves."""
        counts = self.counts
        chunked = [f"  documents  {counts.documents:,} in these rows"] if counts.documents != counts.rows else []
        if counts.skipped:
            left_out = "by source.where, by source.on_null, or as a lakehouse table's deleted rows"
            return [*chunked, f"  left out   {counts.skipped:,} {left_out}"]
        return chunked


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
    effort, notes = encoded.effort, [*prepared.encoder.notes, *prepared.survey.left_out, *widened(prepared)]
    if prepared.survey.snapshot is not None:
        notes.append(f"read {prepared.survey.snapshot}")
    if version.version != prepared.parent.version:
        notes += advice.about_ids(prepared)
        notes += advice.about_length(prepared, version.counts.truncated, texts)
    if encoded.workers:
        notes.append(f"ran {encoded.workers}" + (f", on {encoded.engines}" if encoded.engines else ""))
    notes += encoded.told
    if prepared.vectors.int8 is not None:
        notes.append(str(prepared.vectors.int8))
    ranges = prepared.vectors.calibration
    if ranges is not None and ranges.rows < calibration.STEADY:
        notes.append(
            f"the value ranges of {prepared.spec.table.dtype} were measured on {ranges.rows} texts only: other texts' values "
            "may be clipped; a table that begins with more texts keeps more of them"
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


def nothing_to_do(prepared: Prepared) -> Summary:
    """Summarise a run whose plan changes nothing."""
    return summarise(prepared, prepared.parent, NOTHING_ENCODED, {"plan": prepared.plan_s})
