"""A forecast says what a reindex would do and what it would cost.

A prepared run and its changes come in. A `Forecast` goes out, with exact counts of rows and texts, and with tokens
counted on a sample.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import RunError
from pipeline.execution import pools
from pipeline.execution.executor import Executor
from pipeline.progress import ShownInNotebooks, counted, short_duration, size
from pipeline.runs import advice, estimate
from pipeline.runs.by_row import for_texts
from pipeline.runs.estimate import Rate
from pipeline.runs.guard import check_unread
from pipeline.runs.prepared import Prepared
from pipeline.runs.row_changes import Changes, check_deleted
from pipeline.runs.summary import stale_lines, widened
from pipeline.runs.unread_files import UnreadFile
from pipeline.runs.what_runs import WhatRuns, planned
from pipeline.schema import N_TOKENS, TRUNCATED
from pipeline.stages.distinct_texts import read_texts
from pipeline.stages.slice_row import from_cell
from pipeline.table import snapshot
from pipeline.table.snapshot import Snapshot
from pipeline.work import Task

SAMPLE_TEXTS = 512
"""The tokens of so many texts are counted for a forecast."""
SAMPLE_PARTS = 4
"""The tokens of at least so many parts of the table are added up for the forecast of a build."""
TOKENS_GUESSED = 64.0


@dataclass(frozen=True, kw_only=True)
class Forecast(ShownInNotebooks):
    """It says what a reindex would do, for a person (`str`) and for machines (`to_dict`)."""

    table: str
    version: int
    """It is the current version."""
    full: bool
    """The table would be built whole, because there is none yet or its model is another."""
    new: int
    changed: int
    deleted: int
    unchanged: int
    reusable: int
    """So many new and changed rows have a text with a vector, or share their text with another such row."""
    to_encode: int
    """So many distinct texts would be encoded. For a full build these are rows."""
    tokens: int
    """It is an estimate from a sample."""
    seconds: float | None
    """They are the seconds to start and to encode, at the rate of an earlier run. They are None where no run tells."""
    price: float | None
    parts_rewritten: int
    bytes_rewritten: int
    stale_files: tuple[UnreadFile, ...] = ()
    changes_pending: bool = True
    plan_s: float = 0.0
    rate: Rate | None = None
    """It is the rate of that earlier run."""
    snapshot: str | None = None
    """It names the state of a lakehouse table that would be read."""
    widened: tuple[str, ...] = ()
    """It says which columns take another type, and what that costs."""
    refusal: str | None = None
    """It says why a run would publish nothing."""
    notes: tuple[str, ...] = ()
    """They say what the settings of the run cost."""
    runs: WhatRuns | None = None
    """It is what will run."""
    replaced: int = 0
    """A build by another model or other settings takes the place of so many rows of the current version."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"plan for {self.table} (now at version {self.version})",
                *([f"  snapshot   {self.snapshot}"] if self.snapshot else []),
                *(self.runs.lines(sampled=True) if self.runs is not None else []),
                *self.lines(),
                *(f"  types      {reason}" for reason in self.widened),
                *([f"  refused    {self.refusal}"] if self.refusal else []),
                *(f"  note       {note}" for note in self.notes),
                f"  planned in {short_duration(self.plan_s)}",
                "  changes pending" if self.changes_pending else "  nothing to do",
            ]
        )

    def lines(self) -> list[str]:
        """Return the lines about rows, texts, files and time."""
        lines = list[str]()
        if self.full:
            lines.append(f"  build      all of {counted(self.to_encode, 'row')}, about {counted(self.tokens, 'token')}")
            lines += replaced_line(self.replaced, self.version)
        elif self.changes_pending:
            lines += [
                f"  rows       {self.new:,} new, {self.changed:,} changed, {self.deleted:,} deleted, "
                f"{self.unchanged:,} unchanged",
                f"  texts      {self.to_encode:,} to encode (about {counted(self.tokens, 'token')}), "
                f"{counted(self.reusable, 'row')} with a vector that is there",
                f"  files      {self.parts_rewritten:,} of the table to write anew ({size(self.bytes_rewritten)})",
            ]
        if self.changes_pending and self.tokens and self.seconds is not None and self.rate is not None:
            price = f", {self.price:,.2f} at this price" if self.price is not None else ""
            total, start = (short_duration(max(0.1, seconds)) for seconds in (self.seconds, self.rate.start_s))
            lines.append(
                f"  encoding   about {total}, {start} of it to start, at the {self.rate.tokens_per_s:,.0f} tokens/s of "
                f"version {self.rate.version}{price}"
            )
        return [*lines, *stale_lines(self.stale_files)]


def replaced_line(rows: int, version: int) -> list[str]:
    """Return the line about the rows of a version that a build takes the place of, if there are some."""
    return [f"  replaces   all {counted(rows, 'row')} of version {version}"] if rows else []


