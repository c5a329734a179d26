"""What worker processes say on stderr goes into a file of its own.

Their stacks are for a report, not for a user's screen.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO


class WorkerLog:
    """It is a file for a run's workers. It stays where the run failed and they said something."""

    def __init__(self) -> None:
        number, name = tempfile.mkstemp(prefix="embedding-pipeline-", suffix=".log")
        self.path = Path(name)
        self.file: IO[bytes] = os.fdopen(number, "wb")

    def close(self, *, keep: bool) -> None:
        self.file.close()
        with contextlib.suppress(OSError):
            if not keep or not self.path.stat().st_size:
                self.path.unlink()
