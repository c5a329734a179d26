"""An int8 or uint8 table is quantised with a range for each dimension, which is measured and created once, then only read.

The spans of a plan come in, and vectors of a sample. `meta/calibration/<key>/ranges.json` goes out. Who reads and encodes
the sample, and what the key is made of, is not known here. The file depends on the sampled vectors alone, and on no clock,
path or run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import identity
from pipeline.errors import InputError, RunError
from pipeline.storage import Folder
from pipeline.table import layout
from pipeline.work import Span, Unit

TEXTS = 1024
"""A sample aims at so many texts."""
STEADY = 256
"""A sample has at least so many different texts, while there are spans, and the summary says so where it has fewer. After n
texts that are alike in kind, the next one has 2 / (n + 1) of its numbers outside the ranges, which is noticeable below
this."""
FEWEST = 2
"""So many different texts are needed, since one has no range."""
SPANS = 256
"""A sample begins with so many spans, evenly spaced."""
MAX_ROUND = 4096
SPAN_ROWS = 65_536
"""The texts of a span are spread over so many of its rows at most."""
ROWS = 2**20
"""The spans of the first round together have their texts spread over so many rows, because reading is cheap and a source can
be large."""
CLIPPED = 0.02
"""If this share of a table's numbers lies outside its ranges, that is no chance. It is below 0.2 % with 1,024 texts like
those of the table, and was 5 to 67 % where the ranges were measured on other texts."""
FEWEST_NUMBERS = 10_000
"""The share of clipped numbers says little where there are fewer numbers than these."""
NO_WIDTH = 1e-6
"""A range narrower than this share of its larger end has no width. Batches of other shapes change the numbers of one and the
same text by so much."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    rows: int
    """The vectors of so many different texts were measured."""
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    """They are float32 values, one per dimension. There are none where nothing was measured."""

    @property
    def ranges(self) -> NDArray[np.float32]:
        """Return float32[2, dim]."""
        return np.array([self.minimum, self.maximum], np.float32)

    @property
    def digest(self) -> str:
        """It is a hash of the whole content, and part of the fingerprint."""
        return identity.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the file."""
        # Nine digits give each float32 back exactly.
        low, high = ([float(f"{value:.9g}") for value in values] for values in (self.minimum, self.maximum))
        return {"format": layout.FORMAT, "dim": len(low), "rows": self.rows, "minimum": low, "maximum": high}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """It is what some vectors of a sample say. Measurements add up."""

    texts: frozenset[bytes]
    """They are hashes of what each vector was made of. Equal texts add nothing to a range."""
    units: frozenset[str]
    """They are the units that gave a vector."""
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def __add__(self, other: "Measurement") -> "Measurement":
        """Return the measurement of both samples together."""
        if not self.texts or not other.texts:
            return self if self.texts else other
        return Measurement(
            texts=self.texts | other.texts,
            units=self.units | other.units,
            minimum=tuple(map(min, self.minimum, other.minimum)),
            maximum=tuple(map(max, self.maximum, other.maximum)),
        )

    @property
    def calibration(self) -> Calibration:
        return Calibration(rows=len(self.texts), minimum=self.minimum, maximum=self.maximum)


NOTHING = Measurement(texts=frozenset(), units=frozenset(), minimum=(), maximum=())


def measure(vectors: NDArray[np.float32], texts: Sequence[bytes], unit: str) -> Measurement:
    """Measure those rows of float32[n, dim] that can be vectors of a table, being finite and not all zeros. `texts` has a
    hash of what each was made of."""
    good = np.flatnonzero(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    if not len(good):
        return NOTHING
    low, high = vectors[good].min(axis=0), vectors[good].max(axis=0)
    return Measurement(
        texts=frozenset(texts[row] for row in good.tolist()),
        units=frozenset([unit]),
        minimum=tuple(low.tolist()),
        maximum=tuple(high.tolist()),
    )


def load(table: Folder, path: str, dim: int) -> Calibration | None:
    """Return the calibration at `path` of a table that has no version yet, or None before it was made.

    Raises InputError if the file holds none, or one of other dimensions than `dim`.
    """
    content = table.read(path)
    found = None if content is None else _parsed(content)
    if content is not None and (found is None or len(found.minimum) != dim):
        raise InputError(
            f"{table.url}/{path} holds no value ranges of {dim} dimensions: it was damaged by hand; delete it, and the next "
            "run measures them again"
        )
    return found


def create(table: Folder, path: str, made: Calibration) -> None:
    """Let `made` be the table's calibration, unless another run's is. What counts is what `load` gives from now on.

    Raises RunError if too little was measured.
    """
    if made.rows < FEWEST:
        raise RunError(
            f"the value ranges of a table of int8 or uint8 are measured on a sample of its texts, and {made.rows} of the "
            f"source's rows gave a vector, equal texts counted once; at least {FEWEST} are needed: add rows, check "
            "source.where, source.text and the rows themselves, or set table.dtype to float32"
        )
    low, high = made.ranges.astype(np.float64)
    flat = int((high - low <= NO_WIDTH * np.maximum(np.abs(low), np.abs(high))).sum())
    if 2 * flat > len(low):
        raise RunError(
            f"{flat} of {len(low)} dimensions have one and the same value in all {made.rows} different texts that the value "
            "ranges of int8 and uint8 were measured on: check source.text and the model, or set table.dtype to float32"
        )
    table.create_once(path, json.dumps(made.to_dict()).encode())


def stored(table: Folder, embedding: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration that an entry of a snapshot's `embeddings` names, or None for dtypes without one.

    Raises InputError if it is gone, or not the one that the table was built with.
    """
    named = embedding["calibration"]
    if named is None:
        return None
    content = table.read(named["path"])
    found = None if content is None else _parsed(content)
    if found is None or found.digest != named["digest"]:
        raise InputError(
            f"the value ranges that the table was built with stand in {table.url}/{named['path']}, which is "
            f"{'gone' if content is None else 'another file now'}: put it back from a copy of the table"
        )
    return found


