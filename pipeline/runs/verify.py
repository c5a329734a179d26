"""A published table is verified: a sample of its texts is encoded again and compared with its vectors.

A `Published` table comes in. A `Verification` goes out, which says how far they differ and which rows are wrong. Only the row
groups that sampled rows stand in are read, and nothing is changed.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import identity, progress, schema
from pipeline.config import ChunkSpec
from pipeline.encoder.chunking import chunk, mean_vectors
from pipeline.encoder.embedder import embedder
from pipeline.errors import InputError, StorageError
from pipeline.extras import install_packages
from pipeline.model.folder import EncoderSpec
from pipeline.progress import Phase, counted
from pipeline.runs.published import Published
from pipeline.runs.vector_comparison import NEIGHBOURS, Tolerance, Vectors, compare_vectors, stored_vectors, tolerance
from pipeline.storage import Folder
from pipeline.table.part import Part
from pipeline.table.snapshot import Snapshot, hex_to_schema

Oracle = Literal["pipeline", "sentence-transformers"]

_CHUNK_FIELDS = [field.name for field in schema.CHUNK]
_SHOWN = 5
_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class WrongRow:
    id: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """It says what was found, for a person (`str`) and for machines (`to_dict`).

    A figure is None where no sampled row could be compared.
    """

    table: str
    version: int
    rows: int
    """The table has so many rows."""
    sampled: int
    seed: int
    oracle: str
    """It names what encoded the texts again."""
    precision: str
    dtype: str
    tolerance: Tolerance
    max_abs_difference: float | None
    """It is between a number in the table and the rounded exact one, with vectors scaled to length 1."""
    min_cosine: float | None
    mean_cosine: float | None
    """Both cosines are between a vector of the table and the exact one, which is not rounded."""
    neighbour_overlap: float | None
    """It is the share of each row's nearest NEIGHBOURS in the sample that are so by the exact vectors, too."""
    min_norm: float | None
    mean_norm: float | None
    max_norm: float | None
    not_finite: int
    """So many numbers of the sampled vectors are NaN or infinite."""
    clipped: float | None
    """It is the share of the exact numbers that lie outside the ranges of an int8 or uint8 table by more than a step."""
    flips: int | None
    """So many numbers of a binary table have another sign than the exact ones. It is None for other dtypes."""
    faults: tuple[str, ...]
    """They say what is wrong with the sample as a whole."""
    wrong: tuple[WrongRow, ...]

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.faults

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        lines = [
            f"verified version {self.version} of {self.table}: {self.sampled:,} of {counted(self.rows, 'row')} (seed "
            f"{self.seed}), encoded again by {self.oracle}",
            f"  difference {_shown(self.max_abs_difference, '.2e')} at most, after rounding to {self.dtype}",
            f"  cosine     min {_shown(self.min_cosine, '.7f')}, mean {_shown(self.mean_cosine, '.7f')}",
            f"  neighbours {_shown(self.neighbour_overlap, '.2%')} of the {NEIGHBOURS} nearest among the sample are the same",
            f"  norms      min {_shown(self.min_norm, '.6f')}, mean {_shown(self.mean_norm, '.6f')}, max "
            f"{_shown(self.max_norm, '.6f')}",
            f"  NaN        {self.not_finite:,} numbers that are NaN or infinite",
            *(
                []
                if self.clipped is None
                else [f"  clipped    {self.clipped:.3%} of the exact numbers lie outside the ranges"]
            ),
            *([] if self.flips is None else [f"  signs      {self.flips:,} are not those of the exact numbers"]),
            f"  tolerance  {self.tolerance} ({self.precision})",
            f"  verdict    {self._verdict()}",
            *(f"    {row.id}: {row.problem}" for row in self.wrong[:_SHOWN]),
        ]
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.passed:
            return "passed: every sampled row is as it should be"
        are = "is" if self.sampled == 1 else "are"
        wrong = [f"{len(self.wrong):,} of {counted(self.sampled, 'row')} {are} wrong"] if self.wrong else []
        more = f"; the first {_SHOWN}:" if len(self.wrong) > _SHOWN else ":" if self.wrong else ""
        return f"FAILED: {'; '.join([*self.faults, *wrong])}{more}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def verify(found: Published, num_rows: int = 256, seed: int = 0, oracle: Oracle = "pipeline") -> Verification:
    """Encode a seeded sample of the table's rows again and compare. Raises InputError where that can't be done."""
    if num_rows < 1:
        raise InputError(f"the number of rows is {num_rows}; give at least 1")
    if seed < 0:
        raise InputError(f"the seed is {seed}; give a whole number of at least 0")
    embedding = str(found.version.embeddings[0]["column"])
    kept = hex_to_schema(found.version.schema).names
    if schema.TEXT not in kept:
        raise InputError(
            f"table {found.spec.table.path!r} holds no texts (table.keep_text is false): there is nothing to encode again"
        )
    columns = [schema.ID, schema.TEXT, embedding, schema.CONTENT_HASH]
    columns += _CHUNK_FIELDS if found.spec.rows_are_chunks else []
    run = progress.current()
    run.begin(Phase.READING)
    rows = sample_rows(found.table, found.version, num_rows, seed, columns)
    run.expect(units=None, rows=rows.num_rows if found.spec.chunk is None or found.spec.rows_are_chunks else None)
    run.begin(Phase.LOADING)
    exact = dataclasses.replace(found.encoder, precision="float32", int8=None)
    encode, name = _oracle(exact, oracle)
    vectors, failed = _encode_rows(rows.column(schema.TEXT).to_pylist(), exact, found.spec.chunk, encode)
    run.begin(Phase.VERIFYING)
    compared = compare_vectors(found, stored_vectors(rows.column(embedding), found), vectors)
    limits = tolerance(found.encoder.precision, found.spec.table.dtype)
    problems = itertools.chain(
        ((row, f"its text can't be encoded: {reason}") for row, reason in failed.items()),
        _wrong_hashes(rows, found.encoder.prompt),
        _wrong_chunks(rows) if found.spec.rows_are_chunks else (),
        compared.problems(),
    )
    figures = compared.figures(found.encoder.similarity)
    return Verification(
        table=found.table.url,
        version=found.version.version,
        rows=sum(part.rows for part in found.version.parts),
        sampled=rows.num_rows,
        seed=seed,
        oracle=name,
        precision=found.encoder.precision,
        dtype=found.spec.table.dtype,
        tolerance=limits,
        faults=tuple(compared.faults(limits)),
        wrong=_wrong_rows(rows.column(schema.ID).to_pylist(), problems),
        **figures,
    )


