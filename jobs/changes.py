"""Tell what changed between two versions of a table, for programs that follow it.

    python -m jobs.changes CONFIG.yaml --since N [--until M] [--rows] [--output FILE.parquet]

Each id comes once, with what holds now: an upsert with its hashes, or a delete. From version 0 all rows are upserts. Without
--output a JSON object per line is printed; --rows adds the rows, with their vectors as floats. The table's path or URL can
stand in the place of the configuration. Exit codes: 0 done; 1 storage failed; 2 bad input, or changes that are not complete
any more.

For example, the rows that came, went or changed since version 3:

    python -m jobs.changes run.yaml --since 3
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.command import main_of, parser
from pipeline.errors import InputError
from pipeline.runs.recorded import table_of
from pipeline.schema import CHANGES
from pipeline.table import changed_rows, snapshot


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("--since", metavar="N", type=int, required=True, help="the version that is known")
    command.add_argument("--until", metavar="M", type=int, help="the version that is wanted (the current one)")
    command.add_argument("--rows", action="store_true", help="with all columns, and the vectors as floats")
    command.add_argument("--output", metavar="FILE", help="write a Parquet file in place of lines")
    arguments = command.parse_args(argv)
    table = table_of(arguments.config, arguments.set)
    version = snapshot.current(table) if arguments.until is None else snapshot.read(table, arguments.until)
    if not version.version:
        raise InputError(f"{table.url} holds no published version: check the path, or embed something first")
    found = changed_rows.changes(table, arguments.since, version, with_rows=arguments.rows)
    if arguments.output is None:
        for rows in found:
            for line in _lines(rows):
                print(line)
        return 0
    written = _write(found, arguments.output)
    told = {"since": arguments.since, "until": version.version, "changes": written, "output": arguments.output}
    arguments.show(
        told, f"{written:,} changes from version {arguments.since} to {version.version} in {arguments.output}"
    )
    return 0


def _lines(rows: pa.Table) -> Iterator[str]:
    for row in rows.to_pylist():
        yield json.dumps(row, default=_text, ensure_ascii=False)


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _write(found: Iterator[pa.Table], path: str) -> int:
    """Write the file whole or not at all, and return how many changes it has."""
    unfinished = f"{path}.tmp"
    writer, count = None, 0
    try:
        for rows in found:
            if writer is None:
                writer = pq.ParquetWriter(unfinished, rows.schema, compression="zstd")
            writer.write_table(rows)
            count += rows.num_rows
        if writer is None:
            writer = pq.ParquetWriter(unfinished, CHANGES)
        writer.close()
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"--output {path!r} can't be written: {error}") from None
    return count


if __name__ == "__main__":
    sys.exit(main_of(main))
