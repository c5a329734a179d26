"""Long texts become chunks: windows of tokens that end at word or sentence borders, as character offsets into the text.

Comes in: texts, a tokenizer and a ChunkSpec. Goes out: for each chunk its text's number, its first and its last
character, and its token ids, which are exactly those of the chunk's text alone. Together the chunks of a text hold all of
it: each begins where the one before ends, or earlier by the overlap. Knows no tables.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ChunkSpec
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError

_UNSPACED = re.compile(
    "[\u2e80-\u2fdf\u3000-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65"
    "\U00020000-\U0003ffff]"
)
"""Chinese and Japanese: every character is a word's border (Unicode Annex 29). Korean has spaces."""
_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*\s+$|[。！？｡]["'”’»」』）)\]]*\s*$|\n\s*\n\s*$""")
_SENTENCE_TAIL = 32
"""Characters before a border that can tell whether a sentence ends there."""


@dataclass(frozen=True, eq=False)
class Chunks:
    """The n chunks of some texts, in order."""

    text: NDArray[np.int64]
    """[n]: the number of the text that the chunk was cut from, ascending."""
    index: NDArray[np.int64]
    """[n]: 0, 1, 2, .. within its text."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """[n]: text[start:end] is the chunk, in characters."""
    tokens: TokenRows
    """[n]: the tokens of text[start:end], with prompt and special tokens."""
    failed: dict[int, str]
    """Text -> why it has no chunks."""


def chunk(texts: Sequence[str], tokenizer: Tokenizer, spec: ChunkSpec) -> Chunks:
    """Cut every text; one that fits, or is empty, is one chunk. A text that the tokenizer refuses fails alone.

    A chunk's text alone can give more tokens than the same characters gave inside their text (a word's first piece, a
    space at the edge), so each cut is proven by tokenizing the chunks, and done again with less room where one is over.
    Raises InputError if prompt and special tokens leave no room.
    """
    check_room(spec, tokenizer.framing_tokens)
    offsets, failed = tokenizer.offsets(texts)
    room = dict.fromkeys(offsets, spec.max_tokens - tokenizer.framing_tokens)
    cuts: dict[int, list[tuple[int, int]]] = {}
    rows: dict[int, TokenRows] = {}
    todo = list(offsets)
    while todo:
        for number in todo:
            cuts[number] = cut(texts[number], *offsets[number], room[number], spec)
        pieces = [texts[number][start:end] for number in todo for start, end in cuts[number]]
        tokens = tokenizer.tokenize(pieces)
        again, first = [], 0
        for number in todo:
            own = range(first, first + len(cuts[number]))
            first = own.stop
            reason = next((tokens.failed[row] for row in own if row in tokens.failed), None)
            over = int(tokens.lengths[own.start : own.stop].max()) - spec.max_tokens
            if tokens.truncated[own.start : own.stop].any():
                over = max(1, room[number] // 32)  # A truncated text doesn't say by how much it was too long.
            if reason is not None:
                failed[number] = reason
            elif over > 0 and room[number] > 1:
                room[number] = max(1, room[number] - over)
                again.append(number)
            else:
                rows[number] = tokens.slice(own.start, own.stop)
        todo = again
    return _collect(cuts, rows, failed)


def _collect(cuts: dict[int, list[tuple[int, int]]], rows: dict[int, TokenRows], failed: dict[int, str]) -> Chunks:
    numbers = sorted(rows)
    counts = [len(cuts[number]) for number in numbers]
    bounds = np.array([bound for number in numbers for bound in cuts[number]], np.int64).reshape(-1, 2)
    return Chunks(
        text=np.repeat(np.array(numbers, np.int64), counts),
        index=np.array([index for count in counts for index in range(count)], np.int64),
        start=bounds[:, 0],
        end=bounds[:, 1],
        tokens=TokenRows.concatenated([rows[number] for number in numbers]),
        failed=failed,
    )


def check_room(spec: ChunkSpec, framing_tokens: int) -> None:
    """Raises InputError if chunks of this size have no room for text."""
    if framing_tokens >= spec.max_tokens:
        raise InputError(
            f"chunk.max_tokens is {spec.max_tokens}, but the prompt and the special tokens alone are {framing_tokens}: give "
            f"at least {framing_tokens + 1}, and better some hundred"
        )


def mean_vectors(
    vectors: NDArray[np.float32], text: NDArray[np.int64], failed: Mapping[int, str], *, unit_length: bool
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """([texts, dim]: the mean of each text's chunks, text -> why it has none); one failed chunk fails its text.

    `vectors` [n, dim] and `text` [n], ascending from 0 without gaps, are the chunks'. `unit_length` is what the model's
    vectors have: the mean gets it again.
    """
    if not len(text):
        return vectors, {}
    first = np.flatnonzero(np.diff(text, prepend=-1))
    counts = np.diff(np.append(first, len(text)))
    means = np.add.reduceat(vectors.astype(np.float64), first, axis=0) / counts[:, None]
    reasons = failed_texts(text, failed)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if unit_length:
        with np.errstate(divide="ignore", invalid="ignore"):
            means = means / norms
    for number in np.flatnonzero(norms[:, 0] == 0).tolist():
        reasons.setdefault(number, "the mean of its chunks' vectors is zero")
    return means.astype(np.float32), reasons


def failed_texts(text: NDArray[np.int64], failed: Mapping[int, str]) -> dict[int, str]:
    """Text -> the first of its chunks that failed, and why; `text` [n] is the text of each chunk, ascending."""
    return {
        int(text[row]): f"chunk {row - int(np.searchsorted(text, text[row]))}: {failed[row]}"
        for row in sorted(failed, reverse=True)
    }


def cut(
    text: str, starts: NDArray[np.int64], ends: NDArray[np.int64], room: int, spec: ChunkSpec
) -> list[tuple[int, int]]:
    """[start, end) of each chunk in characters; `starts` and `ends` are those of the text's tokens, `room` tokens fit.

    White space between two chunks belongs to the first of them.
    """
    return list(_windows(_Borders(text, starts, ends), len(text), room, min(spec.overlap_tokens, room - 1), spec))


def _windows(borders: "_Borders", length: int, room: int, overlap: int, spec: ChunkSpec) -> Iterator[tuple[int, int]]:
    first = start = stop = 0
    while borders.tokens - first > room:
        stop = _end(borders, first, stop, room, sentences=spec.border == "sentence")
        if stop == borders.tokens:
            break
        yield start, borders.position(stop)
        first = _overlapping(borders, first, stop, room, overlap)
        start = borders.position(first)
    yield start, length


def _end(borders: "_Borders", first: int, before: int, room: int, *, sentences: bool) -> int:
    """The token at which a chunk ends that begins at `first`, after `before`, where the last one ended."""
    lowest, last = max(first, before) + 1, first + room
    if sentences and (stop := borders.latest(borders.is_sentence, max(lowest, first + (room + 1) // 2), last)):
        return stop
    return (
        borders.latest(borders.is_word, lowest, last)
        or borders.latest(borders.is_token, lowest, last)
        # One character of more tokens than there is room for: the chunk is longer, and truncated.
        or borders.earliest(borders.is_token, last + 1, borders.tokens)
        or borders.tokens
    )


def _overlapping(borders: "_Borders", first: int, stop: int, room: int, overlap: int) -> int:
    """The token at which the next chunk begins: always forward, at the latest at `stop`."""
    allowed = borders.is_word if borders.is_word(stop) else borders.is_token
    begin = borders.earliest(allowed, max(stop - overlap, first + 1), stop) or stop
    fits = borders.tokens - begin <= room
    # Better no overlap than a word cut in two because the overlap takes its room.
    return begin if fits or borders.latest(borders.is_word, stop + 1, begin + room) else stop


class _Borders:
    """Where a text can be cut: before token j, 0 < j < tokens."""

    def __init__(self, text: str, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._text, self._starts, self._ends = text, starts, ends
        self.tokens = len(starts)

    def position(self, token: int) -> int:
        """The character at which a chunk begins that begins with this token: no white space."""
        place, end = int(self._starts[token]), int(self._ends[token])
        while place < end and self._text[place].isspace():
            place += 1
        return place

    def latest(self, allowed: Callable[[int], bool], lowest: int, highest: int) -> int | None:
        return next((token for token in range(min(highest, self.tokens - 1), lowest - 1, -1) if allowed(token)), None)

    def earliest(self, allowed: Callable[[int], bool], lowest: int, highest: int) -> int | None:
        return next((token for token in range(lowest, min(highest + 1, self.tokens)) if allowed(token)), None)

    def is_token(self, token: int) -> bool:
        """Whether the text can be cut before this token: not amid a character of several tokens, nor within white
        space."""
        if self._ends[token - 1] > self._starts[token]:
            return False
        return self.position(token - 1) < self.position(token) < len(self._text)

    def is_word(self, token: int) -> bool:
        if not self.is_token(token):
            return False
        place = self.position(token)
        before, after = self._text[place - 1 : place], self._text[place : place + 1]
        return before.isspace() or bool(_UNSPACED.match(before)) or bool(_UNSPACED.match(after))

    def is_sentence(self, token: int) -> bool:
        place = self.position(token)
        return self.is_token(token) and bool(_SENTENCE_END.search(self._text[max(0, place - _SENTENCE_TAIL) : place]))
