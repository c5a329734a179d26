"""The state of the model: the files of a table, its versions, the lease, the store's clock, and what each process is about.

A file is its path and what it holds; paths are those of `pipeline.table.layout`, shortened. All values are immutable.
The set of files is one number, in which every file that ever was has a bit: millions of states then fit into memory.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

Content = tuple[str, ...]
"""The ids of rows in a part, `+id` and `-id` in a list of changes, paths in a list of files."""

ERASED = "x"
"""The id of the row that is purged."""
DATA, TRASH, PARTS, RECORDS, PUBLICATIONS, CLEANING, CHANGES, PARTS_LISTS, SOURCES = (
    "data/",
    "meta/trash/",
    "staging/parts/",
    "staging/records/",
    "staging/publications/",
    "staging/cleaning/",
    "meta/changes/",
    "meta/parts/",
    "meta/owners/",
)
WORK = (PARTS, RECORDS, PUBLICATIONS)
UNFINISHED = ".tmp-"


class File(NamedTuple):
    path: str
    content: Content = ()
    day: int = 0
    """When it was written, by the store's clock; 0 where nobody asks."""
    epoch: int = 0
    """How many versions there were when it was written; 0 where nobody asks."""


class Part(NamedTuple):
    """What a snapshot says of one part."""

    path: str
    rows: Content
    staged: str = ""
    sources: str = ""
    """Path of its list of row sources, if it has one."""


class Version(NamedTuple):
    number: int
    author: str
    """The process that committed it: the nonce in its publication's name."""
    parts: tuple[Part, ...]

    @property
    def rows(self) -> frozenset[str]:
        return frozenset(row for part in self.parts for row in part.rows)

    @property
    def publication(self) -> str:
        return f"{PUBLICATIONS}{self.author}/"


class Process(NamedTuple):
    name: str
    """Stands for the nonce of its attempt, too."""
    kind: str
    """Which command it is; see programs.py."""
    at: str
    """The step that it takes next; nothing once it has ended."""
    then: str = ""
    """The step that follows when materialising is done."""
    parent: int = 0
    """The version that it planned on."""
    version: int = 0
    """The version that it materialises, or published."""
    parts: tuple[Part, ...] = ()
    """The parts of the version that it is about to commit."""
    todo: tuple[tuple[str, ...], ...] = ()
    """What is left to do in the present step: paths, or pairs of them."""
    held: Content = ()
    """What it has in memory."""
    noted: tuple[str, ...] = ()
    """What it remembers of an earlier look."""
    said: str = ""
    """How it ended."""


class State(NamedTuple):
    day: int
    files: int
    versions: tuple[Version, ...]
    leases: tuple[tuple[str, str], ...]
    """What a lease is for, and who holds it."""
    processes: tuple[Process, ...]

    # --- looking

    def file(self, path: str) -> File | None:
        return opened(self.files).get(path)

    def has(self, path: str) -> bool:
        return path in opened(self.files)

    def below(self, *folders: str) -> list[File]:
        return [file for path, file in opened(self.files).items() if path.startswith(folders)]

    @property
    def current(self) -> Version:
        return self.versions[-1]

    def version(self, number: int) -> Version:
        return self.versions[number - 1]

    def holder(self, lease: str) -> str:
        """Who holds it; nobody if it is free."""
        return dict(self.leases).get(lease, "")

    # --- changing

    def write(self, path: str, content: Content = ()) -> "State":
        aged = path.startswith((*WORK, SOURCES))
        dated = path.startswith(PUBLICATIONS)
        file = File(path, content, self.day if aged else 0, len(self.versions) if dated else 0)
        return self._replace(files=(self.files & ~_bits(self, [path])) | _bit(file))

    def delete(self, paths: Iterable[str]) -> "State":
        return self._replace(files=self.files & ~_bits(self, paths))

    def go(self, process: Process, at: str, **changed: object) -> "State":
        """The process takes the step `at` next."""
        moved = process._replace(at=at, **changed)  # type: ignore[arg-type]
        return self._replace(processes=tuple(moved if one.name == process.name else one for one in self.processes))

    def end(self, process: Process, said: str) -> "State":
        """The process has ended; what it remembers is forgotten, but for the version that it published."""
        ended = Process(process.name, process.kind, "", parent=process.parent, version=process.version, said=said)
        others = tuple(ended if one.name == process.name else one for one in self.processes)
        return self.free(process.name)._replace(processes=others)

    def take(self, lease: str, name: str) -> "State":
        return self._replace(leases=tuple(sorted([*self.leases, (lease, name)])))

    def free(self, name: str) -> "State":
        return self._replace(leases=tuple(pair for pair in self.leases if pair[1] != name))


_known: dict[File, int] = {}
_files: list[File] = []


def _bit(file: File) -> int:
    if file not in _known:
        _known[file] = 1 << len(_files)
        _files.append(file)
    return _known[file]


def _bits(state: State, paths: Iterable[str]) -> int:
    here = opened(state.files)
    bits = 0
    for path in paths:
        if path in here:
            bits |= _known[here[path]]
    return bits


def number_of(files: Iterable[File]) -> int:
    """The set of these files as a number."""
    number = 0
    for file in files:
        number |= _bit(file)
    return number


@functools.lru_cache(maxsize=2**18)
def opened(files: int) -> dict[str, File]:
    """The files of such a number by path, in order of paths."""
    found = []
    while files:
        lowest = files & -files
        found.append(_files[lowest.bit_length() - 1])
        files ^= lowest
    return {file.path: file for file in sorted(found)}


def holds_erased(content: Content) -> bool:
    """Whether a file of this content tells of the row that is purged."""
    return any(item.lstrip("+-") == ERASED for item in content)
