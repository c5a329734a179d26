"""Show what a published table holds: the rows nearest to a query or to one of its rows, or pairs that are nearly the same.

    python -m jobs.search CONFIG.yaml|TABLE "a question" [--top 5] [--where lang=en 'year >= 2020'] [--hybrid] [--json]
    python -m jobs.search TABLE --near ID [--top 5]
    python -m jobs.search TABLE --duplicates 0.95 [--top 20]
    python -m jobs.search CONFIG.yaml "a question" --feed NAME [--where column=value ..] [--compare]

A table knows its model, so that its path or URL can stand in the place of the configuration. The query is encoded with that
model, behind the model's own prompt for queries if it has one. Each row is compared in this process: a look at the result,
not a search service. Of a table of chunks each document comes once, with its best chunk. --hybrid also ranks by the words
of the query (BM25), and fuses both rankings. --near and --duplicates load no model. With --feed the live generation of a
vector database answers as it answers an application, and --compare shows what exact comparison finds beside it.

Example:

    python -m jobs.search ~/embeddings "how are rows deleted?" --where kind=manual
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs.command import main_of, parser
from jobs.where import add_where
from pipeline.config import RunSpec
from pipeline.errors import InputError
from pipeline.runs import search as searches
from pipeline.runs.found import SCORE, Found, Pairs, named, shown
from pipeline.runs.published import published
from pipeline.runs.recorded import spec_of
from pipeline.schema import ID, TEXT
from pipeline.storage import is_remote, local_path


def search(spec: RunSpec, query: str, num_rows: int) -> pa.Table:
    """The nearest rows, best first. Raises InputError where there is no published version, or one of other vectors."""
    return searches.search(spec, query, top=num_rows).rows


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("query", nargs="?", help="the question, in quotes")
    command.add_argument("--top", metavar="N", type=int, help="how many rows to show: 5, of pairs 20")
    add_where(command, "only rows such as lang=en or 'year >= 2020'; more may follow, and all must hold")
    command.add_argument("--hybrid", action="store_true", help="rank by the query's words, too")
    command.add_argument("--near", metavar="ID", help="the neighbours of this row of the table")
    command.add_argument(
        "--duplicates", metavar="COSINE", type=float, help="pairs of rows that are at least so similar"
    )
    command.add_argument("--feed", metavar="NAME", help="ask the store of this feed")
    command.add_argument("--compare", action="store_true", help="with --feed: the exact answer beside the store's")
    arguments = command.parse_args(argv)
    _check(arguments)
    if arguments.feed is not None:
        return _ask(arguments, spec_of(arguments.config, arguments.set))
    found = _found(arguments)
    arguments.show(_told(arguments, found), "\n".join(found.lines(colour=_in_colour())))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    asked = [arguments.query is not None, arguments.near is not None, arguments.duplicates is not None]
    if sum(asked) != 1:
        raise InputError(f"give one of a question in quotes, --near ID and --duplicates COSINE{_cause(arguments)}")
    if arguments.compare and arguments.feed is None:
        raise InputError("--compare goes with --feed alone")
    if (arguments.hybrid or arguments.feed is not None) and arguments.query is None:
        raise InputError("--hybrid and --feed go with a question")
    if arguments.hybrid and arguments.feed is not None:
        raise InputError("--hybrid and --feed don't go together: the store of a feed ranks as it does")


def _cause(arguments: argparse.Namespace) -> str:
    """Say why there may be no question though one was given."""
    if arguments.query is not None or arguments.near is not None or arguments.duplicates is not None:
        return ""
    if arguments.where:
        return f" ({arguments.where[-1]!r} was taken for a condition: a question that looks like one stands before --where)"
    given = arguments.config
    if is_remote(given) or given.endswith((".yaml", ".yml")) or os.path.lexists(local_path(given)):
        return ""
    return f" ({given!r} was taken for the table: the table or its configuration comes first, then the question)"


def _found(arguments: argparse.Namespace) -> Found | Pairs:
    where = arguments.where
    if arguments.query is not None:
        spec = spec_of(arguments.config, arguments.set)
        return searches.search(spec, arguments.query, top=_top(arguments, 5), where=where, hybrid=arguments.hybrid)
    table = searches.opened(arguments.config, arguments.set)
    if arguments.near is not None:
        return searches.near(table, arguments.near, top=_top(arguments, 5), where=where)
    return searches.nearly_same(table, arguments.duplicates, top=_top(arguments, 20), where=where)


def _top(arguments: argparse.Namespace, default: int) -> int:
    return default if arguments.top is None else int(arguments.top)


def _told(arguments: argparse.Namespace, found: Found | Pairs) -> dict[str, Any]:
    if isinstance(found, Pairs):
        return {"duplicates": arguments.duplicates, "total": found.total, "pairs": list(found), "notes": found.notes}
    asked = {"query": arguments.query} if arguments.query is not None else {"near": arguments.near}
    return asked | {"rows": found.to_dicts(), "notes": found.notes}


def _in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _ask(arguments: argparse.Namespace, spec: RunSpec) -> int:
    answer = ask(spec, arguments.query, _top(arguments, 5), arguments.feed, arguments.where, compare=arguments.compare)
    rows = answer.rows.to_pylist()
    lines = [
        f'nearest to "{arguments.query}" in {answer.generation} of feed {arguments.feed}, version {answer.version}'
    ]
    lines += [_line({name: value for name, value in row.items() if name != TEXT}) for row in rows]
    lines += [] if rows else [searches.none_met(arguments.where)]
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


def ask(spec: RunSpec, query: str, num_rows: int, feed: str, where: Sequence[str], *, compare: bool = False) -> Any:
    """What the store of a feed answers, a runs.feed_search.Answer. Raises InputError."""
    from pipeline.runs import feed_search

    if num_rows < 1:
        raise InputError(f"--top is {num_rows}; give how many rows to show, 1 or more")
    found = published(spec)
    vector = searches.query_vector(found, query)
    return feed_search.ask(spec, feed, vector, num_rows, where, function=found.encoder.similarity, compare=compare)


def _line(row: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in row.items() if name not in (ID, SCORE)}
    return "  ".join([f"{row[SCORE]:.3f}", shown(row[ID]), *named(kept)])


if __name__ == "__main__":
    sys.exit(main_of(main))
