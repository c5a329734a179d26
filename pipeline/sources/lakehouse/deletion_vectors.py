"""Deletion vectors: which rows of a data file are deleted, as Delta and Iceberg (version 3) write it.

Comes in: the descriptor of a Delta log, or the bytes of a vector. Goes out: where the vector stands, or the positions
of the deleted rows. Both formats hold the same: bitmaps of 32 bits each (the Roaring format), a number before each of
them, a checksum after all.
"""

import struct
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.storage import is_remote, local_path
from pipeline.work import DeletedRows

Positions = np.ndarray[Any, np.dtype[np.int64]]

_MAGIC = 1681511377
_NO_RUNS, _RUNS = 12346, 12347
_OFFSETS_FROM = 4
"""With runs among them, so many containers or more have a list of offsets before them."""
_ARRAY_MOST = 4096
_BITMAP_BYTES = 8192
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_UUID_CHARACTERS = 20


class BrokenVector(ValueError):
    """The bytes are no deletion vector, or another one than the log describes."""


def described(root: str, vector: Mapping[str, Any] | None) -> tuple[DeletedRows, ...]:
    """Where the vector of a Delta log's descriptor stands. Raises ValueError for a descriptor that means nothing."""
    if vector is None:
        return ()
    kind, place, rows = vector["storageType"], vector["pathOrInlineDv"], vector["cardinality"]
    if kind == "i":
        return (DeletedRows(kind="bitmap", path="", rows=rows, inline=_decoded(place)[: vector["sizeInBytes"]]),)
    if kind == "u":
        folder, name = place[:-_UUID_CHARACTERS], uuid.UUID(bytes=_decoded(place[-_UUID_CHARACTERS:]))
        plain = root.rstrip("/") if is_remote(root) else local_path(root)
        path = "/".join(filter(None, [plain, folder, f"deletion_vector_{name}.bin"]))
    elif kind == "p":
        path = place if is_remote(place) else local_path(place)
    else:
        raise ValueError(f"deletion vector of the unknown storage type {kind!r}")
    # Before the vector stands its size, after it its checksum.
    size = vector["sizeInBytes"] + 8
    return (DeletedRows(kind="bitmap", path=path, offset=vector.get("offset") or 0, size=size, rows=rows),)


def _decoded(text: str) -> bytes:
    """The bytes of a text in Z85: five characters for four bytes."""
    places = {character: place for place, character in enumerate(_ALPHABET)}
    if len(text) % 5 or not places.keys() >= set(text):
        raise ValueError(f"{text[:50]!r} is no text in Z85")
    values = [places[character] for character in text]
    numbers = (int(np.dot(values[at : at + 5], [85**4, 85**3, 85**2, 85, 1])) for at in range(0, len(values), 5))
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def framed(data: bytes) -> bytes:
    """The vector between its size and its checksum. Raises BrokenVector where these two don't fit it."""
    if len(data) < 8:
        raise BrokenVector(f"it has {len(data)} bytes")
    size = struct.unpack(">I", data[:4])[0]
    inner, checksum = data[4 : 4 + size], data[4 + size : 8 + size]
    if len(checksum) != 4 or zlib.crc32(inner) != struct.unpack(">I", checksum)[0]:
        raise BrokenVector("its size or its checksum is wrong")
    return inner


def positions(data: bytes, count: int | None) -> Positions:
    """int64[count]: the positions of the deleted rows, sorted. Raises BrokenVector, also where they are not `count`."""
    try:
        magic, bitmaps = struct.unpack_from("<iQ", data)
        if magic != _MAGIC:
            raise BrokenVector(f"it begins with {magic}, not with {_MAGIC}")
        at, found = 12, []
        for _ in range(bitmaps):
            (key,) = struct.unpack_from("<I", data, at)
            bitmap = _Bitmap(data, at + 4)
            if count is not None and sum(bitmap.counts) > count:
                raise BrokenVector(f"it holds more than the {count} rows that the log says")
            found.append(bitmap.values().astype(np.int64) + (key << 32))
            at = bitmap.end
    except (struct.error, ValueError, OverflowError) as error:
        raise BrokenVector(str(error)) from None
    rows = np.concatenate([np.zeros(0, np.int64), *found])
    if count is not None and len(rows) != count:
        raise BrokenVector(f"it holds {len(rows)} rows, the log says {count}")
    return rows


class _Bitmap:
    """A Roaring bitmap of 32-bit numbers: containers of those that share their upper half."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self.end = data, at
        (cookie,) = self._take("<u4", 1).tolist()
        if cookie & 0xFFFF == _RUNS:
            number = (cookie >> 16) + 1
            flags = np.unpackbits(self._take("u1", (number + 7) // 8), bitorder="little")
            self._is_run = flags[:number].astype(bool).tolist()
        elif cookie == _NO_RUNS:
            (number,) = self._take("<u4", 1).tolist()
            self._is_run = [False] * min(number, 1 << 16)
        else:
            raise BrokenVector(f"a bitmap begins with {cookie}")
        header = self._take("<u2", 2 * number).reshape(-1, 2).astype(np.int64)
        self._keys, self.counts = header[:, 0].tolist(), (header[:, 1] + 1).tolist()
        if cookie == _NO_RUNS or number >= _OFFSETS_FROM:
            self._take("<u4", number)

    def values(self) -> np.ndarray[Any, Any]:
        """uint32[sum of counts]; moves `end` behind the bitmap."""
        found = [np.zeros(0, np.uint32)]
        for key, count, is_run in zip(self._keys, self.counts, self._is_run, strict=True):
            low = self._runs(count) if is_run else self._array(count) if count <= _ARRAY_MOST else self._bits(count)
            found.append(low.astype(np.uint32) + np.uint32(key << 16))
        return np.concatenate(found)

    def _array(self, count: int) -> np.ndarray[Any, Any]:
        return self._take("<u2", count)

    def _bits(self, count: int) -> np.ndarray[Any, Any]:
        values = np.flatnonzero(np.unpackbits(self._take("u1", _BITMAP_BYTES), bitorder="little"))
        if len(values) != count:
            raise BrokenVector("a container holds more or fewer numbers than it says")
        return values

    def _runs(self, count: int) -> np.ndarray[Any, Any]:
        (number,) = self._take("<u2", 1).tolist()
        runs = self._take("<u2", 2 * number).reshape(-1, 2).astype(np.int64)
        if (runs[:, 1] + 1).sum() != count:
            raise BrokenVector("a container holds more or fewer numbers than it says")
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, start + more + 1) for start, more in runs)])

    def _take(self, kind: str, number: int) -> np.ndarray[Any, Any]:
        size = np.dtype(kind).itemsize * number
        if self.end + size > len(self._data):
            raise BrokenVector("it ends too early")
        values = np.frombuffer(self._data, kind, number, self.end)
        self.end += size
        return values
