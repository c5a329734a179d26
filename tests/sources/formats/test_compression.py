import gzip
import io
import random
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.formats.compression import Broken
from pipeline.sources.formats.content import uncompressed as reader
from pipeline.work import SourceFile


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(data)


def zstd_stream(data: bytes) -> bytes:
    """As `zstd` writes a pipe: without the size of the content; here with blocks of a few bytes."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    pieces = []
    for start in range(0, len(data), 100):
        pieces += [packer.compress(data[start : start + 100]), packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*pieces, packer.flush()])


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gz": ("gz", lambda data: gzip.compress(data, mtime=0)),
    "zst": ("zst", zstd),
    "zst with checksum": ("zst", lambda data: zstd(data, write_checksum=True)),
    "zst without size": ("zst", lambda data: zstd(data, write_content_size=False)),
    "zst stream": ("zst", zstd_stream),
}


def unpack(data: bytes, compression: str) -> tuple[bytes, str | None]:
    """What there is before the broken place, and what is broken."""
    file = SourceFile(path="f", size=len(data), version="v", format="jsonl", compression=compression)  # type: ignore[arg-type]
    read = reader(io.BytesIO(data), file)
    pieces = []
    try:
        while piece := read(1):
            assert len(piece) <= 2**20
            pieces.append(piece)
    except Broken as broken:
        return b"".join(pieces), str(broken)
    return b"".join(pieces), None


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def words(size: int) -> bytes:
    drawn = random.Random(1)
    return b" ".join(drawn.choice([b"alpha", b"beta", b"gamma", b"delta"]) for _ in range(size // 6 + 1))[:size]


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 1_000_000])
def test_what_was_packed_is_unpacked(name: str, size: int) -> None:
    compression, pack = PACKERS[name]
    for data in (noise(size), words(size), b"x" * size):
        assert unpack(pack(data), compression) == (data, None)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_several_members_are_one_stream(compression: str) -> None:
    _, pack = PACKERS[compression]
    packed = pack(noise(1000)) + pack(b"") + pack(words(300_000))
    assert unpack(packed, compression) == (noise(1000) + words(300_000), None)


def test_skippable_frames_hold_no_data() -> None:
    skippable = (0x184D2A53).to_bytes(4, "little") + (200_000).to_bytes(4, "little") + b"?" * 200_000
    assert unpack(skippable + zstd(b"abc") + skippable, "zst") == (b"abc", None)
    kept, error = unpack(zstd(b"abc") + skippable[:-1], "zst")
    assert kept == b"abc"
    assert error == "the zstd stream is truncated: the file ends before its data does"


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_an_empty_file_holds_nothing_and_a_foreign_one_is_broken(compression: str) -> None:
    assert unpack(b"", compression) == (b"", None)
    assert unpack("tout court, en é".encode(), compression) == ("tout court, en é".encode(), None)
    kept, error = unpack(b"\x02neither packed nor text", compression)
    assert kept == b""
    assert error is not None
    assert "corrupt from here on" in error


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(PACKERS)), share=st.floats(0, 1), plain=st.booleans())
def test_a_truncated_stream_is_a_prefix_and_says_so(name: str, share: float, plain: bool) -> None:
    compression, pack = PACKERS[name]
    data = words(40_000) if plain else noise(3000)
    packed = pack(data)
    kept, error = unpack(packed[: int(share * (len(packed) - 1))], compression)
    assert data.startswith(kept)
    assert (error is None) == (share * (len(packed) - 1) < 1)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(PACKERS)), at=st.integers(0, 10**6), count=st.integers(1, 40), seed=st.integers(0, 999)
)
def test_a_corrupt_stream_never_raises_anything_else(name: str, at: int, count: int, seed: int) -> None:
    compression, pack = PACKERS[name]
    data = noise(3000)
    packed = bytearray(pack(data))
    at %= len(packed)
    packed[at : at + count] = noise(count, seed)[: len(packed) - at]
    kept, error = unpack(bytes(packed), compression)
    # Without a checksum a changed byte of data can't be told; with one it is, at the end.
    assert error is not None or kept == data or len(kept) == len(data) or not pack_has_checksum(name)


def pack_has_checksum(name: str) -> bool:
    return name in ("gz", "zst with checksum", "zst stream")


def test_zstd_blocks_before_a_broken_one_are_kept_whole() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    first = packer.compress(words(500_000)) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    kept, error = unpack(first + b"\xff" * 5000, "zst")
    assert kept == words(500_000)
    assert error is not None
    assert error.startswith("the zstd stream is corrupt from here on (")


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_bomb_is_unpacked_in_small_pieces(compression: str) -> None:
    _, pack = PACKERS[compression]
    packed = pack(b"x" * 2**28)
    file = SourceFile(path="f", size=len(packed), version="v", format="jsonl", compression=compression)  # type: ignore[arg-type]
    read = reader(io.BytesIO(packed), file)
    sizes = [len(piece) for piece in iter(lambda: read(1), b"")]
    assert max(sizes) <= 2**20
    assert sum(sizes) == 2**28
