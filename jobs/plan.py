"""Tell what embed would do now, and change nothing.

    python -m jobs.plan CONFIG.yaml [--set key=value ...] [--retry-failed] [--json]
    python -m jobs.plan SOURCE [--text COLUMN ...] [--id COLUMN ...] [--model MODEL] [--table FOLDER]

It is `python -m jobs.embed` with --dry-run. What a schedule would do, with exact counts of rows and costs, is told by
`python -m jobs.reindex CONFIG.yaml --dry-run`. Exit codes: 0 nothing to do; 2 bad configuration or input; 10 changes pending.

For example:

    python -m jobs.plan run.yaml
"""

import sys
from collections.abc import Sequence

from jobs import embed
from jobs.command import main_of


def main(argv: Sequence[str] | None = None) -> int:
    return embed.main([*(sys.argv[1:] if argv is None else argv), "--dry-run"], __doc__)


if __name__ == "__main__":
    sys.exit(main_of(main))
