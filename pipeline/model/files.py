"""The JSON files of a model folder, read with errors that name the file, the key and the value.

Knows nothing of what the keys mean.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from pipeline.errors import InputError


def read_object(path: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    value = _read_json(path, missing)
    if not isinstance(value, dict):
        raise InputError(f"{at(path)} holds {type(value).__name__}; expected a JSON object: the folder is damaged")
    return value


def read_list(path: Path) -> list[Any]:
    value = _read_json(path, None)
    if not isinstance(value, list):
        raise InputError(f"{at(path)} holds {type(value).__name__}; expected a JSON list: the folder is damaged")
    return value


def _read_json(path: Path, missing: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise InputError(f"{at(path)} is missing: the model folder is not complete, copy it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{at(path)} can't be read as JSON ({error}): the model folder is damaged") from None
    except RecursionError:
        raise InputError(f"{at(path)} can't be read as JSON (nested too deeply): the model folder is damaged") from None


_REQUIRED = object()


def get(config: Mapping[str, Any], key: str, kind: Any, where: Path, *, default: Any = _REQUIRED) -> Any:
    """`config[key]` if it is of `kind`; null counts as missing, a missing key as `default`."""
    value = config.get(key)
    if value is None:
        if default is _REQUIRED:
            raise InputError(f"{at(where)} has no {key!r}: the model folder is not complete")
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or (kind is int and value < 0):
        raise InputError(f"{at(where)}: {key} is {value!r}; expected {kind.__name__}")
    return value


def refuse_unknown_keys(config: Mapping[str, Any], known: set[str], where: Path, *, inside: str = "") -> None:
    unknown = sorted(set(config) - known)
    if unknown:
        of = f" in {inside!r}" if inside else ""
        raise InputError(f"{at(where)}: key {unknown[0]!r}{of} is not known to this version; known are {listed(known)}")


def stays_inside(path: str) -> bool:
    """Whether a path that a model's file names, with either kind of slash, leads to no place outside its folder."""
    named = PureWindowsPath(path)
    return not (named.anchor or ".." in named.parts or "\0" in path)


def at(path: Path) -> str:
    return f"model file {str(path)!r}"


def listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
