"""A clean table passes, in every shape it can have; a table with one wrong vector, text or hash does not."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RunSpec
from pipeline.encoder.embedder import embedder
from pipeline.errors import InputError, StorageError
from pipeline.runs import vector_comparison
from pipeline.runs import verify as verification
from pipeline.runs.published import Published, is_published, published
from pipeline.runs.vector_comparison import TOLERANCES
from pipeline.runs.verify import sample_rows, verify
from pipeline.table import part
from pipeline.table.quantize import PACKED, SCALAR
from tests import inline
from tests.inline import spec_of
from tests.tiny import build_tiny_model

WORDS = ["the", "market", "of", "new", "york", "went", "up", "when", "people", "saw", "small", "oil", "서울", "날씨"]
COUNT = 60
CHUNK = {"max_tokens": 16, "overlap_tokens": 4}
CHUNKED = {"chunk": CHUNK}
DOCUMENTS = {"chunk": CHUNK | {"rows": "documents"}}
DTYPES = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    draw = np.random.default_rng(0)
    rows = [
        {"id": f"d{number:02}", "text": " ".join(draw.choice(WORDS, draw.integers(1, 40))), "topic": f"t{number % 3}"}
        for number in range(COUNT)
    ]
    path = tmp_path_factory.mktemp("source") / "docs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def built(source, tiny_model, tmp_path) -> Callable[..., Published]:
    """A table in some shape, published."""

    def build(folder: Path = tiny_model, **sections: dict) -> Published:
        spec = spec_of(source, folder, tmp_path / "table", **sections)
        inline.embed(spec)
        return published(spec)

    return build


def part_files(found: Published) -> list[Path]:
    return [Path(found.table.url) / part.path for part in found.version.parts]


def rewrite(found: Published, column: str, row: int, change: Callable) -> str:
    """Another value in one row of the first part; gives the row's id."""
    path = part_files(found)[0]
    rows = pq.read_table(path, partitioning=None)
    values = rows[column].to_pylist()
    values[row] = change(values[row])
    changed = rows.set_column(
        rows.schema.get_field_index(column),
        rows.schema.field(column),
        [pa.array(values, rows.schema.field(column).type)],
    )
    pq.write_table(changed, path)
    return str(rows["id"][row].as_py())


SHAPES = [
    {},
    {"table": {"partition_by": ["topic"]}},
    {"table": {"partition_by": ["topic"], "embedding_column": "a.vector"}, "source": {"keep": ["topic"]}},
    {"model": {"prompt": "query: "}},
    {"model": {"truncate_dim": 8, "normalize": True, "max_seq_length": 12}},
    CHUNKED,
    DOCUMENTS,
    CHUNKED | {"model": {"prompt": "of: "}, "table": {"dtype": "int8", "partition_by": ["topic"]}},
    DOCUMENTS | {"table": {"dtype": "float16"}},
    {"model": {"precision": "bfloat16"}},
    {"model": {"precision": "float16"}, "table": {"dtype": "int8"}},
]  # fmt: skip


@pytest.mark.parametrize("oracle", ["pipeline", "sentence-transformers"])
@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_a_clean_table_passes(built, shape, oracle):
    found = built(**shape)
    result = verify(found, num_rows=10_000, oracle=oracle)
    assert result.passed, str(result)
    assert result.sampled == result.rows >= COUNT
    exact = found.spec.table.dtype == found.spec.model.precision == "float32"
    assert result.max_abs_difference <= (1e-5 if exact else 2e-2)
    assert result.min_cosine > 0.999
    assert result.neighbour_overlap > 0.9
    assert result.not_finite == 0
    assert json.loads(json.dumps(result.to_dict()))["passed"] is True


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clean_table_of_any_dtype_passes(built, dtype):
    result = verify(built(table={"dtype": dtype}))
    assert result.passed, str(result)
    assert (result.dtype, result.sampled) == (dtype, COUNT)


