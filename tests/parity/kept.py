"""Transformers that are loaded once and run once per input, on both sides, while all else is loaded and run anew.

Ten thousand combinations of what stands behind a transformer then take minutes. What is kept are the real transformers'
own outputs; the combinations that tests/parity/test_parity.py draws for whole folders are proven without this.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor, nn

from pipeline.encoder.engines import torch as torch_engine
from pipeline.model.folder import EncoderSpec

Key = tuple[Any, ...]


class KeptTransformer(nn.Module):
    """Our side: the model, and its output for every input it had."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self._outputs: dict[Key, Any] = {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        given = {name: _bytes(value) if isinstance(value, Tensor) else value for name, value in rest.items()}
        key = (_bytes(input_ids), _bytes(attention_mask), *sorted(given.items()))
        if key not in self._outputs:
            self._outputs[key] = self.model(input_ids=input_ids, attention_mask=attention_mask, **rest)
        return self._outputs[key]


@contextlib.contextmanager
def kept_transformers() -> Iterator[None]:
    """All folders that are loaded inside must have one and the same transformer."""
    from sentence_transformers.base.modules import Transformer

    load_ours, load_theirs = torch_engine.load_transformer, Transformer.load.__func__
    ours: dict[str, KeptTransformer] = {}
    theirs: dict[str, Any] = {}

    def load_one_of_ours(spec: EncoderSpec) -> KeptTransformer:
        if spec.precision not in ours:
            ours[spec.precision] = KeptTransformer(load_ours(spec))
        return ours[spec.precision]

    def load_one_of_theirs(cls: Any, folder: str, **rest: Any) -> Any:
        # The settings that a style keeps in this file are the loaded transformer's.
        style = repr(cls.load_config(folder))
        if style not in theirs:
            theirs[style] = load_theirs(cls, folder, **rest)
            theirs[style].forward = _kept_forward(theirs[style].forward)
        return theirs[style]

    with (
        mock.patch.object(torch_engine, "load_transformer", load_one_of_ours),
        mock.patch.object(Transformer, "load", classmethod(load_one_of_theirs)),
    ):
        yield


def _kept_forward(forward: Any) -> Any:
    outputs: dict[Key, Tensor] = {}

    def kept(features: dict[str, Any], **rest: Any) -> dict[str, Any]:
        key = (_bytes(features["input_ids"]), _bytes(features["attention_mask"]))
        if key not in outputs:
            outputs[key] = forward(dict(features), **rest)["token_embeddings"]
        return {**features, "token_embeddings": outputs[key]}

    return kept


def _bytes(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tuple(tensor.shape), tensor.contiguous().numpy().tobytes())
