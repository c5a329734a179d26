"""Answer a query from a published table: encode it with the table's model, print the nearest documents.

    python -m jobs.search CONFIG.yaml "a question" [--top 5] [--json]

Compares with every row, in this process: a look at the result, not a search service.
"""

import sys
from collections.abc import Sequence

import pyarrow as pa

from jobs.command import main_of, parser
from pipeline import identity
from pipeline.config import RunSpec, load
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
from pipeline.schema import ID
from pipeline.search import SCORE, nearest
from pipeline.storage import Folder
from pipeline.table import snapshot


def search(spec: RunSpec, query: str, num_rows: int) -> pa.Table:
    """The nearest rows, best first. Raises InputError where there is no published version."""
    from pipeline.encoder import build_encoder
    from pipeline.tokenizing import Tokenizer

    table = Folder(spec.table.path, spec.table.storage_options)
    version = snapshot.current(table)
    if not version.version:
        raise InputError(f"table {spec.table.path!r} has no published version: run jobs.embed first")
    encoder = encoder_spec(spec.model)
    vectors = identity.vectors_spec(encoder.identity(), spec.table.dtype, spec.chunk_identity)
    if identity.digest(vectors) != version.fingerprint:
        raise InputError(f"table {spec.table.path!r} was built with another model or other model settings: use those")
    tokens = Tokenizer(encoder, threads=1).tokenize([query])
    return nearest(table, version, build_encoder(encoder, "cpu", threads=1).encode(tokens).vectors[0], num_rows)


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False)
    command.add_argument("query")
    command.add_argument("--top", type=int, default=5)
    arguments = command.parse_args(argv)
    spec = load(arguments.config, arguments.set)
    columns = [ID, SCORE, *(name for name in spec.source.keep if name not in spec.table.partition_by)]
    found = search(spec, arguments.query, arguments.top)
    rows = found.select([name for name in columns if name in found.column_names]).to_pylist()
    lines = [f"{row.pop(SCORE):.3f}  {'  '.join(str(value) for value in row.values())}" for row in map(dict, rows)]
    arguments.show({"query": arguments.query, "rows": rows}, "\n".join([f'nearest to "{arguments.query}"', *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main_of(main))
