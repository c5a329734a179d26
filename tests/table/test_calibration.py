"""Ranges are exact, made once however many make them at the same moment, and measured on a spread of the source."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError, RunError
from pipeline.storage import Folder
from pipeline.table import calibration, layout
from pipeline.table.calibration import (
    NOTHING,
    SPANS,
    STEADY,
    TEXTS,
    Calibration,
    Measurement,
    create,
    load,
    measure,
    sample,
    stored,
)
from pipeline.work import SourceFile, Span

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


PATH = layout.calibration("k")


def made(rows: int = 5, low: float = -1.0) -> Calibration:
    return Calibration(rows=rows, minimum=(low, 0.0), maximum=(1.0, 0.0))


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 8), st.integers(1, 5)), elements=FLOATS),
    st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=8, max_size=8),
    st.integers(0, 8),
)
def test_ranges_are_the_extremes_of_the_vectors_that_count_however_they_are_cut(vectors, texts, cut):
    counts = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    good, texts = vectors[counts], texts[: len(vectors)]
    found = measure(vectors, texts, "u")
    assert found.calibration.rows == len({text for text, count in zip(texts, counts, strict=True) if count})
    assert found.units == ({"u"} if len(good) else set())
    if len(good):
        assert np.array_equal(found.calibration.ranges, [good.min(axis=0), good.max(axis=0)])
    assert measure(vectors[:cut], texts[:cut], "u") + measure(vectors[cut:], texts[cut:], "u") == found


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=9))
def test_stored_ranges_are_the_measured_ones_to_the_bit(tmp_path_factory, values):
    table = Folder(str(tmp_path_factory.mktemp("table")))
    width = 2 * np.float32(np.abs(values)) + np.float32(1)
    before = Calibration(rows=2, minimum=tuple((-width).tolist()), maximum=tuple(values))
    create(table, PATH, before)
    found = load(table, PATH, len(values))
    assert found is not None
    assert found.ranges.tobytes() == before.ranges.tobytes()
    assert found.digest == before.digest


def test_of_many_that_calibrate_at_once_one_decides(tmp_path):
    table, start = Folder(str(tmp_path)), Barrier(8)

    def race(number: int) -> Calibration | None:
        start.wait()
        create(table, PATH, made(low=-float(number + 1)))
        return load(table, PATH, 2)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(race, range(8)))
    assert len(set(found)) == 1
    assert found[0] in [made(low=-float(number + 1)) for number in range(8)]


def test_the_file_holds_nothing_but_the_ranges(tmp_path):
    create(Folder(str(tmp_path)), PATH, made())
    content = json.loads((tmp_path / PATH).read_text())
    assert content == {"format": 1, "dim": 2, "rows": 5, "minimum": [-1.0, 0.0], "maximum": [1.0, 0.0]}


@pytest.mark.parametrize("found", [NOTHING.calibration, made(rows=1)])
def test_too_few_vectors_are_an_error_that_says_what_to_do(tmp_path, found):
    with pytest.raises(RunError, match=f"{found.rows} of the source's rows gave a vector, .*at least 2.*table.dtype"):
        create(Folder(str(tmp_path)), PATH, found)
    assert load(Folder(str(tmp_path)), PATH, 2) is None


@pytest.mark.parametrize(("flat", "refused"), [(0, False), (2, False), (3, True), (4, True)])
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_ranges_of_which_most_have_no_width_are_refused(tmp_path, flat, refused, noise):
    low = (0.1,) * 4
    found = Calibration(rows=9, minimum=low, maximum=(*(0.1 + noise for _ in range(flat)), *[0.2] * (4 - flat)))
    if refused:
        with pytest.raises(
            RunError, match=f"^{flat} of 4 dimensions have one and the same value in all 9.*table.dtype"
        ):
            create(Folder(str(tmp_path)), PATH, found)
    else:
        create(Folder(str(tmp_path)), PATH, found)
    assert (load(Folder(str(tmp_path)), PATH, 4) is None) == refused


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"rows": 2, "dim": 3, "minimum": [1], "maximum": [1]}'
     , '{"rows": 2, "dim": 1, "minimum": [NaN], "maximum": [1]}', '{"rows": 2, "dim": 1, "minimum": ["x"], "maximum": [1]}'
     , '{"rows": 2, "dim": 1, "minimum": [-1' + "0" * 400 + '], "maximum": [1]}'
     , '{"rows": 2, "dim": 2, "minimum": [0, 0], "maximum": [1, 1]}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / PATH
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(InputError, match=r"meta/calibration/k/ranges.json holds no value ranges of 1 dim.*delete it"):
        load(Folder(str(tmp_path)), PATH, 1)
    with pytest.raises(InputError, match=r"meta/calibration/k/ranges.json, which is another file now"):
        stored(Folder(str(tmp_path)), {"calibration": {"path": PATH, "digest": made().digest}})


def test_the_calibration_that_a_version_names_must_be_the_one_that_stands(tmp_path):
    table = Folder(str(tmp_path))
    entry = {"calibration": {"path": PATH, "digest": made().digest}}
    with pytest.raises(InputError, match="which is gone"):
        stored(table, entry)
    create(table, PATH, made())
    assert stored(table, entry) == made()
    assert stored(table, {"calibration": None}) is None
    table.write(PATH, json.dumps(made(low=-2.0).to_dict()).encode())
    with pytest.raises(InputError, match="another file now"):
        stored(table, entry)


def spans(rows: list[int | None]) -> list[tuple[Span, ...]]:
    """One group each."""
    files = [SourceFile(path=f"{number:06}", size=1, version="1", format="jsonl") for number in range(len(rows))]
    pairs = zip(files, rows, strict=True)
    return [(Span(file=file, kind="file", start=0, stop=1, rows=count),) for file, count in pairs]


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(1, 3000), max_size=300))
def test_rounds_take_every_span_once_and_begin_evenly_spread(rows):
    groups = spans(rows)
    chosen = sample(groups)
    rounds = list(chosen.rounds())
    taken = [unit.spans[0] for units in rounds for unit in units]
    assert sorted(taken, key=lambda span: span.file.path) == [span for (span,) in groups]
    assert [unit.unit_id for units in chosen.rounds() for unit in units] == [
        unit.unit_id for units in rounds for unit in units
    ]
    if rounds:
        numbers = [unit.sources[0] for unit in rounds[0]]
        gaps = np.diff([*numbers, len(rows)])
        assert numbers[0] == 0
        assert gaps.max() - gaps.min() <= 1
        assert TEXTS <= len(rounds[0]) * chosen.texts < TEXTS + len(rounds[0])


@pytest.mark.parametrize(
    ("rows", "first", "texts"),
    [
        ([8192], 1, 1024),
        ([8192] * 3, 3, 342),
        ([8192] * 500, 256, 4),
        ([None] * 500, 256, 4),
        ([1] * 5000, 1024, 1),
        ([10] * 500, 256, 4),
        ([2] * 2000, 512, 2),
        ([10] * 50, 50, 21),
    ],
)
def test_a_sample_takes_about_a_thousand_texts_of_few_files(rows, first, texts):
    chosen = sample(spans(rows))
    assert (chosen.first, chosen.texts) == (first, texts)
    assert calibration.FEWEST < STEADY < TEXTS
    assert (chosen.depth == 0) == (first >= SPANS)
    assert chosen.depth * first <= calibration.ROWS
    assert chosen.depth <= calibration.SPAN_ROWS


def test_spans_that_gave_few_texts_are_read_again_for_more():
    chosen = sample(spans([100] * 500))
    found = Measurement(
        texts=frozenset([b"a"]), units=frozenset(["calibration-3", "calibration-77"]), minimum=(), maximum=()
    )
    more, units = chosen.again(found)
    assert [unit.sources for unit in units] == [(3,), (77,)]
    assert [unit.unit_id for unit in units] == ["calibration-3", "calibration-77"]
    assert (more.texts, more.depth) == (TEXTS // 2, calibration.SPAN_ROWS)
    assert chosen.again(NOTHING)[1] == ()
    whole = sample(spans([100]))
    assert (
        whole.again(Measurement(texts=frozenset([b"a"]), units=frozenset(["calibration-0"]), minimum=(), maximum=()))[1]
        == ()
    )
