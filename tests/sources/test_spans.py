from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources import spans
from pipeline.sources.spans import Extent, RowGroup, cut
from pipeline.work import SourceFile, Span

MIB = 2**20


def source(path: str, size: int = 100, form: str = "parquet", compression: str = "") -> SourceFile:
    return SourceFile(path=path, size=size, version="v", format=form, compression=compression)  # type: ignore[arg-type]


def plain(path: str, size: int) -> Extent:
    return Extent(file=source(path, size, "jsonl"), unit_bytes=spans.UNIT_TEXT_BYTES, divisible=True)


def packed(path: str, size: int) -> Extent:
    file = source(path, size, "jsonl", "gz")
    return Extent(file=file, unit_bytes=spans.UNIT_TEXT_BYTES // spans.PACKED_RATIO)


def document(path: str, size: int) -> Extent:
    return Extent(file=source(path, size, "text"), unit_bytes=spans.UNIT_TEXT_BYTES, rows=1)


def parquet(path: str, *groups: tuple[int, int]) -> Extent:
    return Extent(file=source(path), row_groups=tuple(RowGroup(rows=rows, size=size) for rows, size in groups))


def pieces(groups: list[tuple[Span, ...]]) -> list[list[tuple[str, int, int]]]:
    return [[(span.file.path, span.start, span.stop) for span in group] for group in groups]


def test_row_groups_are_joined_until_they_make_a_unit() -> None:
    extent = parquet("a", (5000, 1), (5000, 1), (9000, 1), (10, 1), (10, 40 * MIB), (10, 1))
    (a, b, c, d) = cut([extent])
    assert pieces([a, b, c, d]) == [[("a", 0, 2)], [("a", 2, 3)], [("a", 3, 5)], [("a", 5, 6)]]
    assert [group[0].rows for group in (a, b, c, d)] == [10000, 9000, 20, 10]


def test_plain_jsonl_is_cut_by_bytes_and_gzip_is_not() -> None:
    assert pieces(cut([plain("a.jsonl", 20 * MIB), packed("b.jsonl.gz", 20 * MIB)])) == [
        [("a.jsonl", 0, 8 * MIB)],
        [("a.jsonl", 8 * MIB, 16 * MIB)],
        [("a.jsonl", 16 * MIB, 20 * MIB)],
        [("b.jsonl.gz", 0, 20 * MIB)],
    ]


def test_files_without_rows_have_no_span_and_broken_ones_have_one() -> None:
    extents = [parquet("a"), parquet("b", (0, 0)), plain("c", 0), Extent(file=source("d", 9))]
    extents += [packed("e", 0), Extent(file=source("f", 0))]
    (broken, empty) = cut(extents)
    assert [(span.file.path, span.kind, span.rows) for span in (*broken, *empty)] == [
        ("d", "file", None),
        ("f", "file", None),
    ]


def test_packs_are_capped_and_keep_to_one_format() -> None:
    extents = [parquet(f"{index:05}.parquet", (1, 1)) for index in range(20_000)]
    extents += [plain(f"{index:05}.jsonl", 7 * MIB) for index in range(50)]
    extents += [packed(f"{index:05}.jsonl.gz", MIB) for index in range(50)]
    groups = cut(extents)
    assert max(map(len, groups)) <= spans.MAX_PACK_FILES
    for group in groups:
        assert len({(span.file.format, span.file.compression) for span in group}) == 1
        if group[0].file.format == "jsonl" and not group[0].file.compression:
            assert sum(span.file.size for span in group) < (spans.MAX_PACK_UNITS + 1) * spans.UNIT_TEXT_BYTES
    assert sum(map(len, groups)) == 20_100


def test_a_document_per_file_counts_as_a_row_even_if_it_is_empty() -> None:
    groups = cut([document(f"{index:05}.txt", 0) for index in range(20_000)])
    assert sum(span.rows or 0 for group in groups for span in group) == 20_000
    assert max(map(len, groups)) <= spans.MAX_PACK_FILES
    (alone,) = cut([document("large.txt", 20 * MIB)])
    assert [(span.kind, span.start, span.stop, span.rows) for span in alone] == [("file", 0, 20 * MIB, 1)]


def test_small_files_are_packed_to_about_a_unit() -> None:
    groups = cut([parquet(f"{index:05}.parquet", (100, 1)) for index in range(10_000)])
    assert 0.5 < 10_000 * 100 / len(groups) / spans.UNIT_ROWS < 2


ROWS = st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 50 * MIB)), max_size=6)
NAMES = st.text("abc/=", min_size=1, max_size=6)


@st.composite
def extents(draw: st.DrawFn) -> list[Extent]:
    names = draw(st.lists(NAMES, unique=True, max_size=30))
    made = []
    for name in names:
        if draw(st.booleans()):
            made.append(parquet(name, *draw(ROWS)))
        else:
            form = draw(st.sampled_from([plain, packed, document]))
            made.append(form(name, draw(st.integers(0, 30 * MIB))))
    return made


@given(extents(), st.randoms(use_true_random=False))
def test_every_row_group_and_byte_is_in_one_span_whatever_the_order(made: list[Extent], random: Random) -> None:
    groups = cut(made)
    covered: dict[str, list[tuple[int, int]]] = {}
    for span in (span for group in groups for span in group):
        covered.setdefault(span.file.path, []).append((span.start, span.stop))
    for extent in made:
        if extent.row_groups is not None:
            groups_in = {index for start, stop in covered.get(extent.file.path, []) for index in range(start, stop)}
            with_rows = {index for index, group in enumerate(extent.row_groups) if group.rows}
            assert with_rows <= groups_in
            count = sum(stop - start for start, stop in covered.get(extent.file.path, []))
            assert count == len(groups_in)
        else:
            runs = sorted(covered.get(extent.file.path, []))
            edges = [0, *(stop for _, stop in runs)]
            assert [start for start, _ in runs] == edges[:-1]
            assert edges[-1] == extent.file.size
    shuffled = list(made)
    random.shuffle(shuffled)
    assert cut(shuffled) == groups


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=300), st.integers(0, 10_000), st.integers(1, 4000))
def test_one_more_file_changes_one_pack_only(present: set[int], added: int, rows: int) -> None:
    present.discard(added)
    before = cut([parquet(f"{index:05}", (rows, 1)) for index in sorted(present)])
    after = cut([parquet(f"{index:05}", (rows, 1)) for index in sorted(present | {added})])
    capped = spans.MAX_PACK_UNITS * spans.UNIT_ROWS
    if any(sum(span.rows or 0 for span in group) >= capped for group in before + after):
        return  # a pack that was ended by its size moves those up to the next end by name
    assert len(set(before) - set(after)) <= 1
    assert len(set(after) - set(before)) <= 2
