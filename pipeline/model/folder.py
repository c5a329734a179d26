"""A `ModelSpec` in, an `EncoderSpec` out: all that a worker needs to build the encoder, and the model's identity.

The overrides of the configuration meet the model's files here. Loads neither torch nor transformers, so that planning
stays light and refuses what can't work before any work is done.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import ModelSpec
from pipeline.errors import InputError
from pipeline.model.origin import Origin, locate, resolve_model
from pipeline.model.saved import Dense, Normalize, PostModule, SavedModel, read_saved_model

__all__ = ["EncoderSpec", "encoder_spec", "resolve_model"]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One encoder, with nothing left to decide but the device it runs on."""

    origin: Origin
    folder: str
    """Absolute path of the model folder on this node."""
    transformer: str
    """The transformer's and tokenizer's folder, relative to `folder`; "" is `folder` itself."""
    max_seq_length: int
    """Tokens the model reads at most, special tokens and prompt included."""
    do_lower_case: bool
    """A Lowercase normaliser goes in front of the tokenizer's own."""
    prompt: str
    """Stands in front of every text; "" is none."""
    include_prompt: bool
    """False keeps the prompt's tokens out of pooling."""
    hidden: int
    """Width of a token's vector."""
    pooling: tuple[str, ...]
    """saved.POOLING_MODES, in the order of concatenation."""
    post_modules: tuple[PostModule, ...]
    truncate_dim: int | None
    """Cut after all modules; None where it would cut nothing."""
    normalize: bool
    """One more normalisation after the cut; False where it would change nothing."""
    precision: str
    """float32, float16 or bfloat16: the transformer's weights and arithmetic. What follows it runs in float32."""
    dim: int
    """Width of the final vector."""
    notes: tuple[str, ...] = ()
    """What the user should be told."""

    @property
    def transformer_folder(self) -> Path:
        return Path(self.folder) / self.transformer

    @property
    def unit_length(self) -> bool:
        """Whether every vector has length 1: a normalisation comes last."""
        return self.normalize or (self.post_modules[-1:] == (Normalize(),) and self.truncate_dim is None)

    def here(self) -> "EncoderSpec":
        """The same encoder with its folder on this node: found or fetched, and checked to be the same model.

        Raises InputError or StorageError, which name the node.
        """
        return replace(self, folder=str(self.origin.folder_here()))

    def identity(self) -> dict[str, Any]:
        """Everything that changes a vector and nothing else, wherever the model is from, as JSON values."""
        return {
            "model": self.origin.digest,
            "max_seq_length": self.max_seq_length,
            "do_lower_case": self.do_lower_case,
            "prompt": self.prompt,
            "include_prompt": self.include_prompt,
            "pooling": list(self.pooling),
            "post_modules": [_module_identity(module) for module in self.post_modules],
            "truncate_dim": self.truncate_dim,
            "normalize": self.normalize,
            "precision": self.precision,
        }

    def check_device(self, device: str) -> None:
        """InputError if this encoder can't run on `device` (`cpu` or `cuda`)."""
        if device not in ("cpu", "cuda"):
            raise InputError(f"device {device!r} is not supported; expected 'cpu' or 'cuda'")
        if device == "cpu" and self.precision != "float32":
            raise InputError(
                f"model.precision {self.precision!r} needs a GPU, but the encoders run on the CPU: "
                "set model.precision to float32, or give each encoder a GPU (resources.gpus_per_encoder)"
            )


def encoder_spec(spec: ModelSpec) -> EncoderSpec:
    """Resolve `spec` against the model's files; InputError where they don't fit or hold what is not supported."""
    origin, folder = locate(spec)
    saved = read_saved_model(folder)
    width = _width(saved)
    truncate_dim = _truncate_dim(spec, saved, width)
    ends_normalized = saved.post_modules[-1:] == (Normalize(),) and truncate_dim is None
    return EncoderSpec(
        origin=origin,
        folder=str(folder),
        transformer=saved.transformer,
        max_seq_length=_max_seq_length(spec, saved),
        do_lower_case=saved.do_lower_case,
        prompt=_prompt(spec, saved),
        include_prompt=saved.include_prompt,
        hidden=saved.hidden,
        pooling=saved.pooling,
        post_modules=saved.post_modules,
        truncate_dim=truncate_dim,
        normalize=bool(spec.normalize) and not ends_normalized,
        precision=spec.precision,
        dim=truncate_dim or width,
        notes=(*filter(None, [origin.note]), *saved.notes),
    )


def _width(saved: SavedModel) -> int:
    dense = [module for module in saved.post_modules if isinstance(module, Dense)]
    return dense[-1].out_features if dense else len(saved.pooling) * saved.hidden


def _max_seq_length(spec: ModelSpec, saved: SavedModel) -> int:
    given = spec.max_seq_length
    length = saved.max_seq_length if given is None else given
    if not 1 <= length <= saved.positions:
        who = "the model's own max_seq_length" if given is None else "model.max_seq_length"
        raise InputError(
            f"{who} is {length}, but the model has positions for 1 to {saved.positions} tokens: "
            f"set model.max_seq_length to at most {saved.positions}"
        )
    return length


def _prompt(spec: ModelSpec, saved: SavedModel) -> str:
    """An explicit prompt, else the named one, else the model's default one; "" if there is none."""
    if spec.prompt is not None:
        return spec.prompt
    name = saved.default_prompt_name if spec.prompt_name is None else spec.prompt_name
    if name is None:
        return ""
    if name not in saved.prompts:
        who = "the model's default_prompt_name" if spec.prompt_name is None else "model.prompt_name"
        known = ", ".join(repr(known) for known in saved.prompts)
        raise InputError(
            f"{who} {name!r} is not known; the model's prompts are {known}: choose one or give model.prompt"
        )
    return saved.prompts[name]


def _truncate_dim(spec: ModelSpec, saved: SavedModel, width: int) -> int | None:
    given = saved.truncate_dim if spec.truncate_dim is None else spec.truncate_dim
    if given is None or given == width:
        return None
    if not 1 <= given < width:
        who = "the model's own truncate_dim" if spec.truncate_dim is None else "model.truncate_dim"
        raise InputError(f"{who} is {given}, but the model's vectors have {width} numbers: give 1 to {width}")
    return given


def _module_identity(module: PostModule) -> dict[str, Any]:
    values = asdict(module)
    values.pop("folder", None)  # its weights are in the digest
    return {"module": type(module).__name__, **values}
