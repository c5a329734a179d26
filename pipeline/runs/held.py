"""A run holds the table's lease while it works. A store that fails or refuses there is told as bad input."""

import contextlib
from collections.abc import Iterator

from pipeline.config import LimitSpec
from pipeline.storage import Folder, before_work
from pipeline.table import lease


@contextlib.contextmanager
def held(table: Folder, work: str, limits: LimitSpec, *, outlasts: bool = False) -> Iterator[None]:
    """Hold the table while the block runs. Raises TableBusy where another run does not give it back within
    `limits.wait_s`, with `outlasts` only after that run gave a sign of life."""
    with contextlib.ExitStack() as stack:
        with before_work():
            stack.enter_context(lease.held(table, work, limits.lease_s, limits.wait_s, outlasts=outlasts))
        yield
