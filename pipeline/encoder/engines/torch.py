"""The transformers model on torch: padded token ids in, float32 vectors out.

In any precision; on most CPUs only float32 is fast. Knows no texts, no batching and no retries; it only tells a lack of
memory from a lost device and from bad rows.
"""

import inspect
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoder.engines.base import Answer
from pipeline.encoder.engines.device import ready_device, translated_errors
from pipeline.encoder.engines.head import Head
from pipeline.encoder.engines.packed_linear import pack_linear_layers
from pipeline.encoder.engines.transfer import Transfer
from pipeline.errors import InputError
from pipeline.model.architectures import ARCHITECTURES
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers

IN_FLIGHT = {"cpu": 1, "cuda": 3}
"""Batches in work at a time: one that the GPU computes, one that waits for it, one whose vectors are fetched."""


class TorchEngine:
    """Implements engines.base.StreamingEngine. Sets torch's thread count and float32 precision for the whole
    process."""

    name = "torch"

    def __init__(
        self, spec: EncoderSpec, device: str, threads: int, prompt_length: int = 0, *, token_types: bool = False
    ) -> None:
        """`prompt_length`: leading tokens of every row that pooling leaves out (spec.include_prompt is False).

        `token_types`: token types, all 0, are given to an architecture that tells them from none.
        """
        self.dim = spec.dim
        self.in_flight = IN_FLIGHT[device]
        self.device = ready_device(device, threads)
        self.transfer = Transfer(self.device)
        self._prompt_length = prompt_length
        self.model = load_transformer(spec).to(self.device)
        self._attention = self._attends_by = self.model.config._attn_implementation
        if device == "cpu" and spec.precision == "float32":
            pack_linear_layers(self.model)
        self._token_types = token_types and ARCHITECTURES[spec.model_type].adds_token_types
        self._all_layers = {"output_hidden_states": True} if spec.needs_all_layers else {}
        self.head = Head(spec, prompt_length).to(self.device)
        if spec.precision != "float32":
            self._prove(spec)

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        return self.start(ids, lengths)()

    @torch.inference_mode()
    def start(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Answer:
        """Begin to encode, with the arguments of `encode`; the answer waits for the vectors."""
        with translated_errors(), quiet_transformers():
            width = ids.shape[1]
            given = self.transfer.to_device(ids, lengths)
            tokens = given[0].long()
            # Without a mask attention is cheaper; rows that fill the width need none.
            sizes = None if int(lengths.min()) == width else given[1]
            mask = None if sizes is None else torch.arange(width, device=self.device)[None, :] < sizes[:, None]
            self.attend_by(self._attention)
            # Some architectures compute with the mask, which a bool one does not take.
            hidden, layers = self.transform(tokens, attention_mask=None if mask is None else mask.long())
            return self.transfer.to_host(self.head(hidden, tokens, sizes, layers))

    def transform(self, tokens: Tensor, **inputs: Any) -> tuple[Tensor, Sequence[Tensor]]:
        """tokens int64 [n, width] -> (their vectors in the last layer, in all layers where a module reads them)."""
        types = {"token_type_ids": torch.zeros_like(tokens)} if self._token_types else {}
        output = self.model(input_ids=tokens, return_dict=True, **inputs, **types, **self._all_layers)
        return output.last_hidden_state, output.hidden_states if self._all_layers else ()

    def attend_by(self, implementation: str) -> None:
        """Let the model's attention be this one of those that transformers knows."""
        if self._attends_by != implementation:
            self.model.set_attn_implementation(implementation)
            self._attends_by = implementation

    def _prove(self, spec: EncoderSpec) -> None:
        """InputError where the architecture can't compute in this precision: some mix types, some overflow at a
        mask."""
        width = min(self._prompt_length + 8, spec.max_seq_length or 2**31)  # with tokens for pooling behind the prompt
        try:
            vectors = self.encode(np.zeros((2, width), np.int32), np.array([width, max(width - 3, 1)], np.int32))
            reason = "" if np.isfinite(vectors).all() else "its vectors are not finite"
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            raise InputError(
                f"the model ({spec.model_type}) can't run in {spec.precision}: {reason}; give another model.precision"
            )


def load_transformer(spec: EncoderSpec) -> Any:
    """The bare transformer in eval mode on the CPU, its weights in spec.precision and in memory of this process.

    Raises InputError if they are not all there, ModelChanged if a file changed before they were.
    """
    return spec.load(lambda: _in_memory(_load(spec)))


def _in_memory(model: Any) -> Any:
    """The model with copies of its tensors, one after the other: transformers may give mappings of the files."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def _load(spec: EncoderSpec) -> Any:
    folder = str(spec.transformer_folder)
    try:
        with quiet_transformers():
            # Where trust_remote_code is left out, transformers would ask the person at the keyboard.
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config.use_cache = False  # a decoder would keep keys and values of all tokens for a next word
            encoder = ARCHITECTURES[spec.model_type].encoder
            model_class = getattr(transformers, encoder) if encoder else transformers.MODEL_MAPPING[type(config)]
            no_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                dtype=getattr(torch, spec.precision),
                attn_implementation="sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below with a better word
                **({"add_pooling_layer": False} if no_pooler else {}),
            )
    except pickle.UnpicklingError:
        raise InputError(
            f"the weights in {folder!r} are damaged or hold more than tensors, which could run code: save the model again "
            "with safetensors"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the model in {folder!r} doesn't load: {type(error).__name__}: {reason}") from None
    # A pooler's output is never read, and some classes have one that can't be left out.
    absent = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    absent += [str(key) for key in report["mismatched_keys"]]
    if absent:
        raise InputError(
            f"the weights in {folder!r} lack {len(absent)} tensors or hold them in another shape, the first is "
            f"{sorted(absent)[0]!r}: the model folder is not complete, or config.json is not its own"
        )
    return model.eval()
