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
from pipeline.progress import ShownInNotebooks, duration, size
from pipeline.runs import advice, estimate
from pipeline.runs.estimate import Rate
from pipeline.runs.guard import check_unread
from pipeline.runs.prepared import Prepared
from pipeline.runs.reindex_summary import stale_line
from pipeline.runs.row_changes import Changes, check_deleted
from pipeline.runs.summary import widened
from pipeline.runs.unread_files import UnreadFile
from pipeline.schema import N_TOKENS
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"plan for {self.table} (now at version {self.version})"]
        lines += [f"  snapshot   {self.snapshot}"] if self.snapshot else []
        if self.full:
            lines.append(f"  build      all of {self.to_encode:,} rows, about {self.tokens:,} tokens")
        elif self.changes_pending:
            lines += [
                f"  rows       {self.new:,} new, {self.changed:,} changed, {self.deleted:,} deleted, "
                f"{self.unchanged:,} unchanged",
                f"  texts      {self.to_encode:,} to encode (about {self.tokens:,} tokens), {self.reusable:,} rows with a "
                "vector that is there",
                f"  files      {self.parts_rewritten:,} of the table to write anew ({size(self.bytes_rewritten)})",
            ]
        if self.changes_pending and self.seconds is not None and self.rate is not None:
            price = f", {self.price:,.2f} at this price" if self.price is not None else ""
            lines.append(
                f"  encoding   about {duration(self.seconds)}, at the {self.rate.tokens_per_s:,.0f} tokens/s of version "
                f"{self.rate.version}{price}"
            )
        lines += [f"  types      {reason}" for reason in self.widened]
        lines += [stale_line(item) for item in self.stale_files[:5]]
        lines += [f"  refused    {self.refusal}"] if self.refusal else []
        lines += [f"  note       {note}" for note in self.notes]
        lines += [
            f"  planned in {duration(self.plan_s)}",
            "  changes pending" if self.changes_pending else "  nothing to do",
        ]
        return "\n".join(lines)


def forecast(prepared: Prepared, changes: Changes | None, price_per_hour: float | None, started: float) -> Forecast:
    """Forecast the run. The `changes` are None for a full build, or where nothing changed."""
    full = changes is None and not prepared.plan.changes_nothing
    tokens = _count_tokens(prepared, changes) if changes is not None else 0
    if full:
        tokens = round(prepared.survey.rows_estimate * _tokens_per_document(prepared))
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
        refusal=_refusal(prepared, changes),
        notes=(*advice.about_ids(prepared), *(advice.about_sampled_length(prepared) if full else ())),
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


def _refusal(prepared: Prepared, changes: Changes | None) -> str | None:
    try:
        if changes is not None:
            check_unread(prepared, changes.stale_files)
        check_deleted(prepared, changes)
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


def _count_tokens(prepared: Prepared, changes: Changes) -> int:
    """Estimate the tokens of the texts to encode from a sample of them."""
    if not changes.texts:
        return 0
    spec = prepared.worker_spec(pools.ALONE)
    tokenizer = Tokenizer(spec.encode.encoder, 1)
    chosen = [changes.texts[number] for number in np.linspace(0, len(changes.texts) - 1, 4).astype(int)]
    tokens = counted = 0
    for unit in dict.fromkeys(chosen):
        most = math.ceil(SAMPLE_TEXTS / 4)
        step = max(1, len(unit.only or ()) // most)
        some = replace(unit, only=(unit.only or ())[::step])
        for row in read_texts(Task(unit=some, done=()), spec, tokenizer):
            found = from_cell(row, "documents")
            tokens += sum(found.column("n_tokens").to_pylist())
            counted += found.num_rows
    return round(tokens / max(1, counted) * changes.to_encode)
