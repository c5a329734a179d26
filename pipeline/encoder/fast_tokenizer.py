"""Texts in, out the ids of those on which the fast library is proven to agree with the installed one.

The installed library says what is right. The fast one is asked in its place once both gave the same ids for texts that
are hard for this tokenizer, for texts whose characters are proven. Of the texts that it is asked, one in a thousand
is given to both: where they differ, or where the fast one raises, it is left for good. Nothing is cut off here and no
special tokens are put on.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.alphabet import Alphabet
from pipeline.encoder.fast_library import VARIABLE, Unusable, asked_for, library_folder, load_library
from pipeline.encoder.text_ranges import text_lengths, text_ranges
from pipeline.encoder.tokenizer_backend import encode_each, is_library_error
from pipeline.encoder.tokenizer_probes import probe_texts
from pipeline.machine.folders import temporary_folder

START_CHARS = 2**18
"""So many characters are tokenized without it: to load and to prove it takes as long as the installed library takes for
about so many."""
_CHECKED_EVERY = 1024
"""One text of so many is given to both libraries: that costs a hundredth of the time."""
_FIRST_CHECKED = 64
"""So many of the texts at hand are checked when it starts."""
_PIECE_CHARS = 1024
"""It takes all cores of the machine for a call of more than some ten kilobytes, and stays in the thread that calls for
less."""
_SHOWN_CHARS = 60


@dataclass(frozen=True, eq=False)
class BareRows:
    """The ids of some of n texts, without special tokens."""

    places: NDArray[np.int64]
    """[m]: the numbers of these texts among the n, ascending."""
    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """[m]: tokens per text; `ids` holds them one after the other."""


class FastTokenizer:
    """Stands by until there is enough to tokenize, then proves the fast library, and encodes with it."""

    def __init__(self, installed: Any, prompt: str, threads: int) -> None:
        """`installed` is the tokenizer of the installed library, which neither cuts nor pads."""
        self.told = ""
        """What a person should be told: it was asked for and can't be used, or it gave other ids."""
        self._installed, self._prompt, self._threads = installed, prompt, threads
        self._options = {"add_special_tokens": False, "encode_special_tokens": installed.encode_special_tokens}
        self._options |= {"padding": None, "truncation": None}
        self._folder = library_folder()
        self._chars_before, self._asked = START_CHARS, 0
        self._fast: Any = None
        self._alphabet: Alphabet | None = None

    def encode(self, texts: Sequence[str]) -> BareRows | None:
        """The ids of the texts that it may answer for; None is for none of them."""
        if self._folder is None:
            return None
        try:
            if self._alphabet is None and not self._start(texts):
                return None
            return self._encode(texts)
        except Unusable as error:
            self._leave(str(error))
        except BaseException as error:
            if not is_library_error(error):
                raise
            self._leave(f"the fast tokenizers library raised {type(error).__name__}: {error}")
        return None

    def _leave(self, reason: str) -> None:
        self._folder = self._fast = self._alphabet = None
        self.told = reason

    def _start(self, texts: Sequence[str]) -> bool:
        """Whether it is proven; Unusable where it can't be. A run that asked for nothing is told nothing of that."""
        assert self._folder is not None
        self._chars_before -= int(text_lengths(texts).sum())
        if self._chars_before > 0:
            return False
        try:
            self._fast = _read(load_library(self._folder), self._installed)
            alphabet = Alphabet(self._agree)
            probes = [*probe_texts(self._installed, self._prompt), *texts[:_FIRST_CHECKED]]
            probes = [text for text, covered in zip(probes, alphabet.covers(probes), strict=True) if covered]
            agreed = self._agree(probes)
            if not agreed.all():
                raise Unusable(f"it gives other ids for {_shown(probes[int(np.argmin(agreed))])}")
        except BaseException as error:
            if not isinstance(error, Unusable) and not is_library_error(error):
                raise
            self._leave(f"{VARIABLE}: {error}; the installed library was used" if asked_for() else "")
            return False
        self._alphabet = alphabet
        return True

    def _encode(self, texts: Sequence[str]) -> BareRows:
        assert self._alphabet is not None
        covered = self._alphabet.covers(texts)
        places = np.flatnonzero(covered)
        mine = texts if covered.all() else [texts[place] for place in places.tolist()]
        rows = self._ids(mine)
        self._check(mine, rows)
        ids = np.concatenate([np.zeros(0, np.uint32), *rows])
        return BareRows(places, ids.view(np.int32), np.fromiter(map(len, rows), np.int64, len(rows)))

    def _ids(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The fast library's ids of each text."""
        lengths = text_lengths(texts)
        ranges = text_ranges(lengths, _PIECE_CHARS) if self._threads == 1 else [(0, len(texts))]
        rows: list[NDArray[np.uint32]] = []
        for start, stop in ranges:
            encodings = self._fast.encode_batch(texts[start:stop], **self._options)
            rows.extend(map(_IDS, encodings))
        return rows

    def _check(self, texts: Sequence[str], rows: Sequence[NDArray[np.uint32]]) -> None:
        """Raises Unusable where the installed library has other ids for one of the texts whose turn it is."""
        numbers = range(-self._asked % _CHECKED_EVERY, len(texts), _CHECKED_EVERY)
        self._asked += len(texts)
        some = [texts[number] for number in numbers]
        for number, right in zip(numbers, self._right(some), strict=True):
            if right != rows[number].tolist():
                raise Unusable(
                    "the fast tokenizers library gave other ids than the installed one for a text, and was left: one text "
                    "in a thousand is compared, so run verify for those that were tokenized before"
                )

    def _agree(self, texts: list[str]) -> NDArray[np.bool_]:
        """[n]: both libraries take the text and give the same ids."""
        refused: dict[int, str] = {}
        ours = encode_each(dict(enumerate(texts)), refused, self._ids)
        right = self._right(texts)
        same = [row in ours and ours[row].tolist() == right[row] for row in range(len(texts))]
        return np.array(same, np.bool_)

    def _right(self, texts: list[str]) -> list[list[int] | None]:
        """The installed library's ids of each text; None where it refuses it."""
        found = encode_each(
            dict(enumerate(texts)), {}, lambda some: self._installed.encode_batch_fast(some, add_special_tokens=False)
        )
        return [found[row].ids if row in found else None for row in range(len(texts))]


_IDS = operator.attrgetter("ids_array")


def _read(library: Any, installed: Any) -> Any:
    """The fast library's form of a tokenizer. Raises Unusable for rules that it doesn't know."""
    with temporary_folder() as folder:
        path = folder / "tokenizer.json"
        path.write_text(installed.to_str(), encoding="utf-8")
        try:
            return library.Tokenizer.from_file(str(path))
        except BaseException as error:
            if not is_library_error(error):
                raise
            raise Unusable(f"it can't read the model's tokenizer: {error}") from None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..")
