"""A published table checked against its model: some of its texts encoded again, exactly, and compared with its vectors.

Comes in: a `Published` table. Goes out: a `Verification`, which says how far they differ and which rows are wrong. Reads
only the row groups that sampled rows stand in; changes nothing.
"""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import identity, schema
from pipeline.config import ChunkSpec
from pipeline.encoder.chunking import chunk, mean_vectors
from pipeline.encoder.embedder import embedder
from pipeline.errors import InputError, StorageError
from pipeline.model.folder import EncoderSpec
from pipeline.quantize import PACKED, SCALAR, dequantize, outside, quantize, steps
from pipeline.runs.published import Published
from pipeline.similarities import similarities
from pipeline.storage import Folder
from pipeline.table import calibration
from pipeline.table.part import Part
from pipeline.table.snapshot import Snapshot, hex_to_schema

Vectors = NDArray[np.float32]
Oracle = Literal["pipeline", "sentence-transformers"]

NEIGHBOURS = 10
_CHUNK_FIELDS = [field.name for field in schema.CHUNK]
_SHOWN = 5
_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a table may be from the exact vectors of its texts."""

    number: float
    """Of each number of a vector of length 1, before it is rounded to the table's dtype."""
    min_cosine: float | None = None
    """Of each vector with the exact one, before it is rounded."""
    mean_cosine: float | None = None
    """Of all vectors of an int8 or uint8 table with the exact ones, which are not rounded."""
    clipped: float | None = None
    """Share of the exact numbers that lie outside such a table's ranges."""

    def __str__(self) -> str:
        kinds = {
            "difference at most": self.number,
            "cosine at least": self.min_cosine,
            "mean cosine at least": self.mean_cosine,
            "clipped at most": self.clipped,
        }
        return ", ".join(f"{kind} {limit:.3g}" for kind, limit in kinds.items() if limit is not None)


def _at_cosine(least: float) -> float:
    """The most that one number of two vectors of length 1 can differ by, if their cosine is `least`."""
    return math.sqrt(2 * (1 - least))


TOLERANCES = {
    "float32": Tolerance(number=1e-5),
    "float16": Tolerance(number=_at_cosine(0.9999), min_cosine=0.9999),
    "bfloat16": Tolerance(number=_at_cosine(0.999), min_cosine=0.999),
    "int8": Tolerance(number=_at_cosine(0.9), min_cosine=0.9, mean_cosine=0.99),
}
"""By the precision that the table was computed in."""


def tolerance(precision: str, dtype: str) -> Tolerance:
    """That of a table computed in `precision` and stored as `dtype`."""
    found = TOLERANCES[precision]
    return dataclasses.replace(found, mean_cosine=0.99, clipped=calibration.CLIPPED) if dtype in SCALAR else found