def test_a_model_without_normalisation_is_compared_by_its_own_scale(built, tmp_path):
    model = build_tiny_model(tmp_path / "model", normalize=False)
    found = built(model)
    result = verify(found, oracle="sentence-transformers")
    assert result.passed, str(result)
    assert result.min_norm > 2
    wrong = rewrite(found, "embedding", 3, lambda vector: [*vector[:-1], vector[-1] + 1e-4 * np.linalg.norm(vector)])
    assert [row.id for row in verify(found).wrong] == [wrong]


def test_one_number_a_little_off_is_found(built):
    found = built()
    wrong = rewrite(found, "embedding", 17, lambda vector: [vector[0] + 3e-5, *vector[1:]])
    result = verify(found)
    assert not result.passed
    assert [row.id for row in result.wrong] == [wrong]
    assert result.wrong[0].problem == "1 of its 32 numbers are not those of its text, by up to 3e-05"
    assert result.max_abs_difference == pytest.approx(3e-5, rel=0.1)
    assert "FAILED: 1 of 60 rows are wrong" in str(result)


def step_up(code: int) -> int:
    return code - 2 if code > 0 else code + 2


@pytest.mark.parametrize(
    ("dtype", "change"),
    [
        ("float16", lambda vector: [vector[0] + 2e-3, *vector[1:]]),
        ("int8", lambda vector: [*vector[:5], step_up(vector[5]), *vector[6:]]),
        ("uint8", lambda vector: [*vector[:5], vector[5] - 2 if vector[5] > 128 else vector[5] + 2, *vector[6:]]),
        ("binary", lambda vector: [vector[0] ^ 1, ~vector[1], *vector[2:]]),
        ("ubinary", lambda vector: [vector[0], 255 - vector[1], *vector[2:]]),
    ],
)
def test_a_wrong_code_is_found(built, dtype, change):
    found = built(table={"dtype": dtype})
    wrong = rewrite(found, "embedding", 4, change)
    assert [row.id for row in verify(found).wrong] == [wrong]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vector_of_another_row_is_found(built, dtype):
    found = built(table={"dtype": dtype})
    other = pq.read_table(part_files(found)[0])["embedding"][9].as_py()
    wrong = rewrite(found, "embedding", 30, lambda _: other)
    assert [row.id for row in verify(found).wrong] == [wrong]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_found(built, value):
    found = built()
    wrong = rewrite(found, "embedding", 8, lambda vector: [*vector[:2], value, value, *vector[4:]])
    result = verify(found)
    assert [(row.id, row.problem) for row in result.wrong] == [(wrong, "2 of its 32 numbers are NaN or infinite")]
    assert result.not_finite == 2
    assert result.max_abs_difference <= 1e-5


@pytest.mark.parametrize("shape", [{}, CHUNKED, DOCUMENTS], ids=["whole", "chunks", "documents"])
def test_another_text_is_found_by_vector_and_hash(built, shape):
    found = built(**shape)
    wrong = rewrite(found, "text", 11, lambda text: f"{text[::-1]} oil")
    result = verify(found, num_rows=10_000)
    assert [row.id for row in result.wrong] == [wrong]
    assert "content_hash is not that of prompt and text" in result.wrong[0].problem
    assert "not those of its text" in result.wrong[0].problem
    assert ("chunk fields" in result.wrong[0].problem) == (shape is CHUNKED)


