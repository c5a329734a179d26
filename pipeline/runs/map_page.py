"""A map becomes one HTML page that needs nothing else: no network, no server, no library.

Points, neighbours, texts and columns come in, and the page goes out. What rows hold stands in it compressed and in base64,
so that no value of a row is ever read as HTML.
"""

import base64
import gzip
import html
import importlib.resources
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import one_line
from pipeline.runs.map_labels import Label

COLOURS = 12
"""A column of more different values shows the most frequent ones, and the others as one."""
_MOST_CATEGORIES = 1_000
"""A column of more different values is shown with a row and gives no colours."""
_VALUE_WIDTH = 200
_OTHERS, _NONE = "others", "none"


def column_of(name: str, values: pa.ChunkedArray) -> dict[str, Any]:
    """Return a column as the page reads it: numbers, categories with a code for each row, or texts."""
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = [_number(value) for value in values.to_pylist()]
        known = sorted(value for value in numbers if value is not None)
        if len(set(known)) > COLOURS:
            # One value far away would leave a single colour for all others.
            low, high = known[len(known) // 100], known[-1 - len(known) // 100]
            return {"name": name, "kind": "number", "values": numbers, "low": low, "high": high}
    texts = pa.array([None if value is None else _shown(value) for value in values.to_pylist()], pa.string())
    counted = sorted(pc.value_counts(texts).to_pylist(), key=lambda item: (-item["counts"], str(item["values"])))
    if len(counted) > _MOST_CATEGORIES or (len(counted) > COLOURS and len(counted) > 0.5 * len(texts)):
        return {"name": name, "kind": "text", "values": texts.to_pylist()}
    return {"name": name, "kind": "category"} | _categories(texts, counted)


def page(
    title: str,
    told: str,
    about: str,
    ids: Sequence[str],
    texts: Sequence[str],
    columns: Sequence[dict[str, Any]],
    points: NDArray[np.float32],
    neighbours: NDArray[np.int32],
    labels: Sequence[Label],
    colour: str | None = None,
) -> str:
    """Return the page. `points` are float32[n, 2] within 0 and 1, `neighbours` int32[n, k]; texts are n or none."""
    chosen = next((number for number, column in enumerate(columns) if column["name"] == colour), None)
    if chosen is None:
        chosen = next((number for number, column in enumerate(columns) if column["kind"] != "text"), None)
    rows = {
        "title": title,
        "told": told,
        "about": about,
        "ids": [one_line(name, _VALUE_WIDTH) for name in ids],
        "texts": list(texts),
        "columns": list(columns),
        "colour": None if chosen is None else str(chosen),
        "neighbours": neighbours.shape[1],
        "labels": [asdict(label) for label in labels],
    }
    places = np.round(points.T * 65535).astype("<u2")
    numbers = places.tobytes() + neighbours.astype("<u4").tobytes()
    template = importlib.resources.files("pipeline.runs").joinpath("map.html").read_text(encoding="utf-8")
    text = json.dumps(rows, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    filled = template.replace("__TITLE__", html.escape(title))
    filled = filled.replace("__ROWS__", _packed(text.encode("utf-8", "replace")))
    return filled.replace("__NUMBERS__", _packed(numbers))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 5, mtime=0)).decode()


def _number(value: Any) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    return one_line(str(value), _VALUE_WIDTH)


def _categories(texts: pa.Array, counted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return names with their counts and colours' codes; of many values also all names and codes, for the details."""
    known = [item for item in counted if item["values"] is not None]
    missing = sum(item["counts"] for item in counted if item["values"] is None)
    every = [item["values"] for item in known]
    number = {name: code for code, name in enumerate(every)}
    all_codes = [number.get(value, len(every)) for value in texts.to_pylist()]
    shown = every if len(every) <= COLOURS else every[: COLOURS - 1]
    names, counts = list(shown), [item["counts"] for item in known[: len(shown)]]
    made: dict[str, Any] = {}
    if len(shown) < len(every):
        made["others"] = len(names)
        names.append(_OTHERS)
        counts.append(sum(item["counts"] for item in known[len(shown) :]))
    rest = made.get("others", len(names))
    if missing:
        made["none"] = len(names)
        names.append(_NONE)
        counts.append(missing)
    codes = [code if code < len(shown) else rest if code < len(every) else made["none"] for code in all_codes]
    made |= {"names": names, "counts": counts, "codes": codes}
    return made | {"all": [*every, None], "allCodes": all_codes}
