"""What the bytes of a source file are: packed or not, in which encoding, or no text at all.

Comes in: an open file, its name's suffix and `source.encoding`. Goes out: a stream of uncompressed bytes, or of UTF-8. The
first bytes decide, since names are often wrong: a file named .gz may be unpacked already, and one without a suffix packed.
Knows no format.
"""

import codecs
import re
from collections.abc import Callable, Collection, Iterator
from typing import BinaryIO

from pipeline.sources.formats.compression import Broken, Read, gunzip, unzstd
from pipeline.work import SourceFile

HEAD_BYTES = 4096
UTF8 = "utf-8"
_LAYERS = 3
"""A file may be packed once by its writer and once more on its way."""
_FEWEST_UNITS = 8
"""Shorter texts without a byte order mark are not taken for UTF-16 or UTF-32."""
_MANY_NULS = 16
_MAGIC_BYTES = 4

_PACKED: tuple[tuple[re.Pattern[bytes], Callable[[Read], Iterator[bytes]]], ...] = (
    (re.compile(rb"\x1f\x8b\x08"), gunzip),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL), unzstd),
)
_FOREIGN = (
    (re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
    (re.compile(rb"\x04\x22\x4d\x18"), "an LZ4 frame"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\xff\x06\x00\x00sNaPpY"), "framed Snappy"),
    (re.compile(rb"Obj\x01"), "an Avro file"),
    (re.compile(rb"PAR1[\x00-\x1f]"), "a Parquet file"),
    (re.compile(rb"ARROW1\x00\x00"), "an Arrow file"),
    (re.compile(rb"SQLite format 3\x00"), "an SQLite database"),
)
_POINTER = re.compile(
    rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v1\r?\n(?:[^\n]*\n)*?oid sha256:[0-9a-f]{64}\r?\n(?:[^\n]*\n)*?"
    rb"size [0-9]+\r?\n?\Z"
)
_POINTER_BYTES = 1024
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, UTF8),
)
"""UTF-32 stands first, because its little-endian mark begins with that of UTF-16."""
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_NUL_RUN = b"\0" * _MANY_NULS
_NOT_UTF8 = re.compile(r"the (file|page|line|record) is not valid UTF-8\b(?!:)", re.IGNORECASE)
"""Behind a colon stands what is wrong inside a JSON string, which no encoding mends."""


def lfs_pointer(head: bytes) -> str | None:
    """The message for a file that is only a pointer of Git LFS; None for any other file."""
    if len(head) < _POINTER_BYTES and _POINTER.match(head):
        return "the file is a Git LFS pointer, its content was never fetched: run `git lfs pull` in its repository"
    return None


def is_plain(head: bytes, file: SourceFile, encoding: str) -> bool:
    """Whether a file that begins with `head` can be read from its middle, line by line: it is not packed, and its line
    ends are single bytes."""
    return not file.compression and not _is_packed(head) and encoding_of(head, encoding) == UTF8


def uncompressed(opened: BinaryIO, file: SourceFile) -> Read:
    """The uncompressed bytes from where `opened` stands, which is the beginning of the file. Pieces may be larger than
    asked for.

    Raises Broken after all that stands before a broken place, and at once for a pointer of Git LFS and for content that
    only other programs unpack.
    """
    read, head = peeked(opened.read)
    message = lfs_pointer(head) or _foreign(head)
    if message is not None:
        raise Broken(message)
    if file.compression and head and not _is_packed(head) and (len(head) < _MAGIC_BYTES or not _is_text(head)):
        # Neither what the name says nor text: the packed stream is damaged in its first bytes, or ends in them.
        return _read_of(gunzip(read) if file.compression == "gz" else unzstd(read))
    for _ in range(_LAYERS):
        unpack = next((unpack for magic, unpack in _PACKED if magic.match(head)), None)
        if unpack is None:
            return read
        read, head = peeked(_read_of(unpack(read)))
    return read


def utf8(opened: BinaryIO, file: SourceFile, encoding: str) -> Read:
    """The text of the file in UTF-8, from its beginning.

    A byte order mark says more than `encoding`, which is `source.encoding`; "auto" is UTF-8 unless the first bytes leave
    no doubt of another. What can't be decoded becomes a byte that no UTF-8 has, so that its row alone is bad. Raises
    Broken as `uncompressed` does.
    """
    try:
        read, head = peeked(uncompressed(opened, file))
    except Broken as broken:
        return _read_of(_broken(broken))
    name = encoding_of(head, encoding)
    return read if name == UTF8 else _read_of(_transcoded(read, name))


