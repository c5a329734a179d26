"""A run that deletes, fails or clips too much publishes nothing.

Counts come in. Nothing or an error goes out.
"""

from collections.abc import Sequence

from pipeline.errors import GateFailed, RunError, one_line
from pipeline.runs.prepared import Prepared
from pipeline.runs.unread_files import UnreadFile
from pipeline.sources.formats.content import encoding_hint
from pipeline.storage import Folder
from pipeline.table import calibration, dead_letters, layout, snapshot
from pipeline.table.record import Effort
from pipeline.work import Unfit, together

MOST_UNFIT = 100
"""So many rows that don't fit the types of their columns may be bad rows. More of them are a column of another type."""
SHOWN = 3
"""So many unreadable files are named with their reasons."""


def check_deletion_limit(
    table: str, *, rows: int, deleted: int, files: int, limit: float, allowed: bool = False
) -> None:
    """Raise GateFailed where more rows would be deleted than `limits.max_deleted_rows` or the user allows.

    The table has so many `rows`, and so many `files` were listed. A limit below 1 is a share of the rows, else it is
    a count. A row is deleted if the sources no longer have it. Rows that can't be read or encoded today are not
    deleted.
    """
    if allowed or not deleted:
        return
    if deleted <= _most(limit, rows):
        return
    what = "all" if deleted == rows else f"{deleted / rows:.1%} of"
    raise GateFailed(
        f"{deleted:,} rows, {what} the {rows:,} of table {table}, are no longer in its {files:,} source files, and "
        f"limits.max_deleted_rows is {limit:g}: nothing was published. If files are missing, bring them back and start again; "
        "if the rows are to go, add --allow-deletes"
    )


def _most(limit: float, rows: int) -> float:
    """How many of the `rows` a limit allows: below 1 it is a share of them, else a count."""
    return limit if limit >= 1 else limit * rows


def check_version(
    prepared: Prepared, *, failed: int, total: int, effort: Effort, unread: Sequence[UnreadFile] = ()
) -> None:
    """Raises RunError for what no version may have, whether it was built by units or by row, before its commit.

    `failed` of `total` source rows have no vector, with the rows that are missing from the `unread` files; `effort` is
    what encoding for the version took, by earlier runs too.
    """
    check_unread(prepared, unread)
    check_failed(prepared, failed, total, unread)
    check_clipped(prepared, effort)


def check_unread(prepared: Prepared, unread: Sequence[UnreadFile]) -> None:
    """Raise RunError where more files can't be read than `limits.max_failed_files` lets."""
    limit, files = prepared.spec.limits.max_failed_files, len(prepared.corpus.files)
    if len(unread) > _most(limit, files):
        raise RunError(
            f"{told_unread(unread, files)}; limits.max_failed_files allows {limit:g}: nothing was published, finished work "
            "is kept; mend the files, leave them out by source.exclude, or raise the limit"
            f"{encoding_hint([item.reason for item in unread])}"
        )


def check_unfit(prepared: Prepared, found: Sequence[Unfit]) -> None:
    """Raise RunError where rows by the hundred are of another type than their columns."""
    unfit = together(found)
    if unfit is None or unfit.rows <= MOST_UNFIT:
        return
    kind = prepared.survey.schema.field(unfit.column).type
    raise RunError(
        f"{unfit.rows:,} rows and more have values that the types of their columns don't hold; the first is {unfit.example}. "
        f"Column {unfit.column!r} is read as {kind}, by the table or by the beginnings of the files: nothing was published; "
        f"give it in source.schema a type that holds all of its values (string holds numbers as they are written, and "
        f"{kind} makes dead letters of the others), and start again"
    )


def told_unread(unread: Sequence[UnreadFile], files: int) -> str:
    """Return how many of the files can't be read, how many rows that costs, and the first reasons."""
    rows = sum(item.rows for item in unread)
    about = f" (about {rows:,} rows beside their dead letters)" if rows else ""
    shown = "; ".join(f"{item.path!r}: {one_line(item.reason, 200)}" for item in unread[:SHOWN])
    more = f"; and {len(unread) - SHOWN:,} more" if len(unread) > SHOWN else ""
    return f"{len(unread):,} of {files:,} source files can't be read to the end{about}: {shown}{more}"


def check_failed(prepared: Prepared, failed: int, total: int | None, unread: Sequence[UnreadFile] = ()) -> None:
    """Raise RunError where more rows failed than `limits.max_failed_rows` lets. It is a count, or a share where the
    total is known. The message begins with what is known of the `unread` files."""
    limit = prepared.spec.limits.max_failed_rows
    if total is None and limit < 1:
        return
    if failed > _most(limit, total or 0):
        share = f" of {total:,}" if total is not None else ""
        files = f"{told_unread(unread, len(prepared.corpus.files))}; in all " if unread else ""
        raise RunError(
            f"{files}{failed:,} rows{share} failed, limits.max_failed_rows allows {limit:g}: nothing was published, finished "
            f"work is kept; {_reasons(prepared.table)}"
        )


def _reasons(table: Folder) -> str:
    """Return the first reasons why rows failed, and the newest file of such rows in staging."""
    staged = [info for info in table.list(layout.STAGED_PARTS) if info.path.endswith(".dead")]
    staged += [info for info in table.list(layout.PUBLICATIONS) if "letters" in info.path]
    newest = sorted(staged, key=lambda info: (info.modified, info.path), reverse=True)[: dead_letters.SHOWN]
    contents = [content for info in newest if (content := table.read(info.path)) is not None]
    told = dead_letters.reasons(map(snapshot.read_parquet, contents))
    if not told:
        return "no reason was staged"
    place = f"all of them stand in files such as {table.url}/{newest[0].path}"
    return f"the first reasons are {'; '.join(told)}; {place}{encoding_hint(told)}"


def check_clipped(prepared: Prepared, effort: Effort, done: float = 1.0) -> None:
    """Raise RunError where the first version of a table would have too many numbers outside its ranges.

    The `effort` stands for a share `done` of that version, so that the error comes as soon as it is sure.
    """
    if not prepared.is_full or effort.coded < calibration.FEWEST_NUMBERS:
        return
    if effort.clipped * done > calibration.CLIPPED * effort.coded:
        raise RunError(
            f"{effort.clipped / effort.coded:.1%} of {effort.coded:,} numbers lie outside the value ranges in "
            f"{prepared.table.url}/{prepared.vectors.ranges_path} and would be clipped, up to {calibration.CLIPPED:.0%} are "
            "allowed: nothing was published. If the source was another when they were measured, delete that file and run "
            "again; else set table.dtype to float16 or float32"
        )