def _parsed(content: bytes) -> Calibration | None:
    """Return the calibration, or None for what is none."""
    try:
        raw = json.loads(content)
        found = Calibration(rows=raw["rows"], minimum=tuple(raw["minimum"]), maximum=tuple(raw["maximum"]))
        if found.ranges.shape == (2, raw["dim"]) and np.isfinite(found.ranges).all():
            return found
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    return None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """It chooses texts of some spans, by their order alone. Many spans give the first few texts of each, and fewer spans
    texts that are evenly spread over the first `depth` rows of each."""

    spans: tuple[Span, ...]
    first: int
    """The first round has so many spans."""
    texts: int
    """At most so many are taken from each span."""

    @property
    def depth(self) -> int:
        return 0 if self.first >= SPANS else min(SPAN_ROWS, ROWS // max(1, self.first))

    def rounds(self) -> Iterator[tuple[Unit, ...]]:
        """Yield units of a span each, evenly spaced. Each round takes other spans, and the last one leaves none."""
        left, count = list(range(len(self.spans))), self.first
        while left:
            count = min(count, len(left))
            chosen = [left[place * len(left) // count] for place in range(count)]
            yield tuple(self._unit(number) for number in chosen)
            left = sorted(set(left) - set(chosen))
            count = min(4 * count, MAX_ROUND)

    def again(self, found: Measurement) -> "tuple[Sample, tuple[Unit, ...]]":
        """Return a sample of more texts, from those spans that gave some, and its units. There are none where there can't
        be more texts."""
        numbers = [number for number in range(len(self.spans)) if _name(number) in found.units]
        more = replace(self, first=len(numbers), texts=-(-TEXTS // max(1, len(numbers))))
        return more, tuple(map(self._unit, numbers)) if more.texts > self.texts else ()

    def _unit(self, number: int) -> Unit:
        return Unit(unit_id=_name(number), spans=(self.spans[number],), sources=(number,))


def _name(number: int) -> str:
    return f"calibration-{number}"


def sample(groups: Sequence[tuple[Span, ...]]) -> Sample:
    """Sample the spans of all units. The first round has `TEXTS` texts, as far as can be known before reading."""
    spans = tuple(span for group in groups for span in group)
    first = min(SPANS, len(spans))
    while first < min(TEXTS, len(spans)) and _most(spans, first) < TEXTS:
        first = min(2 * first, TEXTS, len(spans))
    return Sample(spans=spans, first=first, texts=-(-TEXTS // max(1, first)))


def _most(spans: Sequence[Span], count: int) -> int:
    """Return how many texts `count` of the spans may give."""
    each = -(-TEXTS // count)
    chosen = (spans[place * len(spans) // count] for place in range(count))
    return sum(each if span.rows is None else min(each, span.rows) for span in chosen)
