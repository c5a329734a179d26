"""Texts in, vectors out, in this process: for queries, trials and checks; a table is made by a run.

The vectors are those that a table gets: the same tokenizer and the same encoder. Knows no tables, no chunks and no Ray.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.encoder.encoder import Embeddings, Encoder, OnProgress, build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.machine.quotas import cores
from pipeline.model.folder import EncoderSpec
from pipeline.model.tokenizer_files import check_tokenizer


@dataclass(frozen=True, eq=False)
class Embedder:
    tokenizer: Tokenizer
    encoder: Encoder

    def encode(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Embeddings:
        """The vectors of all texts; a text that has none is named with its reason.

        `on_progress(texts, tokens)` hears what was encoded since its last call.
        """
        return self.encoder.encode(self.tokenizer.tokenize(texts), on_progress)


def embedder(spec: EncoderSpec, device: str | None = None) -> Embedder:
    """The embedder of `spec`. The last two encoders are kept, since loading takes seconds; prompts share theirs.

    `device` is `cpu` or `cuda`; None takes a GPU where there is one. Uses all of the process's cores. Raises InputError.
    """
    return Embedder(_tokenizer(spec), _encoder(_without_prompt(spec), device or _device(spec)))


@functools.lru_cache(maxsize=4)
def _tokenizer(spec: EncoderSpec) -> Tokenizer:
    check_tokenizer(spec)  # It says in a sentence which file or package is missing.
    return Tokenizer(spec, cores())


@functools.lru_cache(maxsize=2)
def _encoder(spec: EncoderSpec, device: str) -> Encoder:
    # A graph is made for many texts.
    return build_encoder(replace(spec, engine="torch") if spec.precision != "int8" else spec, device, cores())


def _without_prompt(spec: EncoderSpec) -> EncoderSpec:
    """The spec as far as it matters to the encoder, which needs the prompt only where its length is kept out of
    pooling."""
    return replace(spec, prompt="") if spec.include_prompt else spec


def _device(spec: EncoderSpec) -> str:
    if spec.precision == "int8":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
