"""Show a table in one HTML file: its versions, speed, texts, vectors, drift, dead letters, checks and feeds.

    python -m jobs.report CONFIG.yaml|TABLE [--out report.html] [--price-per-hour P] [--verify ROWS] [--json]

The file needs no network and no other file. A configuration names feeds, which are asked how far they are behind; the table
alone doesn't know them. --verify encodes ROWS rows again and compares them. Tables of more than 200,000 rows are looked at by
a seeded sample, which the report tells. `table.report: true` leaves such a file beside each version that is published.

Exit codes: 0 done; 1 storage failed; 2 bad configuration or input. For example:

    python -m jobs.report run.yaml --out nightly.html --price-per-hour 1.2
"""

import sys
from collections.abc import Sequence

from jobs.command import main_of, parser
from pipeline.errors import InputError
from pipeline.reports.report import report
from pipeline.runs.recorded import is_table, spec_of, standing_for, table_of


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument(
        "--out", metavar="FILE.html", default="report.html", help="write the report there (report.html)"
    )
    command.add_argument("--price-per-hour", metavar="P", type=float, help="of the machines, in any currency")
    command.add_argument("--verify", metavar="ROWS", type=int, default=0, help="encode so many rows again and compare")
    arguments = command.parse_args(argv)
    if arguments.verify < 0:
        raise InputError(f"--verify is {arguments.verify}; give how many rows to encode again, 1 or more")
    place = standing_for(arguments.config)
    alone, table = is_table(place), table_of(place, arguments.set)
    spec = spec_of(place, arguments.set) if arguments.verify or not alone else None
    made = report(
        table, spec, asks_feeds=not alone, price_per_hour=arguments.price_per_hour, verify_rows=arguments.verify
    )
    made.write(arguments.out)
    last = made.figures.versions[-1]
    text = f"a report on version {last.version} of {table.url} ({last.rows:,} rows) is in {arguments.out}"
    arguments.show(made.to_dict() | {"out": arguments.out}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main_of(main))
