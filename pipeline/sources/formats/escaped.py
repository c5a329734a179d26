"""Fields of delimited records in dialects with an escape character: Spark's csv, and the tsv of PostgreSQL and MySQL.

Comes in: the text of a record, line by line. Goes out: its fields; an unquoted field that is only the escape character and N
is null. Where the dialect has quotes, the escape counts inside them alone, before a quote, a delimiter, a line end or itself,
as Spark reads and writes it. Where it has none, the escape counts everywhere and `\\t`, `\\n` and their like are control
characters, as PostgreSQL writes them. Knows no files.
"""

import re
from dataclasses import dataclass, field

_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0"}
_NULL = "N"


class Malformed(Exception):
    """The record breaks the rules of its dialect; the message says how."""


@dataclass
class Fields:
    """The fields of one record; `feed` takes its lines in order."""

    delimiter: str
    quote: str
    escape: str
    done: list[str | None] = field(default_factory=list)
    _parts: list[str] = field(default_factory=list)
    """Pieces of the field that is being read."""
    _open: str = ""
    """"quote" inside quotes, "escape" after an escape at the end of a line, else empty."""

    def __post_init__(self) -> None:
        signs = re.escape(self.escape) + re.escape(self.quote or self.delimiter)
        self._special = re.compile(f"[{signs}]")

    def feed(self, line: str, end: str) -> bool:
        """Take a line and the characters that end it; whether the record is complete. Raises Malformed."""
        at = 0
        if self._open == "quote":
            at = self._quoted(line, end, 0)
        while at <= len(line):
            if self.quote and line.startswith(self.quote, at):
                at = self._quoted(line, end, at + len(self.quote))
            elif self.quote:
                at = self._plain(line, at)
            else:
                at = self._escaped(line, end, at)
        return not self._open

    def _finish(self, value: str | None, line: str, at: int) -> int:
        """The place of the next field, or one beyond the line where this field was its last."""
        self.done.append(value)
        self._parts, self._open = [], ""
        return at + 1

    def _plain(self, line: str, at: int) -> int:
        stop = line.find(self.delimiter, at)
        stop = len(line) if stop < 0 else stop
        value = line[at:stop]
        return self._finish(None if value == self.escape + _NULL else value, line, stop)

    def _quoted(self, line: str, end: str, at: int) -> int:
        """Reads inside quotes from `at` on, up to the delimiter behind them or beyond the line."""
        self._open = "quote"
        meant = (self.quote, self.escape, self.delimiter)
        while (found := self._special.search(line, at)) is not None:
            self._parts.append(line[at : found.start()])
            after = found.end()
            if found[0] == self.escape and (self.escape != self.quote or line.startswith(self.quote, after)):
                if after == len(line):
                    self._parts.append(end)
                    return after + 1
                self._parts.append(line[after] if line[after] in meant else found[0] + line[after])
                at = after + 1
            elif line.startswith(self.quote, after):
                self._parts.append(self.quote)
                at = after + 1
            elif after == len(line) or line.startswith(self.delimiter, after):
                return self._finish("".join(self._parts), line, after)
            else:
                raise Malformed(f"{self.delimiter!r} expected after {self.quote!r}")
        self._parts += [line[at:], end]
        return len(line) + 1

    def _escaped(self, line: str, end: str, at: int) -> int:
        """Reads a field without quotes from `at` on; an escape before the line's end makes that part of the field."""
        begin, null = at, not self._parts
        while (found := self._special.search(line, at)) is not None:
            self._parts.append(line[at : found.start()])
            if found[0] == self.delimiter:
                alone = null and line[begin : found.start()] == self.escape + _NULL
                return self._finish(None if alone else "".join(self._parts), line, found.start())
            if found.end() == len(line):
                self._parts.append(end)
                self._open = "escape"
                return found.end() + 1
            sign = line[found.end()]
            self._parts.append(_CONTROLS.get(sign, sign))
            at = found.end() + 1
        self._parts.append(line[at:])
        alone = null and line[begin:] == self.escape + _NULL
        return self._finish(None if alone else "".join(self._parts), line, len(line))