@dataclass(frozen=True, kw_only=True)
class WrongRow:
    id: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found, for a person (`str`) and for machines (`to_dict`). None where no sampled row could be compared."""

    table: str
    version: int
    rows: int
    """In the table."""
    sampled: int
    seed: int
    oracle: str
    """What encoded the texts again."""
    precision: str
    dtype: str
    tolerance: Tolerance
    max_abs_difference: float | None
    """Between a number in the table and the exact one rounded to the table's dtype, of vectors scaled to length 1."""
    min_cosine: float | None
    mean_cosine: float | None
    """Between a vector of the table and the exact one, not rounded."""
    neighbour_overlap: float | None
    """Share of each row's nearest NEIGHBOURS among the sample that are so by the exact vectors too."""
    min_norm: float | None
    mean_norm: float | None
    max_norm: float | None
    not_finite: int
    """Numbers of the sampled vectors that are NaN or infinite."""
    clipped: float | None
    """Share of the exact vectors' numbers that lie outside the ranges of an int8 or uint8 table by more than a step."""
    flips: int | None
    """Of a binary table: numbers whose sign is not the exact one's."""
    faults: tuple[str, ...]
    """What is wrong with the sample as a whole."""
    wrong: tuple[WrongRow, ...]

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.faults

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        lines = [
            f"verified version {self.version} of {self.table}: {self.sampled:,} of {self.rows:,} rows (seed {self.seed}), "
            f"encoded again by {self.oracle}",
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
        wrong = [f"{len(self.wrong):,} of {self.sampled:,} rows are wrong"] if self.wrong else []
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
    rows = sample_rows(found.table, found.version, num_rows, seed, columns)
    exact = dataclasses.replace(found.encoder, precision="float32", int8=None)
    encode, name = _oracle(exact, oracle)
    vectors, failed = _encode_rows(rows.column(schema.TEXT).to_pylist(), exact, found.spec.chunk, encode)
    compared = _compare(found, _stored(rows.column(embedding), found), vectors)
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
    """In the order of the sample, all problems of a row together."""
    found: dict[int, list[str]] = {}
    for row, problem in problems:
        found.setdefault(row, []).append(problem)
    return tuple(WrongRow(id=ids[row], problem="; ".join(found[row])) for row in sorted(found))


# --- the sample


def sample_rows(table: Folder, version: Snapshot, num_rows: int, seed: int, columns: Sequence[str]) -> pa.Table:
    """At most `num_rows` rows of the version, every row as likely as any other, in the order in which they stand there.

    Raises StorageError for a part that can't be read or doesn't have the rows that its version names.
    """
    counts = [part.rows for part in version.parts]
    bounds = np.cumsum([0, *counts])
    total = int(bounds[-1])
    # Fixed in order, so that the sample depends on the seed and the version alone.
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
    """These rows of a part, ascending, from the row groups that hold them."""
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
                wanted, start = numbers[groups == group] - bounds[group], 0
                # Some rows at a time: a row group holds many, however long their texts are.
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=columns):
                    here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
                    if len(here):
                        yield pa.Table.from_batches([batch]).select(columns).take(pa.array(here))
                    start += batch.num_rows
                    if start > wanted[-1]:
                        break
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{table.url}/{part.location} can't be read: {error}") from None


# --- the exact vectors

_Encode = Callable[[Sequence[str]], tuple[Vectors, dict[int, str]]]
"""Texts -> (float32[n, dim], text -> why it has no vector)."""


def _encode_rows(
    texts: Sequence[str], spec: EncoderSpec, chunking: ChunkSpec | None, encode: _Encode
) -> tuple[Vectors, dict[int, str]]:
    """The vector of each row: that of its text, or the mean of its chunks' where a row is a whole document."""
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
    """(what encodes, its name)."""
    if oracle == "sentence-transformers":
        return _sentence_transformers(spec)

    def encode(texts: Sequence[str]) -> tuple[Vectors, dict[int, str]]:
        encoded = embedder(spec, "cpu").encode(texts)
        return encoded.vectors, encoded.failed

    return encode, "this program, in float32 on the CPU"


