"""The front matter of a Markdown text, YAML between lines of `---` or TOML between lines of `+++`, as columns.

Comes in: a text. Goes out: columns with strings, and the text that follows. What is no mapping of that kind is text: a rule
at the beginning of a page is one, and so is a block that can't be read, since nothing of a document may be lost.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import yaml

MOST_BYTES = 2**16
"""A longer block is taken for text."""
_DEEPEST = 16
_BLOCK = re.compile(r"(---|\+\+\+)[ \t]*\r?\n(.*?)^\1[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_NULLS = frozenset(["", "~", "null", "Null", "NULL"])
_OWN = "text"
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""It makes strings alone. The C library is not everywhere."""


def split(text: str) -> tuple[Mapping[str, str | None], str]:
    """(the columns, the text behind the front matter). A value is a string as it is written, a list of them is joined by
    commas, and what is nested deeper is JSON."""
    found = _BLOCK.match(text, 0, MOST_BYTES)
    if found is None:
        return {}, text
    told = _toml(found[2]) if found[1] == "+++" else _yaml(found[2])
    if told is None:
        return {}, text
    return {str(name): _shown(value) for name, value in told.items() if name != _OWN}, text[found.end() :]


def _yaml(block: str) -> Mapping[Any, Any] | None:
    """Every scalar stays the string that it is; None for what is no mapping."""
    try:
        if not _is_tame(block):
            return None
        told = yaml.load(block, _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _is_tame(block: str) -> bool:
    """Whether it neither nests without end nor repeats itself by aliases, which grow without bounds."""
    depth = 0
    for event in yaml.parse(block, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            return False
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return False
    return True


def _toml(block: str) -> Mapping[str, Any] | None:
    try:
        return tomllib.loads(block.replace("\r\n", "\n"))
    except (ValueError, RecursionError):
        return None


def _shown(value: Any) -> str | None:
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(filter(None, map(_scalar, value)))
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_scalar)
    return _scalar(value)


def _scalar(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return None if text in _NULLS else text
