"""The five model cards over real text of their languages: the job's table has the vectors of sentence-transformers."""

import gzip
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config import ModelSpec
from pipeline.model.folder import encoder_spec
from tests import inline
from tests.inline import read_table, spec_of, vectors_of
from tests.parity.cards import CARDS, Card, save_card, train_vocabulary
from tests.parity.comparison import TOLERANCE, Vectors, oracle_ids
from tests.parity.figures import record_vectors
from tests.tiny import load_oracle

ROOT = Path(__file__).parents[2]
QUICK = ("xtremedistil-l6-h256-uncased-mean-cosine-h32",)


def texts_of(corpora: Path, name: str, count: int) -> list[str]:
    """The first texts of a corpus; of a long document, its paragraphs."""
    found: list[str] = []
    with gzip.open(corpora / f"{name}.jsonl.gz", "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            text = json.loads(line)["text"]
            found += [part for part in text.split("\n\n") if part.strip()] if name == "peps_long" else [text]
            if len(found) >= count:
                break
    return found[:count]


def texts_for(card: Card, corpora: Path, rows: int) -> list[str]:
    share = -(-rows // len(card.corpora))
    each = [texts_of(corpora, name, share) for name in card.corpora]
    return [text for texts in itertools.zip_longest(*each) for text in texts if text is not None][:rows]


@pytest.fixture(scope="module")
def vocabulary(corpora) -> list[str]:
    counts = {"ag_news_test": 1500, "peps_long": 1500, "nsmc_ko_120k": 6000, "tang_poems_zh": 3000}
    return train_vocabulary([text for name, count in counts.items() for text in texts_of(corpora, name, count)])


EACH = [pytest.param(card, id=card.name, marks=[] if card.name in QUICK else pytest.mark.slow) for card in CARDS]
QUICK_ONLY = [param for param in EACH if param.id in QUICK]


@pytest.fixture(scope="module", params=EACH)
def saved(request, vocabulary, tmp_path_factory) -> Iterator[tuple[Card, Path, Path]]:
    """(card, older style, newer style); one card's at a time, since some are large."""
    older, newer = save_card(request.param, vocabulary, tmp_path_factory.mktemp("card"))
    yield request.param, older, newer
    for file in older.parent.rglob("*"):
        if file.is_file():
            file.unlink()


def write_source(texts: Sequence[str], path: Path) -> Path:
    rows = [{"id": f"{number:06}", "text": text} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run_job(source: Path, model: Path, table: Path) -> None:
    """`python -m jobs.embed`, Ray and all."""
    config = table.parent / f"{table.name}.yaml"
    sections = {
        "source": {"path": str(source), "id": "id", "text": "text"},
        "model": {"path": str(model)},
        "table": {"path": str(table)},
        "limits": {"unit_rows": 256},
    }
    config.write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "jobs.embed", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def encoded_by_oracle(folder: Path, texts: Sequence[str]) -> Vectors:
    vectors: Vectors = load_oracle(folder).encode(list(texts), batch_size=16, show_progress_bar=False)
    return vectors


def table_vectors(table: Path, texts: Sequence[str]) -> Vectors:
    rows = read_table(table)
    assert rows["id"].to_pylist() == [f"{number:06}" for number in range(len(texts))]
    assert rows["text"].to_pylist() == list(texts)
    return vectors_of(rows)


def largest(ours: Vectors, theirs: Vectors) -> float:
    assert ours.shape == theirs.shape
    worst = float((np.abs(ours - theirs) / np.linalg.norm(theirs.astype(np.float64), axis=1, keepdims=True)).max())
    assert worst <= TOLERANCE
    return worst


def test_a_card_is_read_as_it_is(saved):
    card, older, newer = saved
    for folder in (older, newer):
        spec = encoder_spec(ModelSpec(path=str(folder)))
        assert (spec.max_seq_length, spec.pooling, spec.dim) == (
            card.max_seq_length,
            ("mean",),
            card.dense or card.hidden,
        )
        assert (spec.normalize, spec.similarity, spec.notes) == (False, "cosine", ())
        assert [type(module).__name__ for module in spec.post_modules] == (["Dense"] if card.dense else [])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_card_by_the_job(saved, corpora, tmp_path):
    """Both styles, by the command, on Ray."""
    card, older, newer = saved
    texts = texts_for(card, corpora, card.rows)
    source = write_source(texts, tmp_path / "source.jsonl")
    tables = [tmp_path / "older", tmp_path / "newer"]
    for model, table in zip((older, newer), tables, strict=True):
        run_job(source, model, table)
    first, second = (table_vectors(table, texts) for table in tables)
    expected = encoded_by_oracle(older, texts)
    again = encoded_by_oracle(newer, texts[:64])
    worst = max(largest(first, expected), largest(second, expected), largest(second[:64], again))
    record_vectors(worst, 2 * len(texts), "card", card.name)
    print(f"\n{card.name}: {len(texts):,} rows in both styles, largest difference {worst:.1e}, ", end="")
    print(f"between the styles {largest(first, second):.1e}")


@pytest.mark.parametrize("saved", QUICK_ONLY, indirect=True)
def test_a_card_in_this_process(saved, corpora, tmp_path):
    """A few rows, without Ray."""
    card, older, newer = saved
    texts = texts_for(card, corpora, 40)
    source = write_source(texts, tmp_path / "source.jsonl")
    for model, table in ((older, tmp_path / "older"), (newer, tmp_path / "newer")):
        inline.embed(spec_of(source, model, table))
    expected = encoded_by_oracle(older, texts)
    for table in (tmp_path / "older", tmp_path / "newer"):
        largest(table_vectors(table, texts), expected)


def test_the_vocabulary_covers_every_language(saved, corpora):
    """Else the vectors would be those of unknown words, and all comparisons easy."""
    card, older, _ = saved
    oracle = load_oracle(older)
    texts = texts_for(card, corpora, 200)
    ids = [number for row in oracle_ids(oracle, texts, "") for number in row]
    assert ids.count(oracle.tokenizer.unk_token_id) < 0.01 * len(ids)
    vectors = oracle.encode(list(dict.fromkeys(texts))[:16])
    apart = 1 - (vectors @ vectors.T) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]
    assert np.median(apart[np.triu_indices(len(vectors), 1)]) > 0.02
