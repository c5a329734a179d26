"""A summary of a plan gives the figures of what a run would do.

It is made for a person (`str`), for machines (`to_dict`) and for notebooks.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.execution.executor import Executor
from pipeline.progress import ShownInNotebooks, counted, short_duration, size
from pipeline.runs import advice
from pipeline.runs.forecast import Forecast, replaced_line
from pipeline.runs.prepared import Prepared
from pipeline.runs.summary import widened
from pipeline.runs.what_runs import WhatRuns, planned
from pipeline.table import calibration
from pipeline.work import lasting_name

BY_ROW = (
    "new", "changed", "deleted", "unchanged", "reusable", "to_encode", "tokens", "seconds",
    "parts_rewritten", "bytes_rewritten", "stale_files", "refusal",
)  # fmt: skip
"""They are the figures of a forecast that a plan has, too, where it would be carried out by row."""


@dataclass(frozen=True, kw_only=True)
class PlanSummary(ShownInNotebooks):
    """It says what the source holds and what a run would do, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    """It is the current version."""
    files: int
    bytes: int
    rows: int | None
    """They are None where only reading can tell."""
    rows_estimate: int
    units: int
    units_to_encode: int
    units_recorded: int
    """An earlier run encoded so many units and did not publish them."""
    units_reused: int
    units_dropped: int
    rows_to_retry: int
    """So many dead letters are tried again."""
    dim: int
    fingerprint: str | None
    """It is None before the table's value ranges are measured."""
    plan_s: float
    changes_pending: bool
    left_out: tuple[str, ...] = ()
    """It says which source files were left out."""
    snapshot: str | None = None
    """It names the state of a lakehouse table that would be read."""
    widened: tuple[str, ...] = ()
    """It says which columns take another type, and what that costs."""
    notes: tuple[str, ...] = ()
    """They say what the settings of the run cost."""
    runs: WhatRuns | None = None
    """It is what will run."""
    replaced: int = 0
    """A build by another model or other settings takes the place of so many rows of the current version."""
    by_row: Forecast | None = None
    """It has the counts of rows and texts where a table that exists would be followed by row."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, with the counts by row beside them where there are some."""
        rows = {name: getattr(self.by_row, name) for name in BY_ROW} if self.by_row is not None else {}
        return {name: value for name, value in asdict(self).items() if name != "by_row"} | rows

    def __str__(self) -> str:
        rows = counted(self.rows, "row") if self.rows is not None else f"about {counted(self.rows_estimate, 'row')}"
        return "\n".join(
            [
                f"plan for {self.table} (now at version {self.version})",
                f"  source     {counted(self.files, 'file')}, {size(self.bytes)}, {rows}",
                *([f"  snapshot   {self.snapshot}"] if self.snapshot else []),
                *(f"  left out   {reason}" for reason in self.left_out),
                *(f"  types      {reason}" for reason in self.widened),
                *(self.runs.lines(sampled=True) if self.runs is not None else []),
                *(self._units() if self.by_row is None else self.by_row.lines()),
                *([f"  failed     {counted(self.rows_to_retry, 'row')} to try again"] if self.rows_to_retry else []),
                *self._calibration(),
                *([f"  refused    {self.by_row.refusal}"] if self.by_row is not None and self.by_row.refusal else []),
                *(f"  note       {note}" for note in self.notes),
                f"  planned in {short_duration(self.plan_s)}",
                "  changes pending" if self.changes_pending else "  nothing to do",
            ]
        )

    def _units(self) -> list[str]:
        return [
            f"  units      {self.units:,}: {self.units_to_encode:,} to encode, {self.units_recorded:,} recorded by an "
            f"earlier run, {self.units_reused:,} reused, {self.units_dropped:,} to drop",
            *replaced_line(self.replaced, self.version),
        ]

    def _calibration(self) -> list[str]:
        if self.fingerprint is not None:
            return []
        return [f"  first      measure what int8 needs on about {calibration.TEXTS:,} texts, once for the table"]


def _known_files(prepared: Prepared) -> frozenset[tuple[str, str]]:
    """Return name and version of the files that the table was built from."""
    rows = prepared.parent.sources.select(["path", "version"]).to_pylist()
    return frozenset((lasting_name(row["path"]), row["version"]) for row in rows)


def summarise_plan(prepared: Prepared, executor: Executor, by_row: Forecast | None = None) -> PlanSummary:
    """Summarise the plan, with the forecast of a run `by_row` where it would be one."""
    plan = prepared.plan
    runs = by_row.runs if by_row is not None else planned(prepared, executor, *advice.sampled_lengths(prepared))
    added = {unit.unit_id for unit in plan.added}
    tasks = [task for task in plan.tasks if task.unit.unit_id in added]
    # Under another type all units are other ones, but the texts of files that the table knows have vectors.
    files = _known_files(prepared) if prepared.target.retyped else frozenset()
    known = [unit for unit in plan.added if all((span.file.name, span.file.version) in files for span in unit.spans)]
    return PlanSummary(
        table=prepared.table.url,
        version=prepared.parent.version,
        files=len(prepared.corpus.files),
        bytes=sum(file.size for file in prepared.corpus.files),
        rows=prepared.survey.rows_known,
        rows_estimate=prepared.survey.rows_estimate,
        units=len(plan.added) + len(plan.kept),
        units_to_encode=len(tasks) - len(known),
        units_recorded=len(plan.added) - len(tasks),
        units_reused=len(plan.kept) + len(known),
        units_dropped=max(0, len(plan.dropped) - len(known)),
        rows_to_retry=plan.rows_to_retry,
        dim=prepared.encoder.dim,
        fingerprint=None if prepared.vectors.needs_calibration else prepared.vectors.fingerprint,
        plan_s=round(prepared.plan_s, 3) if by_row is None else by_row.plan_s,
        changes_pending=bool(plan.retried) or (not plan.changes_nothing if by_row is None else by_row.changes_pending),
        replaced=prepared.parent.counts.rows if prepared.target.renews else 0,
        by_row=by_row,
        left_out=prepared.survey.left_out,
        snapshot=prepared.survey.snapshot,
        widened=tuple(widened(prepared)),
        notes=(
            *prepared.survey.remarks,
            *advice.about_ids(prepared),
            *(advice.about_length(prepared, runs.truncated, runs.texts, sampled=True) if runs is not None else ()),
        ),
        runs=runs,
    )
