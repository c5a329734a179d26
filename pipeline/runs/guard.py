"""What stands between a bad night and the table: a run that loses, fails or clips too much publishes nothing.

Counts come in, an error goes out or nothing.
"""

from pipeline.errors import GateFailed, RunError, one_line
from pipeline.runs.prepared import Prepared
from pipeline.storage import Folder
from pipeline.table import calibration, layout, snapshot
from pipeline.table.record import Effort


def check_deletion_limit(
    table: str, *, rows: int, deleted: int, files: int, limit: float, allowed: bool = False
) -> None:
    """Raises GateFailed where of the `rows` that the table has more are deleted than `limits.max_deleted_rows`, which is a
    share below 1, else a count, unless the user allowed it. `files` were listed.

    Deleted are rows that the sources no longer have; those that stay, changed or not, are not, nor are those that can't be
    read or encoded today.
    """
    if allowed or not deleted:
        return
    most = limit if limit >= 1 else limit * rows
    if deleted <= most:
        return
    what = "all" if deleted == rows else f"{deleted / rows:.1%} of"
    raise GateFailed(
        f"{deleted:,} rows, {what} the {rows:,} of table {table}, are no longer in its {files:,} source files, and "
        f"limits.max_deleted_rows is {limit:g}: nothing was published. If files are missing, bring them back and start again; "
        "if the rows are to go, add --allow-deletes"
    )


def check_failed(prepared: Prepared, failed: int, total: int | None) -> None:
    """`limits.max_failed_rows` as a count, or as a share where the total is known."""
    limit = prepared.spec.limits.max_failed_rows
    allowed = limit if limit >= 1 else (limit * total if total is not None else None)
    if allowed is not None and failed > allowed:
        share = f" of {total:,}" if total is not None else ""
        raise RunError(
            f"{failed:,} rows{share} failed, limits.max_failed_rows allows {limit:g}: nothing was published, finished work is "
            f"kept; {_reasons(prepared.table)}"
        )


def _reasons(table: Folder) -> str:
    """The first three reasons of rows that failed, and the newest file of them in staging."""
    staged = [info for info in table.list(layout.STAGED_PARTS) if info.path.endswith(".dead")]
    staged += [info for info in table.list(layout.PUBLICATIONS) if "letters" in info.path]
    newest = max(staged, key=lambda info: (info.modified, info.path), default=None)
    content = table.read(newest.path) if newest is not None else None
    if newest is None or content is None:
        return "no reason was staged"
    rows = snapshot.read_parquet(content).slice(0, 3).to_pylist()
    told = "; ".join(f"{row['path']!r}: {one_line(row['error'], 200)}" for row in rows)
    return f"the first reasons are {told}; all of them stand in files such as {table.url}/{newest.path}"


def check_clipped(prepared: Prepared, effort: Effort, done: float = 1.0) -> None:
    """Raises RunError where the first version of a table would have too many numbers outside its ranges; `done` is the
    share of it that `effort` stands for, so that it is told as soon as it is sure."""
    if not prepared.is_full or effort.coded < calibration.FEWEST_NUMBERS:
        return
    if effort.clipped * done > calibration.CLIPPED * effort.coded:
        raise RunError(
            f"{effort.clipped / effort.coded:.1%} of {effort.coded:,} numbers lie outside the value ranges in "
            f"{prepared.table.url}/{prepared.vectors.ranges_path} and would be clipped, up to {calibration.CLIPPED:.0%} are "
            "allowed: nothing was published. If the source was another when they were measured, delete that file and run "
            "again; else set table.dtype to float16 or float32"
        )
