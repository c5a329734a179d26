"""`python -m jobs.embed` as a process of its own, with the faults of tests/faults/sitecustomize.py in it and in its workers.

A folder holds all of a run: config.yaml, what it printed (`out`, `log`), and the rows that it encoded.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(folder: Path, **faults: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "FAULT_FOLDER": str(folder)} | faults


def command(folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "jobs.embed", str(folder / "config.yaml"), "--json", *flags]


def start(folder: Path, *flags: str, **faults: str) -> "subprocess.Popen[bytes]":
    """Starts of the same folder add to its log; its result is the last one's."""
    with (folder / "out").open("wb") as out, (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command(folder, *flags), env=environment(folder, **faults), cwd=ROOT, stdout=out, stderr=log
        )


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def encoded(folder: Path) -> int:
    """Rows, by all starts of the command."""
    counts = folder / "encoded"
    return sum(map(int, counts.read_text().split())) if counts.exists() else 0
