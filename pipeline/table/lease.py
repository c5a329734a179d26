"""A lease tells those who start meanwhile who works on a table.

Leases are numbered files that are created only, and the highest number counts. They are advice that saves work. Two that
work at once do no harm, since only one can commit. A lease names its owner and says for how many seconds from its writing
it holds. Creating the next number renews it or gives it back, and takes it over when it has run out. The store's clock
alone tells when it was written and whether it has run out, so the clocks of the owners may be wrong. An owner that is
stopped for longer than the lease holds is overtaken, and finds out when it goes on. The highest number is never deleted, so
that one who looked long ago can't come first.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import StorageError, TableBusy
from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.table import clock, layout
from pipeline.table.process import Process, is_dead, this_process

LEASE_S = 300.0
"""A run that died where nobody can see it has the table for so many seconds more."""
RENEWALS = 4
"""A lease is renewed so many times while it holds, because storage may fail for most of that time."""
POLL_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """It is who has a table, or had it."""

    owner: Process
    work: str
    """It says in a word what the owner does."""
    since: str
    """It is the UTC time by the owner's clock, for people."""
    until: float
    """The lease runs out at these Unix seconds of the store's clock."""
    nonce: str
    """It tells one lease of the owner from another."""

    @property
    def is_over(self) -> bool:
        """Say whether nobody works by this lease any more, as far as it is certain: its owner is dead, or is this process,
        which could not give it back when it was done."""
        return is_dead(self.owner) or (self.owner == this_process() and self.nonce not in _held_here)

    def __str__(self) -> str:
        return f"{self.work}, {self.owner}, since {self.since}"

    @property
    def until_utc(self) -> str:
        return datetime.datetime.fromtimestamp(self.until, datetime.UTC).isoformat(timespec="seconds")

    def to_dict(self) -> dict[str, Any]:
        return {"host": self.owner.host, "pid": self.owner.pid, "work": self.work, "since": self.since} | {
            "until": self.until_utc
        }


_held_here = set[str]()
"""These are the nonces of the leases by which this process works, or is about to."""


@dataclass(kw_only=True)
class Lease:
    """It is held by this process until it is released or lost."""

    table: Folder
    folder: str = layout.LEASES
    """Leases of one folder exclude each other."""
    number: int
    work: str
    seconds: float
    since: str
    owner: Process = field(default_factory=this_process)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    lost: bool = False
    """Another has it now."""
    going_on: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """It is renewed by a thread of its own, and by its holder."""

    def renew(self) -> bool:
        """Renew it. Return False if another has taken it over, since it was not renewed in time."""
        return self._go_on(released=False)

    def release(self) -> None:
        """Give the table back, unless another has it."""
        _held_here.discard(self.nonce)
        if not self.lost:
            self._go_on(released=True)

    def release_if_ours(self) -> None:
        """The table is free, if this lease was created at all. An interrupt may have come between its creation, or its
        renewal, and the note of it."""
        last = max(_numbers(self.table, self.folder), default=self.number)
        if self.table.read(layout.lease(last, self.folder)) == self._content(released=False):
            self.number, self.lost = last, False
            self.release()

    def _go_on(self, *, released: bool) -> bool:
        with self.going_on:
            if not self.lost:
                following = dataclasses.replace(self, number=self.number + 1)
                self.lost = not following.create(released=released)
                self.number += not self.lost
            return not self.lost

    def create(self, *, released: bool = False) -> bool:
        """Write it under its number, and delete the lower ones. Return False if another was first."""
        path = layout.lease(self.number, self.folder)
        if not released:
            _held_here.add(self.nonce)
        if self.table.create_once(path, self._content(released=released)) is not None:
            return False
        # A number that was deleted as done with can be created again, and some stores tell everybody that they were first.
        numbers = _numbers(self.table, self.folder)
        if max(numbers, default=0) > self.number or self.table.read(path) != self._content(released=released):
            return False
        self.table.delete(numbers[number].path for number in numbers if number < self.number)
        return True

    def _content(self, *, released: bool) -> bytes:
        described = {"owner": dataclasses.asdict(self.owner), "work": self.work, "since": self.since}
        return json.dumps(described | {"seconds": self.seconds, "released": released, "nonce": self.nonce}).encode()


def holder(table: Folder, now: float) -> Holder | None:
    """Return who has the table at a moment of the store's clock."""
    _, found = _last(table)
    return found if found is not None and found.until > now and not found.is_over else None


