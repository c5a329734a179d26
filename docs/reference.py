"""The reference of keys, commands and metrics is made here from the code, and the JSON Schema of a configuration with it.

A key's help is the string under its field, its type and default are the field's; a command's arguments are those of the
parser that it builds. Functions give Markdown; nothing is read or written but the code itself.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from jobs.command import parser_of, spoken
from jobs.main import names
from pipeline.config import RunSpec, SourceSpec
from pipeline.telemetry.metrics import METRICS
from pipeline.typed_yaml import in_words, is_required

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Key:
    name: str
    hint: Any
    default: Any
    """It is `dataclasses.MISSING` where the key is required."""
    help: str

    @property
    def section(self) -> type | None:
        """A key that holds a section has its dataclass here."""
        hints = (self.hint, *get_args(self.hint))
        return next((hint for hint in hints if isinstance(hint, type) and dataclasses.is_dataclass(hint)), None)


def keys(spec: type) -> list[Key]:
    """List the fields of a dataclass, each with the string that stands under it."""
    body = ast.parse(inspect.getsource(spec)).body[0]
    assert isinstance(body, ast.ClassDef)
    helps = {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }  # fmt: skip
    hints = get_type_hints(spec)
    return [Key(item.name, hints[item.name], _default(item), helps[item.name]) for item in dataclasses.fields(spec)]


def _default(item: "dataclasses.Field[Any]") -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def configuration() -> str:
    """Make a table of keys for each section."""
    parts = []
    for key in keys(RunSpec):
        assert key.section is not None
        named = "<name>." if get_origin(key.hint) is Mapping else ""
        rows = [_row(inner, prefix) for inner, prefix in _flat(key.section, named)]
        table = ["| key | type | default | what it says |", "| --- | --- | --- | --- |", *rows]
        parts.append("\n".join([f"## {key.name}", "", key.section.__doc__ or "", "", *table]))
    return "\n\n".join(parts)


def _flat(section: type, prefix: str) -> Iterator[tuple[Key, str]]:
    for key in keys(section):
        if key.section is None:
            yield key, prefix
        else:
            yield from _flat(key.section, f"{prefix}{key.name}.")


def _row(key: Key, prefix: str) -> str:
    default = "required" if key.default is dataclasses.MISSING else f"`{_as_yaml(key.default)}`"
    return _cells(f"`{prefix}{key.name}`", in_words(key.hint).replace(" | ", ", "), default, key.help)


def _cells(*cells: str) -> str:
    """Make a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _as_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def metrics() -> str:
    """Make a table of all metrics."""
    rows = [
        _cells(f"`{name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for name, metric in METRICS.items()
    ]
    return "\n".join(["| metric | type | more labels | what it says |", "| --- | --- | --- | --- |", *rows])


def schema() -> str:
    """Make the JSON Schema of a configuration, as the text of docs/schema.json."""
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A run of embedding-pipeline"}
    return json.dumps(described | _schema_of(RunSpec), indent=1) + "\n"


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, options = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        found = keys(hint)
        required = [item.name for item in dataclasses.fields(hint) if is_required(item)]
        # A section that is named and left empty has its defaults.
        described: dict[str, Any] = {"type": "object" if required else ["object", "null"], "required": required}
        properties = {key.name: {"description": key.help} | _schema_of(key.hint) for key in found}
        if hint is SourceSpec:  # SourceSpec.read takes new names for kept columns, too
            properties["keep"]["anyOf"].append({"type": "object", "additionalProperties": {"type": "string"}})
        return described | {"additionalProperties": False, "properties": properties}
    if origin is Literal:
        return {"enum": list(options)}
    if origin is tuple:
        several: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
        return {"anyOf": [several, {"type": "string"}]}  # a string stands for a list of one
    if origin is Union or origin is types.UnionType:
        return {"anyOf": [_schema_of(option) for option in options]}
    if origin is not None:
        values = options[1] if dataclasses.is_dataclass(options[1]) else None
        return {"type": "object"} | ({"additionalProperties": _schema_of(values)} if values else {})
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return {"type": names[hint]}


def commands() -> str:
    """Tell what each verb says of itself, with a table of its arguments."""
    parts = []
    for verb in names():
        if importlib.util.find_spec(f"jobs.{verb}") is None:
            continue
        parser = parser_of(importlib.import_module(f"jobs.{verb}").main)
        rows = [_argument(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        table = ["| argument | what it does |", "| --- | --- |", *rows]
        said = "\n\n".join(filter(None, [parser.description, parser.epilog]))
        parts.append("\n".join([f"## {verb}", "", _wrapped(spoken(said, as_verb=True)), "", *table]))
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    """Wrap the paragraphs of a docstring; what is indented is code and stays as it is."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else textwrap.fill(text, 120) for text in paragraphs)


def _argument(action: argparse.Action) -> str:
    name, many = "|".join(action.option_strings), " .." if action.nargs in ("+", "*") else ""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    shown = f"{name} {value}{many}" if name and action.nargs != 0 else name or str(action.metavar or action.dest)
    default = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
    told = default in (action.help or "") or action.nargs == 0 or action.default in (None, [])
    return _cells(f"`{shown}`", f"{action.help}{'' if told else f' ({default})'}")
