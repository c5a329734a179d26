"""Texts in, out the ids of those on which the fast library is proven to agree with the installed one.

The fast one is asked in its place once both gave the same ids for texts that are hard for this tokenizer, and for
texts whose characters are proven. Of the texts that it is asked, one in a thousand is given to both: where they differ,
or where the fast one raises, it is left for good. Nothing is cut off here and no special tokens are put on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pipeline.encoder.alphabet import Alphabet
from pipeline.encoder.both_libraries import BothLibraries
from pipeline.encoder.fast_library import VARIABLE, Unusable, asked_for, library_folder, load_library
from pipeline.encoder.text_ranges import text_lengths
from pipeline.encoder.tokenizer_probes import probe_texts
from pipeline.encoder.visible_splits import with_visible_splits
from pipeline.model.tokenizer_files import is_library_error

START_CHARS = 2**19
"""To load and to prove it takes as long as the installed library takes for about so many characters. Where nobody knows
how many will come, so many are tokenized without it."""
PAYS_FROM = 2
"""Where so many times START_CHARS are expected, it is asked from the first text on."""
_CHECKED_EVERY = 1024
"""One text of so many is given to both libraries: that costs a hundredth of the time."""
_FIRST_CHECKED = 64
_FIRST_CHARS = 1024
"""So many of the texts at hand, so many characters of each, are checked when it starts."""
_PLAIN = "A plain text of 9 words, or so it seems."
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

    def __init__(self, installed: Any, prompt: str, threads: int, expected_chars: int | None = None) -> None:
        """`installed` is the tokenizer of the installed library, which neither cuts nor pads. About `expected_chars` will
        come, where that is known."""
        self.told = ""
        """What a person should be told: it was asked for and can't be used, or it gave other ids."""
        self._installed, self._prompt, self._threads = installed, prompt, threads
        self._folder = library_folder()
        self._chars_before, self._asked = _chars_before(expected_chars), 0
        self._proven: tuple[BothLibraries, Alphabet] | None = None

    def encode(self, texts: Sequence[str]) -> BareRows | None:
        """The ids of the texts that it may answer for; None is for none of them."""
        if self._folder is None:
            return None
        if self._proven is None:
            self._chars_before -= int(text_lengths(texts).sum())
            if self._chars_before > 0:
                return None
            try:
                self._proven = self._prove(texts)
            except BaseException as error:
                if not is_library_error(error):
                    raise
                # Who asked for nothing is told nothing.
                self._leave(f"{VARIABLE}: {error}; the installed library was used" if asked_for() else "")
                return None
        try:
            return self._encode(texts, *self._proven)
        except BaseException as error:
            if not is_library_error(error):
                raise
            reason = str(error) if isinstance(error, Unusable) else f"raised {type(error).__name__}: {error}"
            self._leave(f"the fast tokenizers library {reason}; the installed one was used from there on")
            return None

    def _leave(self, told: str) -> None:
        self._folder, self._proven, self.told = None, None, told

    def _prove(self, texts: Sequence[str]) -> tuple[BothLibraries, Alphabet]:
        """The two libraries and what is proven. Raises Unusable, and what the fast library raises."""
        assert self._folder is not None
        library, rules = load_library(self._folder), json.loads(self._installed.to_str())
        if any(token["single_word"] for token in rules["added_tokens"]):
            raise Unusable("the model's tokenizer has added tokens that are whole words only")
        both = BothLibraries(self._installed, library, self._threads)
        splits = BothLibraries(tokenizers.Tokenizer.from_str(with_visible_splits(rules)), library, 1)
        alphabet = Alphabet(lambda some: both.agree(some) & splits.agree(some))
        if not alphabet.covers([_PLAIN]).all():
            raise Unusable("it does not agree on a plain text")
        probes = probe_texts(self._installed, self._prompt)
        probes += [text[:_FIRST_CHARS] for text in texts[:_FIRST_CHECKED]]
        probes = [text for text, covered in zip(probes, alphabet.covers(probes), strict=True) if covered]
        agreed = both.agree(probes)
        if not agreed.all():
            text = probes[int(np.argmin(agreed))]
            raise Unusable(f"it gives other ids for {text[:_SHOWN_CHARS]!a}")
        return both, alphabet

    def _encode(self, texts: Sequence[str], both: BothLibraries, alphabet: Alphabet) -> BareRows:
        covered = alphabet.covers(texts)
        places = np.flatnonzero(covered)
        mine = texts if covered.all() else [texts[place] for place in places.tolist()]
        rows = both.fast(mine)
        self._check(mine, rows, both)
        ids = np.concatenate([np.zeros(0, np.uint32), *rows])
        return BareRows(places, ids.view(np.int32), np.fromiter(map(len, rows), np.int64, len(rows)))

    def _check(self, texts: Sequence[str], rows: Sequence[NDArray[np.uint32]], both: BothLibraries) -> None:
        """Raises Unusable where the installed library has other ids for one of the texts whose turn it is."""
        numbers = range(-self._asked % _CHECKED_EVERY, len(texts), _CHECKED_EVERY)
        self._asked += len(texts)
        right = both.right([texts[number] for number in numbers])
        if any(ids != rows[number].tolist() for number, ids in zip(numbers, right, strict=True)):
            raise Unusable(
                f"gave other ids than the installed one for one of {self._asked:,} texts; one in a thousand is compared, so "
                "run verify for what was tokenized before"
            )


def _chars_before(expected: int | None) -> int:
    """How many characters to tokenize without it. Expectations may be wrong: twice what was expected is much again."""
    if expected is None:
        return START_CHARS
    return 0 if expected >= PAYS_FROM * START_CHARS else max(START_CHARS, PAYS_FROM * expected)
