"""Make a table equal to its sources: embed what is new, drop what is gone, publish a version.

    python -m jobs.embed CONFIG.yaml [--set key=value ...] [--retry-failed] [--new-model] [--dry-run] [--json]
    python -m jobs.embed SOURCE [--text COLUMN ...] [--id COLUMN ...] [--model MODEL] [--table FOLDER]

A folder, a file, a pattern in quotes or a URL of documents needs no configuration: what it lacks is chosen by looking at the
documents, said, and written down beside them as SOURCE.yaml, with what --set gave. The same command goes by it from then on.

A table that exists is followed by row: files that did not change are not read, and a text that the table has is not encoded
again. --retry-failed tries the table's dead letters again, too; without it a row is tried again when its file changes.
--new-model lets another model take the place of the table's. `python -m jobs.reindex` does the same with a schedule's guards.

Exit codes: 0 done, or nothing to do; 1 failed, or another run has the table: nothing published, work kept; 2 bad
configuration or input, found before any work; 3 done, with new dead letters, or with files that can't be read, whose rows
stay; 10 (--dry-run) changes pending. Killed at any moment, the same command goes on.

For example, a folder of notes, now and whenever some of them changed:

    python -m jobs.embed ~/notes
"""

import sys
from collections.abc import Sequence

from jobs.command import main_of, parser
from jobs.source_or_config import add_choices, spec_of
from pipeline import embed, plan
from pipeline.errors import RunError, TableBusy

CHANGES_PENDING = 10


def main(argv: Sequence[str] | None = None, docstring: str | None = __doc__) -> int:
    command = parser(docstring, dry_run=True, takes_sources=True)
    command.add_argument("--retry-failed", action="store_true", help="try the table's dead letters again, too")
    command.add_argument("--new-model", action="store_true", help="let another model take the place of the table's")
    add_choices(command)
    arguments = command.parse_args(argv)
    spec = spec_of(arguments)
    if arguments.dry_run:
        planned = plan(spec, retry_failed=arguments.retry_failed, new_model=arguments.new_model)
        arguments.show(planned.to_dict(), str(planned))
        return CHANGES_PENDING if planned.changes_pending else 0
    try:
        summary = embed(spec, retry_failed=arguments.retry_failed, new_model=arguments.new_model)
    except TableBusy as busy:  # A person asked for it, and it was not done.
        raise RunError(str(busy)) from None
    arguments.show(summary.to_dict(), str(summary))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main_of(main))
