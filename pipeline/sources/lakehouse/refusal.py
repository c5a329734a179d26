"""A lakehouse table is never read as plain files: they hold rows that were deleted or replaced, and not the values of
partitions.

Comes in: the patterns of a source, the files that they stand for, and the folders that were come across. An
InputError goes out for the files of a table, which says what it is and what to write.
"""

import bisect
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import InputError
from pipeline.storage import NoMatch, Options, is_folder, is_remote, list_pattern, local_path, store_of

HUDI = (
    "Hudi tables can't be read: their files hold rows that were replaced; export the current rows to "
    "plain Parquet (Hudi's snapshot exporter), or give the table the log of Delta or Iceberg (Apache XTable), and "
    "read delta:<folder> or iceberg:<folder>"
)
_DELTA, _ICEBERG, _HUDI = "_delta_log", "metadata", ".hoodie"
_MARKS = (_DELTA, _HUDI, _ICEBERG)
_METADATA_ENDS = (".metadata.json", ".metadata.json.gz")
_THREADS = 16


def check_plain(patterns: Sequence[str], paths: Collection[str], folders: Collection[str], options: Options) -> None:
    """Raises InputError where one of the paths lies in a lakehouse table, by a folder that was come across or lies
    above."""
    # A pattern doesn't come across the folders above it. On the Hub nobody keeps such tables, and a look is a request.
    above = dict.fromkeys(root for path in patterns if store_of(path) != "hf" for root in _above(path))
    looks = [(root, mark) for root in above if root not in paths for mark in _MARKS]
    with ThreadPoolExecutor(_THREADS) as pool:
        there = list(pool.map(lambda look: is_folder(f"{look[0]}/{look[1]}", options), looks))
    for (root, mark), is_there in zip(looks, there, strict=True):
        if is_there and _is_table(root, mark, options):
            raise _refused(root, mark, "")
    files = sorted(paths)
    for root, mark in sorted(_marked(folders)):
        if _any_below(root, files) and _is_table(root, mark, options):
            raise _refused(root, mark, "; or leave the folder out by source.exclude")


def _marked(folders: Collection[str]) -> Iterator[tuple[str, str]]:
    """(folder of a table, what marks it as one)."""
    for folder in folders:
        root, _, name = folder.rpartition("/")
        if name in _MARKS:
            yield root, name


def _any_below(root: str, paths: Sequence[str]) -> bool:
    place = bisect.bisect_left(paths, f"{root}/")
    return place < len(paths) and paths[place].startswith(f"{root}/")


def _above(pattern: str) -> Iterator[str]:
    """The folders above the wildcards of a pattern, and itself where it has none."""
    plain = pattern.rstrip("/") if is_remote(pattern) else local_path(pattern)
    scheme, separator, rest = plain.rpartition("://")
    pieces = rest.split("/")
    magic = next((number for number, piece in enumerate(pieces) if set(piece) & set("*?[")), len(pieces))
    for count in range(magic, 0, -1):
        if root := "/".join(pieces[:count]):
            yield f"{scheme}{separator}{root}"


def _is_table(root: str, mark: str, options: Options) -> bool:
    """Whether a folder of that name is what makes a table: many folders are called metadata."""
    if mark != _ICEBERG:
        return True
    try:
        listed = list_pattern(f"{root}/{mark}", options)
    except NoMatch:
        return False
    return any(file.path.endswith(_METADATA_ENDS) for file in listed)


def _refused(root: str, mark: str, otherwise: str) -> InputError:
    if mark == _HUDI:
        return InputError(f"{root!r} is a Hudi table (it has a folder {mark}). {HUDI}{otherwise}")
    name, prefix = ("a Delta", "delta") if mark == _DELTA else ("an Iceberg", "iceberg")
    return InputError(
        f"{root!r} is {name} table (it has a folder {mark}): read as plain files it would give rows that were "
        f"deleted or replaced; write source.path: '{prefix}:{root}'{otherwise}"
    )
