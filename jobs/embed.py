"""Make a table equal to its sources: embed what is new, drop what is gone, publish a version.

    python -m jobs.embed CONFIG.yaml [--set key=value ...] [--retry-failed] [--dry-run] [--json]

--retry-failed tries the table's dead letters again, too; without it a row is tried again when its file changes.

Exit codes: 0 done, or nothing to do; 1 failed, nothing published, work kept; 2 bad configuration or input, found before
any work; 3 done, with new dead letters; 10 (--dry-run) changes pending. Killed at any moment, the same command goes on.
"""

import sys
from collections.abc import Sequence

from jobs.command import main_of, parser
from pipeline import embed, plan
from pipeline.config import load

CHANGES_PENDING = 10


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=True)
    command.add_argument("--retry-failed", action="store_true", help="try the table's dead letters again, too")
    arguments = command.parse_args(argv)
    spec = load(arguments.config, arguments.set)
    if arguments.dry_run:
        planned = plan(spec, retry_failed=arguments.retry_failed)
        arguments.show(planned.to_dict(), str(planned))
        return CHANGES_PENDING if planned.changes_pending else 0
    summary = embed(spec, retry_failed=arguments.retry_failed)
    arguments.show(summary.to_dict(), str(summary))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main_of(main))
