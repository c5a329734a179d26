"""The figures of a run become metrics, as Prometheus names them.

Events of a run come in, and samples go out: a value for a name and labels. Every name, with its type and help, stands in
METRICS. This file knows neither ports nor files.
"""

import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.progress import Event, Progress

PREFIX = "embedding_pipeline_"


class Metric(NamedTuple):
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    """It has these labels beside `command` and `table`."""


METRICS: Mapping[str, Metric] = {
    "build_info": Metric("gauge", "Release of this program, which the label version names.", ("version",)),
    "run_in_progress": Metric("gauge", "1 while a run works, and 0 when it has ended."),
    "run_phase": Metric("gauge", "1 for the phase that the run is in.", ("phase",)),
    "run_start_timestamp_seconds": Metric("gauge", "Unix time at which the run began."),
    "run_end_timestamp_seconds": Metric("gauge", "Unix time at which the run ended."),
    "run_exit_code": Metric("gauge", "Exit code of the run that ended: 0 and 3 are done, 3 with dead letters."),
    "last_success_timestamp_seconds": Metric("gauge", "Unix time at which a run last ended with exit code 0 or 3."),
    "phase_seconds_total": Metric("counter", "Seconds that the run was in a phase.", ("phase",)),
    "stage_seconds_total": Metric("counter", "Seconds of all workers together in a stage.", ("stage",)),
    "rows_planned": Metric("gauge", "Source rows that are to be encoded or sent."),
    "rows_encoded_total": Metric("counter", "Source rows that left an encoder, or were sent to a store."),
    "rows_recorded_total": Metric("counter", "Source rows whose work is done for good, dead letters among them."),
    "rows_queued": Metric(
        "gauge", "Source rows that wait: for an encoder (encode), or to be recorded (record).", ("queue",)
    ),
    "tokens_encoded_total": Metric("counter", "Tokens that left an encoder."),
    "units_planned": Metric("gauge", "Units of work that are to be done."),
    "units_recorded_total": Metric("counter", "Units of work that are done."),
    "dead_letters_total": Metric("counter", "Source rows that this run gave no vector, or that a store refused."),
    "run_rows_per_second": Metric("gauge", "Rate at which the run encoded or sent rows, since the first one."),
    "run_tokens_per_second": Metric("gauge", "Rate at which the run encoded tokens, since the first row."),
    "table_version": Metric("gauge", "Current version of the table."),
    "table_rows": Metric("gauge", "Rows of the table's current version."),
    "table_dead_letters": Metric("gauge", "Source rows of the table's current version that have no vector."),
    "feed_table_version": Metric("gauge", "Version of the table that a feed's store shows.", ("feed",)),
    "feed_rows_behind": Metric("gauge", "Changes of rows that a feed's store lacks, at most.", ("feed",)),
    "feed_rows_sent_total": Metric("counter", "Rows that a feed sent to its store.", ("feed",)),
    "feed_rows_deleted_total": Metric("counter", "Rows that a feed deleted from its store.", ("feed",)),
    "feed_rows_refused": Metric("gauge", "Rows of the version that the feed's store refuses.", ("feed",)),
    "feed_exit_code": Metric("gauge", "Exit code of a feed that ended.", ("feed",)),
}
LASTING = ("last_success_timestamp_seconds", "table_version", "table_rows", "table_dead_letters", "feed_")
"""What begins so outlives a run that had nothing to say of it."""
DONE = (0, 3)
"""Runs that end so have done what they were to do."""

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
"""The keys are names without the prefix, and labels in order."""


class RunMetrics:
    """They count what a run tells. A listener of a run, which another thread may read at any time."""

    def __init__(self, command: str, table: str, release: str) -> None:
        self._own = {"command": command, "table": table}
        self._release = release
        self._began, self._ended = time.time(), 0.0
        self._totals = dict.fromkeys(
            ("rows_encoded", "rows_recorded", "tokens_encoded", "units_recorded", "dead_letters"), 0
        )
        self._seen = dict(self._totals)
        self._run = Progress("")
        self._exit_code: int | None = None

    def __call__(self, event: Event, run: Progress) -> None:
        self._run = run
        if event is Event.TOTAL:
            # What is counted begins anew with every part of a run, and counters never go back.
            self._seen = dict.fromkeys(self._seen, 0)
        counted = {
            "rows_encoded": run.encoded_rows,
            "rows_recorded": run.recorded_rows,
            "tokens_encoded": run.encoded_tokens,
            "units_recorded": run.done_units,
            "dead_letters": run.failed,
        }
        for name, count in counted.items():
            self._totals[name] += max(0, count - self._seen[name])
        self._seen = counted

    def end(self, exit_code: int) -> None:
        """Count no more: the run ended with this code."""
        self._ended, self._exit_code = time.time(), exit_code

    def samples(self) -> Samples:
        """Return what is known by now."""
        run, found = self._run, Samples()

        def put(name: str, value: float | None, **labels: str) -> None:
            if value is not None:
                found[name, labels_of(self._own | labels)] = float(value)

        put("build_info", 1, version=self._release)
        put("run_in_progress", self._exit_code is None)
        put("run_start_timestamp_seconds", self._began)
        # Rows that were refused while they were compared are known when the version is.
        refused = int(run.facts.get("dead_letters", 0))
        for name, count in self._totals.items():
            put(f"{name}_total", max(count, refused) if name == "dead_letters" else count)
        for phase, seconds in (run.seconds | {run.phase: run.seconds.get(run.phase, 0.0) + run.phase_s}).items():
            put("phase_seconds_total", seconds, phase=str(phase))
        for stage, seconds in run.stages.copy().items():
            put("stage_seconds_total", seconds, stage=stage)
        put("rows_planned", run.rows)
        put("units_planned", run.units)
        put("run_rows_per_second", run.rows_per_s)
        put("run_tokens_per_second", run.tokens_per_s)
        if self._exit_code is None:
            put("run_phase", 1, phase=str(run.phase))
            put("rows_queued", None if run.rows is None else max(0, run.rows - run.done_rows), queue="encode")
            put("rows_queued", max(0, run.encoded_rows - run.recorded_rows), queue="record")
        else:
            put("run_end_timestamp_seconds", self._ended)
            put("run_exit_code", self._exit_code)
            put("last_success_timestamp_seconds", self._ended if self._exit_code in DONE else None)
        put("table_version", run.facts.get("version"))
        put("table_rows", run.facts.get("table_rows"))
        put("table_dead_letters", run.facts.get("table_dead_letters"))
        for feed, facts in run.facts.get("feeds", {}).copy().items():
            for name, value in facts.items():
                put(name, value, feed=feed)
        return found


def labels_of(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def merged(before: Samples, now: Samples, command: str, table: str) -> Samples:
    """Return what a file holds after a run: of other commands and tables all, of this one what lasts, and what it told."""
    own = {("command", command), ("table", table)}
    kept = {
        key: value for key, value in before.items() if not own <= set(key[1]) or key[0].startswith(LASTING)
    }  # fmt: skip
    return kept | now
