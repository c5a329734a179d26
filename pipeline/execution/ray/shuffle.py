"""Keys of rows meet in buckets on the cluster.

They are keys of units and live parts, or of two versions. Rows travel as fixed-width keys, each a cell of bytes beside the
number of its bucket. All rows with one id come into one block, which one function compares. What the comparison means stands
in table/diff.py and table/compare.py.
"""

import functools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipeline.execution.ray.workers import given, tokenizer
from pipeline.stages import row_keys
from pipeline.stages.row_keys import KeyResult
from pipeline.table import compare, diff, scan
from pipeline.table.diff import LIVE_KEY, WANTED_KEY, RowDifference, SourceStates

Keys = np.ndarray[Any, np.dtype[np.void]]


def items_of(items: Sequence[object]) -> "ray.data.Dataset":
    """Return a data set with a block for each item, pickled, in a column `item`."""
    return ray.data.from_items([{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items))


def light(run: str) -> dict[str, Any]:
    """Return how a stage runs that mostly waits for storage, an item at a time."""
    return {"batch_size": 1, "batch_format": "pyarrow", "fn_kwargs": {"run": run}, "num_cpus": 0.5}


# --- the rows of units against live ones


def unit_keys(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    """Yield the keys of the rows of units, and at the end of each unit its result, pickled in a column `known`."""
    spec, _ = given(run)
    for item in batch.column("item").to_pylist():
        for found in row_keys.read_keys(pickle.loads(item), spec, functools.partial(tokenizer, run)):
            if isinstance(found, KeyResult):
                known = pa.array([pickle.dumps(found)], pa.large_binary())
                yield pa.table({"key": pa.nulls(1, pa.binary(WANTED_KEY.itemsize)), "known": known})
            elif len(found):
                yield pa.table({"key": _cells(found), "known": pa.nulls(len(found), pa.large_binary())})


def known_of(keys: "ray.data.Dataset") -> list[KeyResult]:
    """Return the result of each unit."""
    known = keys.map_batches(_known, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    return [pickle.loads(row["known"]) for row in known.iter_rows()]


def _known(batch: pa.Table) -> pa.Table:
    return batch.select(["known"]).filter(batch.column("known").is_valid())


def without_skipped(keys: "ray.data.Dataset", skipped: frozenset[int]) -> "ray.data.Dataset":
    """Return the keys of units but the skipped ones, in buckets."""
    return keys.map_batches(
        _without_skipped, batch_size=None, batch_format="pyarrow", fn_kwargs={"skipped": skipped}, num_cpus=0.5
    )


def _without_skipped(batch: pa.Table, skipped: frozenset[int]) -> pa.Table:
    keys = _keys_of(batch.filter(batch.column("key").is_valid()), WANTED_KEY)
    return in_buckets(keys[~np.isin(keys["unit"], list(skipped))])


def live_keys(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    """Yield the keys of the rows of parts, in buckets. An item is (part, its number, whether rows are chunks)."""
    for item in batch.column("item").to_pylist():
        part, number, chunked = pickle.loads(item)
        for keys in scan.keys(given(run)[0].open_table(), part, number, chunked=chunked):
            yield in_buckets(keys)


def diffed(keys: "ray.data.Dataset", num_buckets: int, states: SourceStates, *, renewed: bool) -> "ray.data.Dataset":
    """Compare the keys. All rows with an id meet in one block of `num_buckets`, and a block is compared at once."""
    return keys.repartition(num_buckets, keys=["bucket"]).map_batches(
        _diff_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"states": states, "renewed": renewed},
        num_cpus=0.5,
    )


def _diff_block(batch: pa.Table, states: SourceStates, renewed: bool) -> pa.Table:
    found = diff.compare(_keys_of(batch, LIVE_KEY), states, renewed=renewed)
    return pa.table({"found": pa.array([pickle.dumps(found)], pa.large_binary())})


def found_of(row: Mapping[str, Any]) -> RowDifference:
    found: RowDifference = pickle.loads(row["found"])
    return found


# --- the rows of two versions


def part_keys(batch: pa.Table, run: str) -> Iterator[pa.Table]:
    """Yield the keys of the rows of parts, in buckets. An item is (part, its number, its side)."""
    for item in batch.column("item").to_pylist():
        part, number, side = pickle.loads(item)
        for rows in scan.version_keys(given(run)[0].open_table(), part, number, side):
            yield in_buckets(rows)


def compared(keys: "ray.data.Dataset", num_buckets: int, *, renewed: bool, all_new: bool) -> "ray.data.Dataset":
    """Return the difference of two versions, a bucket at a time, as `diffed` does it."""
    known = {"renewed": renewed, "all_new": all_new}
    return keys.repartition(num_buckets, keys=["bucket"]).map_batches(
        _compare_block, batch_size=None, batch_format="pyarrow", fn_kwargs=known, num_cpus=0.5
    )


def _compare_block(batch: pa.Table, renewed: bool, all_new: bool) -> pa.Table:
    found = compare.compare(_keys_of(batch, compare.KEY), renewed=renewed, all_new=all_new)
    return pa.table({"difference": pa.array([pickle.dumps(found)], pa.binary())})


# --- cells


def in_buckets(keys: Keys) -> pa.Table:
    """Put the keys in buckets, so that rows with the same id have the same one.

    A bucket is the first half of the id's hash. Ray hashes what it distributes by, and numbers from 0 up would come
    several to a block.
    """
    return pa.table({"bucket": keys["id"][:, 0].astype(np.int64), "key": _cells(keys)})


def _cells(keys: Keys) -> pa.Array:
    """Make a cell for each key."""
    width = pa.binary(keys.dtype.itemsize)
    return pa.Array.from_buffers(width, len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys).tobytes())])


def _keys_of(batch: pa.Table, kind: "np.dtype[np.void]") -> Keys:
    chunks = [chunk for chunk in batch.column("key").chunks if len(chunk)]
    cells = [np.frombuffer(chunk.buffers()[1], kind)[chunk.offset :][: len(chunk)] for chunk in chunks]
    return np.concatenate([np.zeros(0, kind), *cells])
