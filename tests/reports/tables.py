"""A small table with two versions, and all that a report has to show."""

import json
from pathlib import Path

from pipeline.config import RunSpec
from tests.inline import embed, reindex, spec_of

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""It is an id and part of a text that would break out of a page that does not escape it."""
WORDS = ["the", "market", "of", "new", "york", "went", "up", "when", "people", "saw", "small", "oil"]


def rows(count: int) -> list[dict[str, str | None]]:
    texts = [
        " ".join(WORDS[(place * step) % len(WORDS)] for place in range(3 + step % 7)) for step in range(1, count + 1)
    ]
    found: list[dict[str, str | None]] = [
        {"id": f"d{place}", "text": f"{text} {place}"} for place, text in enumerate(texts)
    ]
    found += [{"id": HOSTILE, "text": f"the market {HOSTILE}"}, {"id": "twin", "text": found[0]["text"]}]
    return [*found, {"id": f"{HOSTILE}-null", "text": None}]


def write(path: Path, found: list[dict[str, str | None]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def two_versions(folder: Path, model: Path) -> RunSpec:
    """Publish a table whose second version changes, adds and deletes some rows."""
    spec = spec_of(folder / "a.jsonl", model, folder / "table", limits={"max_failed_rows": 0.5})
    found = rows(30)
    write(folder / "a.jsonl", found)
    embed(spec)
    changed = [row | {"text": f"{row['text']} went up"} if row["id"] in ("d3", "d4") else row for row in found]
    write(folder / "a.jsonl", [row for row in changed if row["id"] != "d5"] + [{"id": "new", "text": "small oil"}])
    reindex(spec)
    return spec
