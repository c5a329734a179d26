"""One way each of embedding a folder of Parquet files with columns `id` and `text`, each a process of its own.

    python -m benchmarks.contestants NAME CORPUS MODEL THREADS

Prints one JSON line: documents, seconds from the first document's encoding to the last byte written (start-up apart),
and start-up seconds.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Result:
    documents: int
    seconds: float
    start_s: float


def bare_encoder(corpus: str, model: str, threads: int) -> Result:
    """Our tokenizer and encoder over texts in memory: what the job could reach if all else were free."""
    from pipeline.config import ModelSpec
    from pipeline.encoder import build_encoder
    from pipeline.model.folder import encoder_spec
    from pipeline.tokenizing import Tokenizer

    started = time.perf_counter()
    spec = encoder_spec(ModelSpec(path=model))
    encoder, tokenizer = build_encoder(spec, "cpu", threads), Tokenizer(spec, threads)
    texts = _texts(corpus)
    encoder.encode(tokenizer.tokenize(texts[:32]))
    ready = time.perf_counter()
    encoder.encode(tokenizer.tokenize(texts))
    return Result(documents=len(texts), seconds=time.perf_counter() - ready, start_s=ready - started)


def sentence_transformers(corpus: str, model: str, threads: int) -> Result:
    """`SentenceTransformer.encode` over texts in memory, as its documentation shows it."""
    import torch
    from sentence_transformers import SentenceTransformer

    started = time.perf_counter()
    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu")
    texts = _texts(corpus)
    encoder.encode(texts[:32])
    ready = time.perf_counter()
    encoder.encode(texts, batch_size=32)
    return Result(documents=len(texts), seconds=time.perf_counter() - ready, start_s=ready - started)


def ray_documentation(corpus: str, model: str, threads: int) -> Result:
    """`read_parquet -> map_batches(SentenceTransformer.encode) -> write_parquet`, with as many threads as the others."""
    import ray
    import torch

    started = time.perf_counter()
    ray.init(address="local", num_cpus=threads + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"

        class Embed:
            def __init__(self) -> None:
                from sentence_transformers import SentenceTransformer

                torch.set_num_threads(threads)
                self.model = SentenceTransformer(model, device="cpu")

            def __call__(self, batch):  # type: ignore[no-untyped-def]
                if not first.exists():
                    first.write_text(repr(time.time()))
                batch["embedding"] = self.model.encode(list(batch["text"]), batch_size=32)
                return batch

        (
            ray.data.read_parquet(corpus)
            .map_batches(Embed, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=threads, batch_size=256)
            .write_parquet(f"{folder}/out")
        )
        seconds = time.time() - float(first.read_text())
        documents = ray.data.read_parquet(f"{folder}/out").count()
    total = time.perf_counter() - started
    return Result(documents=documents, seconds=seconds, start_s=total - seconds)


def job(corpus: str, model: str, threads: int) -> Result:
    """Our whole job: plan, read, encode, write, commit, materialise; starting and stopping Ray is apart."""
    from jobs.embed import embed
    from pipeline.config import from_mapping

    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "source": {"path": corpus, "id": "id", "text": "text"},
            "model": {"path": model},
            "table": {"path": f"{folder}/table"},
            "resources": {"encoders": threads, "cpus_per_encoder": 1},
        }
        summary = embed(from_mapping(spec))
    work_s = sum(summary.seconds[stage] for stage in ("plan", "flow", "commit", "materialise"))
    return Result(documents=summary.counts.rows, seconds=work_s, start_s=summary.seconds["total"] - work_s)


CONTESTANTS: dict[str, Callable[[str, str, int], Result]] = {
    "bare encoder": bare_encoder,
    "whole job": job,
    "SentenceTransformer.encode": sentence_transformers,
    "Ray documentation": ray_documentation,
}


def _texts(corpus: str) -> list[str]:
    import pyarrow.dataset as pads

    return pads.dataset(corpus, format="parquet").to_table(columns=["text"]).column("text").to_pylist()


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    name, corpus, model, threads = sys.argv[1:]
    print(json.dumps(asdict(CONTESTANTS[name](corpus, model, int(threads)))))
