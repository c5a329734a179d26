"""Explore what processes can do to a table at once, and print the first counterexample, a line a step.

    python -m tests.protocol                                  all pairs that the tests explore
    python -m tests.protocol embed clean "rollback 1" /D      these processes; the row to purge is in unit D
    python -m tests.protocol embed clean /D --without announces

The kinds are embed, reindex, `rollback 1`, `rollback 2`, clean, `purge x`, `purge y` and finish; `--without` takes away a
guard, or an assumption, of rules.py. Exit status 1 if something is broken.
"""

import argparse
import dataclasses
import sys
import time

from tests.protocol.model import explored
from tests.protocol.rules import ALL, Rules
from tests.protocol.scenarios import PAIRS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenario", nargs="*", help="kinds of processes, and the holders of the purged row after a slash"
    )
    parser.add_argument("--without", choices=[rule.name for rule in dataclasses.fields(Rules)])
    arguments = parser.parse_args()
    named = tuple(arguments.scenario)
    if named and not named[-1].startswith("/"):
        named = (*named, "/D")
    broken = False
    for scenario in [named] if named else PAIRS:
        started = time.perf_counter()
        found = explored(*scenario, rules=ALL.without(arguments.without) if arguments.without else ALL)
        print(
            f"{' | '.join(scenario[:-1])}  {scenario[-1]}  {time.perf_counter() - started:.1f} s  {found}", flush=True
        )
        broken = broken or bool(found.fault)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
