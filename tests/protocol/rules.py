"""The guards of the protocol, each of which can be taken away, and what is assumed of the world.

The model with all rules is the program as it is. Without one of them the explorer must find a counterexample: so each guard
is known to be needed, and the model to be able to fail.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Rules:
    # --- the commit
    creates_once: bool = True
    """A snapshot is written on condition that there is none of its number."""
    reads_back: bool = True
    """An unclear answer to that write is resolved by reading the snapshot."""
    checks_files: bool = True
    """The commit looks for all files that the version names."""
    checks_lists: bool = True
    """It looks for the lists of changes, too."""
    marks_first: bool = True
    """The lists of the version are written before that look: a cleaning that comes later sees that somebody is at work."""
    heeds_cleanings: bool = True
    """The commit names no file that a cleaning has announced to delete."""
    own_names: bool = True
    """Whatever an attempt writes has a name of its own."""

    # --- materialising
    keeps_superseded: bool = True
    """Superseded parts are copied to the trash before they leave data/."""
    done_last: bool = True
    """A version is marked as done after all of its files have moved."""
    goes_on: bool = True
    """Whoever ends late goes on to the latest version."""
    creates_lists_once: bool = True
    """The list of parts beside the snapshot is never written over."""

    # --- cleaning
    spares_work: bool = True
    """Staged work stays while a run may be under way."""
    announces: bool = True
    """What will be deleted of staged work is announced, and then looked at once more."""
    lists_first: bool = True
    """Files are listed before it is made sure that nobody has published."""
    keeps_previous: bool = True
    """The version before the current one is kept whole."""
    store_clock: bool = True
    """Age is told by the store's clock; else by the cleaner's own, which is a day ahead."""

    # --- rolling back
    copies_back: bool = True
    """Parts that come back have new names."""
    tells_changes: bool = True
    """A rolled back version has a list of changes like any other."""

    # --- purging
    fences: bool = True
    """A purge publishes a version, even one without a change, where an attempt or staged work could yet be published."""
    erases_staged_last: bool = True
    """Staged work is erased when no run that has read its records can publish it any more."""
    forgets_records: bool = True
    """The records of such work go before that, so that no later run goes on from them."""
    counts_left: bool = True
    """In the end it is looked for rows that were copied meanwhile."""
    unfinished_first: bool = True
    """Unfinished files are erased before the others are listed: one that gets its name meanwhile is seen then."""
    looks_for_unfinished: bool = True
    """The last look sees copies that are not finished."""
    oldest_list_first: bool = True
    """Lists of changes lose the rows in the order of their versions."""
    purges_alone: bool = True
    """Lists are written anew under a lease: two purges can't do it at once."""
    renews: bool = True
    """The lease is made sure of before a list is read."""
    forgets_cleaned: bool = True
    """Lists of parts lose the values of partitions whose parts were cleaned away before, too."""

    # --- assumptions, not guards
    commits_within_a_day: bool = True
    """Nobody is stopped for a day between the mark and the commit."""
    rewrites_within_its_lease: bool = True
    """No purge is stopped for longer than its lease between the reading and the writing of one list."""

    def without(self, name: str) -> "Rules":
        return replace(self, **{name: False})


ALL = Rules()
