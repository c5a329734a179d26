"""The monitor is a run's memory in the cluster.

It gives workers their settings, gathers progress, keeps encoders from running ahead of writers, and counts what workers die
of. It is an actor on the driver's node that uses no CPU. It imports next to nothing, because its process is the first that a
run waits for.
"""

from collections.abc import Callable, Collection

from pipeline.execution.strikes import Attempts, Work, Worker

SliceKey = tuple[str, int]
"""It is a unit and the first row of a slice."""


class Monitor:
    def __init__(self, alive_nodes: Callable[[], Collection[str]], unrecorded: int, encoders: int) -> None:
        """`alive_nodes` returns the ids of the cluster's living nodes. So many `encoders` start at a time.

        At most `unrecorded` slices are encoded, or being encoded, without a record. A crash can cost that many.
        """
        self._alive_nodes = alive_nodes
        self._settings: bytes | None = None
        self._unrecorded, self._encoders = unrecorded, encoders
        self._claimed: set[SliceKey] = set()
        self._attempts = Attempts()
        self._starting: dict[str, str] = {}
        self._rows = self._tokens = 0

    def put_settings(self, settings: bytes) -> None:
        self._settings = settings

    def get_settings(self) -> bytes | None:
        return self._settings

    def starting(self, worker: Worker) -> int:
        """Note that an encoder begins to load its model, and return how many died before they had loaded theirs."""
        self._starting[worker.name] = worker.node
        alive = self._alive_nodes()
        return max(0, sum(node in alive for node in self._starting.values()) - self._encoders)

    def ready(self, worker: Worker) -> None:
        self._starting.pop(worker.name, None)

    def claim(self, key: SliceKey, worker: Worker) -> int | None:
        """Return the strikes against the slice if an encoder may start it now.

        Return None while too many slices are encoded and not recorded. A slice that an encoder claimed before it died may
        always start.
        """
        if key not in self._claimed and len(self._claimed) >= self._unrecorded:
            return None
        self._claimed.add(key)
        return self.begin(("encode", key), worker)

    def begin(self, work: Work, worker: Worker) -> int:
        """Return the strikes against the work."""
        alive = self._alive_nodes() if self._attempts.standing(work) else ()
        return self._attempts.begin(work, worker, alive)

    def end(self, work: Work) -> None:
        self._attempts.end(work)

    def release(self, key: SliceKey) -> None:
        """Note that the slice is recorded, or will never be."""
        self._claimed.discard(key)
        self._attempts.end(("write", key))

    def add_progress(self, rows: int, tokens: int) -> None:
        self._rows += rows
        self._tokens += tokens

    def take_progress(self) -> tuple[int, int]:
        """Return the rows and tokens since the last call."""
        taken = self._rows, self._tokens
        self._rows = self._tokens = 0
        return taken
