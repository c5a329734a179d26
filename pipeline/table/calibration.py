"""The range of each dimension that an int8 or uint8 table is quantised with: measured once, created once, then only read.

Comes in: what the plan holds (spans), vectors of a sample. Goes out: `meta/calibration/<key>/ranges.json`. Who reads and
encodes the sample, and what the key is made of, is not known here. The file depends on the sampled vectors alone: no clock,
no path, no run.
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
"""Different texts. Of n texts alike in kind the next one has 2 / (n + 1) of its numbers outside the ranges: with fewer than
these that is noticeable, so the sample goes on while there are spans, and the summary says so."""
FEWEST = 2
"""So many different texts are needed: one has no range."""
SPANS = 256
"""A sample begins with so many spans, evenly spaced."""
MAX_ROUND = 4096
SPAN_ROWS = 65_536
"""The texts of a span are spread over so many of its rows at most."""
ROWS = 2**20
"""The spans of the first round together have their texts spread over so many rows: reading is cheap, a source can be large."""
CLIPPED = 0.02
"""Share of a table's numbers outside its ranges that is too high to be chance. Where the sample is like the table it is
below 0.2 % (of 1,024 texts); of ranges measured on other texts it was 5 to 67 %."""
FEWEST_NUMBERS = 10_000
"""The share of clipped numbers says little where there are fewer numbers than these."""
NO_WIDTH = 1e-6
"""A range narrower than this share of its larger end has no width: so much do batches of other shapes change the numbers of
one and the same text."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    rows: int
    """Vectors of different texts that were measured."""
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    """float32 values, one per dimension; none where nothing was measured."""

    @property
    def ranges(self) -> NDArray[np.float32]:
        """float32[2, dim]."""
        return np.array([self.minimum, self.maximum], np.float32)

    @property
    def digest(self) -> str:
        """A hash of the whole content; it is part of the fingerprint."""
        return identity.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What stands in the file."""
        # Nine digits give each float32 back exactly.
        low, high = ([float(f"{value:.9g}") for value in values] for values in (self.minimum, self.maximum))
        return {"format": layout.FORMAT, "dim": len(low), "rows": self.rows, "minimum": low, "maximum": high}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What some vectors of a sample say; adds up."""

    texts: frozenset[bytes]
    """A hash of what each vector was made of: equal texts add nothing to a range."""
    units: frozenset[str]
    """Those that gave a vector."""
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def __add__(self, other: "Measurement") -> "Measurement":
        """The measurement of both samples together."""
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
    """Measure those rows of float32[n, dim] that can be vectors of a table: finite, and not all zeros. `texts` has a hash of
    what each was made of."""
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
    """The calibration at `path` of a table that has no version yet; None before it was made.

    Raises InputError if it is none, or none of `dim` dimensions.
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
    """Let `made` be the table's calibration, unless another run's is: what counts is what `load` gives from now on.

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
    """The calibration that an entry of a snapshot's `embeddings` names; None for dtypes without one.

    Raises InputError if it is gone or not the one that the table was built with.
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
    """None for what is no calibration."""
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
    """Texts of some spans, chosen by their order alone: the first few of each of many spans; of fewer spans texts that are
    evenly spread over the first `depth` rows of each."""

    spans: tuple[Span, ...]
    first: int
    """Spans of the first round."""
    texts: int
    """At most so many are taken from each span."""

    @property
    def depth(self) -> int:
        return 0 if self.first >= SPANS else min(SPAN_ROWS, ROWS // max(1, self.first))

    def rounds(self) -> Iterator[tuple[Unit, ...]]:
        """A unit per span, evenly spaced; each round takes other spans, the last one leaves none."""
        left, count = list(range(len(self.spans))), self.first
        while left:
            count = min(count, len(left))
            chosen = [left[place * len(left) // count] for place in range(count)]
            yield tuple(self._unit(number) for number in chosen)
            left = sorted(set(left) - set(chosen))
            count = min(4 * count, MAX_ROUND)

    def again(self, found: Measurement) -> "tuple[Sample, tuple[Unit, ...]]":
        """More texts of those spans that gave some, where few spans gave any; no units where there can't be more."""
        numbers = [number for number in range(len(self.spans)) if _name(number) in found.units]
        more = replace(self, first=len(numbers), texts=-(-TEXTS // max(1, len(numbers))))
        return more, tuple(map(self._unit, numbers)) if more.texts > self.texts else ()

    def _unit(self, number: int) -> Unit:
        return Unit(unit_id=_name(number), spans=(self.spans[number],), sources=(number,))


def _name(number: int) -> str:
    return f"calibration-{number}"


def sample(groups: Sequence[tuple[Span, ...]]) -> Sample:
    """A sample of the spans of all units: `TEXTS` texts in the first round, as far as can be known before reading."""
    spans = tuple(span for group in groups for span in group)
    first = min(SPANS, len(spans))
    while first < min(TEXTS, len(spans)) and _most(spans, first) < TEXTS:
        first = min(2 * first, TEXTS, len(spans))
    return Sample(spans=spans, first=first, texts=-(-TEXTS // max(1, first)))


def _most(spans: Sequence[Span], count: int) -> int:
    """Texts that `count` of the spans may give."""
    each = -(-TEXTS // count)
    chosen = (spans[place * len(spans) // count] for place in range(count))
    return sum(each if span.rows is None else min(each, span.rows) for span in chosen)
