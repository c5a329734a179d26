"""The tables of docs/model-format.md that the parity tests make: written with UPDATE_DOCS=1, else compared."""

import os
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "model-format.md"
UPDATES = bool(os.environ.get("UPDATE_DOCS"))
MARGIN = 2 if UPDATES else 1
"""On what was measured, for a bound that is written: another machine rounds otherwise."""

_BOUND = re.compile(r"(<=|>=) ([0-9.e-]+)")


class Block:
    """The part of the document between two comments."""

    def __init__(self, name: str) -> None:
        self._begin, self._end = f"<!-- {name}: made by tests/parity -->\n", f"<!-- end of {name} -->"

    def check(self, content: str) -> None:
        """The document says `content`. A bound in it may be wider than the one measured here: it must hold everywhere."""
        head, found, rest = DOCS.read_text(encoding="utf-8").partition(self._begin)
        written, closed, tail = rest.partition(self._end)
        assert found, f"{DOCS} has no line {self._begin!r}"
        assert closed, f"{DOCS} has no line {self._end!r}"
        if UPDATES:
            DOCS.write_text(head + self._begin + content + self._end + tail, encoding="utf-8")
            return
        assert _BOUND.sub(r"\1", written) == _BOUND.sub(r"\1", content)
        for (sign, said), (_, measured) in zip(_BOUND.findall(written), _BOUND.findall(content), strict=True):
            assert float(measured) <= float(said) if sign == "<=" else float(measured) >= float(said)
