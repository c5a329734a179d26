"""One tokenizer in two libraries: texts in, the ids that each gives, and where they are the same.

The installed library says what is right. Nothing is cut off here and no special tokens are put on.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.fast_library import Unusable
from pipeline.encoder.text_ranges import text_lengths, text_ranges
from pipeline.encoder.tokenizer_backend import encode_each
from pipeline.machine.folders import temporary_folder
from pipeline.model.tokenizer_files import is_library_error

_PIECE_CHARS = 1024
"""The fast library takes all cores of the machine for a call of more than some ten kilobytes, and stays in the calling
thread for less."""
_IDS = operator.attrgetter("ids_array")


class BothLibraries:
    def __init__(self, installed: Any, library: Any, threads: int) -> None:
        """`installed` is a tokenizer that neither cuts nor pads. Raises Unusable where the fast library can't read it."""
        self._installed, self._threads = installed, threads
        self._fast = _read(library, installed.to_str())
        self._options = {"add_special_tokens": False, "encode_special_tokens": installed.encode_special_tokens}
        self._options |= {"padding": None, "truncation": None}

    def fast(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The fast library's ids of each text. It raises what it likes for a text that it refuses."""
        ranges = [(0, len(texts))]
        if self._threads == 1:
            ranges = text_ranges(text_lengths(texts), _PIECE_CHARS)
        rows: list[NDArray[np.uint32]] = []
        for start, stop in ranges:
            rows.extend(map(_IDS, self._fast.encode_batch(texts[start:stop], **self._options)))
        return rows

    def right(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The installed library's ids of each text; None where it refuses it."""
        found = encode_each(
            dict(enumerate(texts)), {}, lambda some: self._installed.encode_batch_fast(some, add_special_tokens=False)
        )
        return [found[row].ids if row in found else None for row in range(len(texts))]

    def agree(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """[n]: both libraries take the text and give the same ids."""
        ours, right = encode_each(dict(enumerate(texts)), {}, self.fast), self.right(texts)
        same = [row in ours and ours[row].tolist() == right[row] for row in range(len(texts))]
        return np.array(same, np.bool_)


def _read(library: Any, rules: str) -> Any:
    with temporary_folder() as folder:
        path = folder / "tokenizer.json"
        path.write_text(rules, encoding="utf-8")
        try:
            return library.Tokenizer.from_file(str(path))
        except BaseException as error:
            if not is_library_error(error):
                raise
            raise Unusable(f"it can't read the model's tokenizer: {error}") from None
