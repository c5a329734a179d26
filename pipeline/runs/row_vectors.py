"""The vectors of rows are looked for in the table, in staging, and otherwise left to an encoder.

The rows to write come in. The places of the vectors that exist go out, and units of the texts that have none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import identity
from pipeline.execution.costs import SCAN_ROWS_PER_S
from pipeline.execution.executor import Executor
from pipeline.runs.prepared import Prepared
from pipeline.stages.row_keys import GetTokenizer, only
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import diff, record, scan, snapshot
from pipeline.table.diff import Keys
from pipeline.table.part import Part
from pipeline.work import Unit

MERGED_UNITS = 32
"""The new texts of at most so many units are read as one unit, if they are few. The rows between them are read, too."""


def vectors_for(
    prepared: Prepared, executor: Executor, units: Sequence[Unit], upserts: Keys, *, writes: bool
) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, str], tuple[Unit, ...]]:
    """Return (text -> part and row that has its vector, text -> staged file, units of texts without a vector)."""
    places: dict[bytes, tuple[int, int]] = {}
    own = upserts[upserts["same_text"]]
    for row in own:
        places.setdefault(row["content"].tobytes(), (int(row["part"]), int(row["index"])))
    others = upserts[~upserts["same_text"]]
    missing = {content.tobytes() for content in others["content"]} - places.keys()
    staged = _staged_texts(prepared, missing, writes=writes) if missing else {}
    missing -= staged.keys()
    if missing:
        words = diff.words(np.frombuffer(b"".join(missing), np.uint64).reshape(-1, 2))
        items = [(words, part, number) for number, part in enumerate(prepared.parent.parts)]
        for number, texts in executor.for_each(prepared, _live_texts, items, seconds=_scan_s(prepared)):
            for content in texts.keys() & missing:
                places.setdefault(content, (number, texts[content]))
        missing -= places.keys()
    return places, staged, tuple(_text_units(prepared, units, others, missing))


def _live_texts(
    item: tuple[Any, Part, int], spec: WorkerSpec, tokenizer: GetTokenizer
) -> Iterator[tuple[int, dict[bytes, int]]]:
    words, part, number = item
    yield number, scan.texts(spec.open_table(), part, words)


def _staged_texts(prepared: Prepared, texts: set[bytes], *, writes: bool = True) -> dict[bytes, str]:
    """Map those of the texts that earlier runs encoded to their staged files."""
    found: dict[bytes, str] = {}
    for item in record.read_text_records(prepared.table, prepared.vectors.fingerprint, writes=writes):
        for part in item.parts:
            rows = snapshot.read_parquet(prepared.table.read(part.path))
            found |= dict.fromkeys(set(rows.column("content_hash").to_pylist()) & texts, part.path)
    return found


def _text_units(prepared: Prepared, units: Sequence[Unit], upserts: Keys, missing: set[bytes]) -> Iterator[Unit]:
    """Yield units that encode each missing text once, in the unit that has it first.

    Units with few texts are merged, because an encoder works best on many at a time.
    """
    found = list(_texts_by_unit(units, upserts, missing))
    most = prepared.spec.limits.unit_rows
    while found:
        count, texts = 0, 0
        for unit in found[:MERGED_UNITS]:
            texts += len(unit.hashes or ())
            if count and texts > most:
                break
            count += 1
        merged, found = _merged(found[:count]), found[count:]
        yield replace(merged, unit_id=identity.texts_id(merged.hashes or (), prepared.vectors.fingerprint))


def _merged(units: Sequence[Unit]) -> Unit:
    """Merge the units. The number of a span in the merged unit is its place."""
    numbers = [(index, source) for index, unit in enumerate(units) for source in unit.sources]
    place_of = {number: place for place, number in enumerate(numbers)}
    return replace(
        units[0],
        spans=tuple(span for unit in units for span in unit.spans),
        sources=tuple(range(len(numbers))),
        only=tuple(
            (place_of[index, source], position)
            for index, unit in enumerate(units)
            for source, position in unit.only or ()
        ),
        hashes=tuple(sorted(content for unit in units for content in unit.hashes or ())),
    )


def _texts_by_unit(units: Sequence[Unit], upserts: Keys, missing: set[bytes]) -> Iterator[Unit]:
    left = set(missing)
    for number in np.unique(upserts["unit"]).tolist():
        rows = upserts[upserts["unit"] == number]
        chosen = []
        hashes = []
        for index, content in enumerate(rows["content"]):
            item = content.tobytes()
            if item in left:
                left.remove(item)
                hashes.append(item)
                chosen.append(index)
        if hashes:
            yield replace(only(units[number], rows[chosen]), hashes=tuple(hashes))


def live_places(prepared: Prepared, executor: Executor, ids: Any) -> Keys:
    """Return where live rows with these ids stand."""
    if not len(ids):
        return np.zeros(0, diff.PLACE)
    sought_ids = {row.tobytes() for row in ids}
    found = [np.zeros(0, diff.PLACE)]
    sought = _Scan(ids=diff.words(ids), chunked="chunk_index" in prepared.target.part_schema.names)
    items = [(sought, part, number) for number, part in enumerate(prepared.parent.parts)]
    for keys in executor.for_each(prepared, _live_keys, items, seconds=_scan_s(prepared)):
        exact = keys[np.array([row.tobytes() in sought_ids for row in keys["id"]], bool)]
        places = np.zeros(len(exact), diff.PLACE)
        places["part"], places["index"] = exact["part"], exact["index"]
        found.append(places)
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scan:
    """It says which ids of live rows are looked for."""

    ids: Any
    """It is what `diff.words` gives for the ids."""
    chunked: bool


def _live_keys(item: tuple[_Scan, Part, int], spec: WorkerSpec, tokenizer: GetTokenizer) -> Iterator[Keys]:
    sought, part, number = item
    for keys in scan.keys(spec.open_table(), part, number, chunked=sought.chunked):
        yield keys[diff.among(keys["id"], sought.ids)]


def _scan_s(prepared: Prepared) -> float:
    """Return the seconds that one process takes to look through all live rows."""
    return sum(part.rows for part in prepared.parent.parts) / SCAN_ROWS_PER_S
