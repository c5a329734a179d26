"""Whole runs in this process, observed as those of commands are."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline import progress
from pipeline.config import RunSpec
from pipeline.runs import embed as runs
from pipeline.runs.observed import observed, tell_summary
from pipeline.runs.summary import Summary
from tests.inline import InProcess, spec_of


def corpus(folder: Path, rows: int, *, bad: int = 0) -> Path:
    """Rows of which the last few have no text."""
    texts = [None if number >= rows - bad else f"document about {number}" for number in range(rows)]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts)))
    return path


def spec(folder: Path, model: Path, **sections: Any) -> RunSpec:
    limits = {"unit_rows": 4, "max_failed_rows": 2}
    return spec_of(folder / "corpus.jsonl", model, folder / "table", limits=limits, **sections)


def run(given: RunSpec, **options: Any) -> Summary:
    with progress.listening(shown=False), progress.run("embed"), observed(given):
        return tell_summary(runs.embed(given, InProcess(**options)))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def program(name: str) -> str:
    """The path of a program of the Debian package prometheus; tests without it are skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: apt-get install --no-install-recommends prometheus")
    return found
