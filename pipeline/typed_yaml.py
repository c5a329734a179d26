"""YAML text comes in, and a frozen dataclass with the types of its fields goes out, or a ConfigError.

Unknown keys, wrong types and missing keys are errors that name the place (`source.csv.delimiter`), the value, what was
expected, and the nearest known key. Values that can hold a secret are not shown. This file knows no key of a run.
"""

import dataclasses
import difflib
import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import ConfigError, looked_for

Spec = TypeVar("Spec")

_VARIABLES = re.compile(r"(?:\$\{\w+\})+")
MOST_VALUES = 10_000
"""A configuration may have so many values, each alias counted as what it stands for."""
INTEGER_BITS = 63
"""A whole number fits into so many bits, its sign apart: it can then become a float or an Arrow int64."""


def load(
    spec: type[Spec], path: str | Path, overrides: Sequence[str] = (), secret: frozenset[str] = frozenset()
) -> Spec:
    """Read a YAML file, apply `section.key=value` overrides, and make the dataclass `spec` of the values.

    Sections named in `secret` take nothing but `${VAR}` from an override. Raises ConfigError for that, for a file that
    can't be read, that is not YAML, or whose values don't fit.
    """
    what = f"configuration file {str(path)!r}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{what} does not exist{looked_for(str(path))}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} can't be read: {error}") from None
    raw = _parse(text, what)
    if not isinstance(raw, dict):
        required = ", ".join(f"{item.name}:" for item in dataclasses.fields(cast(Any, spec)) if is_required(item))
        raise ConfigError(f"{what} holds no sections; expected {required}")
    return build(spec, raw, overrides, secret)


def build(
    spec: type[Spec],
    raw: Mapping[str, Any],
    overrides: Sequence[str] = (),
    secret: frozenset[str] = frozenset(),
) -> Spec:
    """Apply `section.key=value` overrides, fill `${VAR}` from the environment, and make the dataclass `spec` of the
    values of `raw`.

    Raises ConfigError for a value that doesn't fit its field.
    """
    if overrides:
        raw = _unshared(raw)
    for override in overrides:
        _apply_override(cast(Any, raw), override, secret)
    try:
        return cast(Spec, _build(spec, _fill_environment(dict(raw), "") if isinstance(raw, Mapping) else raw, ""))
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply, or in itself") from None


