"""Answer a query from a published table, or from the store of one of its feeds, and print the nearest documents.

    python -m jobs.search CONFIG.yaml "a question" [--top 5] [--json]
    python -m jobs.search CONFIG.yaml "a question" --feed NAME [--where column=value ..] [--compare]

The table's path or URL can stand in the place of the configuration, since a table knows its model. The query is encoded with
that model, behind the model's own prompt for queries if it has one. Without --feed it is compared with every row, in this
process: a look at the result, not a search service. With --feed the live generation of a vector database answers as it answers
an application, and --compare shows what exact comparison finds beside it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.command import main_of, parser
from pipeline.config import RunSpec
from pipeline.errors import InputError, one_line
from pipeline.runs import feed_search
from pipeline.runs.feed_search import Answer
from pipeline.runs.published import Published, published
from pipeline.runs.recorded import spec_of
from pipeline.schema import ID, TEXT
from pipeline.table.search import SCORE, nearest


def search(spec: RunSpec, query: str, num_rows: int) -> pa.Table:
    """The nearest rows, best first. Raises InputError where there is no published version, or one of other vectors."""
    found = _asked(spec, num_rows)
    return nearest(found.table, found.version, _vector(found, query), num_rows, found.encoder.similarity)


def ask(
    spec: RunSpec, query: str, num_rows: int, feed: str, where: Mapping[str, str], *, compare: bool = False
) -> Answer:
    """What the store of a feed answers. Raises InputError."""
    found = _asked(spec, num_rows)
    vector = _vector(found, query)
    return feed_search.ask(spec, feed, vector, num_rows, where, function=found.encoder.similarity, compare=compare)


def _asked(spec: RunSpec, num_rows: int) -> Published:
    if num_rows < 1:
        raise InputError(f"--top is {num_rows}; give how many rows to show, 1 or more")
    return published(spec)


def _vector(found: Published, query: str) -> NDArray[np.float32]:
    from pipeline.encoder.embedder import embedder

    encoded = embedder(found.encoder_here().for_queries(), "cpu").encode([query])
    if encoded.failed:
        raise InputError(f"the query {query!r} has no vector: {encoded.failed[0]}; ask something else")
    vector: NDArray[np.float32] = encoded.vectors[0]
    return vector


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("query", help="the question, in quotes")
    command.add_argument("--top", metavar="N", type=int, default=5, help="how many rows to show")
    command.add_argument("--feed", metavar="NAME", help="ask the store of this feed")
    command.add_argument("--where", metavar="COLUMN=VALUE", nargs="+", default=[], help="with --feed: these rows alone")
    command.add_argument("--compare", action="store_true", help="with --feed: the exact answer beside the store's")
    arguments = command.parse_args(argv)
    spec = spec_of(arguments.config, arguments.set)
    if arguments.feed is not None:
        return _ask(arguments, spec)
    if arguments.where or arguments.compare:
        raise InputError("--where and --compare go with --feed alone")
    columns = [ID, SCORE, *(name for name in spec.source.keep if name not in spec.table.partition_by)]
    found = search(spec, arguments.query, arguments.top)
    rows = found.select([name for name in columns if name in found.column_names]).to_pylist()
    lines = [f'nearest to "{arguments.query}"', *map(_line, rows)]
    arguments.show({"query": arguments.query, "rows": rows}, "\n".join(lines))
    return 0


def _ask(arguments: argparse.Namespace, spec: RunSpec) -> int:
    where = dict(_pair(given) for given in arguments.where)
    answer = ask(spec, arguments.query, arguments.top, arguments.feed, where, compare=arguments.compare)
    rows = answer.rows.to_pylist()
    lines = [
        f'nearest to "{arguments.query}" in {answer.generation} of feed {arguments.feed}, version {answer.version}'
    ]
    lines += [_line({name: value for name, value in row.items() if name != TEXT}) for row in rows]
    exact = answer.exact.to_pylist() if answer.exact is not None else []
    if exact:
        lines += [f"by exact comparison ({answer.agreement:.0%} of it are above)", *map(_line, exact)]
    told = {
        "query": arguments.query,
        "feed": arguments.feed,
        "generation": answer.generation,
        "version": answer.version,
    }
    compared = {"exact": exact, "agreement": answer.agreement} if arguments.compare else {}
    arguments.show(told | {"rows": rows} | compared, "\n".join(lines))
    return 0


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise InputError(f"--where {given!r} is not of the form column=value")
    return name, value


def _line(row: Mapping[str, Any]) -> str:
    values = [one_line(str(value), 200) for name, value in row.items() if name != SCORE]
    return f"{row[SCORE]:.3f}  {'  '.join(values)}"


if __name__ == "__main__":
    sys.exit(main_of(main))