def _wrong_rows(ids: Sequence[str], problems: Iterable[tuple[int, str]]) -> tuple[WrongRow, ...]:
    """Return the rows with problems in the order of the sample, each with all of its problems."""
    found: dict[int, list[str]] = {}
    for row, problem in problems:
        found.setdefault(row, []).append(problem)
    return tuple(WrongRow(id=ids[row], problem="; ".join(found[row])) for row in sorted(found))


# --- the sample


def sample_rows(table: Folder, version: Snapshot, num_rows: int, seed: int, columns: Sequence[str]) -> pa.Table:
    """Draw at most `num_rows` rows of the version, every row as likely as any other, in their order there.

    Raises InputError for a version without rows. Raises StorageError for a part that can't be read, or that doesn't have the
    rows that its version names.
    """
    counts = [part.rows for part in version.parts]
    bounds = np.cumsum([0, *counts])
    total = int(bounds[-1])
    # The numbers are sorted, so that the sample depends on the seed and the version alone.
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(num_rows, total), replace=False))
    places = np.searchsorted(chosen, bounds)
    pieces = [
        piece
        for part, start, first, last in zip(version.parts, bounds, places, places[1:], strict=False)
        for piece in _rows_at(table, part, chosen[first:last] - start, list(columns))
    ]
    if not pieces:
        raise InputError(f"version {version.version} of {table.url} has no rows: there is nothing to verify")
    return pa.concat_tables(pieces)


