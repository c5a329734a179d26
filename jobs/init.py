"""Look at a source and write a configuration for it: a YAML file with comments, to be read, changed and run.

    python -m jobs.init SOURCE [--output FILE.yaml] [--text COLUMN ...] [--id COLUMN ...] [--model MODEL] [--table FOLDER]

SOURCE is a folder, a file, a pattern in quotes or a URL. With --output the table is named after that file. What --set gives
is written into it. The file says what was chosen and why, lists the columns with types,
lengths and examples, and has a section `chunk` ready where texts are longer than the model reads. No file is overwritten.
Exit codes: 0 written, or there already; 2 the source can't be read, leaves a choice open, or another file is in the way.

For example:

    python -m jobs.init ~/notes
    python -m jobs.init 'corpus/*.parquet' --output run.yaml
"""

import sys
from collections.abc import Sequence

from jobs.command import main_of, parser, spoken
from jobs.source_or_config import add_choices, wishes_of
from pipeline import config
from pipeline.errors import InputError
from pipeline.runs import first_spec


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_sources=True)
    command.add_argument("--output", metavar="FILE", help="the file to write (SOURCE.yaml)")
    add_choices(command)
    arguments = command.parse_args(argv)
    if not first_spec.is_source(arguments.config):
        raise InputError(f"{arguments.config!r} is a configuration already: give the documents that one is wanted for")
    chosen = first_spec.choose(arguments.config, wishes_of(arguments), arguments.set, arguments.output)
    is_new = first_spec.write(chosen, chosen.place)
    config.load(chosen.place)
    already = f"nothing was written: {chosen.place} was there already, and says the same"
    ending = f"next: python -m jobs.embed {chosen.place}" if is_new else already
    told = {"source": chosen.source, "config": chosen.place, "written": is_new}
    arguments.show(told, f"{chosen.told(writes=True)}\n{spoken(ending)}")
    return 0


if __name__ == "__main__":
    sys.exit(main_of(main))
