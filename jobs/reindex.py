"""Bring a published table up to date with its sources by row: embed what is new or changed, drop what is gone.

    python -m jobs.reindex CONFIG.yaml [--set key=value ...] [--new-model] [--allow-deletes] [--wait SECONDS]
                           [--feed] [--dry-run] [--price-per-hour P] [--json]

It does what `python -m jobs.embed` does, as a schedule needs it. Files that did not change are not read; a text that
the table has, under whatever id, is not encoded. --new-model lets another model take the place of the table's: all is
built beside the live version and published at once. --dry-run counts what a run would do, exactly; with
--price-per-hour it says what encoding would cost.

Where more rows would be deleted than limits.max_deleted_rows, nothing is published unless --allow-deletes is given. A start
that meets another run at work on the table waits for so long as --wait or limits.wait_s say, then ends and says so.

--feed then brings all feeds of the configuration to the table's version, as `python -m jobs.feed` does: one command for a
night. A feed that fails leaves the table as it was published, and the exit code tells. What --allow-deletes allows, the feeds
may delete, too.

Exit codes: 0 done, nothing to do, or another one is at it; 1 failed, nothing published, work kept; 2 bad configuration or
input, found before any work; 3 done, with dead letters in the files that were read, or files that can't be read, whose rows
stay; 10 (--dry-run) changes pending. Killed at any moment, the same command goes on.

For example, every night:

    python -m jobs.reindex run.yaml --feed
"""

import sys
from collections.abc import Sequence

from jobs.command import main_of, parser
from jobs.feed import feed_all
from pipeline import plan_reindex, reindex
from pipeline.errors import InputError, TableBusy
from pipeline.runs.feed_plan import Wishes
from pipeline.runs.recorded import configured

CHANGES_PENDING = 10


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=True)
    command.add_argument("--new-model", action="store_true", help="let another model take the place of the table's")
    command.add_argument("--allow-deletes", action="store_true", help="delete more than limits.max_deleted_rows")
    command.add_argument("--wait", metavar="SECONDS", help="for a table that another one works on (limits.wait_s)")
    command.add_argument("--feed", action="store_true", help="then bring all feeds to the table's version")
    command.add_argument("--price-per-hour", metavar="P", type=float, help="of the machines, for --dry-run")
    arguments = command.parse_args(argv)
    wait = [f"limits.wait_s={arguments.wait}"] if arguments.wait is not None else []
    spec = configured(arguments.config, [*arguments.set, *wait])
    if arguments.feed and not spec.feeds:
        raise InputError("--feed needs a section feeds in the configuration: name a store there, or leave it out")
    if arguments.dry_run:
        planned = plan_reindex(
            spec,
            new_model=arguments.new_model,
            allow_deletes=arguments.allow_deletes,
            price_per_hour=arguments.price_per_hour,
        )
        arguments.show(planned.to_dict(), str(planned))
        return CHANGES_PENDING if planned.changes_pending else 0
    try:
        summary = reindex(spec, new_model=arguments.new_model, allow_deletes=arguments.allow_deletes)
    except TableBusy as busy:
        arguments.show({"table": spec.table.path, "published": False, "busy": str(busy)}, str(busy))
        return busy.exit_code
    if not arguments.feed:
        arguments.show(summary.to_dict(), str(summary))
        return summary.exit_code
    feeds, text, code = feed_all(spec, Wishes(allow_deletes=arguments.allow_deletes))
    arguments.show(summary.to_dict() | {"feeds": feeds}, f"{summary}\n{text}")
    return code if code in (1, 2) else summary.exit_code or code


if __name__ == "__main__":
    sys.exit(main_of(main))
