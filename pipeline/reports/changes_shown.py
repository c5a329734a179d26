"""The sections of a report on versions and runs: what changed, how fast, at what cost, what failed, who follows."""

import itertools
from collections.abc import Iterator

from pipeline.progress import duration, per_second
from pipeline.reports import plots
from pipeline.reports.figures import Figures
from pipeline.reports.letters import Example
from pipeline.reports.markup import card, clock, grid, paragraph, section
from pipeline.reports.versions import WALL, WORKERS, VersionFigures

DRAWN = 40
"""A plot has so many of the newest versions at most."""
LISTED = 20
HIDES = 8
"""A version is left out of the plot of changes if it changed so many times more rows than any other: it would hide them."""


def sections(figures: Figures) -> Iterator[str]:
    yield section("Versions", *_versions(figures))
    yield section("Speed and cost", *_speed(figures), card("What the runs cost", *_cost(figures)))
    yield section("Dead letters", card("Source rows without a vector", *_letters(figures), wide=True))
    yield section("Vector databases", card("Feeds", *_feeds(figures), wide=True))


def _versions(figures: Figures) -> Iterator[str]:
    versions = figures.versions
    drawn = versions[-DRAWN:]
    labels = [str(one.version) for one in drawn]
    yield card("Rows", plots.bars(labels, {"rows": [one.rows for one in drawn]}, "rows, by version"))
    yield card("Changes", *_changes(drawn))
    head = ("version", "time", "rows", "new", "changed", "deleted", "failed", "encoded", "note")
    rows = [
        (
            one.version,
            clock(one.time),
            *(f"{count:,}" for count in (one.rows, one.new, one.changed, one.deleted, one.failed, one.encoded)),
            _note(one, versions[place - 1] if place else None),
        )
        for place, one in list(enumerate(versions))[-LISTED:][::-1]
    ]
    first = versions[0].version
    told = (
        f"Versions before {max(first, versions[-1].version - LISTED + 1)} are not listed."
        if len(versions) > LISTED
        else ""
    )
    listed = grid(head, rows, frozenset([1, 8]))
    yield card("Each version", listed, paragraph(told, "soft") if told else "", wide=True)


def _changes(drawn: tuple[VersionFigures, ...]) -> Iterator[str]:
    sums = {one.version: one.new + one.changed + one.deleted for one in drawn}
    left_out = []
    by_size = sorted(drawn, key=lambda one: -sums[one.version])
    for one, following in itertools.pairwise(by_size):
        if 0 < sums[following.version] * HIDES < sums[one.version]:
            left_out.append(one.version)
            continue
        break
    kept = [one for one in drawn if one.version not in left_out]
    if not any(sums[one.version] for one in kept):
        yield paragraph("No version that is drawn changed a row.")
        return
    stacks = {
        "new": [one.new for one in kept],
        "changed": [one.changed for one in kept],
        "deleted": [one.deleted for one in kept],
    }
    yield plots.bars([str(one.version) for one in kept], stacks, "rows that differ from the version before")
    if left_out:
        told = ", ".join(f"version {number} ({sums[number]:,} rows)" for number in sorted(left_out))
        yield paragraph(f"Not drawn, because it would hide the others: {told}.", "soft")


def _note(one: VersionFigures, before: VersionFigures | None) -> str:
    if one.rows_of is not None:
        return f"rolled back to version {one.rows_of}"
    if one.purge:
        return "purged rows"
    if before is not None and before.model != one.model:
        return "another model"
    return "unchanged rows stayed" if before is not None else "first version"


def _speed(figures: Figures) -> Iterator[str]:
    told = [one for one in figures.versions[-DRAWN:] if one.tokens_per_s]
    if told:
        rates = {"tokens/s": [one.tokens_per_s or 0.0 for one in told]}
        yield card("Tokens per second", plots.bars([str(one.version) for one in told], rates, "tokens/s, by version"))
    else:
        yield card("Tokens per second", paragraph("No version recorded a speed: none encoded texts, or they are old."))
    last = next((one for one in reversed(figures.versions) if one.seconds), None)
    if last is None:
        yield card("Seconds by stage", paragraph("No version recorded its seconds."))
        return
    yield card(
        f"Seconds by stage, version {last.version}",
        *_stages(last, WALL, "On the clock, one after the other"),
        *_stages(last, WORKERS, "Side by side, added up over the workers"),
        paragraph("The commit and what follows it are not in here: a version is written before they end.", "soft"),
    )
    yield card(f"How well the encoders were used, version {last.version}", *_use(last))


