"""Compare models on your own documents: speed, size, truncation, neighbours and quality, in one table.

    python -m jobs.compare A.yaml B.yaml [..] [--rows 1000] [--seed 0] [--title COLUMN] [--json]
    python -m jobs.compare CONFIG.yaml --models NAME NAME [..]
    python -m jobs.compare CONFIG.yaml --models NAME NAME --queries queries.jsonl --judgements qrels.tsv
    python -m jobs.compare CONFIG.yaml --models NAME NAME --retrieval FOLDER ..

All models see one seeded sample of the source, in this process, and nothing is written. Quality is nDCG@10, with 95% intervals
over the queries, of sets whose answers are known: a title and its body, the first sentence and the rest, a chunk and its
document. --judgements are of documents of the source; a folder of --retrieval brings its own, as for `python -m jobs.verify`.

Exit codes: 0 done; 1 a file could not be read; 2 bad configuration or input. For example:

    python -m jobs.compare run.yaml --models all-MiniLM-L6-v2 BAAI/bge-small-en-v1.5
"""

import sys
from collections.abc import Sequence

from jobs.command import main_of, parser
from pipeline.comparison.compare import ROWS, compare, with_models
from pipeline.errors import InputError
from pipeline.runs.evaluate import read_retrieval
from pipeline.runs.recorded import configured, standing_for


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False)
    command.add_argument(
        "others", metavar="B.yaml", nargs="*", default=[], help="more configurations, with the same source"
    )
    command.add_argument(
        "--models", metavar="NAME", nargs="+", default=[], help="these models, with the source of CONFIG"
    )
    command.add_argument("--rows", metavar="N", type=int, default=ROWS, help=f"documents of the sample ({ROWS})")
    command.add_argument("--seed", type=int, default=0, help="which documents: another seed takes others (0)")
    command.add_argument("--title", metavar="COLUMN", help="this column of the source holds titles")
    command.add_argument("--queries", metavar="FILE", help="lines of JSON with _id and text; with --judgements")
    command.add_argument("--judgements", metavar="FILE", help="tab-separated query-id, corpus-id and score")
    command.add_argument(
        "--retrieval", metavar="FOLDER", nargs="+", default=[], help="judged sets with their own documents"
    )
    arguments = command.parse_args(argv)
    given = [standing_for(each) for each in (arguments.config, *arguments.others)]
    if arguments.models and arguments.others:
        raise InputError("--models goes with one configuration: its source is the one that models are compared on")
    if len(set(given)) < len(given) or len(set(arguments.models)) < len(arguments.models):
        raise InputError("a model is compared with itself: give each configuration and each name once")
    runs = {path: configured(path, arguments.set) for path in given}
    if arguments.models:
        runs = with_models(runs[given[0]], arguments.models)
    found = compare(
        runs,
        rows=arguments.rows,
        seed=arguments.seed,
        title=arguments.title,
        judged=[read_retrieval(folder) for folder in arguments.retrieval],
        queries=arguments.queries,
        judgements=arguments.judgements,
    )
    arguments.show(found.to_dict(), str(found))
    return 0


if __name__ == "__main__":
    sys.exit(main_of(main))
