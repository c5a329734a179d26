"""Packages that transformers imports wherever they are installed, though nothing here needs them, stay unloaded.

It is for worker processes alone: what is hidden can't be imported there any more.
"""

import sys

FOR_MODELS = ("scipy", "sklearn")
"""transformers imports them for losses and for decoding, which takes half a second (transformers 5.2 to 5.13)."""
FOR_TOKENIZERS = ("torch", *FOR_MODELS)
"""transformers imports torch with its first tokenizer (modeling_rope_utils): a second, and 200 MB that a reader never uses."""


def hide(names: tuple[str, ...]) -> None:
    """Make the packages look as if they were not installed; one that is loaded already stays."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
