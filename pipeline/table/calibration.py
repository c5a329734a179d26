"""The range of each dimension that an int8 or uint8 table is quantised with: measured once, created once, then only read.

Comes in: what the plan holds (spans), vectors of a sample. Goes out: `meta/calibration/<key>/ranges.json`. Who reads and
encodes the sample is not known here. The file depends on the sampled vectors alone: no clock, no path, no run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import identity
from pipeline.errors import InputError, RunError
from pipeline.storage import Folder
from pipeline.table import layout
from pipeline.unit import Span, Unit

TEXTS = 1024
"""Aimed at by a sample."""
STEADY = 100
"""With fewer the ranges are a matter of chance: the sample goes on while there are spans, the summary says so."""
FEWEST = 2
SPANS = 64
"""That a sample begins with, evenly spaced."""
MAX_ROUND = 4096


@dataclass(frozen=True, kw_only=True)
class Calibration:
    rows: int
    """Vectors that were measured."""
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    """float32 values, one per dimension; none where nothing was measured."""

    @property
    def ranges(self) -> NDArray[np.float32]:
        """float32[2, dim]."""
        return np.array([self.minimum, self.maximum], np.float32)

    @property
    def digest(self) -> str:
        """Of the whole content; part of the fingerprint."""
        return identity.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        # Nine digits give each float32 back exactly.
        low, high = ([float(f"{value:.9g}") for value in values] for values in (self.minimum, self.maximum))
        return {"format": layout.FORMAT, "dim": len(low), "rows": self.rows, "minimum": low, "maximum": high}

    def __add__(self, other: "Calibration") -> "Calibration":
        """Of both samples together."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        return Calibration(
            rows=self.rows + other.rows,
            minimum=tuple(map(min, self.minimum, other.minimum)),
            maximum=tuple(map(max, self.maximum, other.maximum)),
        )


NOTHING = Calibration(rows=0, minimum=(), maximum=())


def measure(vectors: NDArray[np.float32]) -> Calibration:
    """Of those rows of float32[n, dim] that can be vectors of a table: finite, and not all zeros."""
    good = vectors[np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)]
    if not len(good):
        return NOTHING
    low, high = good.min(axis=0), good.max(axis=0)
    return Calibration(rows=len(good), minimum=tuple(low.tolist()), maximum=tuple(high.tolist()))


def load(table: Folder, key: str) -> Calibration | None:
    """The calibration of vectors whose spec without it has the digest `key`; None before it was made."""
    path = layout.calibration(key)
    content = table.read(path)
    return None if content is None else _parsed(content, f"{table.url}/{path}")


def create(table: Folder, key: str, made: Calibration) -> None:
    """Let `made` be the table's calibration, unless another run's is: what counts is what `load` gives from now on.

    Raises RunError if too little was measured.
    """
    if made.rows < FEWEST:
        raise RunError(
            f"the value ranges of a table of int8 or uint8 are measured on a sample of its texts, and {made.rows} of the "
            f"source's rows gave a vector; at least {FEWEST} are needed: add rows, check source.where and the rows "
            "themselves, or set table.dtype to float32"
        )
    table.create_once(layout.calibration(key), json.dumps(made.to_dict()).encode())


def stored(table: Folder, embedding: Mapping[str, Any]) -> Calibration | None:
    """The calibration that an entry of a snapshot's `embeddings` names; None for dtypes without one.

    Raises InputError if it is gone or not the one that the table was built with.
    """
    named = embedding["calibration"]
    if named is None:
        return None
    content = table.read(named["path"])
    found = None if content is None else _parsed(content, f"{table.url}/{named['path']}")
    if found is None or found.digest != named["digest"]:
        raise InputError(
            f"{table.url}/{named['path']} is {'gone' if found is None else 'not what the table was built with'}: put it "
            "back from a copy of the table"
        )
    return found


def _parsed(content: bytes, path: str) -> Calibration:
    try:
        raw = json.loads(content)
        found = Calibration(rows=raw["rows"], minimum=tuple(raw["minimum"]), maximum=tuple(raw["maximum"]))
        if found.ranges.shape == (2, raw["dim"]) and np.isfinite(found.ranges).all():
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} holds no value ranges: it was damaged by hand; put it back from a copy of the table")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The first texts of each of some spans, chosen by their order alone."""

    spans: tuple[Span, ...]
    first: int
    """Spans of the first round."""
    texts: int
    """Of each span, at most."""

    def rounds(self) -> Iterator[tuple[Unit, ...]]:
        """A unit per span, evenly spaced; each round takes other spans, the last one leaves none."""
        left, count = list(range(len(self.spans))), self.first
        while left:
            count = min(count, len(left))
            chosen = [left[place * len(left) // count] for place in range(count)]
            yield tuple(
                Unit(unit_id=f"calibration-{number}", spans=(self.spans[number],), sources=(number,))
                for number in chosen
            )
            left = sorted(set(left) - set(chosen))
            count = min(4 * count, MAX_ROUND)


def sample(groups: Sequence[tuple[Span, ...]]) -> Sample:
    """Of the spans of all units: `TEXTS` texts in the first round, as far as can be known before reading."""
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