def _sentence_transformers(spec: EncoderSpec) -> tuple[_Encode, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What that library imports is not the user's to mend.
            import sentence_transformers
    except ImportError as error:
        raise InputError(
            f"--oracle sentence-transformers needs that package ({error}): pip install 'sentence-transformers>=6.2', or leave "
            "--oracle out"
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


# --- the comparison


@dataclass(frozen=True, eq=False)
class _Comparison:
    """The n sampled vectors beside the exact ones; NaN where one has none."""

    stored: Vectors
    exact: Vectors
    """float32[n, dim] each."""
    differences: Vectors
    """[n, dim]: of the table's numbers from the exact ones rounded to its dtype, of vectors scaled to length 1."""
    outside: NDArray[np.bool_]
    """[n, dim]: further from it than the tolerance allows; so is NaN."""
    cosines: NDArray[np.float64]
    """[n]: with the exact vector, not rounded."""
    alike: NDArray[np.float64]
    """[n]: cosine with the exact vector, rounded as the table is: what the dtype takes cancels."""
    least_alike: NDArray[np.float64]
    """[n]: the least that the tolerance allows."""
    clipped: NDArray[np.bool_] | None
    """[n, dim] of int8 and uint8: whose exact number lies outside the ranges."""
    flips: NDArray[np.int64] | None
    """[n] of binary and ubinary: signs that are not those of the exact numbers."""
    likely_flips: NDArray[np.float64]
    """[n]: so many are to be expected of vectors at the least cosine that the tolerance allows; infinity without one."""

    @property
    def both(self) -> NDArray[np.bool_]:
        """[n]: the rows that both sides have a vector for."""
        return np.asarray(np.isfinite(self.stored).all(axis=1) & np.isfinite(self.exact).all(axis=1))

    def figures(self, function: str) -> dict[str, Any]:
        """Those of `Verification`, over the rows that both sides have a vector for."""
        finite = np.isfinite(self.stored).all(axis=1)
        both = self.both
        norms = np.linalg.norm(self.stored[finite], axis=1)
        return {
            "max_abs_difference": _figure(self.differences[both], np.max),
            "min_cosine": _figure(self.cosines[both], np.min),
            "mean_cosine": _figure(self.cosines[both], np.mean),
            "neighbour_overlap": _neighbour_overlap(self.stored[both], self.exact[both], function),
            "min_norm": _figure(norms, np.min),
            "mean_norm": _figure(norms, np.mean),
            "max_norm": _figure(norms, np.max),
            "not_finite": int((~np.isfinite(self.stored)).sum()),
            "clipped": None if self.clipped is None else _figure(self.clipped[both], np.mean),
            "flips": None if self.flips is None else int(self.flips[both].sum()),
        }

    def faults(self, limits: Tolerance) -> Iterator[str]:
        """What is wrong with the sample as a whole."""
        both = self.both
        if not both.any():
            return
        if limits.clipped is not None and self.clipped is not None and self.clipped[both].mean() > limits.clipped:
            yield f"{self.clipped[both].mean():.1%} of the numbers lie outside the table's ranges"
        if limits.mean_cosine is not None and self.cosines[both].mean() < limits.mean_cosine:
            yield f"the mean cosine is {self.cosines[both].mean():.4f}"
        if self.flips is not None and self.flips[both].sum() > _most_flips(self.likely_flips[both].sum()):
            yield f"{self.flips[both].sum():,} signs are wrong, about {self.likely_flips[both].sum():,.0f} may be"

    def problems(self) -> Iterator[tuple[int, str]]:
        """(row, what is wrong with its vector)."""
        wrong = self.outside.any(axis=1) | ~(self.alike >= self.least_alike)
        if self.flips is not None:
            wrong |= self.flips > _most_flips(self.likely_flips)
        for row in np.flatnonzero(wrong).tolist():
            bad, dim = int((~np.isfinite(self.stored[row])).sum()), self.stored.shape[1]
            if bad:
                yield row, f"{bad} of its {dim} numbers are NaN or infinite"
            elif not np.isfinite(self.exact[row]).all():
                continue  # Its text is the one at fault, and told.
            elif outside := int(self.outside[row].sum()):
                most = float(self.differences[row].max())
                yield row, f"{outside} of its {dim} numbers are not those of its text, by up to {most:.2g}"
            elif self.alike[row] < self.least_alike[row]:
                rounded = ", both rounded," if self.clipped is not None else ""
                yield row, f"its cosine with the exact vector{rounded} is {self.alike[row]:.6f}"
            elif self.flips is not None:
                yield row, f"{self.flips[row]} of its {dim} signs are not those of its text"


def _compare(found: Published, stored: Vectors, exact: Vectors) -> _Comparison:
    limits, dtype = tolerance(found.encoder.precision, found.spec.table.dtype), found.spec.table.dtype
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    margin = limits.number * lengths
    ranges = _ranges(found)
    rounded = _rounded(exact, found)
    packed = dtype in PACKED
    least = -math.inf if packed or limits.min_cosine is None else limits.min_cosine
    # Rounding keeps the order, so a number whose exact value is near enough lies between the rounded ends of its margin:
    # where a step's border is nearer than the margin, both steps are right.
    low, high = _rounded(exact - margin, found), _rounded(exact + margin, found)
    return _Comparison(
        stored=stored,
        exact=exact,
        differences=np.abs(stored - rounded) / np.maximum(lengths, 1e-12),
        outside=~np.asarray((low <= stored) & (stored <= high)),
        cosines=_cosines(stored, exact),
        alike=_cosines(stored, rounded),
        least_alike=least - _cosine_of_a_step(rounded, ranges),
        clipped=outside(exact, ranges) if ranges is not None else None,
        flips=(stored != rounded).sum(axis=1) if packed else None,
        likely_flips=_likely_flips(exact, limits.min_cosine),
    )


def _cosine_of_a_step(vectors: Vectors, ranges: Vectors | None) -> NDArray[np.float64]:
    """[n]: what rounding each number up or down by a step can take from the cosine of two vectors."""
    if ranges is None:
        return np.zeros(len(vectors))
    # Two vectors that are e apart have a cosine of about 1 - |e|^2 / (2 |v|^2).
    square = np.square(steps(ranges)[ranges[0] < ranges[1]].astype(np.float64)).sum()
    taken: NDArray[np.float64] = square / (2 * np.maximum(np.square(vectors.astype(np.float64)).sum(axis=1), 1e-24))
    return taken


def _likely_flips(exact: Vectors, cosine: float | None) -> NDArray[np.float64]:
    """[n]: signs that another one stands for in a vector at this cosine, if what was added has no direction of its own: a
    normal number is beyond the exact one with P(x > |v| / s). For a vector without one either it is angle / pi of them."""
    if cosine is None:  # each number is held to a tolerance so small that hardly a sign is free
        return np.full(len(exact), np.inf)
    lengths = np.linalg.norm(exact.astype(np.float64), axis=1, keepdims=True)
    spread = np.maximum(lengths * math.sqrt(1 - cosine**2) / math.sqrt(exact.shape[1]), 1e-24)
    tails = np.frompyfunc(math.erfc, 1, 1)(np.abs(exact) / spread / math.sqrt(2)).astype(np.float64) / 2
    likely: NDArray[np.float64] = tails.sum(axis=1)
    return likely


def _most_flips(likely: Any) -> Any:
    """Three standard deviations more, and one: of few none is sure."""
    return likely + 3 * np.sqrt(likely) + 1


def _figure(values: NDArray[Any], of: Callable[[NDArray[Any]], Any]) -> float | None:
    return float(of(values)) if values.size else None


def _cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """[n]: of each row of `a` with the same row of `b`, in float64."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity gives NaN
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines: NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-24)
    return cosines


def _neighbour_overlap(stored: Vectors, fresh: Vectors, function: str) -> float | None:
    """Each row's nearest others among the rows, by either set of vectors."""
    count = min(NEIGHBOURS, len(stored) - 1)
    if count < 1:
        return None
    nearest = []
    for vectors in (stored, fresh):
        found = similarities(vectors, vectors, function)
        np.fill_diagonal(found, -np.inf)
        nearest.append(np.argsort(-found, axis=1, kind="stable")[:, :count])
    same = [len(set(one) & set(other)) for one, other in zip(*(rows.tolist() for rows in nearest), strict=True)]
    return sum(same) / (count * len(stored))


def _rounded(vectors: Vectors, found: Published) -> Vectors:
    """As they come back from a table of the same dtype."""
    codes = quantize(vectors, found.spec.table.dtype, _ranges(found))
    return dequantize(codes, found.spec.table.dtype, found.encoder.dim, _ranges(found))


def _stored(column: pa.ChunkedArray, found: Published) -> Vectors:
    """float32[n, dim] that the table's column stands for."""
    values = column.combine_chunks()
    codes = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)
    return dequantize(codes, found.spec.table.dtype, found.encoder.dim, _ranges(found))


def _ranges(found: Published) -> Vectors | None:
    return found.calibration.ranges if found.calibration else None


def _wrong_hashes(rows: pa.Table, prompt: str) -> Iterator[tuple[int, str]]:
    wanted = identity.content_hashes(rows.column(schema.TEXT), prompt).to_pylist()
    pairs = zip(rows.column(schema.CONTENT_HASH).to_pylist(), wanted, strict=True)
    return ((row, "its content_hash is not that of prompt and text") for row, (a, b) in enumerate(pairs) if a != b)


def _wrong_chunks(rows: pa.Table) -> Iterator[tuple[int, str]]:
    for number, row in enumerate(rows.select([schema.ID, schema.TEXT, *_CHUNK_FIELDS]).to_pylist()):
        length = row[schema.CHUNK_END] - row[schema.CHUNK_START]
        if row[schema.ID] != f"{row[schema.DOC_ID]}#{row[schema.CHUNK_INDEX]}" or len(row[schema.TEXT]) != length:
            yield number, "its id or its length is not what its chunk fields say"
