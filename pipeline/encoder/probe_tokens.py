"""The probe texts as a model's tokenizer gives them: found once on a node, and kept.

An encoder gets token ids from others and needs a tokenizer for these texts alone. Loading one takes a second, and loads
torch. It knows no vectors.
"""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline import identity
from pipeline.encoder.probes import TEXTS
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.cache import is_kept, kept
from pipeline.model.folder import EncoderSpec

_NAME = "tokens.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeTokens:
    rows: TokenRows
    token_types: bool
    """The tokenizer gives token types, all 0, beside the ids."""


def probe_tokens(spec: EncoderSpec) -> ProbeTokens:
    """Raises InputError where the tokenizer doesn't load."""

    def make(folder: Path) -> None:
        tokenizer = Tokenizer(spec, 1)
        rows = tokenizer.tokenize(list(TEXTS))
        found = {
            "ids": rows.ids.tolist(),
            "offsets": rows.offsets.tolist(),
            "truncated": rows.truncated.tolist(),
            "failed": list(rows.failed.items()),
            "token_types": tokenizer.gives_token_types,
        }
        (folder / _NAME).write_text(json.dumps(found))

    found = json.loads((kept("probe-tokens", _key(spec), make) / _NAME).read_text())
    rows = TokenRows(
        np.array(found["ids"], np.int32),
        np.array(found["offsets"], np.int64),
        np.array(found["truncated"], np.bool_),
        dict(found["failed"]),
    )
    return ProbeTokens(rows=rows, token_types=found["token_types"])


def are_known(spec: EncoderSpec) -> bool:
    """Whether `probe_tokens` finds them without a tokenizer."""
    return is_kept("probe-tokens", _key(spec))


def _key(spec: EncoderSpec) -> str:
    versions = [version(package) for package in ("tokenizers", "transformers")]
    return identity.digest(
        {"encoder": spec.identity() | {"int8": None, "precision": ""}, "texts": TEXTS, "versions": versions}
    )
