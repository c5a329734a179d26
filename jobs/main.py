"""One command has a verb for each thing to do: this file finds the verb's module and hands it the other arguments.

It imports that module alone, so that a question such as --help or --version is answered at once. A new verb is a module of
its name here in jobs/ with a function `main`, and an entry in VERBS.
"""

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence

COMMAND = "embedding-pipeline"

VERBS: Mapping[str, Mapping[str, str]] = {
    "Make a table": {
        "init": "look at a source and write a configuration for it, with comments",
        "embed": "embed the documents of a source, and later what changed of them",
        "reindex": "keep a table current on a schedule, with a guard on deletions",
        "plan": "tell what embed would do, and change nothing",
    },
    "Look at the result": {
        "search": "answer a question with the nearest documents",
        "explore": "draw a map of a table, for a browser",
        "report": "write one HTML file that tells what a table holds and how it was made",
        "compare": "try several models on your own documents",
    },
    "Look after it": {
        "status": "list versions, dead letters and staged work; roll back, clean, purge",
        "verify": "prove that a table holds the model's own vectors",
        "changes": "list what changed between two versions",
        "feed": "bring vector databases to the table's version",
    },
}
"""The verbs by what they are for, each with what it does."""
COMPLETION = "completion"
SHELLS = ("bash", "zsh", "fish")
RECIPES: Mapping[str, Sequence[str]] = {
    "bash": (
        f"{COMMAND} {COMPLETION} bash > ~/.{COMMAND}.bash",
        f"echo '. ~/.{COMMAND}.bash' >> ~/.bashrc",
    ),
    "zsh": (
        f"mkdir -p ~/.zfunc && {COMMAND} {COMPLETION} zsh > ~/.zfunc/_{COMMAND}",
        "echo 'fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit' >> ~/.zshrc",
    ),
    "fish": (
        f"mkdir -p ~/.config/fish/completions && {COMMAND} {COMPLETION} fish > ~/.config/fish/completions/{COMMAND}.fish",
    ),
}
"""They set completion up in a home where nothing is set up yet."""
EXAMPLE = f"""  {COMMAND} embed ~/notes
  {COMMAND} search ~/notes.yaml "what did we decide about the budget?\""""
BAD_ARGUMENTS = 2


def names() -> Sequence[str]:
    """Return all verbs."""
    return [name for group in VERBS.values() for name in group]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments ask for, and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (given[0], given[1:]) if given else ("", [])
    if verb in ("", "help", "-h", "--help"):
        print(overview())
        return 0 if verb else BAD_ARGUMENTS
    if verb in ("version", "-V", "--version"):
        print(f"{COMMAND} {_version()}")
        return 0
    if verb == COMPLETION:
        return _complete(rest)
    if verb not in names():
        return _refuse(_unknown(verb))
    from jobs import command

    return command.main_of(lambda: _main_of(verb, rest), verb=verb)


def overview() -> str:
    """Return what the command says of itself: all verbs by what they are for, and an example."""
    width = max(map(len, names())) + 2
    lines = [
        f"usage: {COMMAND} VERB [argument ..]",
        "",
        "Embeds documents in files or object storage into a table of vectors, and keeps the table equal to them.",
    ]
    for title, group in VERBS.items():
        lines += ["", f"{title}:", *(f"  {verb:<{width}}{said}" for verb, said in group.items())]
    lines += [
        "",
        "example:",
        EXAMPLE,
        "",
        f"`{COMMAND} VERB --help` tells the arguments of a verb, `{COMMAND} --version` the release, and",
        f"`{COMMAND} {COMPLETION} {'|'.join(SHELLS)}` prints what makes the shell complete all of them.",
    ]
    return "\n".join(lines)


def run() -> None:
    """Start as the console script does."""
    sys.exit(main())


def _main_of(verb: str, arguments: Sequence[str]) -> int:
    module = importlib.import_module(f"jobs.{verb}")
    done: int = module.main(arguments)
    return done


def _complete(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(_completion_help())
        return 0
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        return _refuse(
            f"completion takes one of {', '.join(SHELLS)}: `{COMMAND} {COMPLETION} --help` tells how it is set up"
        )
    from jobs import command, completion

    def show() -> int:
        print(completion.script(arguments[0]))
        return 0

    return command.main_of(show, verb=COMPLETION)


def _completion_help() -> str:
    lines = [f"usage: {COMMAND} {COMPLETION} {'|'.join(SHELLS)}", ""]
    lines += ["Prints a script that makes the shell complete verbs and options. Once, for the shell that you have:"]
    for shell, commands in RECIPES.items():
        lines += ["", f"  {shell}", *(f"    {line}" for line in commands)]
    return "\n".join(lines)


def _unknown(verb: str) -> str:
    near = difflib.get_close_matches(verb, [*names(), COMPLETION, "--help", "--version"], 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(names())}"
    if verb.endswith((".yaml", ".yml")):
        hint = f"a verb comes before a configuration, as in `{COMMAND} embed {verb}`"
    return f"{verb!r} is no verb of {COMMAND}: {hint}"


def _refuse(reason: str) -> int:
    from jobs import command
    from pipeline.errors import InputError

    def refuse() -> int:
        raise InputError(reason)

    return command.main_of(refuse, verb=COMMAND)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(COMMAND)
    except PackageNotFoundError:
        return "(not installed: it runs from its sources)"


if __name__ == "__main__":
    run()
