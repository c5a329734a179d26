"""Look at a table, and mend it.

    python -m jobs.status CONFIG.yaml [--json]                 versions, staged work, dead letters, files
    python -m jobs.status CONFIG.yaml --files N                the files of version N
    python -m jobs.status CONFIG.yaml --rollback N             publish version N's rows as a new version, and hold the table
    python -m jobs.status CONFIG.yaml --release                let runs publish again
    python -m jobs.status CONFIG.yaml --clean [--older-than DAYS] [--dry-run]    remove what no kept version needs
    python -m jobs.status CONFIG.yaml --purge ID .. | @FILE    erase rows from all that the table ever held

The table's path or URL can stand in the place of the configuration, of which only the table section is used. Exit codes: 0
done; 1 failed; 2 bad configuration or input, nothing was done; 10 (--clean --dry-run) there is something to clean.

For example, what stands there, and then what a cleaning would remove:

    python -m jobs.status run.yaml
    python -m jobs.status run.yaml --clean --dry-run
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.command import Arguments, main_of, parser
from pipeline.errors import InputError
from pipeline.progress import counted, size
from pipeline.runs.recorded import table_of
from pipeline.storage import Folder
from pipeline.table.operations import purge, restore, vacuum
from pipeline.table.status import files, status

PENDING = 10


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=True, takes_tables=True)
    verbs = command.add_mutually_exclusive_group()
    verbs.add_argument("--files", metavar="N", type=int, help="list the files of version N")
    verbs.add_argument("--rollback", metavar="N", type=int, help="publish the rows of version N and hold the table")
    verbs.add_argument("--release", action="store_true", help="end the hold of a rollback")
    verbs.add_argument("--clean", action="store_true", help="remove old files that no kept version needs")
    verbs.add_argument("--purge", metavar="ID", nargs="+", help="erase these rows; @FILE has an id per line")
    command.add_argument("--older-than", metavar="DAYS", type=float, default=vacuum.OLD_DAYS, help="with --clean (7)")
    arguments = command.parse_args(argv)
    table = table_of(arguments.config, arguments.set)
    if arguments.dry_run and not arguments.clean:
        raise InputError("--dry-run goes with --clean alone")
    if arguments.files is not None:
        return _show_files(arguments, table)
    if arguments.rollback is not None:
        version = restore.roll_back(table, arguments.rollback)
        text = (
            f"version {version.version} of {table.url} has the rows of version {arguments.rollback}; it holds the table"
        )
        arguments.show({"version": version.version, "rows_of": arguments.rollback}, f"{text} until --release")
        return 0
    if arguments.release:
        version = restore.release(table)
        arguments.show({"version": version.version, "held": False}, f"{table.url} is released: runs publish again")
        return 0
    if arguments.clean:
        return _clean(arguments, table)
    if arguments.purge:
        return _purge(arguments, table)
    found = status(table)
    arguments.show(found.to_dict(), str(found))
    return 0


def _show_files(arguments: Arguments, table: Folder) -> int:
    found = files(table, arguments.files)
    lines = [
        f"{counted(row['rows'], 'row'):>17}  {size(row['bytes']):>9}  {row['place'] or row['path'] + ' (gone)'}"
        for row in found
    ]
    arguments.show({"version": arguments.files, "files": found}, "\n".join(lines))
    return 0


def _clean(arguments: Arguments, table: Folder) -> int:
    if not arguments.older_than >= 0:
        raise InputError(f"--older-than is {arguments.older_than}; give days, 0 or more")
    litter = vacuum.clean(table, arguments.older_than, dry_run=arguments.dry_run)
    kinds = {"orphans": litter.orphans, "trash": litter.trash, "staging": litter.staging} | (
        {"leases": litter.leases} if litter.leases else {}
    )
    counts: dict[str, Any] = {
        name: {"files": len(found), "bytes": sum(info.size for info in found)} for name, found in kinds.items()
    }
    pieces = [
        f"{counted(count['files'], 'file')} of {name} with {size(count['bytes'])}" for name, count in counts.items()
    ]
    verb = "would remove" if arguments.dry_run else "removed"
    listed = [f"  {info.path}" for info in litter.files] if arguments.dry_run else []
    if litter.kept:
        age = f"{arguments.older_than:g} day{'' if arguments.older_than == 1 else 's'}"
        listed.append(
            f"  kept {counted(len(litter.kept), 'file')} in the trash with {size(sum(info.size for info in litter.kept))}, "
            f"younger than {age} or of a version that is kept"
        )
    kept = {"kept": {"files": len(litter.kept), "bytes": sum(info.size for info in litter.kept)}}
    arguments.show(
        counts | kept | ({"paths": [info.path for info in litter.files]} if arguments.dry_run else {}),
        "\n".join([f"{verb} {', '.join(pieces)} from {table.url}", *listed]),
    )
    return PENDING if arguments.dry_run and litter.files else 0


def _purge(arguments: Arguments, table: Folder) -> int:
    ids = [name for given in arguments.purge for name in _ids(given)]
    if not ids:
        raise InputError("--purge was given no id")
    done = purge.purge(table, ids)
    text = (
        f"{table.url} is at version {done.version}: {counted(done.rows, 'row')} and "
        f"{counted(done.dead_letters, 'dead letter')} left it, with {counted(done.files, 'older file')} erased or written "
        "anew. The list of changes of that version names the ids as deleted, for those who follow it: purge them again when "
        "they have. Rows that stay in the source come back when their unit is planned anew: take them out there, too"
    )
    if done.left:
        text += (
            f". NOT COMPLETE: {counted(done.left, 'file')} may hold them that a run under way or a later version needs, "
            "or that were written within the last ten minutes: give the command again when no run is at work"
        )
    arguments.show(
        {"version": done.version, "rows": done.rows, "dead_letters": done.dead_letters}
        | {"files": done.files, "left": done.left},
        text,
    )
    return 1 if done.left else 0


def _ids(given: str) -> list[str]:
    if not given.startswith("@"):
        return [given]
    try:
        return [line for line in Path(given[1:]).read_text(encoding="utf-8").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--purge {given}: can't read the file of ids: {error}") from None


if __name__ == "__main__":
    sys.exit(main_of(main))
