"""Answer a query from a published table, and print the nearest documents.

    python -m jobs.search CONFIG.yaml "a question" [--top 5] [--json]

The table's path or URL can stand in the place of the configuration, since a table knows its model. The query is encoded with
that model, behind the model's own prompt for queries if it has one. It is compared with every row, in this process. This is a
look at the result, not a search service.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs.command import main_of, parser
from pipeline.config import RunSpec
from pipeline.errors import InputError, one_line
from pipeline.runs.published import published
from pipeline.runs.recorded import spec_of
from pipeline.schema import ID
from pipeline.table.search import SCORE, nearest


def search(spec: RunSpec, query: str, num_rows: int) -> pa.Table:
    """The nearest rows, best first. Raises InputError where there is no published version, or one of other vectors."""
    from pipeline.encoder.embedder import embedder

    if num_rows < 1:
        raise InputError(f"--top is {num_rows}; give how many rows to show, 1 or more")
    found = published(spec)
    encoded = embedder(found.encoder_here().for_queries(), "cpu").encode([query])
    if encoded.failed:
        raise InputError(f"the query {query!r} has no vector: {encoded.failed[0]}; ask something else")
    return nearest(found.table, found.version, encoded.vectors[0], num_rows, found.encoder.similarity)


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("query", help="the question, in quotes")
    command.add_argument("--top", metavar="N", type=int, default=5, help="how many rows to show")
    arguments = command.parse_args(argv)
    spec = spec_of(arguments.config, arguments.set)
    columns = [ID, SCORE, *(name for name in spec.source.keep if name not in spec.table.partition_by)]
    found = search(spec, arguments.query, arguments.top)
    rows = found.select([name for name in columns if name in found.column_names]).to_pylist()
    lines = [f'nearest to "{arguments.query}"', *map(_line, rows)]
    arguments.show({"query": arguments.query, "rows": rows}, "\n".join(lines))
    return 0


def _line(row: Mapping[str, Any]) -> str:
    values = [one_line(str(value), 200) for name, value in row.items() if name != SCORE]
    return f"{row[SCORE]:.3f}  {'  '.join(values)}"


if __name__ == "__main__":
    sys.exit(main_of(main))