def forecast(
    prepared: Prepared,
    changes: Changes | None,
    executor: Executor,
    started: float,
    *,
    price_per_hour: float | None = None,
    allow_deletes: bool = False,
) -> Forecast:
    """Forecast the run. The `changes` are None for a full build, or where nothing changed."""
    full = changes is None and not prepared.plan.changes_nothing
    sample = _sample(prepared, changes) if changes is not None else Sample()
    tokens = round(sample.tokens / max(1, sample.texts) * changes.to_encode) if changes is not None else 0
    if full:
        tokens = round(prepared.survey.rows_estimate * _tokens_per_document(prepared))
        sample = Sample(**dict(zip(("truncated", "texts"), advice.sampled_lengths(prepared), strict=True)))
    encoding = for_texts(prepared, changes) if changes is not None else prepared
    expected = estimate.estimate(tokens, _history(prepared), price_per_hour)
    losing = np.unique(changes.removed["part"]).tolist() if changes is not None else []
    return Forecast(
        table=prepared.table.url,
        version=prepared.parent.version,
        full=full,
        **_row_counts(prepared, changes, full),
        tokens=tokens,
        seconds=expected.seconds,
        price=expected.price,
        parts_rewritten=len(losing),
        bytes_rewritten=sum(prepared.parent.parts[number].size for number in losing),
        stale_files=changes.stale_files if changes is not None else (),
        changes_pending=full or (changes is not None and not changes.changes_nothing),
        plan_s=round(time.perf_counter() - started, 3),
        rate=expected.rate,
        snapshot=prepared.survey.snapshot,
        widened=tuple(widened(prepared)),
        replaced=prepared.parent.counts.rows if full and prepared.target.renews else 0,
        refusal=_refusal(prepared, changes, allow_deletes=allow_deletes),
        notes=(
            *advice.about_ids(prepared),
            *advice.about_length(prepared, sample.truncated, sample.texts, sampled=True),
        ),
        runs=planned(encoding, executor, sample.truncated, sample.texts, estimated=expected.rate is not None),
    )


def _row_counts(prepared: Prepared, changes: Changes | None, full: bool) -> dict[str, int]:
    """Return the counts of rows and texts, by the names of their fields in a forecast."""
    if changes is not None:
        return {
            "new": changes.new,
            "changed": changes.changed,
            "deleted": len(changes.deletes),
            "unchanged": changes.unchanged,
            "reusable": len(changes.upserts) - changes.to_encode,
            "to_encode": changes.to_encode,
        }
    counts = dict.fromkeys(("new", "changed", "deleted", "unchanged", "reusable", "to_encode"), 0)
    if not full:
        return counts | {"unchanged": prepared.parent.counts.rows}
    rows = prepared.survey.rows_estimate
    return counts | {"changed" if prepared.parent.version else "new": rows, "to_encode": rows}


def _refusal(prepared: Prepared, changes: Changes | None, *, allow_deletes: bool) -> str | None:
    try:
        if changes is not None:
            check_unread(prepared, changes.stale_files)
        check_deleted(prepared, changes, allowed=allow_deletes)
    except RunError as error:
        return str(error)
    return None


def _history(prepared: Prepared) -> list[Snapshot]:
    last = prepared.parent.version
    first = max(1, last - estimate.VERSIONS + 1)
    return [snapshot.read_alone(prepared.table, number) for number in range(first, last + 1)]


def _tokens_per_document(prepared: Prepared) -> float:
    """Return the mean tokens of a row in some of the table's parts, or a guess where there is no table."""
    parent = prepared.parent
    tokens = rows = 0
    for part in parent.parts[:: max(1, len(parent.parts) // SAMPLE_PARTS)]:
        with prepared.table.open(part.location) as file:
            found = pq.read_table(file, columns=[N_TOKENS], use_threads=False).column(N_TOKENS)
        tokens, rows = tokens + (pc.sum(found).as_py() or 0), rows + len(found)
    if not tokens:
        return TOKENS_GUESSED
    return float(tokens / rows * parent.counts.rows / max(1, parent.counts.documents))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """It is what was seen of some of the texts to encode."""

    tokens: int = 0
    truncated: int = 0
    texts: int = 0


def _sample(prepared: Prepared, changes: Changes) -> Sample:
    """Look at some of the texts to encode."""
    if not changes.texts:
        return Sample()
    spec = prepared.worker_spec(pools.ALONE)
    tokenizer = Tokenizer(spec.encode.encoder, 1)
    chosen = [changes.texts[number] for number in np.linspace(0, len(changes.texts) - 1, 4).astype(int)]
    tokens = truncated = counted = 0
    for unit in dict.fromkeys(chosen):
        most = math.ceil(SAMPLE_TEXTS / 4)
        step = max(1, len(unit.only or ()) // most)
        some = replace(unit, only=(unit.only or ())[::step])
        for row in read_texts(Task(unit=some, done=()), spec, tokenizer):
            found = from_cell(row, "documents")
            tokens += sum(found.column(N_TOKENS).to_pylist())
            truncated += sum(found.column(TRUNCATED).to_pylist())
            counted += found.num_rows
    return Sample(tokens=tokens, truncated=truncated, texts=counted)