def test_a_wrong_hash_alone_is_found(built):
    found = built(model={"prompt": "query: "})
    wrong = rewrite(found, "content_hash", 11, lambda value: value[::-1])
    result = verify(found)
    assert [(row.id, row.problem) for row in result.wrong] == [
        (wrong, "its content_hash is not that of prompt and text")
    ]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float16", "float32"), ("bfloat16", "float32"), ("float16", "binary")]
)
def test_what_was_computed_in_less_precision_may_be_further_off(built, precision, dtype):
    found = built(table={"dtype": dtype})
    # As if the encoder had computed in it: the exact vectors, turned by an angle around that of the tolerance.
    lower = dataclasses.replace(found, encoder=dataclasses.replace(found.encoder, precision=precision))
    allowed = TOLERANCES[precision].min_cosine
    exact = embedder(found.encoder, "cpu").encode(pq.read_table(part_files(found)[0])["text"].to_pylist()).vectors
    store(found, turned(exact, 1 - 0.9 * (1 - allowed)))
    assert verify(lower).passed
    assert not verify(found).passed
    store(found, turned(exact, 1 - (1.1 if dtype == "float32" else 10) * (1 - allowed)))
    assert not verify(lower).passed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_excuses_what_it_does_to_a_vector_and_no_more(built, precision, dtype):
    found = built(table={"dtype": dtype})
    lower = dataclasses.replace(found, encoder=dataclasses.replace(found.encoder, precision=precision))
    allowed = 1 - TOLERANCES[precision].min_cosine
    exact = embedder(found.encoder, "cpu").encode(pq.read_table(part_files(found)[0])["text"].to_pylist()).vectors
    for seed in range(2):
        for share in (0.3, 0.9):
            store(found, turned(exact, 1 - share * allowed, seed))
            result = verify(lower)
            assert result.passed, str(result)
        store(found, turned(exact, 0.98, seed))
        result = verify(lower)
        assert not result.passed
        # 32 signs say little of a row; the sample as a whole has enough of them.
        if dtype not in PACKED:
            assert len(result.wrong) > 0.95 * COUNT


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_the_signs_of_a_row_of_many_dimensions_say_whether_it_is_right(precision):
    vectors = np.random.default_rng(3).normal(size=(200, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likely = vector_comparison._likely_flips(vectors, cosine := TOLERANCES[precision].min_cosine)
    # Where nothing has a direction of its own it is the angle's share of half a turn.
    assert likely.mean() == pytest.approx(384 * np.arccos(cosine) / np.pi, rel=0.05)
    for at, fine in ((1 - 0.9 * (1 - cosine), True), (0.98, False)):
        flips = (np.sign(turned(vectors, at)) != np.sign(vectors)).sum(axis=1)
        right = (flips <= vector_comparison._most_flips(likely)).mean()
        assert right == 1 if fine else right < 0.05


@pytest.mark.parametrize("dtype", SCALAR)
def test_ranges_of_other_texts_are_a_fault_of_the_table(source, tiny_model, tmp_path, dtype):
    """Built when the source had three rows, then grown: codes and ranges agree, and are worth little."""
    rows = source.read_text().splitlines(keepends=True)
    (tmp_path / "docs.jsonl").write_text("".join(rows[:3]))
    spec = spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table", table={"dtype": dtype})
    inline.embed(spec)
    assert verify(published(spec)).passed
    (tmp_path / "docs.jsonl").write_text("".join(rows))
    inline.embed(spec)
    result = verify(published(spec))
    assert (result.passed, result.wrong) == (False, ())
    assert result.clipped > 0.1
    assert f"FAILED: {result.clipped:.1%} of the numbers lie outside the table's ranges" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["faults"] == list(result.faults)
    fresh = spec_of(source, tiny_model, tmp_path / "fresh", table={"dtype": dtype})
    inline.embed(fresh)
    assert verify(published(fresh)).clipped == 0


@pytest.mark.parametrize("dtype", SCALAR)
def test_a_mean_cosine_below_the_dtypes_is_a_fault_of_the_table(built, dtype):
    found = built(table={"dtype": dtype})
    assert verify(found).mean_cosine > 0.999
    # So wide that a step is as long as a vector's number; the codes are made with them.
    wide = dataclasses.replace(found.calibration, minimum=(-30.0,) * 32, maximum=(30.0,) * 32)
    coarse = dataclasses.replace(found, calibration=wide)
    exact = embedder(found.encoder, "cpu").encode(pq.read_table(part_files(found)[0])["text"].to_pylist()).vectors
    store(coarse, exact)
    result = verify(coarse)
    assert (result.passed, result.wrong, result.clipped) == (False, (), 0)
    assert result.faults == (f"the mean cosine is {result.mean_cosine:.4f}",)
    assert result.mean_cosine < 0.99


def turned(vectors: np.ndarray, cosine: float, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 at this cosine with the given ones."""
    away = np.random.default_rng(seed).normal(size=vectors.shape)
    away -= (away * vectors).sum(axis=1, keepdims=True) * vectors
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return (cosine * vectors + np.sqrt(1 - cosine**2) * away).astype(np.float32)


def store(found: Published, vectors: np.ndarray) -> None:
    """Other vectors in the only part, whose rows stand by id."""
    (path,) = part_files(found)
    rows = pq.read_table(path)
    ranges = found.calibration.ranges if found.calibration else None
    codes = vector_comparison.quantize(vectors, found.spec.table.dtype, ranges)
    field = rows.schema.field("embedding")
    column = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=field.type)
    pq.write_table(rows.set_column(rows.schema.get_field_index("embedding"), field, column), path)


# --- the sample


def ids_of(found: Published, num_rows: int, seed: int) -> list[str]:
    return sample_rows(found.table, found.version, num_rows, seed, ["id"])["id"].to_pylist()


def test_a_sample_is_made_of_distinct_rows_by_the_seed_alone(built, monkeypatch):
    monkeypatch.setattr(part, "ROW_GROUP_BYTES", 4 * 32 * 7)  # seven rows to a row group
    monkeypatch.setattr(verification, "_BATCH_ROWS", 3)
    found = built(table={"partition_by": ["topic"]})
    assert len(found.version.parts) == 3
    every = ids_of(found, 10_000, 0)
    assert sorted(every) == sorted(f"d{number:02}" for number in range(COUNT))
    seen: dict[str, int] = {}
    for seed in range(100):
        some = ids_of(found, 6, seed)
        assert some == ids_of(found, 6, seed)
        assert len(set(some)) == 6
        assert some == [name for name in every if name in some]
        for name in some:
            seen[name] = seen.get(name, 0) + 1
    assert len(seen) == COUNT
    assert max(seen.values()) <= 25  # of 100, where 10 are expected


def test_only_parts_that_hold_sampled_rows_are_read(built):
    found = built(table={"partition_by": ["topic"]})
    names = {path: set(pq.read_table(path, partitioning=None)["id"].to_pylist()) for path in part_files(found)}
    (name,) = ids_of(found, 1, 0)
    for path, held in names.items():
        if name not in held:
            path.write_bytes(b"no Parquet")
    assert verify(found, num_rows=1).passed
    with pytest.raises(StorageError, match="can't be read"):
        verify(found)


def test_a_part_that_lost_rows_is_told(built):
    found = built()
    (path,) = part_files(found)
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(StorageError, match="has 59 rows; its version names 60"):
        verify(found)


def test_a_part_that_is_gone_is_told(built):
    found = built()
    part_files(found)[0].unlink()
    with pytest.raises(StorageError):
        verify(found)


def test_one_row_has_no_neighbours(built):
    result = verify(built(), num_rows=1)
    assert result.passed
    assert result.neighbour_overlap is None
    assert "neighbours -" in str(result)


# --- what can't be verified


def test_a_table_without_texts_is_told(built):
    with pytest.raises(InputError, match="holds no texts"):
        verify(built(table={"keep_text": False}))


def test_a_sample_of_no_rows_is_told(built):
    with pytest.raises(InputError, match="number of rows is 0"):
        verify(built(), num_rows=0)


def test_a_negative_seed_is_told(built):
    with pytest.raises(InputError, match="the seed is -1"):
        verify(built(), seed=-1)


def test_a_table_of_no_rows_is_told(tiny_model, tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "oil"}\n{"id": "b", "text": "oil"}\n')
    spec = spec_of(tmp_path / "docs.jsonl", tiny_model, tmp_path / "table", source={"where": "id == 'c'"})
    inline.embed(spec)
    with pytest.raises(InputError, match="has no rows"):
        verify(published(spec))


def test_another_model_and_no_version_are_told(built, source, tiny_model, tmp_path):
    found = built()
    assert is_published(found.spec)
    other: RunSpec = spec_of(source, tiny_model, tmp_path / "table", model={"truncate_dim": 8})
    with pytest.raises(
        InputError, match=r"built with other settings of the same model \(model\.truncate_dim was null, is 8\)"
    ):
        published(other)
    missing = spec_of(source, tiny_model, tmp_path / "nothing")
    assert not is_published(missing)
    with pytest.raises(InputError, match="no published version"):
        published(missing)
