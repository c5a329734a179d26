"""A data file as the log of a lakehouse table names it, whichever kind of log that is."""

from dataclasses import dataclass
from typing import Any

from pipeline.work import DeletedRows


@dataclass(frozen=True, kw_only=True)
class DataFile:
    path: str
    """Absolute, or a URL."""
    size: int
    written: tuple[str, ...] = ()
    """What else than its path and size the log says of the file's making."""
    rows: int | None
    partition: tuple[tuple[str, Any], ...] = ()
    """The values of columns that the file may lack, as Python has them."""
    deletes: tuple[DeletedRows, ...] = ()
