"""Parts of docs/ follow from the code: this makes them, and compares them with what is committed or writes them.

    python -m docs.generate            # names each page that differs, and ends with 1 if there is one
    python -m docs.generate --write    # writes them: `make docs-update`

A page holds marks, `<!-- made: NAME -->` and `<!-- end of NAME -->`. What stands between them is made by the function
of that name; all else on the page is written by hand.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from docs.code_map import imports, tree
from docs.reference import commands, configuration, metrics, schema

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MARKED = re.compile(r"(<!-- made: ([\w-]+) -->\n).*?(\n<!-- end of \2 -->)", re.DOTALL)
MADE = {"configuration": configuration, "commands": commands, "metrics": metrics, "tree": tree, "imports": imports}


def pages() -> Mapping[Path, str]:
    """Make every page, and the schema, as they should be."""
    made = {}
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        made[path] = MARKED.sub(lambda found: f"{found[1]}\n{MADE[found[2]]()}\n{found[3]}", text)
    return made | {DOCS / "schema.json": schema()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages that differ")
    arguments = parser.parse_args(argv)
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        done = "is written" if arguments.write else "is not what the code says: `make docs-update` writes it"
        print(f"{path.relative_to(ROOT)} {done}")
        if arguments.write:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and not arguments.write else 0


if __name__ == "__main__":
    sys.exit(main())
