"""What will run, or ran, is told in one block: the model, the vectors, the engine, the chunks and who works.

A prepared run comes in, and what is known of its encoding by then. A `WhatRuns` goes out, for plans and summaries alike.
"""

from dataclasses import dataclass

from pipeline.execution.executor import Executor
from pipeline.execution.pools import Pools
from pipeline.model.folder import openvino_is_installed
from pipeline.progress import counted
from pipeline.redaction import redacted
from pipeline.runs.prepared import Prepared

DIGEST_CHARACTERS = 12
SHOWN_PROMPT = 60
NOT_MADE = " and this node has not made the model's graph before, else openvino"


@dataclass(frozen=True, kw_only=True)
class WhatRuns:
    model: str
    """It is the address of the model, wherever it is from."""
    revision: str
    """It is the commit of a model on the Hub, else the beginning of the digest of the model's files."""
    prompt: str
    """It stands in front of every text, and is empty where nothing does."""
    max_seq_length: int | None
    """The model reads so many tokens of a text. None is no limit."""
    dim: int
    dtype: str
    """The table keeps the numbers of a vector so."""
    precision: str
    """The model computes so."""
    engine: str
    """It names what computes, with the reason. A plan says what will, as far as that is known before."""
    chunking: str
    truncated: int
    """So many of the `texts` are longer than what the model reads."""
    texts: int
    """So many texts were looked at: a sample in a plan, those that were encoded in a summary."""
    truncated_share: float | None
    """It is the share of these. It is None where nobody looked."""
    workers: str
    """It says who works, and why. It is empty where nothing is to encode."""

    def lines(self, *, sampled: bool = False) -> list[str]:
        """Return the aligned lines for a person. The texts were a sample, or all that were encoded."""
        prompt = f"prompt {_shortened(self.prompt)!r}" if self.prompt else "no prompt"
        reads = (
            f"reads {self.max_seq_length:,} tokens" if self.max_seq_length is not None else "reads texts of any length"
        )
        lines = [
            f"  model      {self.model} ({self.revision}), {prompt}, {reads}",
            f"  vectors    {self.dim:,} x {self.dtype}, computed in {self.precision}",
            f"  chunks     {self.chunking}{self._truncated(sampled=sampled)}",
        ]
        if self.engine:
            lines.append(f"  engine     {self.engine}")
        return [*lines, *([f"  workers    {self.workers}"] if self.workers else [])]

    def _truncated(self, *, sampled: bool) -> str:
        if self.truncated_share is None:
            return ""
        looked = f"a sample of {counted(self.texts, 'text')}" if sampled else counted(self.texts, "text")
        return f"; {self.truncated_share:.1%} of {looked} {'is' if self.texts == 1 else 'are'} truncated"


def what_runs(prepared: Prepared, *, engine: str, workers: str, truncated: int = 0, texts: int = 0) -> WhatRuns:
    """Describe a run. The engine and the workers are empty where nothing is encoded."""
    encoder = prepared.encoder
    place = encoder.origin.place
    return WhatRuns(
        model=redacted(place["path"]),
        revision=place.get("revision", f"digest {encoder.origin.digest[:DIGEST_CHARACTERS]}"),
        prompt=encoder.prompt,
        max_seq_length=encoder.max_seq_length,
        dim=encoder.dim,
        dtype=prepared.spec.table.dtype,
        precision=encoder.precision,
        engine=engine,
        chunking=_chunking(prepared),
        truncated=min(truncated, texts),
        texts=texts,
        truncated_share=min(truncated, texts) / texts if texts else None,
        workers=workers,
    )


def planned(prepared: Prepared, executor: Executor, truncated: int, texts: int, *, estimated: bool = False) -> WhatRuns:
    """Describe what will run for the tasks of the plan, without starting anything.

    Where the time is `estimated` by an earlier version, the guess that chose the workers is not told beside it.
    """
    if not prepared.plan.tasks:
        return what_runs(prepared, engine="", workers="", truncated=truncated, texts=texts)
    expected = executor.expected(prepared)
    engine = _expected_engine(prepared, expected.pools)
    guess = f" ({expected.guess})" if expected.guess and not estimated else ""
    return what_runs(prepared, engine=engine, workers=f"{expected.workers}{guess}", truncated=truncated, texts=texts)


def _expected_engine(prepared: Prepared, pools: Pools | None) -> str:
    """Say which engine would compute, and why, as far as that is known before encoders start.

    The pools are None where only a cluster that has not started knows them.
    """
    asked, precision = prepared.spec.model.engine, prepared.encoder.precision
    if precision == "int8":
        return "openvino, which computes int8"
    if prepared.encoder.is_static:
        return "static, a table of token vectors"
    if asked != "auto":
        return f"{asked}, by model.engine"
    if pools is None:
        return "torch or openvino, by what the cluster's machines have"
    if pools.device == "cuda":
        return "torch, on GPUs"
    if pools.light:
        made = "" if prepared.worker_spec(pools).encode.encoder.engine == "numpy" else NOT_MADE
        return (
            f"numpy where it gives torch's vectors{made}, since for so few texts torch would take longer to start than it "
            "saves"
        )
    if not openvino_is_installed():
        return "torch: openvino is not installed"
    if prepared.worker_spec(pools).encode.encoder.engine == "made":
        return "openvino if this node has made the model's graph before, else torch: for so few texts it is not made"
    return "openvino where it gives torch's vectors, else torch"


def _chunking(prepared: Prepared) -> str:
    chunk = prepared.spec.chunk
    if chunk is None:
        return "none: a text has one vector"
    rows = "a row each" if chunk.rows == "chunks" else "their mean is the vector of a document"
    return f"{chunk.max_tokens:,} tokens, {chunk.overlap_tokens:,} of overlap, {rows}"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_PROMPT else f"{text[:SHOWN_PROMPT]}..."
