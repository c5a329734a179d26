"""A model is scored: by Spearman on pairs of sentences, and by nDCG and recall on retrieval sets.

Files of an evaluation set and functions that encode texts come in. Scores go out as MTEB reports them. MTEB leaves a
document out of a ranking where its id is the query's own in a few tasks, such as ArguAna and Quora
(`ignore_identical_ids`); here no document is left out. This file knows no models and no tables.
"""

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.similarities import pairwise_similarities, similarities, spearman
from pipeline.errors import InputError

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
"""It turns texts into float32[n, dim]."""

_QUERIES_AT_A_TIME = 256
_DOCUMENTS_AT_A_TIME = 16_384
"""So many documents are compared with a batch of queries, which takes 16 MiB of similarities."""
_DEPTH = 100
"""So many documents are ranked per query."""


@dataclass(frozen=True, kw_only=True)
class SentencePairs:
    """They are pairs of sentences, each with the similarity that people gave it."""

    name: str
    scores: tuple[float, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """It holds documents, queries, and which documents answer which query."""

    name: str
    documents: Mapping[str, str]
    """It maps an id to its text."""
    queries: Mapping[str, str]
    """It maps the id of each judged query to its text."""
    relevant: Mapping[str, Mapping[str, int]]
    """It maps a query to its relevant documents, and these to their relevance above 0."""


@dataclass(frozen=True, kw_only=True)
class PairsScore:
    name: str
    pairs: int
    spearman: float | None
    """It is None where the model finds all pairs equally alike."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        shown = "undefined: all pairs are equally alike" if self.spearman is None else f"{self.spearman:.5f}"
        return f"{self.name}: Spearman {shown} over {self.pairs:,} pairs"


@dataclass(frozen=True, kw_only=True)
class RetrievalScore:
    name: str
    documents: int
    queries: int
    ndcg_at_10: float
    recall_at_100: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.name}: nDCG@10 {self.ndcg_at_10:.5f}, recall@100 {self.recall_at_100:.5f} over {self.queries:,} "
            f"queries and {self.documents:,} documents"
        )


def score_pairs(pairs: SentencePairs, encode: Encode, function: str) -> PairsScore:
    """Return Spearman's rank correlation between the similarities of the pairs and their scores."""
    vectors = encode([*pairs.first, *pairs.second])
    found = pairwise_similarities(vectors[: len(pairs.first)], vectors[len(pairs.first) :], function)
    value = spearman(found, pairs.scores)
    return PairsScore(name=pairs.name, pairs=len(pairs.first), spearman=None if math.isnan(value) else value)


def score_retrieval(
    judged: RetrievalSet, encode_documents: Encode, encode_queries: Encode, function: str
) -> RetrievalScore:
    """Return means over the queries. Equally near documents are ranked as in `query_scores`."""
    ndcgs, recalls = query_scores(judged, encode_documents, encode_queries, function)
    return RetrievalScore(
        name=judged.name,
        documents=len(judged.documents),
        queries=len(judged.queries),
        ndcg_at_10=float(np.mean(ndcgs)),
        recall_at_100=float(np.mean(recalls)),
    )


def query_scores(
    judged: RetrievalSet, encode_documents: Encode, encode_queries: Encode, function: str
) -> tuple[list[float], list[float]]:
    """Return (nDCG@10, recall@100) of each query, in the order of the set. Equally near documents are ranked in descending
    order of their ids, as in trec_eval."""
    names = sorted(judged.documents, key=str.encode, reverse=True)
    documents = encode_documents([judged.documents[name] for name in names])
    queries = encode_queries(list(judged.queries.values()))
    ndcgs, recalls = [], []
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        best = nearest_documents(queries[start : start + _QUERIES_AT_A_TIME], documents, function, _DEPTH)
        for query, found in zip(list(judged.queries)[start : start + len(best)], best, strict=True):
            ranked = [names[document] for document in found]
            ndcgs.append(ndcg(ranked, judged.relevant[query], 10))
            recalls.append(recall(ranked, judged.relevant[query], 100))
    return ndcgs, recalls


def nearest_documents(queries: Vectors, documents: Vectors, function: str, count: int) -> NDArray[np.int64]:
    """Return the numbers of the most similar documents, best first, as int64[queries, count].

    There are fewer columns if there are fewer documents. Equally similar ones stand in ascending order. The `queries`
    and `documents` are float32[.., dim].
    """
    scores, numbers = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(documents), _DOCUMENTS_AT_A_TIME):
        found = similarities(queries, documents[start : start + _DOCUMENTS_AT_A_TIME], function)
        new = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
        # The best so far stand first, so that among equals a lower number stays before a higher one.
        scores, numbers = np.hstack([scores, found]), np.hstack([numbers, new])
        order = np.stack([_highest(row, count) for row in scores])
        scores, numbers = np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
    return numbers


