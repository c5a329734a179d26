"""The front matter of a Markdown text, YAML between lines of `---` or TOML between lines of `+++`, as columns.

Comes in: a text. Goes out: columns with strings, and the text that follows. What is no mapping of that kind is text: a rule
at the beginning of a page is one, and so is a block that can't be read, since nothing of a document may be lost.
"""

import enum
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


class _Broken(enum.Enum):
    """A block that can't be read, which is another thing than one that is no mapping."""

    BROKEN = enum.auto()


def is_broken(text: str) -> bool:
    """Whether the text begins with a block that can't be read, and so stays text."""
    return isinstance(_told(text)[0], _Broken)


def split(text: str) -> tuple[Mapping[str, str | None], str]:
    """(the columns, the text behind the front matter). A value is a string as it is written, a list of them is joined by
    commas, and what is nested deeper is JSON."""
    told, end = _told(text)
    if told is None or isinstance(told, _Broken):
        return {}, text
    return {str(name): _shown(value) for name, value in told.items() if name != _OWN}, text[end:]


def _told(text: str) -> tuple[Mapping[Any, Any] | _Broken | None, int]:
    """(what the block says, its end); None where the text begins with no mapping."""
    found = _BLOCK.match(text, 0, MOST_BYTES)
    if found is None:
        return None, 0
    return (_toml(found[2]) if found[1] == "+++" else _yaml(found[2])), found.end()


def _yaml(block: str) -> Mapping[Any, Any] | _Broken | None:
    """Every scalar stays the string that it is; None for what is no mapping."""
    try:
        if not _is_tame(block):
            return _Broken.BROKEN
        told = yaml.load(block, _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _Broken.BROKEN
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


def _toml(block: str) -> Mapping[str, Any] | _Broken:
    try:
        return tomllib.loads(block.replace("\r\n", "\n"))
    except (ValueError, RecursionError):
        return _Broken.BROKEN


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