def encoding_of(head: bytes, asked: str) -> str:
    """The name of the codec for a text that begins with `head`; that of UTF-16 and UTF-32 takes the mark away."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked is not None:
        return marked
    if asked != "auto":
        return codecs.lookup(asked).name
    return _wide_encoding(head) or UTF8


def is_filled_with_nuls(raw: bytes) -> bool:
    """Whether the text is what a crash, or another encoding, leaves: a run of NULs, or a quarter of it NULs."""
    count = raw.count(0) if b"\0" in raw else 0
    return count >= _MANY_NULS and (4 * count >= len(raw) or _NUL_RUN in raw)


NUL_FILLED = "is filled with NUL bytes: it is no text, or in another encoding (source.encoding)"


def encoding_hint(reasons: Collection[str]) -> str:
    """Return the remedy, as the end of a message, where all of these reasons are that a text is not in UTF-8; "" stands for
    no remedy."""
    if not reasons or not all(map(_NOT_UTF8.search, reasons)):
        return ""
    return "; if it is text of another encoding, name that, as in --set source.encoding=cp1252"


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark or, without one, where it is certain: letters of Latin scripts with NULs between them,
    at the same places throughout, and nothing else that is no text."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), UTF8)
    if marked != UTF8:
        return marked
    if head.count(0) < _FEWEST_UNITS // 2:
        return None
    for width, name in ((4, "utf-32-le"), (4, "utf-32-be"), (2, "utf-16-le"), (2, "utf-16-be")):
        whole = head[: len(head) // width * width]
        units = len(whole) // width
        low = 0 if name.endswith("le") else width - 1
        if len(head) < HEAD_BYTES and len(whole) < len(head):
            continue
        if units < _FEWEST_UNITS or 0 in whole[low::width]:
            continue
        places = [place for place in range(width) if place != low]
        nuls = sum(whole[place::width].count(0) for place in places)
        if 2 * nuls >= units * (width - 1) and _is_latin(whole, name):
            return name
    return None


def _is_latin(raw: bytes, name: str) -> bool:
    """Whether it is text in the encoding `name`, with three Latin letters or signs of four. The NULs of line ends alone
    prove nothing: lines of "ab" and a NUL, as C writes them, are Chinese characters in UTF-16."""
    try:
        # The head may end inside a surrogate pair.
        text = codecs.getincrementaldecoder(name)().decode(raw)
    except UnicodeError:
        return False
    seen = "".join(text.split())
    return _NO_TEXT.search(text) is None and 4 * sum(char < "\u0100" for char in seen) >= 3 * len(seen)


def _is_packed(head: bytes) -> bool:
    return any(magic.match(head) for magic, _ in _PACKED)


def _foreign(head: bytes) -> str | None:
    found = next((name for magic, name in _FOREIGN if magic.match(head)), None)
    return None if found is None else f"the content is {found}, which is not read: convert or unpack it"


def _is_text(head: bytes) -> bool:
    if _wide_encoding(head) is not None:
        return True
    try:
        # The head may end inside a character.
        text = codecs.getincrementaldecoder(UTF8)().decode(head)
    except UnicodeDecodeError:
        return False
    return _NO_TEXT.search(text) is None


def peeked(read: Read, most: int = HEAD_BYTES) -> tuple[Read, bytes]:
    """The whole stream again, and its first `most` bytes, or all of it where it is shorter."""
    pieces: list[bytes] = []
    size = 0
    broken: Broken | None = None
    try:
        while size < most and (piece := read(most - size)):
            pieces.append(piece)
            size += len(piece)
    except Broken as error:
        broken = error
    first = b"".join(pieces)

    def again(size: int) -> bytes:
        nonlocal first
        if first:
            piece, first = first, b""
            return piece
        if broken is not None:
            raise broken
        return read(size)

    return again, first[:most]


def sample(read: Read, most: int) -> Read:
    """The stream up to about its first `most` bytes: a small file may unpack to any size, without the end of a line."""
    left = most

    def limited(size: int) -> bytes:
        nonlocal left
        piece = read(min(size, left)) if left > 0 else b""
        left -= len(piece)
        return piece

    return limited


def _read_of(stream: Iterator[bytes]) -> Read:
    return lambda size: next(stream, b"")


def _broken(error: Broken) -> Iterator[bytes]:
    raise error
    yield b""


# --- transcoding

_ANYTHING_BROKEN = "embedding-pipeline.broken"


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(_ANYTHING_BROKEN, _mark_broken)


def _transcoded(read: Read, name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(name)(errors=_ANYTHING_BROKEN)
    broken: Broken | None = None
    while True:
        try:
            piece = read(2**20)
        except Broken as error:
            piece, broken = b"", error
        text = decoder.decode(piece, final=not piece).encode(errors="surrogateescape")
        if text:
            yield text
        if broken is not None:
            raise broken
        if not piece:
            return