def of_overrides(overrides: Sequence[str], secret: frozenset[str]) -> dict[str, Any]:
    """Return the sections that `section.key=value` overrides give. Raises ConfigError, also for a secret."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _apply_override(raw, override, secret)
    return raw


def _parse(text: str, what: str) -> Any:
    """Give the values of a YAML text. The ConfigError for a text that is none says of `what` where and why, and shows
    nothing of it, because it may hold a secret."""
    try:
        return _unshared(yaml.load(text, _Loader))
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it can't be parsed"
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{what} is not valid YAML{where}: {' '.join(problem.split())[:200]}{_unquoted(text, mark)}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):  # what PyYAML lets out
        raise ConfigError(
            f"{what} holds a number or a date that can't be, or a value that is not what its tag says"
        ) from None


def _unquoted(text: str, mark: Any) -> str:
    """Give a hint where the line that is no YAML has a variable that stands within braces or brackets without quotes."""
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    found = re.search(r"""(?<!["'\w$])\$\{\w+\}""", line)
    return f'; write {found[0]} in quotes, as in {{key: "{found[0]}"}}' if found else ""


LATER = frozenset(["feeds"])
"""Variables of these sections may be missing in the environment: they stay as they are for whoever needs them."""


def check_filled(where: str, *values: Any) -> None:
    """Raise ConfigError for a value that still holds a variable which the environment lacked."""
    for value in values:
        if isinstance(value, Mapping):
            check_filled(where, *value.values())
        elif isinstance(value, str) and (found := _VARIABLES.search(value)):
            raise ConfigError(
                f"{where} uses {found[0]}, and the environment has no such variable: set it, as with `export "
                f"{found[0][2:-1]}=..` in the shell that starts the command"
            )


class _Loader(yaml.SafeLoader):
    """It refuses a key that comes twice, of which YAML would quietly take the last, and aliases that make a few lines
    stand for billions of values."""

    def construct_document(self, node: yaml.Node) -> Any:
        if _values(node, {}) > MOST_VALUES:
            problem = f"its aliases (*name) make more than {MOST_VALUES:,} values of it"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = "a key comes twice in one section"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values that the node stands for; a node that stands in itself has infinitely many."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


def _unshared(value: Any) -> Any:
    """Copy the value so that nothing stands in two places: an override of one of them mustn't change the other."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _apply_override(raw: dict[str, Any], override: str, secret: frozenset[str]) -> None:
    key, equals, text = override.partition("=")
    path = [name.strip() for name in key.split(".")]
    if not equals or not all(path):
        shown = re.match(r"[\w.]*", key.strip())
        raise ConfigError(f"--set {shown[0] if shown else ''!r} is not of the form section.key=value")
    node = raw
    for name in path[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key.strip()!r}: {name!r} is not a section")
    value = _parse(text, f"--set {key.strip()!r}: the value")
    _check_no_secret(path, value, secret)
    node[path[-1]] = value


def _check_no_secret(path: Sequence[str], value: Any, secret: frozenset[str]) -> None:
    """Raise ConfigError for a value of a secret section that stands on a command line: all users of a machine see those,
    and Ray keeps them."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_no_secret([*path, str(name)], item, secret)
    elif isinstance(value, list):
        for item in value:
            _check_no_secret(path, item, secret)
    elif secret & set(path) and not _shows_nothing(value):
        where, last = dotted("", ".".join(path)), re.sub(r"\W", "_", path[-1]).upper()
        raise ConfigError(
            f"--set {where} gives a value where every user of this machine, and Ray's list of jobs, can see it: put it into "
            f"the environment, as in `export STORE_{last}=..`, and write --set '{where}=${{STORE_{last}}}', or give it in "
            "the configuration file"
        )


def _shows_nothing(value: Any) -> bool:
    named = isinstance(value, str) and _VARIABLES.fullmatch(value)
    return bool(named) or value is None or isinstance(value, bool)


def _fill_environment(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill_environment(item, dotted(where, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_environment(item, where) for item in value]
    if isinstance(value, tuple):
        return tuple(_fill_environment(item, where) for item in value)
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        raise ConfigError(f"{where} is a whole number of more than {INTEGER_BITS} bits: give a smaller one")
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ and where.partition(".")[0] in LATER:
            return match[0]
        if match[1] not in os.environ:
            raise ConfigError(
                f"{where} uses ${{{match[1]}}}, but the environment has no variable {match[1]}: set it, as with `export "
                f"{match[1]}=..` in the shell that starts the command"
            )
        return os.environ[match[1]]

    filled = re.sub(r"\$\{(\w+)\}", variable, value)
    try:
        filled.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{where} holds half of a surrogate pair, or bytes that are not UTF-8: no text has that"
        ) from None
    return filled


def _build(spec: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or 'the configuration'} must be a section with keys, not {told(raw)}")
    if hasattr(spec, "read"):  # the spec knows other ways to write its section
        raw = spec.read(raw)
    hints = get_type_hints(spec)
    fields = {item.name: item for item in dataclasses.fields(spec)}
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {dotted(where, key)!r}; {hint}")
    values = {}
    for name, item in fields.items():
        if name in raw:
            values[name] = _convert(raw[name], hints[name], dotted(where, name))
        elif is_required(item):
            raise ConfigError(f"{dotted(where, name)} is missing; it is required")
    return spec(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Give `value` the annotated type, or raise ConfigError. Nothing is guessed: an int may become a float, a list a
    tuple, a string a list of one, and a Path a string."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _build(cast(type, hint), value if value is not None else {}, where)
    if origin is Union or origin is types.UnionType:
        for option in get_args(hint):
            if _matches(value, option):
                return _convert(value, option, where)
        raise ConfigError(f"{where} is {told(value)}; expected {in_words(hint)}")
    if not _matches(value, hint):
        # Options hold secrets: of a wrong value only its type may be told.
        given = type(value).__name__ if "storage_options" in where else told(value)
        raise ConfigError(f"{where} is {given}; expected {in_words(hint)}")
    if origin is tuple:
        return (value,) if isinstance(value, str) else tuple(value)
    if origin is Mapping and dataclasses.is_dataclass(get_args(hint)[1]):
        return {name: _convert(item, get_args(hint)[1], dotted(where, name)) for name, item in value.items()}
    return float(value) if hint is float else value


def _matches(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if origin is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if origin is tuple:
        several = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return several or isinstance(value, str)
    if origin is not None:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def is_required(item: "dataclasses.Field[Any]") -> bool:
    """Say whether a configuration has to give this key, because it has no default."""
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def dotted(where: str, key: object) -> str:
    """Name the place of a key as messages do, such as `source.csv.delimiter`."""
    name = str(key) if str(key).isprintable() else repr(key)
    return f"{where}.{name}" if where else name


def told(value: Any) -> str:
    """Show a wrong value in a message; sections and lists are not shown, because they can hold a secret somewhere."""
    return "a section" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else repr(value)


def in_words(hint: Any) -> str:
    """Say what a value of this type is, for messages and for the reference."""
    origin = get_origin(hint)
    if origin is Literal:
        return " | ".join(str(option) for option in get_args(hint))
    if origin is Union or origin is types.UnionType:
        return " or ".join(in_words(option) for option in get_args(hint))
    if origin is tuple:
        return "a list of strings"
    if dataclasses.is_dataclass(hint):
        return "a section with keys"
    if origin is not None:
        return "a section whose keys are strings"
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))


def choices(key: str, pattern: str) -> list[str]:
    """Give the patterns that `{a,b}` stands for. Braces without a comma are plain characters, as in a shell."""
    found = [pattern]
    while any(map(_BRACES.search, found)):
        found = [each for one in found for each in _first_choices(one)]
        if len(found) > MOST_PATTERNS:
            raise ConfigError(f"{key} {pattern!r} stands for more than {MOST_PATTERNS:,} patterns: use wildcards")
    return found


def _first_choices(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    return [pattern[: match.start()] + choice + pattern[match.end() :] for choice in match[1].split(",")]


_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
MOST_PATTERNS = 1000
