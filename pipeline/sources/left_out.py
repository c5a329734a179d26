"""Files that a source does not take, or reads otherwise than meant, are told to a person in a line for each reason."""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.progress import counted

_SHOWN_NAMES = 3
_SHOWN_SUFFIXES = 5


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Paths are those below the source's folder."""

    hidden: int = 0
    """So many files were left out because a name begins with "_" or "."."""
    excluded: int = 0
    """So many files are left out by `source.exclude`."""
    unknown: tuple[str, ...] = ()
    """These files are left out, since their names stand for no format."""
    rows: tuple[str, ...] = ()
    """These files are left out, since they hold rows, and documents were asked for."""
    tables: tuple[str, ...] = ()
    """These folders are left out, since they are tables of this program."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What a person is told of the files that were left out; empty where there are none."""
        lines = []
        if self.tables:
            lines.append(_tables(self.tables))
        if self.hidden:
            lines.append(
                f"{counted(self.hidden, 'file')} left out for their names, which begin with _ or . (or a folder's does)"
            )
        if self.excluded:
            lines.append(f"{counted(self.excluded, 'file')} left out by source.exclude")
        if self.rows:
            lines.append(
                f"{counted(len(self.rows), 'file')} left out, whose rows are no documents: {_first(self.rows)}; give a "
                "pattern to embed these"
            )
        if self.unknown:
            lines.append(_unknown(self.unknown))
        return tuple(lines)


def remarks(of_files: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is remarked of how files are read, by their paths, in a line for each remark. "" is no remark."""
    by_remark: dict[str, list[str]] = {}
    for path, remark in of_files.items():
        if remark:
            by_remark.setdefault(remark, []).append(path)
    return tuple(f"{counted(len(paths), 'file')} {remark}: {_first(paths)}" for remark, paths in by_remark.items())


def _tables(roots: Sequence[str]) -> str:
    if len(roots) == 1:
        return f"the table {roots[0]!r} below the source is left out"
    return f"{len(roots):,} tables below the source are left out: {_first(roots)}"


def _unknown(paths: Sequence[str]) -> str:
    """How many files of which suffixes are left out, and the first few of them."""
    suffixes = Counter(posixpath.splitext(path)[1].lower() or "without a suffix" for path in paths)
    counts = [f"{count:,} {suffix}" for suffix, count in suffixes.most_common(_SHOWN_SUFFIXES)]
    rest = len(paths) - sum(count for _, count in suffixes.most_common(_SHOWN_SUFFIXES))
    more = f", {rest:,} others" if rest else ""
    shown = ", ".join(map(repr, paths[:_SHOWN_NAMES]))
    first = "the first are" if len(paths) > _SHOWN_NAMES else "namely"
    kinds = f"{', '.join(counts)}{more}"
    return f"{counted(len(paths), 'file')} left out for being of no format that is read ({kinds}), {first} {shown}"


def _first(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:_SHOWN_NAMES])) + (" .." if len(paths) > _SHOWN_NAMES else "")
