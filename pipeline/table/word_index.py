"""Rows are ranked by the words that they share with a query (BM25), with an index that this node keeps for each version.

A version of a table comes in, and the score of each row for a query goes out. The indexes that were not used for longest
leave the cache.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.extras import install
from pipeline.machine.folders import cache_folder
from pipeline.model.cache import kept
from pipeline.schema import TEXT
from pipeline.table.row_reader import RowReader
from pipeline.table.search import in_groups
from pipeline.table.words import words

KIND = "words"
FORMAT = 1
"""It is raised when texts are split otherwise."""
KEPT_INDEXES = 8
"""So many indexes stay in the cache."""


def word_scores(reader: RowReader, query: str) -> NDArray[np.float32]:
    """Return float32[rows], the BM25 of each row of the version in the order of the table, 0 where no word is shared.

    Raises InputError where the table has no text, or bm25s is not installed.
    """
    if TEXT not in reader.schema.names:
        raise InputError("a search by words needs the texts, and table.keep_text is false: leave out hybrid")
    library = _library()
    folder = kept(KIND, _key(reader), lambda partial: _make(library, reader, partial))
    with contextlib.suppress(OSError):
        os.utime(folder)
    _evict(folder)
    index = library.BM25.load(str(folder), mmap=True)
    asked = [word for word in dict.fromkeys(words(query)) if word in index.vocab_dict]
    if not asked:
        return np.zeros(sum(part.rows for part in reader.version.parts), np.float32)
    return np.asarray(index.get_scores(asked), np.float32)


def _library() -> Any:
    try:
        import bm25s
    except ImportError:
        raise InputError(f"a search by words needs bm25s: {install('search')}") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # It comes with DEBUG.
    return bm25s


def _key(reader: RowReader) -> str:
    """A version's files never change, so that their names tell its rows and their order."""
    names = [reader.table.url, *(f"{part.path} {part.size}" for part in reader.version.parts)]
    return hashlib.sha256("\n".join([str(FORMAT), *names]).encode()).hexdigest()[:32]


def _make(library: Any, reader: RowReader, folder: Path) -> None:
    vocabulary: dict[str, int] = {}
    ids = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in found]
        for group in in_groups(reader, [TEXT], _split)
        for found in group
    ]
    vocabulary.setdefault("", len(vocabulary))
    index = library.BM25()
    index.index(library.tokenization.Tokenized(ids, vocabulary), show_progress=False)
    index.save(str(folder))


def _split(task: tuple[int, int], read: Iterator[pa.Table]) -> list[list[str]]:
    return [words(text) for rows in read for text in rows.column(TEXT).to_pylist()]


def _evict(used: Path) -> None:
    """Remove the indexes that were not used for longest. Who reads one meanwhile keeps its files."""
    with contextlib.suppress(OSError, RuntimeError):
        if used.parent != cache_folder() / KIND:
            return
        folders = sorted(
            (path for path in used.parent.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime
        )
        for path in folders[KEPT_INDEXES:]:
            shutil.rmtree(path, ignore_errors=True)
