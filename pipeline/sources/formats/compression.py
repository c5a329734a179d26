"""gzip and zstd: all that can be unpacked before a broken place, in small pieces, then `Broken`.

Knows bytes only. A small file that unpacks to a huge one is never held, several members or frames are one stream.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

CHUNK_BYTES = 2**20
_INPUT_BYTES = 2**16
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = 0x184D2A50
_ZSTD_REPEATED, _ZSTD_RESERVED = 1, 3
_ZSTD_BLOCK_BYTES = 2**17
_ZSTD_CHECKSUM_BYTES = 4
_MOST_WINDOW_BYTES = 2**31
"""zstd --long=31, the most that its own decoder takes."""
_HELD_BYTES = 512 * 2**20
_TRUSTED_BYTES, _MOST_RATIO = 2**30, 20_000
"""What unpacks to more than this and to so many times its size is no text: equal lines reach 12,000 in zstd, gzip
1,032, and four bytes of zstd can stand for 128 KiB."""
_SHORTER_WINDOW = "compress the file again with a shorter one, as `zstd --long=27` does"

Read = Callable[[int], bytes]
"""At most so many bytes, or fewer; none at the end."""


class Broken(Exception):
    """The compressed stream ends or fails here."""


# --- gzip


def gunzip(read: Read) -> Iterator[bytes]:
    """The unpacked stream in pieces of at most one chunk. Raises Broken after all that stands before a broken place."""
    member = zlib.decompressobj(wbits=31)
    begun = False
    while data := read(_INPUT_BYTES):
        while data:
            if member.eof:
                data = data.lstrip(b"\0")  # padding between or after members
                if not data:
                    break
                member, begun = zlib.decompressobj(wbits=31), False
            before, given = member.copy() if begun else None, data
            try:
                unpacked = member.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                yield from _salvage(before or zlib.decompressobj(wbits=31), given)
                raise Broken(f"the gzip stream is corrupt from here on ({_short(error)})") from None
            begun = True
            if unpacked:
                yield unpacked
            data = member.unused_data if member.eof else member.unconsumed_tail
            while len(unpacked) == CHUNK_BYTES and not data and not member.eof:
                # All input is taken, and more may be waiting inside.
                unpacked = member.decompress(b"", CHUNK_BYTES)
                yield unpacked
    if begun and not member.eof:
        raise Broken("the gzip stream is truncated: the file ends before its data does")


def _salvage(member: Any, data: bytes) -> Iterator[bytes]:
    """What can be unpacked before the broken byte; zlib gives nothing of a call that fails."""
    for index in range(len(data)):
        try:
            unpacked = member.decompress(data[index : index + 1])
        except zlib.error:
            return
        if unpacked:
            yield unpacked


def _short(error: Exception) -> str:
    return str(error).rpartition(": ")[2]


# --- zstd


class _Truncated(Exception):
    pass


def unzstd(read: Read) -> Iterator[bytes]:
    """The unpacked stream, one piece per zstd block, which unpacks to 128 KiB at most. Raises Broken after all that stands
    before a broken place, and where the stream turns out to be a bomb, whose four bytes stand for 128 KiB."""
    taken = unpacked = 0

    def counted(size: int) -> bytes:
        nonlocal taken
        data = read(size)
        taken += len(data)
        return data

    for piece in _frames(counted):
        unpacked += len(piece)
        if unpacked > max(_TRUSTED_BYTES, _MOST_RATIO * taken):
            raise Broken(
                f"the zstd stream unpacks to more than {_MOST_RATIO:,} times its size from here on, which no text does: "
                "leave the file out, or unpack it yourself"
            )
        yield piece


def _frames(read: Read) -> Iterator[bytes]:
    """The unpacked frames, one after the other.

    The frames are walked here and given to the decoder block by block, because a call that fails gives nothing of
    what stood before the failure, and the libraries' own readers take the end of a truncated file for its end.
    """
    source = _Source(read)
    try:
        while magic := source.rest(4):
            number = int.from_bytes(magic, "little")
            if len(magic) < 4:
                raise _Truncated
            if number & ~0xF == _ZSTD_SKIPPABLE:
                source.skip(int.from_bytes(source.exactly(4), "little"))
            elif number == _ZSTD_MAGIC:
                yield from _frame(magic, source)
            else:
                raise Broken("the zstd stream is corrupt from here on (no frame begins here)")
    except _Truncated:
        raise Broken("the zstd stream is truncated: the file ends before its data does") from None
    except zstandard.ZstdError as error:
        raise Broken(f"the zstd stream is corrupt from here on ({_short(error)})") from None


def _frame(magic: bytes, source: "_Source") -> Iterator[bytes]:
    """Layout: RFC 8878, section 3.1.1."""
    descriptor = source.exactly(1)
    flags = descriptor[0]
    single_segment = bool(flags & 0x20)
    dictionary_bytes = (0, 1, 2, 4)[flags & 3]
    content_bytes = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
    header = source.exactly((0 if single_segment else 1) + dictionary_bytes + content_bytes)
    window = _window(header, single_segment, content_bytes)
    if window > _MOST_WINDOW_BYTES:
        raise Broken(f"the zstd stream has a window of {window:,} bytes, which no decoder takes: {_SHORTER_WINDOW}")
    frame = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES).decompressobj()
    unpacked = 0
    yield from _some(frame.decompress(magic + descriptor + header))
    last = False
    while not last:
        block = source.exactly(3)
        number = int.from_bytes(block, "little")
        last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
        if kind == _ZSTD_RESERVED or size > _ZSTD_BLOCK_BYTES:
            raise zstandard.ZstdError("no block begins here")
        piece = frame.decompress(block + source.exactly(1 if kind == _ZSTD_REPEATED else size))
        unpacked += len(piece)
        if min(unpacked, window) > _HELD_BYTES:
            # The decoder keeps all of its window in memory, filled as the stream goes on.
            raise Broken(f"the zstd stream needs a window of {window:,} bytes in memory: {_SHORTER_WINDOW}")
        yield from _some(piece)
    if flags & 4:
        yield from _some(frame.decompress(source.exactly(_ZSTD_CHECKSUM_BYTES)))
    if not frame.eof:
        raise zstandard.ZstdError("the frame does not end with its last block")


def _window(header: bytes, single_segment: bool, content_bytes: int) -> int:
    """Bytes that the decoder must be able to look back; layout: RFC 8878, section 3.1.1.1.2."""
    if single_segment:
        content = int.from_bytes(header[len(header) - content_bytes :], "little")
        return content + 256 if content_bytes == 2 else content
    base = 1 << (10 + (header[0] >> 3))
    return base + base // 8 * (header[0] & 7)


def _some(unpacked: bytes) -> Iterator[bytes]:
    if unpacked:  # an empty piece would be the end
        yield unpacked


class _Source:
    """Exact pieces of a stream."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._data = b""

    def rest(self, size: int) -> bytes:
        """So many bytes, or fewer at the end."""
        while len(self._data) < size and (more := self._read(max(_INPUT_BYTES, size - len(self._data)))):
            self._data += more
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def exactly(self, size: int) -> bytes:
        taken = self.rest(size)
        if len(taken) < size:
            raise _Truncated
        return taken

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.exactly(min(size, _INPUT_BYTES)))
