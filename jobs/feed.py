"""Bring vector databases to the table's current version: load, keep in step, verify, show, repair.

    python -m jobs.feed CONFIG.yaml [FEED ..] [--set key=value ...] [--json]     load, go on, or sync; all feeds without a name
                        [--dry-run] [--to VERSION] [--allow-deletes] [--no-switch]
    python -m jobs.feed CONFIG.yaml [FEED ..] --verify [--rows N] [--seed S]     read back and compare, and change nothing
    python -m jobs.feed CONFIG.yaml [FEED ..] --repair                           verify, and send exactly what differs
    python -m jobs.feed CONFIG.yaml [FEED ..] --new-generation | --rebuild       load all rows anew, then show them
    python -m jobs.feed CONFIG.yaml [FEED ..] --switch | --switch-back | --drop-old | --adopt | --status

A marker in the store says which version of the table it holds, so that a feed that was killed at any moment goes on with the
same command. Only what changed is sent, and it is read back afterwards. Another model, dtype, metric or set of columns needs
--new-generation: it is loaded beside the live generation, verified, and shown in one step, and the old one stays until
--drop-old.

Exit codes: 0 done, nothing to do, or another one is at it; 1 failed, or --verify found differences; 2 bad configuration or
input, found before any write; 3 done, but the store refused rows; 10 (--dry-run) changes pending.

For example, all feeds of a configuration, and then a proof that one of them is what the table is:

    python -m jobs.feed run.yaml
    python -m jobs.feed run.yaml docs-pg --verify
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jobs.command import main_of, parser, told
from pipeline import progress
from pipeline.config import RunSpec
from pipeline.errors import InputError, PipelineError, TableBusy
from pipeline.runs import feed as runs
from pipeline.runs.feed_checks import DEEP_ROWS
from pipeline.runs.feed_plan import Wishes
from pipeline.runs.feed_summary import FeedSummary
from pipeline.runs.observed import observed
from pipeline.runs.recorded import configured

if TYPE_CHECKING:
    from pipeline.execution.executor import Executor


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    spec = configured(arguments.config, arguments.set)
    names = arguments.feeds or list(spec.feeds)
    if not names:
        raise InputError("the configuration has no section feeds: name a store there, such as postgres")
    do = _chosen(arguments)
    with contextlib.ExitStack() as stack:
        executor = _executor(spec, stack)
        if len(names) == 1:
            try:
                with progress.run("feed") as run, _observed(arguments, spec):
                    summary = do(spec, names[0], executor)
                    run.know(exit_code=summary.exit_code)
                return _one(arguments, summary)
            except TableBusy as busy:
                arguments.show({"feeds": [{"feed": names[0], "busy": str(busy), "exit_code": 0}]}, str(busy))
                return busy.exit_code
        with progress.run("feed"), _observed(arguments, spec):
            feeds, text, code = _each(names, lambda name: do(spec, name, executor))
        arguments.show({"feeds": feeds}, text)
        return code


def _parser() -> argparse.ArgumentParser:
    command = parser(__doc__, dry_run=True)
    command.add_argument(
        "feeds", metavar="FEED", nargs="*", default=[], help="names of the section feeds (all of them)"
    )
    verbs = command.add_mutually_exclusive_group()
    verbs.add_argument("--verify", action="store_true", help="compare the store with the table, and change nothing")
    verbs.add_argument("--repair", action="store_true", help="verify, and send exactly the rows that differ")
    verbs.add_argument("--new-generation", action="store_true", help="load all rows beside the live ones, then switch")
    verbs.add_argument("--rebuild", action="store_true", help="the same, whatever stands in the store")
    verbs.add_argument("--switch", action="store_true", help="show the generation that is ready")
    verbs.add_argument("--switch-back", action="store_true", help="show the generation before the live one")
    verbs.add_argument("--drop-old", action="store_true", help="drop all generations that are not shown")
    verbs.add_argument("--adopt", action="store_true", help="take over a generation that lost its marker")
    verbs.add_argument("--status", action="store_true", help="tell what stands in the store")
    command.add_argument("--no-switch", action="store_true", help="load, but don't show it")
    command.add_argument("--allow-deletes", action="store_true", help="delete more than feeds.limits.max_deleted_rows")
    command.add_argument(
        "--to", metavar="VERSION", type=int, help="the version of the table that is wanted (the current one)"
    )
    command.add_argument("--rows", metavar="N", type=int, default=DEEP_ROWS, help="rows that --verify reads back")
    command.add_argument("--seed", metavar="S", type=int, default=0, help="which rows: another seed takes others")
    return command


def _observed(arguments: argparse.Namespace, spec: RunSpec) -> contextlib.AbstractContextManager[None]:
    """Tell monitoring of what changes a store, and not of a look at it."""
    looks = arguments.dry_run or arguments.status or (arguments.verify and not arguments.repair)
    return contextlib.nullcontext() if looks else observed(spec)


def _chosen(arguments: argparse.Namespace) -> "Callable[[RunSpec, str, Callable[[], Executor]], FeedSummary]":
    wishes = Wishes(
        new_generation=arguments.new_generation,
        no_switch=arguments.no_switch,
        switch=arguments.switch,
        rebuild=arguments.rebuild,
        adopt=arguments.adopt,
        allow_deletes=arguments.allow_deletes,
        to=arguments.to,
    )
    if arguments.dry_run:
        if any(getattr(arguments, verb) for verb in ("verify", "repair", "switch_back", "drop_old")):
            raise InputError("--dry-run goes with loads and syncs alone")
        return lambda spec, name, _: runs.forecast(spec, name, wishes)
    if arguments.verify or arguments.repair:
        options = {"rows": arguments.rows, "seed": arguments.seed, "repair": arguments.repair}
        if arguments.rows < 1 or arguments.seed < 0:
            raise InputError(
                f"--rows is {arguments.rows} and --seed {arguments.seed}; give at least 1 row, and a seed of 0 or more"
            )
        return lambda spec, name, _: runs.verified(spec, name, **options)
    if arguments.switch_back:
        return lambda spec, name, _: runs.switch_back(spec, name)
    if arguments.drop_old:
        return lambda spec, name, _: runs.drop_old(spec, name)
    if arguments.status:
        return lambda spec, name, _: runs.status(spec, name)
    return lambda spec, name, executor: runs.feed(spec, name, executor, wishes)


def feed_all(spec: RunSpec, wishes: Wishes) -> tuple[list[dict[str, Any]], str, int]:
    """Bring all feeds of a run to the table's version. Return what machines and people are told, and the exit code."""
    with contextlib.ExitStack() as stack, progress.run("feed"), observed(spec):
        return _each(list(spec.feeds), lambda name: runs.feed(spec, name, _executor(spec, stack), wishes))