def take(
    table: Folder,
    work: str,
    seconds: float = LEASE_S,
    folder: str = layout.LEASES,
    tried: list[Lease] | None = None,
) -> Lease:
    """Take the table. Raises TableBusy, which says who has it until when. `tried` gets each lease before it is created."""
    while True:
        number, found = _last(table, folder)
        if found is not None and not found.is_over and found.until > clock.now(table):
            raise TableBusy(
                f"table {table.url} is being worked on ({found}), its lease runs until {found.until_utc} and is renewed "
                "while it lives: nothing was done"
            )
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        lease = Lease(table=table, folder=folder, number=number + 1, work=work, seconds=seconds, since=since)
        if tried is not None:
            tried.append(lease)
        if lease.create():
            return lease


def take_patiently(
    table: Folder,
    work: str,
    seconds: float,
    wait_s: float,
    folder: str = layout.LEASES,
    tried: list[Lease] | None = None,
) -> Lease:
    """Take the table, and wait for so long at most until it is free. Raises TableBusy."""
    give_up = time.monotonic() + wait_s
    told = False
    while True:
        try:
            return take(table, work, seconds, folder, tried)
        except TableBusy as busy:
            left = give_up - time.monotonic()
            if left <= 0:
                raise
            if not told:
                _log.warning("waiting for %s s at most: %s", f"{wait_s:g}", busy)
            told = True
        time.sleep(min(left, POLL_S))


def outlast(table: Folder, folder: str = layout.LEASES) -> None:
    """Wait while somebody has the table and gives no sign of life, at the longest until the lease runs out.

    A run that died where nobody can see it leaves its lease behind. One that lives renews it soon.
    """
    number, found = _last(table, folder)
    told = False
    while found is not None and not found.is_over and found.until > clock.now(table):
        if not told:
            _log.warning(
                "table %s was being worked on (%s): waiting for a sign of life of that run, until %s at most",
                table.url,
                found,
                found.until_utc,
            )
        told = True
        time.sleep(POLL_S)
        last, found = _last(table, folder)
        if last != number:
            return


@contextlib.contextmanager
def held(
    table: Folder,
    work: str,
    seconds: float = LEASE_S,
    wait_s: float = 0.0,
    folder: str = layout.LEASES,
    *,
    outlasts: bool = False,
) -> Iterator[Lease]:
    """Hold the table while the block runs, and renew the lease. Raises TableBusy before the block runs, with `outlasts` only
    after another one gave a sign of life.

    A lease that is lost meanwhile ends nothing, because the commit decides which of two runs publishes.
    """
    ended, renewing, leases = threading.Event(), None, list[Lease]()
    try:
        if outlasts:
            outlast(table, folder)
        lease = take_patiently(table, work, seconds, wait_s, folder, leases)
        thread = threading.Thread(target=_renew, args=(lease, ended), name="lease", daemon=True)
        thread.start()
        renewing = thread
        yield lease
    finally:
        # What was tried counts as well: an interrupt may come between the lease's creation and its first use.
        try:
            _give_back(leases, ended, renewing)
        except KeyboardInterrupt:  # Only the first signal raises it.
            _give_back(leases, ended, renewing)
            raise


def _give_back(leases: list[Lease], ended: threading.Event, renewing: threading.Thread | None) -> None:
    ended.set()
    if renewing is not None:
        renewing.join()
    for lease in leases[-1:]:
        _held_here.discard(lease.nonce)
        with _told("can't give back"):
            lease.release_if_ours()


def _renew(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(lease.seconds / RENEWALS):
        with _told("can't renew"):
            if not lease.renew():
                _log.warning(
                    "the lease of table %s ran out and another run took it: both go on, one of them will publish",
                    lease.table.url,
                )
                return


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Warn where storage fails, because that harms no work that is under way."""
    try:
        yield
    except StorageError as error:
        _log.warning("%s a lease, which then runs out by itself: %s", what, error)


def _numbers(table: Folder, folder: str) -> dict[int, FileInfo]:
    found = {layout.lease_number(info.path, folder): info for info in table.list(folder)}
    return {number: info for number, info in found.items() if number is not None}


def _last(table: Folder, folder: str = layout.LEASES) -> tuple[int, Holder | None]:
    """Return the highest number and whose it is, or None for the latter if it was given back."""
    while True:
        numbers = _numbers(table, folder)
        if not numbers:
            return 0, None
        last = max(numbers)
        content = table.read(layout.lease(last, folder))
        if content is not None:  # else a higher one has come
            return last, _holder(content, numbers[last].modified)


def _holder(content: bytes, written: float) -> Holder | None:
    try:
        raw = json.loads(content)
        if raw["released"]:
            return None
        until = written + raw["seconds"]
        owner, nonce = Process(**raw["owner"]), raw.get("nonce", "")
        return Holder(owner=owner, work=raw["work"], since=raw["since"], until=until, nonce=nonce)
    except (ValueError, KeyError, TypeError):
        return None  # damaged, or of another program: it binds nobody