def _rows_at(table: Folder, part: Part, numbers: NDArray[np.int64], columns: list[str]) -> Iterator[pa.Table]:
    """Yield these rows of a part, ascending, from the row groups that hold them."""
    if not len(numbers):
        return
    try:
        with table.open(part.location) as file:
            parquet = pq.ParquetFile(file)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            if sum(sizes) != part.rows:
                raise StorageError(f"{table.url}/{part.location} has {sum(sizes)} rows; its version names {part.rows}")
            bounds = np.cumsum([0, *sizes])
            groups = np.searchsorted(bounds, numbers, side="right") - 1
            for group in np.unique(groups).tolist():
                in_group, start = numbers[groups == group] - bounds[group], 0
                # Some rows are read at a time, because a row group holds many, however long their texts are.
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=columns):
                    here = in_group[(in_group >= start) & (in_group < start + batch.num_rows)] - start
                    if len(here):
                        yield pa.Table.from_batches([batch]).select(columns).take(pa.array(here))
                    start += batch.num_rows
                    if start > in_group[-1]:
                        break
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{table.url}/{part.location} can't be read: {error}") from None


# --- the exact vectors

_Encode = Callable[[Sequence[str]], tuple[Vectors, dict[int, str]]]
"""It turns texts into (float32[n, dim], text -> why it has no vector)."""


def _encode_rows(
    texts: Sequence[str], spec: EncoderSpec, chunking: ChunkSpec | None, encode: _Encode
) -> tuple[Vectors, dict[int, str]]:
    """Return the vector of each row's text, or the mean of its chunks' vectors where a row is a whole document."""
    if chunking is None or chunking.rows == "chunks":
        return encode(texts)
    cut = chunk(texts, embedder(spec, "cpu").tokenizer, chunking)
    ranges = zip(cut.text.tolist(), cut.start.tolist(), cut.end.tolist(), strict=True)
    vectors, failed = encode([texts[text][start:end] for text, start, end in ranges])
    whole, number = np.unique(cut.text, return_inverse=True)
    means, reasons = mean_vectors(vectors, number, failed, unit_length=spec.unit_length)
    out = np.full((len(texts), spec.dim), np.nan, np.float32)
    out[whole] = means
    return out, cut.failed | {int(whole[row]): reason for row, reason in reasons.items()}


def _oracle(spec: EncoderSpec, oracle: Oracle) -> tuple[_Encode, str]:
    """Return (what encodes, its name)."""
    if oracle == "sentence-transformers":
        return _sentence_transformers(spec)

    def encode(texts: Sequence[str]) -> tuple[Vectors, dict[int, str]]:
        encoded = embedder(spec, "cpu").encode(texts, progress.current().encoded)
        return encoded.vectors, encoded.failed

    return encode, "this program, in float32 on the CPU"


def _sentence_transformers(spec: EncoderSpec) -> tuple[_Encode, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The user can't mend what that library imports.
            import sentence_transformers
    except ImportError as error:
        raise InputError(
            f"--oracle sentence-transformers needs that package ({error}): "
            f"{install_packages('sentence-transformers>=6.2')}, or leave --oracle out"
        ) from None
    from pipeline.model.quiet import quiet_transformers

    with quiet_transformers():
        model = sentence_transformers.SentenceTransformer(spec.folder, device="cpu", local_files_only=True).float()
    if spec.max_seq_length is not None:
        model.max_seq_length = spec.max_seq_length
    model.truncate_dim = spec.truncate_dim

    def encode(texts: Sequence[str]) -> tuple[Vectors, dict[int, str]]:
        vectors = model.encode(
            list(texts), prompt=spec.prompt, normalize_embeddings=spec.normalize, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32).reshape(len(texts), -1), {}

    return encode, f"sentence-transformers {sentence_transformers.__version__}"


def _wrong_hashes(rows: pa.Table, prompt: str) -> Iterator[tuple[int, str]]:
    expected = identity.content_hashes(rows.column(schema.TEXT), prompt).to_pylist()
    pairs = zip(rows.column(schema.CONTENT_HASH).to_pylist(), expected, strict=True)
    return ((row, "its content_hash is not that of prompt and text") for row, (a, b) in enumerate(pairs) if a != b)


def _wrong_chunks(rows: pa.Table) -> Iterator[tuple[int, str]]:
    for number, row in enumerate(rows.select([schema.ID, schema.TEXT, *_CHUNK_FIELDS]).to_pylist()):
        length = row[schema.CHUNK_END] - row[schema.CHUNK_START]
        if row[schema.ID] != f"{row[schema.DOC_ID]}#{row[schema.CHUNK_INDEX]}" or len(row[schema.TEXT]) != length:
            yield number, "its id or its length is not what its chunk fields say"
