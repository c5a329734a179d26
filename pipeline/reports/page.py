"""The figures of a report become a page: sections of plots, tables and sentences in one HTML file.

The page has no script, and its content security policy forbids scripts and all requests, so that nothing in an id or a text
can be run. What isn't known stands in a sentence where the figure would be.
"""

import importlib.resources
import string
from html import escape

from pipeline.progress import per_second, size
from pipeline.reports import changes_shown, rows_shown
from pipeline.reports.figures import Figures
from pipeline.reports.markup import card, clock, definitions, paragraph, section, shown, tiles


def page(figures: Figures) -> str:
    """Return the whole file."""
    body = [
        f"<header><h1>{shown(figures.table)}</h1>{paragraph(_made(figures), 'soft')}</header>",
        tiles(_headline(figures)),
        section("What it is", card("Model and vectors", definitions(_model(figures)), wide=True)),
        *changes_shown.sections(figures),
        *rows_shown.sections(figures),
        "<footer>Shares and distributions are of the rows that each plot names. No figure leaves out rows silently.</footer>",
    ]
    template = string.Template(importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=shown(f"Report on {figures.table}"), body="\n".join(body))


def framed(html: str) -> str:
    """Return the page in a frame of its own, so that a notebook's styles and the page's stay apart."""
    return f'<iframe srcdoc="{escape(html)}" style="width:100%;height:720px;border:0" sandbox></iframe>'


def _made(figures: Figures) -> str:
    last = figures.versions[-1]
    made = f"made at {shown(clock(figures.made))} in {figures.seconds:.1f} s"
    return f"Report on version {last.version} of {shown(clock(last.time))}, {made}."


def _headline(figures: Figures) -> list[tuple[str, str]]:
    last = figures.versions[-1]
    found = [
        (f"{last.rows:,}", f"rows in version {last.version}"),
        (f"{figures.letters.total:,}", "source rows without a vector"),
        (size(figures.size), f"in {figures.files:,} files"),
    ]
    if last.rows:
        found.append((size(figures.size / last.rows), "on storage per row"))
    if figures.texts is not None:
        found.append((f"{figures.texts.truncated_share:.1%}", "of the texts truncated"))
    telling = next((one for one in reversed(figures.versions) if one.tokens_per_s), None)
    if telling is not None and telling.tokens_per_s is not None:
        found.append((per_second(telling.tokens_per_s), f"tokens/s in version {telling.version}"))
    return found


def _model(figures: Figures) -> list[tuple[str, str]]:
    model = figures.model
    place = " at ".join(model.place.values()) or "not recorded by the program that made this version"
    chunk = model.chunk
    return [
        ("model", place),
        ("digest", model.digest[:16]),
        ("vectors", f"{model.dim} dimensions, stored as {model.dtype}, computed in {model.precision}"),
        ("similarity", model.similarity),
        ("reads", f"{model.max_seq_length:,} tokens of a text" if model.max_seq_length else "texts of any length"),
        ("prompt", repr(model.prompt) if model.prompt else "none"),
        (
            "chunks",
            ", ".join(f"{name} {value}" for name, value in chunk.items()) if chunk else "none: a row per document",
        ),
    ]
