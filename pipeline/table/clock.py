"""What time it is by the clock of a table's store, which also stamps its files: the clocks of those who ask don't matter.

Assumed: the store stamps all files by one clock that goes forward; whole seconds will do.
"""

import secrets

from pipeline.storage import Folder
from pipeline.table import layout

WRITING_S = 600.0
"""No write of one file takes longer: an unfinished file that is older was left behind."""


def now(table: Folder) -> float:
    """Unix seconds. Writes a file in staging, and removes it."""
    folder = f"{layout.STAGING}clock-{secrets.token_hex(6)}"
    probe = f"{folder}/now"
    try:
        while True:  # a cleaning may take it for litter
            table.write(probe, b"")
            for info in table.list(folder):
                return info.modified
    finally:
        table.delete([probe])
