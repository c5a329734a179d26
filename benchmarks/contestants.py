"""One way each of embedding a folder of texts, each in a process of its own that lives for all rounds.

    python -m benchmarks.contestants NAME SETTINGS

SETTINGS is a JSON object (see Settings). Loads what it can load once and says so on stdout in a line of JSON, then embeds
all of the corpus for each line on stdin and answers with one line; between turns it waits. Ends with stdin.
"""

import atexit
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import corpora, cpu_peers
from benchmarks.turns import WARM_UP, Contestant, Save, Settings, Turn, in_memory, keep

if TYPE_CHECKING:
    from pipeline.encoder.token_rows import TokenRows
    from pipeline.model.folder import EncoderSpec

CALIBRATION = 1024
"""Texts that an int8 model is made with."""


def bare_encoder(settings: Settings) -> Contestant:
    """Our tokenizer and encoder over texts in memory: what the job could reach if all else were free."""
    from pipeline.config import from_mapping
    from pipeline.encoder.encoder import build_encoder
    from pipeline.encoder.settings import Setup
    from pipeline.encoder.tokenizer import Tokenizer
    from pipeline.encoder.tuning import tuned
    from pipeline.model.folder import encoder_spec

    model = {"path": settings.model, "precision": settings.precision, "engine": settings.engine}
    spec = encoder_spec(
        from_mapping({"source": {"path": "-", "text": "-"}, "model": model, "table": {"path": "-"}}).model
    )
    tokenizer = Tokenizer(spec, settings.threads)
    texts = corpora.corpus_texts(Path(settings.corpus))
    if settings.precision == "int8":
        spec = quantised(spec, tokenizer.tokenize(texts[:: -(-len(texts) // CALIBRATION)]), settings.threads)
    spec = replace(spec, engine=settings.engine)
    encoder = build_encoder(spec, "cpu", settings.threads)
    if settings.long:
        setup = Setup(spec=spec, device="cpu", threads=settings.threads)
        encoder = tuned(encoder, setup, tokenizer.tokenize(texts).lengths)
        print(f"bare {settings.precision}: {encoder.description}", file=sys.stderr)
    encoder.encode(tokenizer.tokenize(texts[:WARM_UP]))

    def turn(save: Save = None) -> Turn:
        started, busy = time.perf_counter(), time.process_time()
        tokens = tokenizer.tokenize(texts)
        tokenized = time.perf_counter()
        encoded = encoder.encode(tokens)
        ended, busy = time.perf_counter(), time.process_time() - busy
        keep(encoded.vectors, save)
        return Turn(
            documents=len(texts),
            seconds=ended - started,
            padding=1 - encoded.tokens / encoded.padded_tokens,
            parts={
                "tokenize": tokenized - started,
                "engine": encoded.engine_seconds,
                "rest": ended - tokenized - encoded.engine_seconds,
                "core s": busy,
            },
        )

    return turn


def quantised(spec: "EncoderSpec", tokens: "TokenRows", threads: int) -> "EncoderSpec":
    """With an int8 model made on these texts, as a run makes one for its table."""
    from pipeline.encoder import int8
    from pipeline.encoder.engines.int8 import graph_file, unpack
    from pipeline.model.folder import Int8Graph

    content, known = int8.quantise(spec, tokens, threads)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    unpack(content, folder)
    return replace(spec, int8=Int8Graph(digest=known.digest, file=str(graph_file(folder))))


def sentence_transformers(settings: Settings) -> Contestant:
    """`SentenceTransformer.encode` over texts in memory, as its documentation shows it."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings.threads)
    encoder = SentenceTransformer(settings.model, device="cpu")
    return in_memory(lambda texts, size: encoder.encode(texts, batch_size=size), settings)


def ray_documentation(settings: Settings) -> Contestant:
    """`read_parquet -> map_batches(SentenceTransformer.encode) -> write_parquet`, with as many threads as the others.

    Starts and stops Ray for each turn: an idle one would disturb the others.
    """
    import ray
    import ray.data

    model, threads, batch_size = settings.model, settings.threads, settings.batch_size

    def turn(save: Save = None) -> Turn:
        started = time.time()
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=threads + 1, **quiet)
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / "first"

            class Embed:
                def __init__(self) -> None:
                    import torch
                    from sentence_transformers import SentenceTransformer

                    torch.set_num_threads(threads)
                    self.model = SentenceTransformer(model, device="cpu")

                def __call__(self, batch):  # type: ignore[no-untyped-def]
                    if not first.exists():
                        first.write_text(repr(time.time()))
                    batch["embedding"] = self.model.encode(list(batch["text"]), batch_size=batch_size)
                    return batch

            (
                ray.data.read_parquet(f"{settings.corpus}/rows")
                .map_batches(Embed, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=threads, batch_size=256)
                .write_parquet(f"{folder}/out")
            )
            ended, began = time.time(), float(first.read_text())
            documents = _count(f"{folder}/out", save)
        ray.shutdown()
        return Turn(documents=documents, seconds=ended - began, start_s=began - started)

    return turn


def daft(settings: Settings) -> Contestant:
    """Daft's `embed_text` with its provider `transformers`, which is SentenceTransformer.encode, as its documentation shows
    it: `read_parquet -> with_column -> write_parquet`, at its own batch size."""
    import daft
    import torch
    from daft.functions import embed_text
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings.threads)
    encode, first = SentenceTransformer.encode, list[float]()

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        first.append(time.time())
        return encode(self, *arguments, **options)

    SentenceTransformer.encode = watched  # runs in this process: the only sign of when loading ends and work begins

    def turn(save: Save = None) -> Turn:
        first.clear()
        started = time.time()
        with tempfile.TemporaryDirectory() as folder:
            rows = daft.read_parquet(f"{settings.corpus}/rows/*.parquet")
            vectors = embed_text(daft.col("text"), provider="transformers", model=settings.model)
            rows.with_column("embedding", vectors).write_parquet(f"{folder}/out")
            ended = time.time()
            documents = _count(f"{folder}/out", save)
        return Turn(documents=documents, seconds=ended - first[0], start_s=first[0] - started)

    return turn


def whole_job(settings: Settings) -> Contestant:
    """Our whole job: plan, read, encode, write, commit, materialise; starting and stopping Ray is apart, and so is making
    an int8 model, which a table does once: later turns find it. So it is with the encoder's settings; see Settings.long."""
    import pipeline
    from pipeline.runs import prepared

    if settings.long:
        prepared.MANY_ROWS = prepared.MEASURED_FROM_S = 0
    measured = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, measured)

    def turn(save: Save = None, **changed: Any) -> Turn:
        """`changed`: sections of the configuration, laid over those below."""
        with tempfile.TemporaryDirectory() as folder:
            calibration = Path(folder) / "table" / "meta" / "calibration"
            shutil.copytree(measured, calibration)
            given = corpora.job_source(Path(settings.corpus)) | {
                "model": {"path": settings.model, "precision": settings.precision, "engine": settings.engine},
                "table": {"path": f"{folder}/table"},
                "resources": {"encoders": settings.threads, "cpus_per_encoder": 1},
            }
            summary = pipeline.embed({name: given.get(name, {}) | changed.get(name, {}) for name in given | changed})
            shutil.copytree(calibration, measured, dirs_exist_ok=True)
            if save:
                keep(_in_order(pipeline.read(f"{folder}/table").to_table(["id", "embedding"])), save)
        parts = dict(summary.seconds)
        work_s = sum(parts[stage] for stage in ("plan", "flow", "commit", "materialise"))
        return Turn(
            documents=summary.counts.rows,
            seconds=work_s,
            start_s=parts["total"] - work_s,
            padding=summary.padding_share,
            parts=parts | {"busy": summary.busy_share},
        )

    return turn


def ceiling(settings: Settings) -> Contestant:
    """No contestant: a large matrix product by the fastest kernel, operations per second."""
    from benchmarks import arithmetic

    products = arithmetic.PRODUCTS[settings.precision](settings.threads)

    def turn() -> Turn:
        started = time.perf_counter()
        parts = arithmetic.rates(products)
        return Turn(documents=0, seconds=time.perf_counter() - started, parts=parts)

    return turn


CONTESTANTS: dict[str, Callable[[Settings], Contestant]] = {
    "encode": sentence_transformers,
    "ray": ray_documentation,
    "daft": daft,
    "openvino": cpu_peers.openvino,
    "onnx": cpu_peers.onnx,
    "fastembed": cpu_peers.fastembed,
    "bare": bare_encoder,
    "job": whole_job,
    "ceiling": ceiling,
}


def _count(folder: str, save: Save) -> int:
    """The rows of a folder of Parquet files; keeps the vectors that `save` asks for."""
    import pyarrow.dataset as pads

    written = pads.dataset(folder, format="parquet")
    if save:
        keep(_in_order(written.to_table(["id", "embedding"])), save)
    rows: int = written.count_rows()
    return rows


def _in_order(table: Any) -> list[Any]:
    """The vectors of a table in the order of the corpus, whose ids are the numbers of its rows."""
    found = dict(zip(table.column("id").to_pylist(), table.column("embedding").to_pylist(), strict=True))
    return [found[str(number)] for number in range(len(found))]


@contextlib.contextmanager
def _answers() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Lines on stdout, on which nobody else can write: all others' prints go to stderr."""
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)
        yield lambda answer: print(json.dumps(answer), file=channel)


def main() -> None:
    name, given = sys.argv[1:]
    with _answers() as answer:
        started = time.perf_counter()
        contestant = CONTESTANTS[name](Settings(**json.loads(given)))
        answer({"start_s": time.perf_counter() - started})
        for line in sys.stdin:
            answer(asdict(contestant(**json.loads(line))))


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
