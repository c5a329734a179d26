"""The transformers model on torch: padded token ids in, float32 vectors out.

On the CPU in float32, on a GPU in any precision. Knows no texts, no batching and no retries; it only tells a lack of
memory from a lost device and from bad rows.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.base import OutOfMemory
from pipeline.engines.packed_linear import pack_linear_layers
from pipeline.errors import InputError, RunError
from pipeline.model.folder import EncoderSpec
from pipeline.model.modules import TokenVectors, build_post_modules, build_token_modules, pool
from pipeline.model.quiet import quiet_transformers


class TorchEngine:
    """Implements engines.base.Engine. Sets torch's thread count and float32 precision for the whole process."""

    def __init__(self, spec: EncoderSpec, device: str, threads: int, prompt_length: int = 0) -> None:
        """`prompt_length`: leading tokens of every row that pooling leaves out (spec.include_prompt is False)."""
        spec.check_device(device)
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("the encoder was given a GPU, but torch finds none: check driver and torch build")
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        self.dim = spec.dim
        self._device = torch.device(device)
        self._modes = spec.pooling
        self._prompt_length = prompt_length
        self._model = load_transformer(spec).to(self._device)
        if device == "cpu":
            pack_linear_layers(self._model)
        self._all_layers = {"output_hidden_states": True} if spec.needs_all_layers else {}
        self._token_modules = build_token_modules(spec).eval().to(self._device)
        self._post = build_post_modules(spec).eval().to(self._device)

    @torch.inference_mode()
    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int32 [n, width], lengths int32 [n] -> float32 [n, dim]."""
        with _translated_errors():
            width = ids.shape[1]
            # Without a mask attention is cheaper; rows that fill the width need none.
            sizes = None if int(lengths.min()) == width else torch.from_numpy(lengths).to(self._device)
            mask = None if sizes is None else torch.arange(width, device=self._device)[None, :] < sizes[:, None]
            tokens = torch.from_numpy(ids).to(self._device).long()
            output = self._model(input_ids=tokens, attention_mask=mask, **self._all_layers)
            layers = output.hidden_states if self._all_layers else ()
            read = TokenVectors(output.last_hidden_state.float(), tokens, sizes, layers)
            vectors: Tensor = self._post(pool(self._token_modules(read), self._modes, self._prompt_length))
            result: NDArray[np.float32] = vectors.contiguous().cpu().numpy()
            return result


def load_transformer(spec: EncoderSpec) -> Any:
    """The bare transformer in eval mode on the CPU, weights in spec.precision; InputError if they are not all there."""
    folder = str(spec.transformer_folder)
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            model_class = transformers.MODEL_MAPPING[type(config)]
            no_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                dtype=getattr(torch, spec.precision),
                attn_implementation="sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager",
                output_loading_info=True,
                **({"add_pooling_layer": False} if no_pooler else {}),
            )
    except Exception as error:
        raise InputError(f"the model in {folder!r} doesn't load: {type(error).__name__}: {error}") from None
    absent = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if absent:
        raise InputError(
            f"the weights in {folder!r} lack {len(absent)} tensors or hold them in another shape, the first is "
            f"{sorted(absent)[0]!r}: the model folder is not complete, or config.json is not its own"
        )
    return model.eval()


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """torch's errors as ours: OutOfMemory, RunError for a device that is lost, all others as they are."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
            _free_cached_memory()
            raise OutOfMemory(text) from None
        if "CUDA error" in text:
            raise RunError(f"the GPU failed and this process can't use it any more: {text}") from None
        raise


def _free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
