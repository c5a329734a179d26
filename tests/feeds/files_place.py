"""Places in folders for tests, one for each format of files."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.feed_spec import FeedSpec
from pipeline.feeds.files import FilesStore
from pipeline.feeds.files_formats import FORMATS
from pipeline.feeds.files_revisions import MARKER_FILE, Revisions
from tests.feeds.stores import Place

Places = Callable[[], contextlib.AbstractContextManager[Place]]

FLAT = [pa.string(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()]
MANY = [
    *FLAT, pa.large_string(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.date32(), pa.timestamp("us"),
    pa.timestamp("us", "UTC"), pa.decimal128(12, 3), pa.binary(), pa.list_(pa.int32()), pa.list_(pa.string()),
    pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.string()))]),
]  # fmt: skip
TYPES = {
    "milvus": [*FLAT, pa.list_(pa.string())],
    "pinecone": [pa.string(), pa.int8(), pa.int32(), pa.float32(), pa.float64(), pa.bool_(), pa.list_(pa.string())],
}


def place_in(folder: Path, form: str = "faiss", name: str = "docs") -> Place:
    def forget_marker(generation: str) -> None:
        (Revisions(str(folder), name).newest(generation) / MARKER_FILE).unlink()

    return Place(
        kind="files",
        spec=FeedSpec(store="files", url=str(folder), name=name, options={"format": form}),
        forget_marker=forget_marker,
        dtypes=FORMATS[form].dtypes,
        types=TYPES.get(form, MANY),
    )


def _places(folder: Path, form: str) -> Places:
    @contextlib.contextmanager
    def make() -> Iterator[Place]:
        yield place_in(folder / uuid.uuid4().hex, form)

    return make


@pytest.fixture
def files_places(tmp_path: Path) -> Places:
    return _places(tmp_path, "faiss")


@pytest.fixture
def usearch_places(tmp_path: Path) -> Places:
    return _places(tmp_path, "usearch")


@pytest.fixture
def duckdb_places(tmp_path: Path) -> Places:
    return _places(tmp_path, "duckdb")


@pytest.fixture
def pinecone_layout_places(tmp_path: Path) -> Places:
    return _places(tmp_path, "pinecone")


@pytest.fixture
def milvus_layout_places(tmp_path: Path) -> Places:
    return _places(tmp_path, "milvus")


@pytest.fixture
def vdf_places(tmp_path: Path) -> Places:
    return _places(tmp_path, "vdf")


def store_of(place: Place) -> FilesStore:
    return FilesStore(place.spec)
