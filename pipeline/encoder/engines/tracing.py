"""A transformer on torch in, the file of its OpenVINO graph out, once it gives the same token vectors as torch.

Knows no pooling and no texts.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from pipeline.encoder.engines.graph import NOT_FUSED, Compiled, Unsupported, save_graph
from pipeline.encoder.engines.torch import load_transformer
from pipeline.model.architectures import ARCHITECTURES
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers

TOLERANCE = 5e-5
"""A token's vector may differ by so much from torch's, relative to its largest number: sums are made in another
order."""


def trace(spec: EncoderSpec, file: Path, *, token_types: bool, width: int) -> None:
    """Write the float32 graph `file` and the weights beside it.

    Proven on batches up to `width` tokens wide. Where it gives torch's vectors, but doesn't with fused attention, a file
    NOT_FUSED says so. Raises Unsupported where OpenVINO can't compute the architecture, or computes something else.
    """
    traced = _Traced(load_transformer(spec), token_types and ARCHITECTURES[spec.model_type].adds_token_types).eval()
    with _quiet():
        save_graph(_converted(traced), file)
        _prove(Compiled(file, torch.get_num_threads()), traced, width)
        try:
            _prove(Compiled(file, torch.get_num_threads(), fused=True), traced, width)
        except Unsupported as reason:
            (file.parent / NOT_FUSED).write_text(str(reason), encoding="utf-8")


class _Traced(nn.Module):
    """The transformer with the inputs and the output that a graph has."""

    def __init__(self, model: Any, token_types: bool) -> None:
        super().__init__()
        self.model, self._token_types = model, token_types

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        types = {"token_type_ids": torch.zeros_like(ids)} if self._token_types else {}
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask, return_dict=True, **types).last_hidden_state
        return hidden


@torch.inference_mode()
def _converted(traced: _Traced) -> Any:
    # Rows of two lengths: where all are equal some architectures leave the mask out, and the trace with them.
    ids, mask = torch.ones(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    shape = openvino.PartialShape([-1, -1])
    try:
        return openvino.convert_model(traced, example_input=(ids, mask), input=[shape, shape])
    except Exception as error:
        raise Unsupported(f"OpenVINO can't convert it: {type(error).__name__}: {error}") from None


@torch.inference_mode()
def _prove(compiled: Compiled, traced: _Traced, width: int) -> None:
    """Raises Unsupported where a token's vector isn't torch's: rows of one token to `width`, alone and beside longer
    ones."""
    vocabulary = traced.model.get_input_embeddings().weight.shape[0]
    chance = np.random.default_rng(0)
    for rows, longest in ((1, 1), (1, min(3, width)), (4, min(7, width)), (8, min(48, width)), (1, width), (4, width)):
        lengths = chance.integers(1, longest + 1, rows)
        lengths[0], lengths[-1] = 1, longest
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = chance.integers(0, vocabulary, (rows, longest)) * mask
        try:
            expected = traced(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
            found = compiled.run(ids, mask)
        except Exception as error:
            raise Unsupported(f"OpenVINO can't compute it: {type(error).__name__}: {error}") from None
        apart = np.abs(found - expected).max(axis=-1) / np.maximum(np.abs(expected).max(axis=-1), 1e-12)
        worst = float(apart[mask.astype(bool)].max())
        if not worst <= TOLERANCE:
            raise Unsupported(f"OpenVINO computes other vectors: {worst:.1e} apart, {TOLERANCE:.0e} is allowed")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of everything that depends on a shape; whether it matters is proven. Where OpenVINO's converter
    fails, it leaves the process's root logger as it needs it; it is put back here."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
