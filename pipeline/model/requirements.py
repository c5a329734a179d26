"""What a model asks of the installed packages in, notes for the user out; InputError where a version doesn't fit.

Only packages that compute the vectors here count. That a model asks for a release of sentence-transformers is told to the
user: this program stands in its place.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from pipeline.errors import InputError
from pipeline.model.files import at

_PACKAGES = {"transformers": "transformers", "torch": "torch", "pytorch": "torch", "tokenizers": "tokenizers"}


def check_requirements(where: Path, requirements: Any) -> list[str]:
    """`requirements`: package -> specifier, or -> {specifier, reason}, as config_sentence_transformers.json holds
    them."""
    if not requirements:
        return []
    if not isinstance(requirements, dict):
        return [f"the model asks for {requirements}; this was not checked"]
    return [note for name, asked in requirements.items() for note in _check(where, str(name), asked)]


def _check(where: Path, name: str, asked: Any) -> list[str]:
    specifier, reason = (asked.get("specifier"), asked.get("reason")) if isinstance(asked, dict) else (asked, None)
    try:
        allowed = SpecifierSet(specifier) if isinstance(specifier, str) else None
    except InvalidSpecifier:
        allowed = None
    if allowed is None or name not in _PACKAGES:
        return [f"the model asks for {name} {specifier}; this was not checked"]
    installed = metadata.version(_PACKAGES[name])
    if not allowed.contains(installed, prereleases=True):
        because = f" ({reason})" if reason else ""
        raise InputError(
            f"{at(where)}: the model asks for {name} {specifier}{because}, but {installed} is installed: install that version"
        )
    return []
