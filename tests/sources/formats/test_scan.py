import io
import itertools
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.formats.compression import CHUNK_BYTES
from pipeline.sources.formats.scan import lines


@settings(max_examples=200, deadline=None)
@given(
    content=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\n\n", b"\r\n", b" ", b"x" * 30]), max_size=40).map(
        b"".join
    ),
    edges=st.lists(st.integers(0, 200), max_size=5),
    chunk=st.integers(1, 50),
)
def test_byte_ranges_cover_every_line_once(content: bytes, edges: list[int], chunk: int) -> None:
    def reader(at: int) -> Callable[[int], bytes]:
        stream = io.BytesIO(content)
        stream.seek(at)
        return lambda _: stream.read(chunk)

    whole = list(lines(reader(0), 0, None, 20))
    edges = sorted({0, *(edge % (len(content) + 1) for edge in edges), len(content)})
    ranges = [
        line for start, stop in itertools.pairwise(edges) for line in lines(reader(max(start - 1, 0)), start, stop, 20)
    ]
    assert ranges == whole
    expected, position = [], 0
    for line in content.split(b"\n"):
        expected.append((position, b"" if len(line) > 20 else line, len(line) > 20))
        position += len(line) + 1
    if position == len(content) + 1 and not expected[-1][1] and not expected[-1][2]:
        expected.pop()  # what follows the last line feed is no line
    assert [(line.position, line.raw, line.error is not None) for line in whole] == expected


def test_a_span_inside_one_long_line_is_not_read_beyond_its_end() -> None:
    opened = io.BytesIO(b"first\n" + b"x" * 50 * CHUNK_BYTES + b"\nlast\n")
    opened.seek(10 * CHUNK_BYTES - 1)
    assert list(lines(opened.read, 10 * CHUNK_BYTES, 20 * CHUNK_BYTES, 100)) == []
    assert opened.tell() <= 21 * CHUNK_BYTES
