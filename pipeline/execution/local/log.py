"""What worker processes say on stderr goes into a file of its own.

Their stacks are for a report, not for a user's screen.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO

from pipeline.errors import InputError
from pipeline.machine.folders import temporary_root
from pipeline.redaction import redacted


class WorkerLog:
    """It is a file for a run's workers. It stays where the run failed and they said something, without secrets.

    Where no temporary file can be made, what workers say is lost and nothing else.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        try:
            number, name = tempfile.mkstemp(prefix="embedding-pipeline-", suffix=".log", dir=temporary_root())
        except (OSError, InputError):
            self.file: IO[bytes] = open(os.devnull, "wb")  # noqa: SIM115 - `close` closes it
            return
        self.path = Path(name)
        self.file = os.fdopen(number, "wb")

    @property
    def where(self) -> str:
        """It says where a person finds what workers said."""
        return (
            f"{self.path} has what they said" if self.path else "what they said is lost, for want of a folder in TMPDIR"
        )

    def close(self, *, keep: bool) -> None:
        self.file.close()
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            if not keep or not self.path.stat().st_size:
                self.path.unlink()
                return
            said = self.path.read_text(encoding="utf-8", errors="replace")
            self.path.write_text(redacted(said), encoding="utf-8")
