"""The map of the code is made here: the tree of files with what each says of itself, and the picture of what imports
what.

The sentences are those of the docstrings and of the comments at the top; the lines for packages are the README's.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = {
    "jobs": "The commands, one file each",
    "pipeline": "What they are made of, and what Python callers import",
    "conf": "Complete configurations, and what starts them every night",
    "benchmarks": "What was measured, and how to measure it again",
}
"""The tree shows these folders."""
ENDINGS = (".py", ".yaml", ".crontab")
"""The tree names files that end so."""


def first_sentence(path: Path) -> str:
    """Find what a file says of itself first, in its docstring or in the comment at its top."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"(?:#.*\n)*", text)
        said = re.sub(r"(?m)^# ?(?:yaml-language-server.*\n)?", "", comment[0] if comment else "")
    return re.split(r"(?<=[.])\s", " ".join(said.split()), maxsplit=1)[0].removesuffix(".")


def packages() -> dict[str, str]:
    """Find the packages in the README, with the line that it has for each."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {name: " ".join(said.split()) for name, said in re.findall(r"(?m)^- `(\w+)/` (.*(?:\n  .*)*)", readme)}


def tree() -> str:
    """Draw the tree: every file has a line, under its folder."""
    said = SHOWN | packages()
    lines = []
    for top in SHOWN:
        for path in [ROOT / top, *_below(ROOT / top)]:
            depth = len(path.relative_to(ROOT).parts) - 1
            if path.is_dir():
                inside = path / "__init__.py"
                sentence = said.get(path.name, first_sentence(inside) if inside.exists() else "")
            else:
                sentence = first_sentence(path)
            name = f"{'  ' * depth}{path.name}{'/' if path.is_dir() else ''}"
            lines.append(f"{name:28} {sentence.removesuffix('.')}".rstrip())
    return "```text\n" + "\n".join(lines) + "\n```"


def _below(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.name != "__init__.py")
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"):
        if any(_below(inner)):
            yield inner
            yield from _below(inner)


def imports() -> str:
    """Draw the packages as a Mermaid flowchart with an arrow for each import.

    An arrow that a longer way says already is left out; one against the layers of pyproject.toml is dotted.
    """
    edges = _edges()
    rank = {name: number for number, layer in enumerate(_layers()) for name in layer}
    down = {(a, b) for a, b in edges if rank[a] < rank[b]}
    kept = {(a, b) for a, b in down if not any((a, c) in down and _reaches(c, b, down) for c in rank if c != b)}
    lines = [f"  {a} {'-->' if (a, b) in down else '-.->'} {b}" for a, b in sorted(kept | edges - down)]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def _layers() -> list[list[str]]:
    """Read the layers that import-linter holds; the files at the root of the package are left out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = [re.split(r" *[|:] *", layer.replace("pipeline.", "")) for layer in contracts[0]["layers"]]
    return [[name for name in layer if name == "api" or _is_package(name)] for layer in names]


def _is_package(name: str) -> bool:
    return name == "jobs" or (ROOT / "pipeline" / name).is_dir()


def _edges() -> set[tuple[str, str]]:
    edges = set()
    for path in [*(ROOT / "jobs").glob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        source = parts[0] if parts[0] == "jobs" else parts[1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
                inside = (node.module or "").split(".")[1:2]
                named = inside or [alias.name for alias in node.names]
                edges |= {(source, target) for target in named if target != source}
    known = {name for layer in _layers() for name in layer}
    # What the package itself offers, such as `from pipeline import embed`, is api's.
    at_root = {path.stem for path in (ROOT / "pipeline").glob("*.py")}
    edges = {(a, b if b in known | at_root else "api") for a, b in edges}
    return {(a, b) for a, b in edges if a in known and b in known}


def _reaches(start: str, end: str, edges: set[tuple[str, str]]) -> bool:
    return (start, end) in edges or any(_reaches(b, end, edges) for a, b in edges if a == start)
