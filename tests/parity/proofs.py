"""Combinations of one architecture in, their largest differences recorded: on whole folders, or on a kept transformer.

What takes minutes runs in processes of its own, one per core; each gives back the figures that it recorded.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import BUDGET_TOKENS, Encoder
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from tests.architectures import build_architecture
from tests.parity import figures
from tests.parity.combinations import Combination, SharedTransformer, all_combinations, sample, token_combinations
from tests.parity.comparison import (
    COMPOSITIONS,
    assert_same_tokens,
    difference,
    largest_difference,
    oracle_vectors,
    rows_of_prompt_only,
)
from tests.parity.figures import record
from tests.parity.kept import kept_transformers
from tests.parity.texts import TEXTS
from tests.tiny import load_oracle


def shared_transformer(model_type: str, place: Path) -> SharedTransformer:
    return SharedTransformer(build_architecture(place / "base", model_type), place / "dense")


def prove_whole_folders(
    shared: SharedTransformer, model_type: str, combinations: Sequence[Combination], place: Path
) -> None:
    for number, combination in enumerate(combinations):
        folder = shared.write(combination, place / str(number))
        worst = largest_difference(folder, TEXTS, **combination.overrides)
        record(worst, ("architecture", model_type), ("whole folders", "all"), *combination.rows)


def prove_kept(shared: SharedTransformer, model_type: str, combinations: Sequence[Combination], place: Path) -> None:
    tokenized = {}
    with kept_transformers():
        for number, combination in enumerate(combinations):
            folder = shared.write(combination, place)
            spec = encoder_spec(ModelSpec(path=str(folder), **combination.overrides))
            oracle = load_oracle(folder)
            key = spec.prompt, combination.style
            if key not in tokenized:
                tokenizer = Tokenizer(spec, 1)
                tokens = tokenizer.tokenize(TEXTS)
                assert_same_tokens(tokens, tokenizer, oracle, TEXTS, spec)
                tokenized[key] = tokens, tokenizer.prompt_length, tokenizer.gives_token_types
            tokens, prompt_length, types = tokenized[key]
            engine = TorchEngine(spec, "cpu", 1, 0 if spec.include_prompt else prompt_length, token_types=types)
            compose = COMPOSITIONS[number % len(COMPOSITIONS)]
            alone = rows_of_prompt_only(tokens, prompt_length, spec)
            expected = oracle_vectors(oracle, TEXTS, spec, combination.overrides, alone)
            worst = difference(compose(Encoder(engine, BUDGET_TOKENS["cpu"]), tokens), tokens, expected)
            record(worst, ("architecture", model_type), *combination.rows)


# --- in a process of its own ------------------------------------------------------------------------------------------


def prepare_process() -> None:
    torch.set_num_threads(1)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    # One folder is written over and over, faster than the cache of digests takes for a change.
    os.environ["XDG_CACHE_HOME"] = os.devnull


def seed_of(model_type: str) -> int:
    return sum(model_type.encode())


def prove_architecture(model_type: str, place: str) -> figures.Recorded:
    """All that works on the vectors of tokens with all other that does, and some of it on whole folders."""
    shared, seed = shared_transformer(model_type, Path(place)), seed_of(model_type)
    with figures.recorded() as found:
        prove_kept(shared, model_type, token_combinations(seed), Path(place) / "kept")
        prove_whole_folders(shared, model_type, sample(12, seed + 2), Path(place))
    return found


def prove_share(number: int, shares: int, place: str) -> figures.Recorded:
    """Of all combinations there are, on a BERT, every `shares`-th from `number` on."""
    with figures.recorded() as found:
        shared = shared_transformer("bert", Path(place))
        prove_kept(shared, "bert", all_combinations()[number::shares], Path(place) / "kept")
    return found
