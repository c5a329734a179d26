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
    ("embed", "embed", "finish", "/D"),
    ("embed", "clean", "finish", "/D"),
    ("embed", "rollback 1", "finish", "/D"),
    ("embed", "purge x", "finish", "/S"),
    ("embed", "purge x", "clean", "/AC"),
    ("rollback 1", "purge x", "finish", "/AC"),
    ("purge x", "purge y", "embed", "/AC"),
]

GONE, UNLIKE, ERASED = "which is gone", "the changes come to", "said that x is erased, and"
FAILURES: dict[str, tuple[Scenario, str]] = {
    "creates_once": (("embed", "embed", "/D"), GONE),
    "reads_back": (("embed", "embed", "/D"), "which is another's"),
    "checks_files": (("embed", "clean", "/D"), GONE),
    "checks_lists": (("clean", "purge x", "/S"), "the changes of version 4 are gone"),
    "marks_first": (("embed", "clean", "/D"), GONE),
    "heeds_cleanings": (("embed", "clean", "/D"), GONE),
    "own_names": (("embed", "embed", "/D"), "which is another's"),
    "keeps_superseded": (("embed", "embed", "/D"), GONE),
    "done_last": (("embed", "embed", "/D"), GONE),
    "goes_on": (("embed", "rollback 1", "/D"), "data/ holds"),
    "creates_lists_once": (("embed", "purge x", "/S"), ERASED),
    "spares_work": (("embed", "clean", "/D"), GONE),
    "announces": (("embed", "clean", "/D"), GONE),
    "lists_first": (("embed", "clean", "/D"), GONE),
    "keeps_previous": (("embed", "clean", "/D"), GONE),
    "store_clock": (("embed", "clean", "/D"), GONE),
    "copies_back": (("rollback 1", "clean", "/D"), GONE),
    "tells_changes": (("embed", "rollback 1", "/D"), UNLIKE),
    "fences": (("embed", "purge x", "/S"), GONE),
    "erases_staged_last": (("embed", "purge x", "/S"), GONE),
    "forgets_records": (("embed", "purge x", "/S"), GONE),
    "counts_left": (("embed", "purge x", "/D"), ERASED),
    "unfinished_first": (("embed", "purge x", "/D"), ERASED),
    "looks_for_unfinished": (("rollback 1", "purge x", "/AC"), ERASED),
    "oldest_list_first": (("embed", "purge x", "/D"), UNLIKE),
    "purges_alone": (("purge x", "purge y", "/AC"), UNLIKE),
    "renews": (("purge x", "purge y", "/AC"), UNLIKE),
    "forgets_cleaned": (("clean", "purge x", "/A"), ERASED),
    "commits_within_a_day": (("embed", "clean", "/D"), GONE),
    "rewrites_within_its_lease": (("purge x", "purge y", "/AC"), UNLIKE),
}
"""Rule -> between whom it is missed, and what is broken then."""
