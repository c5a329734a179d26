"""Models are compared on a person's own documents: speed, size, truncation, neighbours, and quality.

Runs with the same source come in, one per model. A `Comparison` goes out, which is one table for a person (`str`) and for
machines (`to_dict`). All models see one seeded sample, and nothing is written.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.comparison.contestant import Contestant, Pace, checked, contestant, timed
from pipeline.comparison.intervals import Interval, interval
from pipeline.comparison.questions import without_judgements
from pipeline.comparison.sample import Documents, sample
from pipeline.config import ModelSpec, RunSpec
from pipeline.errors import InputError
from pipeline.progress import ShownInNotebooks, per_second, size
from pipeline.runs.evaluate import RetrievalSet, nearest_documents, query_scores, read_judgements

ROWS = 1_000
NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    name: str
    dim: int
    dtype: str
    model_bytes: int
    bytes_per_row: float
    corpus_bytes: float
    """The vectors of the whole source would take about so many bytes."""
    max_seq_length: int | None
    truncated_share: float
    failed: int
    """So many documents of the sample have no vector."""
    docs_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    name: str
    judged: bool
    """People judged which documents answer a query. Else the set was made of the documents themselves."""
    documents: int
    queries: int
    scores: tuple[Interval, ...]
    """They are nDCG@10 by model."""
    behind: tuple[Interval | None, ...]
    """It is how far each model is behind the best one, query by query. It is None for the best one itself."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two models agree on this share of the nearest NEIGHBOURS of each document of the sample."""

    first: str
    second: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Comparison(ShownInNotebooks):
    sample: str
    """It says which documents were compared on."""
    seed: int
    models: tuple[ModelFigures, ...]
    quality: tuple[Quality, ...]
    overlaps: tuple[Overlap, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"compared {len(self.models)} models on {self.sample}", *_grid(list(self._rows()))]
        lines += [f"  {one.name}: {self._verdict(one)}" for one in self.quality]
        lines += [
            f"  neighbours: {one.first} and {one.second} agree on {one.share:.1%} of the {NEIGHBOURS} nearest"
            for one in self.overlaps
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _rows(self) -> Iterator[list[str]]:
        models = self.models
        yield ["", *(one.name for one in models)]
        yield ["documents/s", *(per_second(one.docs_per_s) for one in models)]
        yield ["tokens/s", *(per_second(one.tokens_per_s) for one in models)]
        yield ["model on disk", *(size(one.model_bytes) for one in models)]
        yield ["dimensions", *(f"{one.dim} {one.dtype}" for one in models)]
        yield ["vector bytes per row", *(f"{one.bytes_per_row:,.0f}" for one in models)]
        yield ["vectors of the source", *(f"about {size(one.corpus_bytes)}" for one in models)]
        yield ["reads tokens", *(f"{one.max_seq_length:,}" if one.max_seq_length else "all" for one in models)]
        yield ["truncated", *(f"{one.truncated_share:.1%}" for one in models)]
        if any(one.failed for one in models):
            yield ["without a vector", *(f"{one.failed:,}" for one in models)]
        for one in self.quality:
            yield [f"nDCG@10 {one.name}", *map(str, one.scores)]

    def _verdict(self, one: Quality) -> str:
        kind = "by judgements" if one.judged else "without judgements"
        best = one.behind.index(None)
        told = [
            f"{self.models[place].name} is {-gap.mean:.3f} behind [{-gap.high:.3f}, {-gap.low:.3f}]"
            + ("" if gap.is_clear else ", which may be chance")
            for place, gap in enumerate(one.behind)
            if gap is not None
        ]
        return f"{self.models[best].name} is best; {'; '.join(told)} ({one.queries:,} queries {kind})"


def compare(
    runs: Mapping[str, RunSpec],
    *,
    rows: int = ROWS,
    seed: int = 0,
    title: str | None = None,
    judged: Sequence[RetrievalSet] = (),
    queries: str | Path | None = None,
    judgements: str | Path | None = None,
) -> Comparison:
    """Compare the models of at least two runs, by the names that they are to have.

    `judged` sets bring their own documents. The files `queries` and `judgements` judge documents of the source. Raises
    InputError for other sources, for a model that can't be had, and for files that don't fit.
    """
    _check(runs, rows, seed, queries, judgements)
    for name, spec in runs.items():
        checked(name, spec)
    first = next(iter(runs.values()))
    asked = read_judgements(queries, judgements) if queries is not None and judgements is not None else None
    relevant = {name for found in asked[1].values() for name in found} if asked else set()
    documents = sample(first, rows, seed, title=title, asked=relevant)
    contestants = [contestant(name, spec) for name, spec in runs.items()]
    paces, vectors = timed(contestants, list(documents.texts.values()))
    sets = [(found, False) for found in without_judgements(documents.texts, documents.titles, seed)]
    notes = list(_notes(documents, [found.name for found, _ in sets], runs))
    if asked is not None:
        sets.append((_judged_here(documents, *asked, notes), True))
    sets += [(found, True) for found in judged]
    return Comparison(
        sample=str(documents),
        seed=seed,
        models=tuple(_figures(*pair, documents) for pair in zip(contestants, paces, strict=True)),
        quality=tuple(_quality(found, contestants, seed, people=people) for found, people in sets),
        overlaps=tuple(_overlaps(contestants, vectors)),
        notes=tuple(notes),
    )


def with_models(spec: RunSpec, names: Sequence[str]) -> dict[str, RunSpec]:
    """Return the run once for each model, with the model's own settings in place of the run's."""
    return {name: replace(spec, model=ModelSpec(path=name, engine=spec.model.engine)) for name in names}


def _check(runs: Mapping[str, RunSpec], rows: int, seed: int, queries: object, judgements: object) -> None:
    if len(runs) < 2:
        raise InputError("a comparison needs two models: give two configurations, or one and --models with two names")
    if rows < 2 or seed < 0:
        raise InputError(
            f"{rows} rows with the seed {seed} can't be sampled: give 2 rows or more, and a seed of 0 or more"
        )
    sources = list(runs.values())
    for name, spec in runs.items():
        if spec.source != sources[0].source:
            raise InputError(
                f"{name} has another source section than {next(iter(runs))}: models are compared on one corpus; use one "
                "configuration with --models, or give both the same source"
            )
    if (queries is None) != (judgements is None):
        raise InputError("queries and judgements belong together: give both files, or neither")


def _judged_here(
    documents: Documents, texts: Mapping[str, str], relevant: Mapping[str, Mapping[str, int]], notes: list[str]
) -> RetrievalSet:
    """Make a set of queries whose judged documents stand in the source."""
    here = documents.texts | documents.asked
    missing = {name for found in relevant.values() for name in found} - here.keys()
    if missing:
        notes.append(f"{len(missing):,} judged documents are not in the source, such as {min(missing)!r}")
    known = {query: found for query, found in relevant.items() if found.keys() & here.keys()}
    if not known:
        raise InputError("no judged document is in the source: the judgements name documents by the ids of source.id")
    return RetrievalSet(
        name="your judgements",
        documents=here,
        queries={query: texts[query] for query in known},
        relevant=known,
    )


def _notes(documents: Documents, made: Sequence[str], runs: Mapping[str, RunSpec]) -> Iterator[str]:
    if documents.title is None:
        yield "no column holds titles, so that title to body is left out; --title COLUMN names one"
    elif "title to body" in made:
        yield f"titles are of column {documents.title!r}"
    else:
        yield f"too few documents have a title of their own in column {documents.title!r} for title to body"
    left_out = {"first sentence to the rest", "chunk to its document"} - set(made)
    if left_out:
        yield f"too few documents are long enough for: {', '.join(sorted(left_out))}"
    if any(spec.chunk is not None for spec in runs.values()):
        yield "documents are not chunked here: each model reads the beginning of a long one"
    yield "speeds are of torch in this process, in turns, on the same documents"


def _figures(one: Contestant, pace: Pace, documents: Documents) -> ModelFigures:
    count = len(documents.texts)
    return ModelFigures(
        name=one.name,
        dim=one.encoder.dim,
        dtype=one.dtype,
        model_bytes=one.model_bytes,
        bytes_per_row=one.bytes_per_row,
        corpus_bytes=one.bytes_per_row * documents.rows_estimate,
        max_seq_length=one.encoder.max_seq_length,
        truncated_share=pace.truncated / count,
        failed=pace.failed,
        docs_per_s=count / pace.seconds,
        tokens_per_s=pace.tokens / pace.seconds,
    )


def _quality(found: RetrievalSet, contestants: Sequence[Contestant], seed: int, *, people: bool) -> Quality:
    scores = [
        query_scores(found, one.encode_documents, one.encode_queries, one.encoder.similarity)[0] for one in contestants
    ]
    best = int(np.argmax([np.mean(values) for values in scores]))
    behind = [
        None if place == best else interval((np.array(values) - np.array(scores[best])).tolist(), seed)
        for place, values in enumerate(scores)
    ]
    return Quality(
        name=found.name,
        judged=people,
        documents=len(found.documents),
        queries=len(found.queries),
        scores=tuple(interval(values, seed) for values in scores),
        behind=tuple(behind),
    )


def _overlaps(contestants: Sequence[Contestant], vectors: Sequence[NDArray[np.float32]]) -> Iterator[Overlap]:
    if len(vectors[0]) <= NEIGHBOURS:
        return
    nearest = [_neighbours(found, one.encoder.similarity) for one, found in zip(contestants, vectors, strict=True)]
    for first, second in itertools.combinations(range(len(contestants)), 2):
        same = [len(a & b) for a, b in zip(nearest[first], nearest[second], strict=True)]
        share = sum(same) / (NEIGHBOURS * len(same))
        yield Overlap(first=contestants[first].name, second=contestants[second].name, share=share)


def _neighbours(vectors: NDArray[np.float32], function: str) -> list[set[int]]:
    """Return the nearest other rows of each row."""
    found = nearest_documents(vectors, vectors, function, NEIGHBOURS + 1).tolist()
    return [set([other for other in row if other != place][:NEIGHBOURS]) for place, row in enumerate(found)]


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Set the cells into columns. The first one is set to the left."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
