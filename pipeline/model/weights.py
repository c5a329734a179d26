"""Files of weights: refused while planning where they are damaged, or would do more than make tensors. Headers are read,
and the steps of pickles, which are never run.

torch refuses such pickles itself when it loads them (`weights_only`), and that is what keeps their code from running; but
only in a worker, after planning. Knows no torch.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError
from pipeline.model.files import at

_HOMES = frozenset(["torch", "collections", "_codecs"])
"""Tensors, and the containers around them, are made with classes and functions of these modules."""
_BUILTINS = frozenset(f"{home} {name}" for home in ("builtins", "__builtin__") for name in ("bytearray", "set"))
_NAMED_OTHERWISE = frozenset(["STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"])
"""Steps that name a class or a function as torch.save never does, and torch.load with `weights_only` never reads."""
_DAMAGES = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_LEGACY_PICKLES = 5
"""Saves before torch 1.6: so many pickles stand before the numbers."""


def check_weights(path: Path) -> None:
    """Raises InputError where the file holds no tensors, or not tensors alone."""
    try:
        calls = None
        if path.suffix == ".safetensors":
            _check_header(path)
        else:
            calls = next((name for name in _names(path) if not _is_harmless(name)), None)
    except _DAMAGES as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{at(path)} can't be read ({reason}): it is damaged, or was not copied whole; copy it again"
        ) from None
    if calls is not None:
        raise InputError(
            f"{at(path)} would call {calls.replace(' ', '.')[:80]!r} when it is loaded; expected tensors alone, so it is not: "
            "save the model with safetensors, from a source that you trust"
        )


def _check_header(path: Path) -> None:
    """Raises ValueError where the file isn't as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(error) from None


def _is_harmless(name: str) -> bool:
    return name.partition(" ")[0].partition(".")[0] in _HOMES or name in _BUILTINS


def _names(path: Path) -> Iterator[str]:
    """Each class or function that the pickle names, as `module name`."""
    with path.open("rb") as opened:
        if not zipfile.is_zipfile(opened):
            opened.seek(0)
            for _ in range(_LEGACY_PICKLES):
                yield from _names_in(opened)
            return
        with zipfile.ZipFile(opened) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not pickles:
                raise ValueError("it holds no data.pkl")
            for name in pickles:
                with archive.open(name) as member:
                    yield from _names_in(member)  # type: ignore[arg-type]


def _names_in(opened: BinaryIO) -> Iterator[str]:
    for step, argument, _ in pickletools.genops(opened):
        if step.name == "GLOBAL":
            yield str(argument)
        elif step.name in _NAMED_OTHERWISE:
            yield f"a {step.name}"
