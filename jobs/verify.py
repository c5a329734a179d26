"""Check a published table against its model, and the model against evaluation sets.

    python -m jobs.verify CONFIG.yaml [--rows 256] [--seed 0] [--oracle sentence-transformers] [--json]
    python -m jobs.verify CONFIG.yaml --sts FILE.tsv.gz .. --retrieval FOLDER ..

Encodes a sample of the table's texts again, exactly, and compares the vectors; changes nothing. The evaluations use the
model section alone and need no table. The table's path or URL can stand in the place of the configuration, since a table
knows its model. Exit codes: 0 as it should be; 1 the table is outside the tolerance or can't be read; 2 bad configuration or
input.

For example:

    python -m jobs.verify run.yaml --rows 1000
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from jobs.command import main_of, parser
from pipeline import progress
from pipeline.config import RunSpec
from pipeline.encoder.embedder import embedder
from pipeline.errors import InputError, StorageError
from pipeline.model.folder import EncoderSpec, encoder_spec
from pipeline.progress import Phase
from pipeline.runs.evaluate import (
    Encode,
    PairsScore,
    RetrievalScore,
    read_pairs,
    read_retrieval,
    score_pairs,
    score_retrieval,
)
from pipeline.runs.published import is_published, published
from pipeline.runs.recorded import spec_of
from pipeline.runs.verify import Oracle, verify

OUTSIDE_TOLERANCE = 1


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("--rows", type=int, default=256, help="rows of the table to check (256)")
    command.add_argument("--seed", type=int, default=0, help="which rows: another seed takes others")
    command.add_argument("--oracle", choices=get_args(Oracle), default="pipeline", help="what encodes the texts again")
    command.add_argument("--sts", metavar="FILE", nargs="+", action="extend", default=[], help="scored sentence pairs")
    command.add_argument("--retrieval", metavar="FOLDER", nargs="+", action="extend", default=[], help="retrieval sets")
    arguments = command.parse_args(argv)
    with progress.run("verify"):
        result, text, passed = _verified(arguments)
    arguments.show(result, text)
    return 0 if passed else OUTSIDE_TOLERANCE


def _verified(arguments: argparse.Namespace) -> tuple[dict[str, Any], str, bool]:
    """Return what machines and people are told, and whether all is as it should be."""
    spec = spec_of(arguments.config, arguments.set)
    pairs = [read_pairs(path) for path in arguments.sts]
    judged = [read_retrieval(path) for path in arguments.retrieval]
    missing = _missing(spec) if pairs or judged else ""
    table = None if missing else published(spec)
    checked = None if table is None else verify(table, arguments.rows, arguments.seed, arguments.oracle)
    model = encoder_spec(spec.model) if table is None else table.encoder_here()
    queries = model.for_queries()
    encode, encode_queries, function = _encode(model), _encode(queries), model.similarity
    scores: list[PairsScore | RetrievalScore] = [
        *(score_pairs(some, encode, function) for some in pairs),
        *(score_retrieval(some, encode, encode_queries, function) for some in judged),
    ]
    setting = f"{model.precision}, {function}, prompt {model.prompt!r}, for queries {queries.prompt!r}"
    lines = [str(checked) if checked else f"{missing}: only the model was evaluated"]
    lines += [f"evaluated {spec.model.path} ({setting})", *(f"  {score}" for score in scores)] if scores else []
    result = {
        "table": checked.to_dict() if checked else None,
        "model": {"path": spec.model.path, "precision": model.precision, "similarity": function}
        | {"prompt": model.prompt, "query_prompt": queries.prompt},
        "scores": [score.to_dict() for score in scores],
    }
    return result, "\n".join(lines), checked is None or checked.passed


def _missing(spec: RunSpec) -> str:
    """Say why there is no table to verify beside an evaluation. Return "" where there is one."""
    try:
        return "" if is_published(spec) else f"table {spec.table.path!r} has no published version yet"
    except (InputError, StorageError) as error:
        return f"table {spec.table.path!r} can't be read ({error})"


def _encode(model: EncoderSpec) -> Encode:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        run = progress.current()
        run.expect(units=None, rows=len(texts))
        run.begin(Phase.LOADING)
        encoded = embedder(model).encode(texts, run.encoded)
        # A text without tokens gets zeros, as in sentence-transformers. It is like nothing else, and last in every ranking.
        return np.where(np.isfinite(encoded.vectors), encoded.vectors, np.float32(0))

    return encode


if __name__ == "__main__":
    sys.exit(main_of(main))