def _executor(spec: RunSpec, stack: contextlib.ExitStack) -> "Callable[[], Executor]":
    """Return what makes the executor when a load needs it. A night without changes is over before it would be imported."""

    @functools.cache
    def executor() -> "Executor":
        from pipeline.execution.by_size import ExecutorBySize

        return stack.enter_context(ExecutorBySize(spec.resources))

    return executor


def _one(arguments: argparse.Namespace, summary: FeedSummary) -> int:
    arguments.show({"feeds": [summary.to_dict()]}, str(summary))
    return summary.exit_code


def _each(names: Sequence[str], do: Callable[[str], FeedSummary]) -> tuple[list[dict[str, Any]], str, int]:
    """Work on all feeds. One that fails doesn't keep the others from their night."""
    feeds, lines, codes = list[dict[str, Any]](), list[str](), list[int]()
    for name in names:
        try:
            summary = do(name)
        except PipelineError as error:
            feeds.append({"feed": name, "error": str(error), "exit_code": error.exit_code})
            what = told(error).removeprefix(f"feed {name}: ")
            lines.append(f"feed {name}: {'' if isinstance(error, TableBusy) else 'error: '}{what}")
            codes.append(error.exit_code)
        else:
            feeds.append(summary.to_dict())
            lines.append(str(summary))
            codes.append(summary.exit_code)
    # A failure before a refusal, that before dead letters, those before changes that are pending.
    code = next((code for code in (1, 2, 3, 10) if code in codes), 0)
    progress.current().know(exit_code=code)
    return feeds, "\n".join(lines), code


if __name__ == "__main__":
    sys.exit(main_of(main))
