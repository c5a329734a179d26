"""Rows of token ids in, one sequence of them out, with the positions and bounds that tell them apart.

Pure numpy; knows no model and no device.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.encoder.batching import Ids


@dataclass(frozen=True, eq=False)
class PackedRows:
    ids: Ids
    """int32 [size]."""
    positions: Ids
    """int32 [size]: of each token in its own row."""
    bounds: Ids
    """int32 [slots + 1]: where each row begins and, last, where all end. Slots without a row are empty rows at the
    end."""
    longest: int
    """No row is longer."""


def pack_rows(
    ids: Ids,
    lengths: Ids,
    *,
    pad_id: int | None,
    size: int | None = None,
    slots: int | None = None,
    longest: int,
    fill_length: int | None = None,
) -> PackedRows:
    """The rows of `ids` one behind the other; rows of zeros fill up to `size` tokens.

    `pad_id`: positions count from behind this id, and a token of this id has it as its position. None: they count from 0.
    `slots`: rows, those that fill up included. `fill_length`: tokens of a row that fills up, which must not have positions
    that the model lacks; `longest` where it is None.
    """
    missing, each = 0 if size is None else size - len(ids), longest if fill_length is None else fill_length
    if missing < 0 or lengths.max() > longest or (slots is not None and slots < len(lengths) - (-missing // each)):
        raise ValueError(
            f"{len(lengths)} rows of {len(ids)} tokens, the longest {lengths.max()}, don't fit into {slots} rows of "
            f"{size} tokens, the longest {longest}"
        )
    fill = np.full(-(-missing // each), each, np.int32)
    if missing % each:
        fill[-1] = missing % each
    ids = np.concatenate([ids, np.zeros(missing, np.int32)])
    lengths = np.concatenate([lengths, fill])
    empty = 0 if slots is None else slots - len(lengths)
    ends = np.cumsum(lengths, dtype=np.int32)
    bounds = np.concatenate([[0], ends, np.full(empty, len(ids))]).astype(np.int32)
    return PackedRows(ids, _positions(ids, lengths, ends - lengths, pad_id), bounds, longest)


def _positions(ids: Ids, lengths: Ids, starts: Ids, pad_id: int | None) -> Ids:
    if pad_id is None:
        return np.arange(len(ids), dtype=np.int32) - np.repeat(starts, lengths)
    counts = np.cumsum(ids != pad_id, dtype=np.int32)
    before = np.concatenate([[0], counts]).astype(np.int32)[starts]
    return np.where(ids != pad_id, counts - np.repeat(before, lengths), np.int32(0)) + np.int32(pad_id)
