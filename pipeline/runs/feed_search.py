"""A question is answered by the store of a feed, as an application would get it, and by exact comparison beside it.

The question's vector comes in. Rows of the live generation go out, the store's order, with exact scores. This file
encodes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import RunSpec
from pipeline.encoder.similarities import similarities
from pipeline.errors import InputError
from pipeline.feeds.recall import floats
from pipeline.feeds.shape import shape_of
from pipeline.runs.feed_opened import live_marker, opened
from pipeline.runs.feed_plan import check_table
from pipeline.table import conditions, search, snapshot
from pipeline.table.search import SCORE


@dataclass(frozen=True, kw_only=True)
class Answer:
    generation: str
    version: int
    rows: pa.Table
    """They have the columns of the feed without the vector, and `score`, in the store's order."""
    exact: pa.Table | None
    """They have id and `score` of the nearest rows of the version by comparison with all."""

    @property
    def agreement(self) -> float | None:
        """Return the share of the exact answers that the store has too."""
        if self.exact is None:
            return None
        wanted = self.exact.column(schema.ID).to_pylist()
        return len(set(wanted) & set(self.rows.column(schema.ID).to_pylist())) / max(1, len(wanted))


def ask(
    spec: RunSpec,
    name: str,
    vector: NDArray[np.float32],
    num_rows: int,
    where: Sequence[str],
    *,
    function: str,
    compare: bool,
) -> Answer:
    """Ask the live generation of a feed for the rows nearest to float32[dim] that meet conditions `column=value`.

    Raises InputError.
    """
    pairs = _pairs(where)
    with opened(spec, name, None, writes=False) as found:
        marker = live_marker(found)
        check_table(found, marker)
        version = snapshot.read(found.table, marker.applied)
        shape = shape_of(version, found.spec, found.store.guarantees)
        if marker.shape != shape.in_words():
            raise InputError(
                f"{marker.generation} was loaded with other settings than the configuration has now: ask with those, or feed "
                "with --new-generation"
            )
        wanted = _typed(pairs, shape.columns)
        (ids,) = found.store.search(marker.generation, shape, vector[None, :], num_rows, wanted or None)
        rows = found.store.get(marker.generation, shape, ids)
        places = {name: row for row, name in enumerate(rows.column(schema.ID).to_pylist())}
        rows = rows.take(pa.array([places[name] for name in ids if name in places], pa.int64()))
        scores = similarities(floats(rows, shape), vector, function)[:, 0] if rows.num_rows else np.zeros(0, np.float32)
        shown = rows.select([schema.ID, *shape.columns.names]).append_column(SCORE, pa.array(scores, pa.float32()))
        exact = search.nearest(found.table, version, vector, num_rows, function, wanted) if compare else None
        return Answer(
            generation=marker.generation,
            version=marker.applied,
            rows=shown,
            exact=exact.select([schema.ID, SCORE]) if exact is not None and exact.num_rows else None,
        )


def _pairs(where: Sequence[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for text in where:
        pair = conditions.pair(text)
        if pair is None:
            raise InputError(
                f"--where {text!r} is not of the form column=value, which is all that a feed's store is asked"
            )
        if found.setdefault(*pair) != pair[1]:
            raise InputError(
                f"--where gives {pair[0]!r} two values, {found[pair[0]]!r} and {pair[1]!r}: no row has both"
            )
    return found


def _typed(where: Mapping[str, str], columns: pa.Schema) -> dict[str, Any]:
    """Return the filter's values with the types of their columns. Raises InputError."""
    found = {}
    for name, text in where.items():
        if name not in columns.names:
            raise InputError(
                f"--where names {name!r}, which the feed doesn't have; it has {', '.join(columns.names) or 'none'}"
            )
        kind = columns.field(name).type
        try:
            found[name] = pa.scalar(text).cast(kind).as_py()
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"--where {name}={text!r} is no {kind} ({error})") from None
    return found