def _highest(scores: Vectors, count: int) -> NDArray[np.int64]:
    """Return the first `count` places of a stable descending sort with NaN last, without sorting the rest."""
    descending = -scores
    if count >= len(scores):
        return np.argsort(descending, kind="stable")
    last = np.partition(descending, count - 1)[count - 1]
    candidates = np.flatnonzero(~(descending > last))
    return candidates[np.argsort(descending[candidates], kind="stable")[:count]]


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Return the normalised discounted cumulative gain of the first k, or 0 if no document is relevant.

    The gains are linear, as in trec_eval's ndcg_cut.
    """
    ideal = _dcg(sorted(relevant.values(), reverse=True)[:k])
    return _dcg([relevant.get(name, 0) for name in ranked[:k]]) / ideal if ideal else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def recall(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Return the share of the relevant documents that are among the first k, or 0 if no document is relevant."""
    return sum(name in relevant for name in ranked[:k]) / len(relevant) if relevant else 0.0


# --- files


def read_pairs(path: str | Path) -> SentencePairs:
    """Read a tsv file, gzipped if its name ends in .gz. Raises InputError.

    Its header names the columns `score`, `sentence1` and `sentence2`. No field is quoted.
    """
    rows = list(_tsv(Path(path), ("score", "sentence1", "sentence2")))
    scores = tuple(_number(value, path, number) for number, (value, _, _) in enumerate(rows, 2))
    if len(set(scores)) < 2:
        raise InputError(f"{str(path)!r} holds no two pairs with different scores: there is nothing to correlate with")
    return SentencePairs(
        name=Path(path).name, scores=scores, first=tuple(row[1] for row in rows), second=tuple(row[2] for row in rows)
    )


def read_retrieval(folder: str | Path) -> RetrievalSet:
    """Read a folder in BEIR's form. Raises InputError.

    It holds corpus.jsonl, queries.jsonl, and qrels/test.tsv or qrels-test.tsv, each gzipped or not. A document's text
    is `(title + " " + text).strip()`. Only queries that the qrels judge count.
    """
    folder = Path(folder)
    corpus, queries = _either(folder, "corpus.jsonl"), _either(folder, "queries.jsonl")
    documents = {
        _text(row, "_id", corpus): f"{_text(row, 'title', corpus, '')} {_text(row, 'text', corpus)}".strip()
        for row in _jsonl(corpus)
    }
    texts, relevant = read_judgements(queries, _either(folder, "qrels/test.tsv", "qrels-test.tsv"))
    if not relevant or not documents:
        raise InputError(f"{str(folder)!r} holds no documents, or no judged queries")
    return RetrievalSet(
        name=folder.resolve().name,
        documents=documents,
        queries={query: texts[query] for query in relevant},
        relevant=relevant,
    )


def read_judgements(queries: str | Path, qrels: str | Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Read queries.jsonl and a tsv file of judgements, each gzipped if its name ends in .gz. Raises InputError.

    Return (query -> its text, judged query -> its relevant documents with their relevance above 0).
    """
    queries, qrels = Path(queries), Path(qrels)
    texts = {_text(row, "_id", queries): _text(row, "text", queries) for row in _jsonl(queries)}
    relevant: dict[str, dict[str, int]] = {}
    for number, (query, document, score) in enumerate(_tsv(qrels, ("query-id", "corpus-id", "score")), 2):
        if query not in texts:
            raise InputError(f"{str(qrels)!r} line {number} judges query {query!r}, which is not in {queries.name}")
        judged = relevant.setdefault(query, {})
        if (level := int(_number(score, qrels, number))) > 0:
            judged[document] = level
    return texts, relevant


def _either(folder: Path, *names: str) -> Path:
    found = next((path for name in names for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if found is None:
        missing = " and ".join(f"no {name}" for name in names)
        raise InputError(
            f"{str(folder)!r} holds {missing}, gzipped or not: expected a retrieval set in BEIR's form, with corpus.jsonl, "
            "queries.jsonl, and qrels/test.tsv or qrels-test.tsv"
        )
    return found


def _lines(path: Path) -> Iterator[str]:
    try:
        # Lines end at "\n" only, because texts hold other characters that Python would split at.
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} can't be read: {error}") from None


def _tsv(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the fields of these columns, which the first line names."""
    lines = _lines(path)
    header = next(lines, "").split("\t")
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{str(path)!r} has the columns {header}; expected {', '.join(columns)}, separated by tabs")
    places = [header.index(name) for name in columns]
    for number, line in enumerate(lines, 2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(f"{str(path)!r} line {number} has {len(fields)} fields; its header has {len(header)}")
        yield [fields[place] for place in places]


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{str(path)!r} line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{str(path)!r} line {number} is no JSON object")
        yield row


def _text(row: Mapping[str, Any], key: str, path: Path, missing: str | None = None) -> str:
    value = row.get(key, missing)
    if not isinstance(value, str):
        raise InputError(f"{str(path)!r} has a row whose {key!r} is {value!r}; expected a string")
    return value


def _number(value: str, path: str | Path, line: int) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{str(path)!r} line {line} has the score {value!r}; expected a number")
    return number
