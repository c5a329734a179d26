"""A second release of the tokenizers library, several times faster, is loaded beside the installed one.

transformers needs the installed release, so the second one has a folder of its own that no import path names. Here it
gets another name in this process, and nobody else meets it. This file knows no texts.
"""

import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.extras import FAST_TOKENIZERS_FOLDER

VARIABLE = "PIPELINE_FAST_TOKENIZERS"
"""It names the folder that the release was installed into, or it is `off`."""
_OFF = "off"
_ALIAS = "fast_tokenizers"
"""The compiled module is found by the last part of its name, so the package alone takes another one."""


class Unusable(Exception):
    """The fast library can't be used; the message says why. Nothing is said to a person who did not ask for it."""


def library_folder() -> Path | None:
    """Where the second release is looked for; None where it is switched off."""
    given = os.environ.get(VARIABLE)
    if given == _OFF:
        return None
    return Path(given) if given else Path(sys.prefix) / FAST_TOKENIZERS_FOLDER


def asked_for() -> bool:
    """Whether a person named a folder: they are told where it is of no use."""
    return os.environ.get(VARIABLE, _OFF) not in ("", _OFF)


@functools.cache
def load_library(folder: Path) -> Any:
    """The package `tokenizers` of this folder as a module under another name. Raises Unusable."""
    start = folder / "tokenizers" / "__init__.py"
    if not start.is_file():
        raise Unusable(f"{str(folder)!r} holds no package tokenizers")
    spec = importlib.util.spec_from_file_location(_ALIAS, start, submodule_search_locations=[str(start.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_ALIAS] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[_ALIAS]
        raise Unusable(f"the package tokenizers in {str(folder)!r} can't be loaded: {error}") from None
    return module
