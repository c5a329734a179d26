"""What stands between a bad night and the table: a run that would take too many of its rows publishes nothing.

Counts come in, an error goes out or nothing. Knows nothing of sources, tables or who counted.
"""

from pipeline.errors import GateFailed


def check_deleted(table: str, *, rows: int, deleted: int, files: int, limit: float, allowed: bool = False) -> None:
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
