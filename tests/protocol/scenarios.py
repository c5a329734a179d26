"""Who works on the table at once: what is explored by default, and between whom each guard of the protocol is missed.

A scenario is the kinds of its processes, and last, after a slash, the units that hold the row which is purged.
"""

import itertools

Scenario = tuple[str, ...]

KINDS = ("embed", "reindex", "rollback 1", "clean", "purge x", "finish")


def _with_holders(kinds: tuple[str, ...]) -> list[Scenario]:
    purges = any(kind.startswith("purge") for kind in kinds)
    return [(*kinds, f"/{holders}") for holders in (("D", "AC", "S") if purges else ("D",))]


PAIRS: list[Scenario] = [
    scenario
    for kinds in [*itertools.combinations_with_replacement(KINDS, 2), ("rollback 2", "clean"), ("purge x", "purge y")]
    for scenario in _with_holders(kinds)
]
TRIPLES: list[Scenario] = [
    ("embed", "embed", "clean", "/D"),
]

GONE, UNLIKE, ERASED = "which is gone", "the changes come to", "said that x is erased, and"
FAILURES: dict[str, tuple[Scenario, str]] = {}
