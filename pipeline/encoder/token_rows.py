"""The token ids of many texts in flat int32 arrays, and as an Arrow column on the same memory.

This file knows no tokenizer and no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The token ids of n texts; a failed row has none."""

    ids: NDArray[np.int32]
    """All rows one after the other, special tokens included."""
    offsets: NDArray[np.int64]
    """[n + 1]: row i is ids[offsets[i] : offsets[i + 1]]."""
    truncated: NDArray[np.bool_]
    """[n]: the text went on beyond the model's max_seq_length."""
    failed: dict[int, str] = field(default_factory=dict)
    """Row -> why the tokenizer refused its text."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n]: tokens per row."""
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> "TokenRows":
        """Rows [start, stop), on the same memory."""
        bounds = self.offsets[start : stop + 1]
        ids = self.ids[bounds[0] : bounds[-1]]
        failed = {row - start: reason for row, reason in self.failed.items() if start <= row < stop}
        return TokenRows(ids, bounds - bounds[0], self.truncated[start:stop], failed)

    @staticmethod
    def of(rows: "Sequence[NDArray[np.int32]]") -> "TokenRows":
        """Rows that stand alone."""
        return TokenRows(
            ids=np.concatenate([np.zeros(0, np.int32), *rows]),
            offsets=np.cumsum([0, *map(len, rows)]),
            truncated=np.zeros(len(rows), np.bool_),
        )

    @staticmethod
    def placed(
        pieces: "Sequence[tuple[Sequence[int] | NDArray[np.int64], TokenRows]]",
        length: int,
        failed: Mapping[int, str] | None = None,
    ) -> "TokenRows":
        """`length` rows: each piece comes with the places of its rows, and a later one takes places of an earlier one.

        A row that no piece has is empty. `failed` joins what failed in the pieces.
        """
        rows = TokenRows.concatenated([piece for _, piece in pieces])
        source = np.full(length, len(rows), np.int64)
        first, reasons = 0, dict(failed or {})
        for places, piece in pieces:
            here = np.asarray(places, np.int64)
            source[here] = np.arange(first, first + len(piece))
            for row in here.tolist() if reasons else ():
                reasons.pop(row, None)
            reasons |= {int(here[row]): reason for row, reason in piece.failed.items()}
            first += len(piece)
        begins, lengths = np.append(rows.offsets[:-1], 0)[source], np.append(rows.lengths, 0)[source]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenRows(rows.ids[within], offsets, np.append(rows.truncated, False)[source], reasons)

    @staticmethod
    def concatenated(pieces: "Sequence[TokenRows]") -> "TokenRows":
        """All rows of all pieces, in order."""
        if len(pieces) == 1:
            return pieces[0]
        firsts = np.cumsum([0, *map(len, pieces)]).tolist()
        lengths = [piece.lengths for piece in pieces]
        return TokenRows(
            ids=np.concatenate([np.zeros(0, np.int32), *(piece.ids for piece in pieces)]),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]),
            truncated=np.concatenate([np.zeros(0, np.bool_), *(piece.truncated for piece in pieces)]),
            failed={
                first + row: reason
                for first, piece in zip(firsts, pieces, strict=False)
                for row, reason in piece.failed.items()
            },
        )


def tokens_to_arrow(rows: TokenRows) -> pa.LargeListArray:
    """large_list<int32> [n] on the same memory; a failed row is null."""
    mask = None
    if rows.failed:
        failed = np.zeros(len(rows), np.bool_)
        failed[list(rows.failed)] = True
        mask = pa.array(failed)
    return pa.LargeListArray.from_arrays(pa.array(rows.offsets), pa.array(rows.ids), mask=mask)


def arrow_to_tokens(tokens: pa.LargeListArray | pa.ChunkedArray, truncated: pa.BooleanArray | None = None) -> TokenRows:
    """The inverse; a null row is a failed one. `truncated` is all False where it is not given."""
    array = tokens.combine_chunks() if isinstance(tokens, pa.ChunkedArray) else tokens
    offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
    values = array.values.to_numpy(zero_copy_only=True)
    if array.null_count:  # a null may span values; flatten() leaves them out
        lengths = np.diff(offsets) * ~np.asarray(array.is_null())
        values, offsets = array.flatten().to_numpy(), np.concatenate(([0], np.cumsum(lengths)))
    nulls = np.flatnonzero(np.asarray(array.is_null())) if array.null_count else ()
    flags = np.zeros(len(array), np.bool_) if truncated is None else np.asarray(truncated)
    ids = values[offsets[0] : offsets[-1]]
    return TokenRows(ids, offsets - offsets[0], flags, {int(row): "the text has no tokens" for row in nulls})
