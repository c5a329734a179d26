"""Indexes of a version of a Lance dataset: one on the ids, so that rows are found and merged quickly, one on the vectors.

A version that nobody sees gets its indexes whole, before it is shown. The version that readers see is kept up by
Lance's own upkeep: new rows join the indexes, small fragments are put together, old versions go. Rows outside an index are
still found, by comparing them one by one. This file knows nothing of markers.
"""

import dataclasses
import os
from datetime import timedelta
from typing import Any

from lance import LanceDataset, LanceOperation
from lance.dataset import Index as Segment

from pipeline.feeds.store import Index, Shape
from pipeline.schema import ID

os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
"""Lance asks for this word, and warns until it gets it."""

BY_ID, BY_VECTOR = "feed_id", "feed_vector"
EXACT_ROWS = 5_000
"""Fewer rows are compared one by one, which takes a few milliseconds and finds all."""
MANY_SEGMENTS = 8
"""Each sync adds a piece to the index of vectors. So many pieces of it beside the first are put together into one."""
MANY_FRAGMENTS = 16
"""So many fragments below SMALL_ROWS are put together. A fragment that is left with fewer rows is one, too."""
SMALL_ROWS = 8_192
MOST_BYTES = 4 << 30
"""One sync rewrites no more than that when it puts fragments together."""
KEPT = timedelta(days=7)
"""Older versions that have no tag are removed, with the files that they alone hold. Long queries may read them."""

METRICS = {"cosine": "cosine", "dot": "dot", "euclidean": "l2", "hamming": "hamming"}
KINDS = {"hnsw": "IVF_HNSW_SQ", "ivf_flat": "IVF_FLAT", "ivf_pq": "IVF_PQ", "ivf_rq": "IVF_RQ", "ivf_sq": "IVF_SQ"}
"""What `index.kind` may say beside auto and none."""


def kind_of(shape: Shape) -> str | None:
    """Return Lance's name of the index that the vectors get; None for no index."""
    if shape.index.kind == "none":
        return None
    if shape.dtype == "binary":
        return "IVF_FLAT"
    return KINDS["hnsw" if shape.index.kind == "auto" else shape.index.kind]


def refinement(shape: Shape) -> dict[str, int]:
    """Return what a search needs beside Lance's defaults: coarse codes find candidates, whole vectors order them."""
    return {"refine_factor": 4} if kind_of(shape) in ("IVF_PQ", "IVF_RQ") else {}


def build(version: LanceDataset, shape: Shape, based_on: int) -> LanceOperation.CreateIndex | None:
    """Write the indexes that a version lacks, and those that don't hold all its rows; return the operation that adds
    them, or None where nothing is missing. `based_on` is a number that versions which readers see count from."""
    fragments = [fragment.fragment_id for fragment in version.get_fragments()]
    new, old = [], []
    for name in _wanted(version, shape):
        if _is_whole(version, name) and not _must_be_built(version, name):
            continue
        made = _build_one(version, shape, name, fragments)
        # Readers compare numbers of versions, and a detached version's number is above all others.
        new.append(dataclasses.replace(made, dataset_version=based_on))
        old += _segments(version, name)
    return LanceOperation.CreateIndex(new, old) if new else None


def keep_up(version: LanceDataset, shape: Shape, cleanup: bool) -> None:
    """Do Lance's upkeep on what readers see: most often that is one version more, and now and then it is three."""
    fragments = version.get_fragments()
    if sum(fragment.count_rows() < SMALL_ROWS for fragment in fragments) >= MANY_FRAGMENTS:
        version.optimize.compact_files(target_rows_per_fragment=SMALL_ROWS, max_source_bytes=MOST_BYTES)
    wanted = _wanted(version, shape)
    if any(_must_be_built(version, name) for name in wanted):
        operation = build(version, shape, version.version)
        if operation is not None:
            options = version.latest_storage_options()
            LanceDataset.commit(version, operation, read_version=version.version, storage_options=options)
    elif any(not _is_whole(version, name) for name in wanted):
        pieces = max(len(_segments(version, name)) for name in wanted) - 1
        version.optimize.optimize_indices(num_indices_to_merge=pieces if pieces >= MANY_SEGMENTS else 0)
    if cleanup:
        version.cleanup_old_versions(older_than=KEPT, error_if_tagged_old_versions=False)


def _must_be_built(version: LanceDataset, name: str) -> bool:
    """Tell whether an index is missing, or was built when there were half as many rows as today."""
    segments = _segments(version, name)
    if not segments:
        return True
    first = set(segments[0].fragment_ids)
    rows = sum(fragment.count_rows() for fragment in version.get_fragments() if fragment.fragment_id in first)
    return 2 * rows < version.count_rows()


def _is_whole(version: LanceDataset, name: str) -> bool:
    """Tell whether an index holds all fragments."""
    found = {number for segment in _segments(version, name) for number in segment.fragment_ids}
    return found >= {fragment.fragment_id for fragment in version.get_fragments()}


def _wanted(version: LanceDataset, shape: Shape) -> list[str]:
    rows = version.count_rows()
    if not rows:
        return []
    has_vectors = kind_of(shape) is not None and (rows >= EXACT_ROWS or bool(_segments(version, BY_VECTOR)))
    return [BY_ID, BY_VECTOR] if has_vectors else [BY_ID]


def _build_one(version: LanceDataset, shape: Shape, name: str, fragments: list[int]) -> Segment:
    if name == BY_ID:
        return version.create_index_uncommitted(ID, "BTREE", name=name, fragment_ids=fragments, replace=True)
    kind = kind_of(shape) or ""
    return version.create_index_uncommitted(
        shape.embedding,
        kind,
        name=name,
        metric=METRICS[shape.metric],
        num_partitions=_partitions(version.count_rows(), kind),
        num_sub_vectors=_sub_vectors(shape.dim) if "PQ" in kind else None,
        fragment_ids=fragments,
        replace=True,
        **(_graph(shape.index) if "HNSW" in kind else {}),
    )


def _partitions(rows: int, kind: str) -> int:
    """Lance's own sizes of a partition: graphs are large, lists small."""
    return max(1, rows // (1_048_576 if "HNSW" in kind else 8_192))


def _sub_vectors(dim: int) -> int:
    return next(count for count in (dim // 4, dim // 8, dim // 2, dim // 3, dim) if count and dim % count == 0)


def _graph(index: Index) -> dict[str, Any]:
    wanted = {"m": index.m, "ef_construction": index.ef_construction}
    return {key: value for key, value in wanted.items() if value is not None}


def _segments(version: LanceDataset, name: str) -> list[Segment]:
    """Return the pieces of an index, each of which holds some fragments."""
    return [
        Segment(
            uuid=str(segment.uuid),
            name=name,
            fields=list(index.fields),
            dataset_version=segment.dataset_version_at_last_update,
            fragment_ids=segment.fragment_ids,
            index_version=segment.index_version,
        )
        for index in version.describe_indices()
        if index.name == name
        for segment in index.segments
    ]