def _stages(one: VersionFigures, stages: tuple[str, ...], title: str) -> Iterator[str]:
    rows = [(stage, one.seconds[stage], _seconds(one.seconds[stage])) for stage in stages if stage in one.seconds]
    yield paragraph(title, "soft")
    yield plots.ranked(rows, title)


def _use(one: VersionFigures) -> Iterator[str]:
    known = {"encoders busy": one.busy_share, "padding": one.padding_share}
    rows = [(name, share, f"{share:.0%}") for name, share in known.items() if share is not None]
    if one.docs_per_s:
        yield paragraph(f"{per_second(one.docs_per_s)} documents a second while encoding.")
    if rows:
        yield plots.ranked([*rows], "shares of time and of computed tokens")
        yield paragraph(
            "Busy is the share of the time from the first to the last slice that the encoders computed; padding is the share "
            "of the computed tokens that no text has.",
            "soft",
        )
    else:
        yield paragraph(
            "How busy the encoders were and how much padding they computed is not known: this version encoded nothing, or an "
            "older program made it."
        )


def _cost(figures: Figures) -> Iterator[str]:
    if figures.price_per_hour is None:
        yield paragraph("The price of the machines is not known: <code>--price-per-hour P</code> tells it.")
        return
    priced = [one for one in figures.versions if one.price is not None]
    if not priced:
        yield paragraph("No version recorded its seconds, so that there is nothing to price.")
        return
    total, last = sum(one.price or 0.0 for one in priced), priced[-1]
    yield paragraph(
        f"{total:,.2f} for {len(priced):,} versions at {figures.price_per_hour:,.2f} an hour; the last one, version "
        f"{last.version}, {last.price or 0.0:,.4f} for {duration(last.wall_s)}."
    )
    if last.tokens and last.price:
        yield paragraph(f"That is {last.price / last.tokens * 1e6:,.4f} for a million tokens.")
    drawn = priced[-DRAWN:]
    yield plots.bars(
        [str(one.version) for one in drawn], {"price": [one.price or 0.0 for one in drawn]}, "price, by version"
    )
    yield paragraph("Priced are the seconds from the plan to the last record; the commit is not recorded.", "soft")


def _letters(figures: Figures) -> Iterator[str]:
    letters = figures.letters
    if not letters.total:
        yield paragraph("There are none.")
        return
    whole = letters.looked >= letters.total
    told = f"{letters.total:,} source rows have no vector" + (
        "" if whole else f"; the first {letters.looked:,} were read"
    )
    yield paragraph(f"{told}.")
    if len(letters.reasons) > 1:
        rows = [(f"reason {place}", float(one.count), f"{one.count:,}") for place, one in enumerate(letters.reasons, 1)]
        yield plots.ranked(rows, "rows by reason")
    listed = [
        (place, f"{one.count:,}", one.stage, one.error, "; ".join(_example(some) for some in one.examples))
        for place, one in enumerate(letters.reasons, 1)
    ]
    yield grid(("reason", "rows", "stage", "error of the first", "examples"), listed, frozenset([2, 3, 4]))


def _example(one: Example) -> str:
    place = f" at {one.position}" if one.position is not None else ""
    name = f"{one.id!r} in " if one.id is not None else ""
    return f"{name}{one.path}{place}" + (f": {one.text}" if one.text else "")


def _feeds(figures: Figures) -> Iterator[str]:
    if figures.feeds is None:
        yield paragraph(
            "Only the table was given, which does not know its feeds: give the configuration that names them."
        )
        return
    if not figures.feeds:
        yield paragraph(
            "No feed was asked. The configuration names none, or a run left this report before its feeds follow."
        )
        return
    rows = [
        (
            one.name,
            one.store,
            "-" if one.shown is None else one.shown,
            "-" if one.behind_versions is None else f"{one.behind_versions:,}",
            "-" if one.behind_changes is None else f"{one.behind_changes:,}",
            one.problem or ("up to date" if not one.behind_versions else "behind"),
        )
        for one in figures.feeds
    ]
    head = ("feed", "store", "shows version", "versions behind", "row changes behind", "state")
    yield grid(head, rows, frozenset([0, 1, 5]))


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else duration(value)
