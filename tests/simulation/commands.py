"""Every command as it is given to the program, by the name that a history tells: each makes the work of one process."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import InputError, StorageError
from pipeline.runs import embed as embedding
from pipeline.runs import reindex as reindexing
from pipeline.runs import verify as verifying
from pipeline.runs.published import published
from pipeline.storage import Folder
from pipeline.table import rows, snapshot
from pipeline.table.operations import purge as purging
from pipeline.table.operations import restore, vacuum
from pipeline.table.status import status as table_status
from tests.inline import InProcess
from tests.simulation import checks
from tests.simulation.watch import TABLE, Violation, hashes_of
from tests.simulation.world import World

Work = Callable[[], Any]


def embed(world: World, process: str, *, retry_failed: bool = False, model: str | None = None) -> Work:
    spec = world.corpus.spec(world.url(process), model)
    return lambda: embedding.embed(spec, InProcess(), retry_failed=retry_failed)


def reindex(world: World, process: str, *, new_model: bool = False, model: str | None = None) -> Work:
    spec = world.corpus.spec(world.url(process), model)

    def work() -> Any:
        with reindexing.alone(spec):
            return reindexing.reindex(spec, InProcess(), new_model=new_model, allow_deletes=True)

    return work


def clean(world: World, process: str, *, older_than_days: float = 0.0) -> Work:
    return lambda: vacuum.clean(Folder(world.url(process)), older_than_days)


def purge(world: World, process: str, ids: Sequence[str]) -> Work:
    """The rows leave the source first, as the documentation asks for."""
    world.corpus.remove(ids)
    world.corpus.store(world.objects)
    world.watch.erased |= set(ids)

    def work() -> Any:
        before = world.watch.current
        done = purging.purge(Folder(world.url(process)), ids)
        if not done.left:
            _check_erased(world, process, ids, own=range(before + 1, done.version + 1))
        return done

    return work


def _check_erased(world: World, process: str, ids: Sequence[str], own: Collection[int]) -> None:
    """In the moment in which a purge reports success, nothing is left but what somebody else at work wrote meanwhile."""
    others = {name for name, other in world.scheduler.processes.items() if name != process and not other.ended}
    left = [path for path in checks.traces(world, ids, own) if world.place.writer(f"{TABLE}{path}") not in others]
    if left:
        raise Violation(f"a purge of {', '.join(ids)} reported success, and left {left}")


def roll_back(world: World, process: str, number: int) -> Work:
    return lambda: restore.roll_back(Folder(world.url(process)), number)


def release(world: World, process: str) -> Work:
    return lambda: restore.release(Folder(world.url(process)))


def verify(world: World, process: str) -> Work:
    spec = world.corpus.spec(world.url(process))
    return lambda: verifying.verify(published(spec))


def status(world: World, process: str) -> Work:
    return lambda: table_status(Folder(world.url(process)))


def read(world: World, process: str, *, attempts: int = 3) -> Work:
    """A reader who looks a version up, and reads its files one by one while others go on."""

    def work() -> Any:
        table = Folder(world.url(process))
        version = snapshot.current(table)
        known = world.watch.versions.get(version.version)
        for attempt in range(attempts):
            try:
                where = rows.places(table)
                for part in version.parts:
                    with table.open(rows._place(part, where, table, version)) as file:
                        found = hashes_of(pq.read_table(file, use_threads=False))
                    if known is not None and found != known.rows_in[part.path] and not world.watch.erased:
                        raise Violation(f"a reader of version {version.version} found other rows in {part.path}")
                return version
            except (InputError, StorageError) as error:
                if attempt == attempts - 1:
                    if known in world.watch.kept() and not world.watch.erased:
                        raise Violation(f"a reader of version {version.version}, which is kept: {error}") from None
                    raise
        return version

    return work
