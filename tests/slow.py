"""Tests that took long when they were last measured are slow ones, which `make test` leaves out and `make test-all` runs.

    pytest -n 2 --junitxml=measured.xml
    python -m tests.slow measured.xml       # writes their names into tests/slow.txt; what was not run stays as it was

Tests that take LEAST_S seconds or more are named there. Those of the modules in ALWAYS stay in `make test` all the same: they
kill and interrupt runs. A test that the file doesn't name is a quick one until somebody measures again.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

LEAST_S = 3.0
ALWAYS = (
    "tests/jobs/test_kill.py",
    "tests/jobs/test_signals.py",
    "tests/jobs/test_reindex.py",
    "tests/feeds/test_kills.py",
    "tests/feeds/test_histories.py",
    "tests/execution/test_local.py",
    "tests/test_docs.py",
)
FILE = Path(__file__).with_suffix(".txt")


def slow() -> frozenset[str]:
    """Return the names of the tests, as pytest gives them."""
    return frozenset(FILE.read_text(encoding="utf-8").splitlines())


def measured(report: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each test of pytest's report, and whether it is a slow one."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        path = case.attrib["classname"].replace(".", "/") + ".py"
        yield f"{path}::{case.attrib['name']}", float(case.attrib["time"]) >= LEAST_S and path not in ALWAYS


if __name__ == "__main__":
    found = dict(measured(Path(sys.argv[1])))
    names = sorted({name for name, is_slow in found.items() if is_slow} | (slow() - found.keys()))
    FILE.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{len(names)} tests take {LEAST_S:g} s or more")
