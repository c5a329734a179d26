"""What worker processes say on stderr goes into a file of its own: their stacks are for a report, not for a user's screen."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO


class WorkerLog:
    """A file for a run's workers; it stays where the run failed and they said something."""

    def __init__(self) -> None:
        number, name = tempfile.mkstemp(prefix="embedding-pipeline-", suffix=".log")
        self.path = Path(name)
        self.file: IO[bytes] = os.fdopen(number, "wb")

    def close(self, *, keep: bool) -> None:
        self.file.close()
        with contextlib.suppress(OSError):
            if not keep or not self.path.stat().st_size:
                self.path.unlink()
