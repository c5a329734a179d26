"""Show a published table as a map: rows that mean much the same lie together, with colours, search and neighbours.

    python -m jobs.explore CONFIG.yaml|TABLE [--colour COLUMN] [--rows 100000] [--seed 0] [--where lang=en] [--no-open]
    python -m jobs.explore CONFIG.yaml|TABLE --export FOLDER|FILE.html|FILE.parquet

The map is one page that works without a network. It is kept in the cache of this user and opened in the browser, or written
to the place that --export names. Of more rows than --rows a random sample is shown, and the page says so. Parquet has the
rows with `projection_x`, `projection_y` and `neighbors`, as embedding-atlas and other tools take them. No model is loaded.

Example:

    python -m jobs.explore ~/embeddings --export ~/map.html
"""

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jobs.command import main_of, parser
from jobs.where import add_where
from pipeline.runs import explore as maps
from pipeline.runs.search import opened


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("--export", metavar="PLACE", type=Path, help="write the map to this folder, .html or .parquet")
    command.add_argument("--colour", "--color", metavar="COLUMN", help="colour by this column at first")
    command.add_argument(
        "--rows", metavar="N", type=int, default=maps.ROWS, help="show a sample of more rows than these"
    )
    command.add_argument("--seed", metavar="N", type=int, default=0, help="another sample, and another map")
    add_where(command, "only rows such as lang=en; more may follow, and all must hold")
    command.add_argument("--no-open", action="store_true", help="make the page and say where it is")
    arguments = command.parse_args(argv)
    reader = opened(arguments.config, arguments.set)
    asked = {"rows": arguments.rows, "seed": arguments.seed, "where": arguments.where}
    if arguments.export is not None:
        maps.destination(arguments.export)
        made = maps.explore(reader, **asked)
        file = maps.write(made, arguments.export, arguments.colour)
        arguments.show({"file": str(file), "rows": len(made.points), "of": made.total}, f"{made.told}: {file}")
        return 0
    file = maps.kept_page(reader, **asked, colour=arguments.colour)
    is_open = not arguments.no_open and not arguments.json and _has_screen() and webbrowser.open(file.as_uri())
    arguments.show({"file": str(file)}, f"opened {file}" if is_open else f"open {file} in a browser")
    return 0


def _has_screen() -> bool:
    """Say whether a browser with windows can open; one in the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main_of(main))
