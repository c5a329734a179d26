"""The corpora of the benchmarks: texts in, a folder of Parquet files out that every contestant reads.

Real public corpora where `data` has them, else the demo's paragraphs. A smaller share takes rows spread over all of a
corpus, so that its lengths stay as they are.
"""

import csv
import gzip
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.config import ChunkSpec
from pipeline.encoder.chunking import chunk
from pipeline.encoder.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PIPELINE_TEST_DATA", ROOT.parent / "shared" / "data"))
"""Where the evaluation corpora are, as for the tests."""
CHUNK = ChunkSpec(max_tokens=256, overlap_tokens=32)
FILES = 8


@dataclass(frozen=True, kw_only=True)
class Corpus:
    name: str
    texts: Sequence[str]
    """What is embedded: a vector for each."""
    documents: Sequence[str] | None = None
    """Where the texts are chunks: what they were cut from. The whole job reads these and chunks them itself."""


@dataclass(frozen=True, kw_only=True)
class Source:
    file: str
    read: Callable[[Path], list[str]]
    rows: int
    """Of a full run; of documents that are chunked, chunks."""
    chunked: bool = False


def _jsonl(*fields: str) -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            return [" ".join(row[field] for field in fields).strip() for row in map(json.loads, file)]

    return read


def _tsv(field: str) -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            return [row[field] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]

    return read


SOURCES = {
    "AG News": Source(file="ag_news_test.jsonl.gz", read=_jsonl("title", "text"), rows=7600),
    "arXiv titles": Source(file="arxiv_titles_200k.tsv.gz", read=_tsv("title"), rows=20_000),
    "arXiv abstracts": Source(file="arxiv_abstracts_60k.jsonl.gz", read=_jsonl("abstract"), rows=2000),
    "PEPs, chunked": Source(file="peps_long.jsonl.gz", read=_jsonl("text"), rows=2000, chunked=True),
    "NSMC (Korean)": Source(file="nsmc_ko_120k.jsonl.gz", read=_jsonl("text"), rows=10_000),
}
DEMO = "demo"


def available(data: Path) -> list[str]:
    """Names of the corpora that are there; the demo's stands in for all where none is."""
    found = [name for name, source in SOURCES.items() if (data / "corpora" / source.file).is_file()]
    return found or [DEMO]


def load(name: str, data: Path, share: float, tokenizer: Tokenizer) -> Corpus:
    """The corpus, or `share` of it."""
    if name == DEMO:
        texts = demo_texts()
        return Corpus(name=name, texts=_spread(texts, round(share * len(texts))))
    source = SOURCES[name]
    texts = [text for text in source.read(data / "corpora" / source.file) if text]
    rows = max(1, round(share * source.rows))
    if not source.chunked:
        return Corpus(name=name, texts=_spread(texts, rows))
    return _chunked(name, texts, rows, tokenizer)


def _chunked(name: str, documents: Sequence[str], rows: int, tokenizer: Tokenizer) -> Corpus:
    """As many documents as give about `rows` chunks."""
    chunks_each = 25  # of a PEP
    some = _spread(documents, max(1, round(rows / chunks_each)))
    cut = chunk(some, tokenizer, CHUNK)
    texts = [some[number][start:end] for number, start, end in zip(cut.text, cut.start, cut.end, strict=True)]
    return Corpus(name=name, texts=texts, documents=some)


def demo_texts() -> list[str]:
    """The demo corpus by paragraphs, which are of every length."""
    paths = sorted((ROOT / "demo" / "corpus").rglob("*.parquet"))
    paragraphs = [piece.strip() for path in paths for row in pq.read_table(path).to_pylist() for piece in _pieces(row)]
    return [piece for piece in paragraphs if len(piece) > 40]


def _pieces(row: dict[str, Any]) -> list[str]:
    return str(row["text"]).split("\n\n")


def _spread(texts: Sequence[str], count: int) -> list[str]:
    count = min(max(count, 1), len(texts))
    return [texts[number * len(texts) // count] for number in range(count)]


def write(corpus: Corpus, folder: Path) -> None:
    """`rows/*.parquet`, columns `id` and `text`; where they are chunks also `documents/*.parquet` and `chunk.json`."""
    _write_files(corpus.texts, folder / "rows")
    if corpus.documents is not None:
        _write_files(corpus.documents, folder / "documents")
        (folder / "chunk.json").write_text(json.dumps(asdict(CHUNK)))


def _write_files(texts: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": list(texts)})
    step = -(-len(texts) // FILES)
    for index in range(0, len(texts), step):
        pq.write_table(table.slice(index, step), folder / f"{index:06d}.parquet")


def corpus_texts(folder: Path) -> list[str]:
    """The rows of a written corpus."""
    texts: list[str] = pads.dataset(folder / "rows", format="parquet").to_table(["text"]).column("text").to_pylist()
    return texts


def job_source(folder: Path) -> dict[str, Any]:
    """The sections of a run over a written corpus."""
    chunked = folder / "chunk.json"
    path = folder / ("documents" if chunked.is_file() else "rows")
    section = {"chunk": json.loads(chunked.read_text())} if chunked.is_file() else {}
    return {"source": {"path": str(path), "id": "id", "text": "text"}, **section}
