"""A model's saved prompts in, what stands in front of documents and of queries out.

The rules are those of `encode_document` and `encode_query` in sentence-transformers 6.2. Where they say nothing although
the model has prompts for documents, nothing is guessed.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config import ModelSpec
from pipeline.errors import InputError
from pipeline.model.saved import SavedModel

_OTHER_NAMES = ("passage", "corpus")
"""`encode_document` looks for these after `document`, which its default table always has: it never reaches them."""


def document_prompt(spec: ModelSpec, saved: SavedModel) -> str:
    """What stands in front of every document; "" is nothing.

    The configuration's prompt comes first, then the one it names, then the model's `document`, then the model's default.
    Raises InputError for a name that the model doesn't have, and where only a prompt of another name could be meant.
    """
    if spec.prompt is not None:
        return spec.prompt
    if spec.prompt_name is not None:
        return _named(spec.prompt_name, "model.prompt_name", saved)
    default = _default(saved)
    if saved.prompts["document"]:
        return saved.prompts["document"]
    others = [name for name in _OTHER_NAMES if saved.prompts.get(name)]
    if others and saved.default_prompt_name not in others:
        shown = " and ".join(f"{name!r} ({saved.prompts[name]!r})" for name in others)
        choices = " or ".join(f"model.prompt_name: {name}" for name in others)
        raise InputError(
            f"the model has no prompt named 'document', but one named {shown}, which sentence-transformers would leave out: "
            f'choose {choices}, or model.prompt: "" for none'
        )
    return default


def query_prompt(saved: SavedModel) -> str:
    """What stands in front of every query; "" is nothing. The model's default prompt is not for queries."""
    return saved.prompts["query"]


def earlier_prompt(spec: ModelSpec, saved: SavedModel, table: Mapping[str, Any]) -> str | None:
    """The prompt of a table that this very model built while `document` was not looked for, which the table keeps.

    `table` is the identity of the encoder that the table's snapshot names. None means that today's rule counts.
    """
    if spec.prompt is not None or spec.prompt_name is not None:
        return None
    kept = table.get("prompt")
    return kept if isinstance(kept, str) and kept == _default(saved) else None


def _default(saved: SavedModel) -> str:
    if saved.default_prompt_name is None:
        return ""
    return _named(saved.default_prompt_name, "the model's default_prompt_name", saved)


def _named(name: str, who: str, saved: SavedModel) -> str:
    if name not in saved.prompts:
        known = ", ".join(repr(known) for known in saved.prompts)
        raise InputError(
            f"{who} {name!r} is not known; the model's prompts are {known}: choose one or give model.prompt"
        )
    return saved.prompts[name]
