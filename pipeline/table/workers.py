"""Who does the heavy, parallel parts of a publication: one protocol, and this process as the plainest one who follows it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.storage import Folder
from pipeline.table import compare, row_sources, scan
from pipeline.table.compare import Difference
from pipeline.table.operations import compact
from pipeline.table.operations.compact import Rewrite
from pipeline.table.part import Part
from pipeline.table.row_sources import Renumbering


class Workers(Protocol):
    """Each method returns when all of its work is done. Storage's errors pass through."""

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]:
        """The new part of each job, in any order."""
        ...

    def renumber(self, jobs: Sequence[Renumbering]) -> list[Part]:
        """The part of each job with its new list, in any order."""
        ...

    def compare(self, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
        """The difference over all rows of the parts, each on its side (`compare.OLD`, ..); the number of a part in it is its
        place in `sides`. Where all is `renewed`, vectors of new parts differ whatever the hashes say."""
        ...


class WorkersHere:
    """This process does all the work."""

    def __init__(self, table: Folder, embedding: str) -> None:
        """`embedding` is the name of the embedding column."""
        self._table, self._embedding = table, embedding

    def rewrite(self, jobs: Sequence[Rewrite]) -> list[Part]:
        return compact.rewrite_all(self._table, jobs, self._embedding)

    def renumber(self, jobs: Sequence[Renumbering]) -> list[Part]:
        return [row_sources.renumber(self._table, job) for job in jobs]

    def compare(self, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
        return compare_here(self._table, sides, renewed=renewed)


def compare_here(table: Folder, sides: Sequence[tuple[Part, int]], *, renewed: bool = False) -> Difference:
    """What `Workers.compare` asks for, in this process and as one bucket; holds 64 bytes for each row."""
    found = [rows for number, (part, side) in enumerate(sides) for rows in scan.version_keys(table, part, number, side)]
    all_new = compare.is_all_new(side for _, side in sides)
    return compare.compare(np.concatenate([np.zeros(0, compare.KEY), *found]), renewed=renewed, all_new=all_new)
