"""What int8 costs in quality: the scores of float32 and of int8 on pairs of sentences and on retrieval sets, and their ratio.

    python -m benchmarks.quality [--model MODEL] [--sts PAIRS ..] [--retrieval FOLDER ..]

The int8 model is made on texts of another corpus, as a table's is on its own. Prints a table and writes it to
benchmarks/results/.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpora, results
from benchmarks.contestants import CALIBRATION, quantised
from benchmarks.peers import MODEL
from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from pipeline.runs.evaluate import read_pairs, read_retrieval, score_pairs, score_retrieval

STS = ("sts/stsb-en-dev.tsv.gz", "sts/sick-r.tsv.gz")
RETRIEVAL = ("retrieval/xquad-en", "retrieval/cranfield")


class Scores:
    """Of one encoder: name of the set -> Spearman, or nDCG@10. Keeps the vectors."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, function: str) -> None:
        self.found: dict[str, float] = {}
        self.vectors: list[NDArray[np.float32]] = []
        self._encoder, self._tokenizer, self._function = encoder, tokenizer, function

    def pairs(self, path: Path) -> None:
        score = score_pairs(read_pairs(path), self._encode, self._function)
        self.found[f"{score.name}, Spearman"] = score.spearman or 0.0

    def retrieval(self, folder: Path) -> None:
        score = score_retrieval(read_retrieval(folder), self._encode, self._encode, self._function)
        self.found[f"{score.name}, nDCG@10"] = score.ndcg_at_10

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """An empty text has no vector."""
        vectors = np.nan_to_num(self._encoder.encode(self._tokenizer.tokenize(list(texts))).vectors)
        self.vectors.append(vectors)
        return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--corpus", choices=[*corpora.SOURCES, corpora.DEMO], help="that int8 is made on")
    parser.add_argument("--sts", type=Path, nargs="*")
    parser.add_argument("--retrieval", type=Path, nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=MODEL, help="what model.path would say")
    parser.add_argument("--name", default="quality", help="of the files of results")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    sts = [arguments.data / name for name in STS] if arguments.sts is None else arguments.sts
    retrieval = [arguments.data / name for name in RETRIEVAL] if arguments.retrieval is None else arguments.retrieval
    exact = encoder_spec(ModelSpec(path=arguments.model))
    tokenizer = Tokenizer(exact, arguments.threads)
    corpus = arguments.corpus or corpora.available(arguments.data)[0]
    texts = corpora.load(corpus, arguments.data, 1.0, tokenizer).texts
    sample = tokenizer.tokenize(texts[:: -(-len(texts) // CALIBRATION)])
    int8 = quantised(replace(exact, precision="int8"), sample, arguments.threads)
    scores = [
        Scores(build_encoder(spec, "cpu", arguments.threads), tokenizer, exact.similarity) for spec in (exact, int8)
    ]
    for one in scores:
        for path in sts:
            one.pairs(path)
        for path in retrieval:
            one.retrieval(path)
    cosines = _cosines(*(np.concatenate(one.vectors) for one in scores))
    rows = [
        {"set": name, "float32": value, "int8": scores[1].found[name], "ratio": scores[1].found[name] / value}
        for name, value in scores[0].found.items()
    ]
    text = _table(rows, cosines)
    found = results.today(arguments.name, {"corpus": corpus, "model": arguments.model, "texts": len(cosines)})
    print(text)
    print(results.save(replace(found, sections=rows), arguments.out, text))


def _cosines(exact: NDArray[np.float32], int8: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each text's two vectors, where it has them."""
    sizes = np.linalg.norm(exact, axis=1) * np.linalg.norm(int8, axis=1)
    dots = (exact.astype(np.float64) * int8).sum(axis=1)
    found: NDArray[np.float64] = dots[sizes > 0] / sizes[sizes > 0]
    return found


def _table(rows: Sequence[dict[str, float]], cosines: NDArray[np.float64]) -> str:
    lines = ["| | float32 | int8 | ratio |", "|---|---|---|---|"]
    lines += [f"| {row['set']} | {row['float32']:.4f} | {row['int8']:.4f} | {row['ratio']:.4f} |" for row in rows]
    told = (
        f"Of {len(cosines):,} texts the cosine of both vectors: mean {cosines.mean():.4f}, least {cosines.min():.3f}."
    )
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    main()
