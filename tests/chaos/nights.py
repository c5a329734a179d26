"""Nights on a table that stands: a reindex, a build with another model or a rollback is struck, and its inputs change or
other commands work beside it.

Comes in: a seed. Goes out: an Outcome for each night. Every command is the real one in processes of its own, killed by
SIGKILL at a random moment; then it is started until it succeeds. Its table must hold what a table holds that is built from
nothing of the sources as they are in the end (of a rollback: the rows of the version that was asked for), `data/` nothing
else, and the lists of changes must replay to it.
"""

import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import pipeline
from pipeline.config import load
from pipeline.errors import PipelineError
from pipeline.storage import Folder
from pipeline.table import layout, snapshot
from tests import faulty, inline
from tests.chaos import processes, verdict
from tests.chaos.job import SLOWED_S
from tests.chaos.report import Outcome
from tests.inline import read_table, spec_of
from tests.table.histories import held, replayed
from tests.tiny import build_tiny_model

REINDEX, NEW_MODEL, ROLLBACK = "reindex", "new model", "rollback"
EDITED, CLEANED, PURGED = "reindex, inputs change", "reindex, clean beside", "reindex, purge beside"
KINDS = (REINDEX, NEW_MODEL, ROLLBACK, EDITED, CLEANED, PURGED)
FILES, ROWS = 6, 100
"""Files of the source, and the rows of each."""
UNTOUCHED, CHANGED, GONE = (0, 1), (2, 3), 4
"""Files that stay, that change every night, and that goes last night; one more file comes."""
EDITED_FILE = 3
"""The file that is written once more while a run reads."""
PARTITIONS = 3
UNIT_ROWS = 50
MOST_STARTS, MOST_TRIES, TIMEOUT_S = 6, 4, 180
NOT_COMPLETE = 1
"""The exit status of a purge that leaves something for a later one: what was written just now may be in use."""
SLOW = SLOWED_S | {
    "pipeline.table.operations.merge_rows:_assemble": 0.2,
    "pipeline.table.operations.restore:_restored": 0.2,
    "pipeline.runs.row_publication:revision_of": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Night:
    number: int
    kind: str
    victim: str
    """`driver`, or `worker` for one of the processes below it."""
    share: float
    """The command is struck after this share of the time that it takes undisturbed."""
    beside: float
    """The inputs change, or the other command starts, after this share."""
    on_ray: bool
    clustered: bool = False

    def __str__(self) -> str:
        where = "Ray" if self.on_ray else "no Ray"
        return f"{self.number:3}  {self.kind:22}  {self.victim}, {where}, at {self.share:.0%}"


def nights(count: int, seed: int) -> list[Night]:
    """The same for the same seed; the first ones of a longer list are those of a shorter one."""
    chance = random.Random(f"nights {seed}")
    return [
        Night(
            number=number,
            kind=(kind := KINDS[number % len(KINDS)]),
            victim="worker" if kind != ROLLBACK and chance.random() < 0.3 else "driver",
            share=chance.uniform(0.1, 0.95),
            beside=chance.uniform(0.05, 0.8),
            on_ray=kind != ROLLBACK and chance.random() < 0.2,
        )
        for number in range(count)
    ]


def rows_of(file: int, generation: int) -> list[dict[str, Any]]:
    """The rows of a file; of a changed one, every third has a text of its generation."""
    rows = [
        {"id": f"doc-{n}", "text": f"document about {n}", "label": n % PARTITIONS}
        for n in range(file * ROWS, (file + 1) * ROWS)
    ]
    if file in CHANGED:
        for row in rows[generation % 3 :: 3]:
            row["text"] = f"news of generation {generation}: {row['id']}"
    return rows


class Standing:
    """The sources, and a table of two versions of them, from which every night begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = folder / "corpus"
        self.models = [build_tiny_model(folder / "A", seed=0), build_tiny_model(folder / "B", seed=1)]
        self.corpus.mkdir()
        for file in (*UNTOUCHED, *CHANGED, GONE):
            self.write(file, 0)
        inline.embed(self._spec(self.models[0], folder / "table"))
        self.first = sorted_rows(folder / "table")
        for file in CHANGED:
            self.write(file, 1)
        inline.reindex(self._spec(self.models[0], folder / "table"))

    def write(self, file: int, generation: int) -> None:
        """A file appears whole, as exports should."""
        there = self.folder / "being-written"
        pq.write_table(pa.Table.from_pylist(rows_of(file, generation)), there)
        there.replace(self.corpus / f"{file}.parquet")

    def tonight(self) -> None:
        """The sources of tonight, whatever an earlier night made of them."""
        for file in (*CHANGED, FILES - 1):
            self.write(file, 2)
        (self.corpus / f"{GONE}.parquet").unlink(missing_ok=True)

    def expected(self, night: Night) -> pa.Table:
        """What the table should hold."""
        if night.kind == ROLLBACK:
            return self.first
        with contextlib.ExitStack() as stack:
            fresh = self.folder / "fresh"
            stack.callback(shutil.rmtree, fresh)
            inline.embed(self._spec(self.model(night), fresh))
            return sorted_rows(fresh)

    def model(self, night: Night) -> Path:
        return self.models[night.kind == NEW_MODEL]

    def _spec(self, model: Path, table: Path) -> Any:
        return spec_of(self.corpus, model, table, table={"partition_by": ["label"]}, limits={"unit_rows": UNIT_ROWS})


@dataclass(frozen=True, kw_only=True)
class Run:
    """The folder of one night, and its commands."""

    night: Night
    folder: Path
    standing: Standing

    @property
    def table(self) -> Path:
        return self.folder / "table"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def set_up(self) -> None:
        shutil.copytree(self.standing.folder / "table", self.table)
        self.standing.tonight()
        config = {
            "source": {"path": str(self.standing.corpus), "id": "id", "text": "text"},
            "model": {"path": str(self.standing.model(self.night))},
            "table": {"path": str(self.table), "partition_by": ["label"]},
            "resources": {"encoders": 2, "writers": 1, "ray_address": "local" if self.night.on_ray else None},
            "limits": {"unit_rows": UNIT_ROWS},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> "subprocess.Popen[bytes]":
        if self.night.kind == ROLLBACK:
            return self.command("jobs.status", "--rollback", "1")
        return self.command(
            "jobs.reindex", "--allow-deletes", *(["--new-model"] if self.night.kind == NEW_MODEL else [])
        )

    def beside(self) -> "subprocess.Popen[bytes]":
        if self.night.kind == PURGED:
            return self.command("jobs.status", "--purge", f"doc-{GONE * ROWS}")
        return self.command("jobs.status", "--clean", "--older-than", "0")

    def command(self, module: str, *flags: str) -> "subprocess.Popen[bytes]":
        slow = ",".join(f"{function}:{seconds}" for function, seconds in SLOW.items())
        environment = faulty.environment(self.folder, SLOW=slow, COUNT_BATCHES="1") | {
            "RAY_TMPDIR": str(self.standing.folder.parent / "ray"),
            "RAY_enable_metrics_collection": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, str(self.folder / "config.yaml"), *flags],
                env=environment,
                cwd=faulty.ROOT,
                stdout=log,
                stderr=log,
            )


def survive(night: Night, standing: Standing, calm_s: dict[str, float]) -> Outcome:
    """Strike, go on, judge. A night whose command was faster than planned is tried again from its beginning, earlier."""
    for attempt in range(MOST_TRIES):
        folder = standing.folder.parent / f"night-{night.number}-{attempt}"
        folder.mkdir()
        run = Run(night=replace(night, share=night.share / 2**attempt), folder=folder, standing=standing)
        run.set_up()
        outcome = strike(run, calm_s[calm_kind(night)])
        if outcome.faults:
            print(run.log.read_text()[-4000:], flush=True)
        shutil.rmtree(run.table)
        if outcome.phase or outcome.faults:
            return replace(outcome, point=night)
    return replace(outcome, point=night, faults=(f"was not hit in {MOST_TRIES} runs",))


def calm_kind(night: Night) -> str:
    """Which undisturbed command is as long as the night's."""
    kind = night.kind if night.kind in (NEW_MODEL, ROLLBACK) else REINDEX
    return f"{kind}{' on Ray' if night.on_ray else ''}"


def undisturbed(wanted: list[Night], standing: Standing) -> dict[str, float]:
    """Seconds of the commands that the nights need, each run once."""
    seconds: dict[str, float] = {}
    for night in wanted:
        name = calm_kind(night)
        if name in seconds:
            continue
        folder = standing.folder.parent / f"calm {name}"
        folder.mkdir()
        kind = night.kind if night.kind in (NEW_MODEL, ROLLBACK) else REINDEX
        run = Run(night=replace(night, kind=kind), folder=folder, standing=standing)
        run.set_up()
        began = time.monotonic()
        status = processes.finished(run.start(), TIMEOUT_S)
        seconds[name] = time.monotonic() - began
        found = [*faults(run, standing.expected(run.night))] if not status else [f"exit status {status}"]
        if found:
            raise SystemExit(f"undisturbed, {name} failed: {found}\n{run.log.read_text()}")
    return seconds


def strike(run: Run, calm_s: float) -> Outcome:
    began, night = time.monotonic(), run.night
    command = run.start()
    others = _disturb(run, command, began, calm_s)
    hit = _kill(run, command, began, calm_s)
    below = processes.descendants(command.pid)
    starts, status = 1, processes.finished(command, TIMEOUT_S)
    while status and starts < MOST_STARTS:
        starts, status = starts + 1, processes.finished(run.start(), TIMEOUT_S)
    processes.kill(below)
    bad = [code for other in others if (code := processes.finished(other, TIMEOUT_S)) not in (0, NOT_COMPLETE)]
    if not status and night.kind == EDITED:  # what changed behind the reader is the next run's
        starts, status = starts + 1, processes.finished(run.start(), TIMEOUT_S)
    found = [f"a command beside ended with exit status {code}" for code in bad]
    if status:
        found.append(f"exit status {status} after {starts} starts")
    elif not bad:
        found += faults(run, run.standing.expected(night))
    return Outcome(
        point=night,
        phase="under way" if hit else "",
        starts=starts,
        twice=0,
        difference=0.0,
        faults=tuple(found),
        seconds=time.monotonic() - began,
    )


def _disturb(
    run: Run, command: "subprocess.Popen[bytes]", began: float, calm_s: float
) -> list["subprocess.Popen[bytes]"]:
    """Change the inputs, or start the other command, at its moment if that is before the strike."""
    if run.night.kind not in (EDITED, CLEANED, PURGED):
        return []
    moment = min(run.night.beside, run.night.share) * calm_s
    _wait_until(began + moment, command)
    if run.night.kind == EDITED:
        run.standing.write(EDITED_FILE, 3)
        return []
    return [run.beside()]


def _kill(run: Run, command: "subprocess.Popen[bytes]", began: float, calm_s: float) -> bool:
    """Whether something was killed before the command ended."""
    _wait_until(began + run.night.share * calm_s, command)
    victims = [processes.process(command.pid)] if command.poll() is None else []
    if run.night.victim == "worker":
        victims = processes.descendants(command.pid)[-1:] or victims
    processes.kill(victims)
    return bool(victims)


def _wait_until(moment: float, command: "subprocess.Popen[bytes]") -> None:
    while time.monotonic() < moment and command.poll() is None:
        time.sleep(0.005)


# --- what must hold


def sorted_rows(table: Path) -> pa.Table:
    """All that lies in data/, in order of ids, without the numbers of sources, which are a run's own."""
    return read_table(table).drop_columns(["source"]).sort_by("id")


def faults(run: Run, expected: pa.Table) -> list[str]:
    """Empty if all holds: the rows, what lies in data/, the lists of changes, and that nothing is left to do."""
    try:
        rows = sorted_rows(run.table)
    except (OSError, pa.ArrowException, KeyError) as error:
        return [f"the table can't be read: {type(error).__name__}: {error}"]
    found = [*verdict.other_rows(rows, expected), *_other_files(run.table)]
    return found or [*_other_changes(run), *_work_left(run)]


def _other_files(table: Path) -> Iterator[str]:
    current = snapshot.current(Folder(str(table)))
    live = {part.path for part in current.parts}
    found = {str(path.relative_to(table)) for path in (table / layout.DATA).rglob("*") if path.is_file()}
    for path in sorted(found ^ live):
        yield f"{path} is {'no part of the version' if path in found else 'missing'}"


def _other_changes(run: Run) -> Iterator[str]:
    if run.night.kind == CLEANED:  # lists of changes of versions that are not kept go, too
        return
    table = Folder(str(run.table))
    told, holds = replayed(table), held(table)
    if told != holds:
        differing = {name for name in told.keys() | holds.keys() if told.get(name) != holds.get(name)}
        yield f"the lists of changes tell other things of {len(differing)} rows, such as {min(differing)}"


def _work_left(run: Run) -> Iterator[str]:
    if run.night.kind == ROLLBACK:  # it holds the table
        return
    try:
        planned = pipeline.plan_reindex(load(run.folder / "config.yaml"))
    except PipelineError as error:
        yield f"another plan fails: {error}"
        return
    if planned.changes_pending:
        yield f"another run would not find nothing to do: {planned}"
