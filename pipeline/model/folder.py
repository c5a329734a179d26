"""A `ModelSpec` in, an `EncoderSpec` out: all that a worker needs to build the encoder, and the model's identity.

The overrides of the configuration meet the model's files here. Loads neither torch nor transformers, so that planning
stays light and refuses what can't work before any work is done.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.config import ModelSpec
from pipeline.errors import InputError, ModelChanged
from pipeline.extras import install
from pipeline.model.origin import Origin, locate, resolve_model
from pipeline.model.prompts import document_prompt, earlier_prompt, query_prompt
from pipeline.model.saved import SavedModel, read_saved_model
from pipeline.model.saved_modules import Normalize, PostModule, StaticEmbedding, TokenModule, WeightedLayerPooling
from pipeline.model.transformer import Transformer
from pipeline.model.unchanged import Loaded, check_digest, load_unchanged

__all__ = ["EncoderSpec", "Int8Graph", "encoder_spec", "resolve_model"]


@dataclass(frozen=True, kw_only=True)
class Int8Graph:
    """The transformer as it was quantised for one table."""

    digest: str
    """The digest of the graph's content; it is part of the fingerprint."""
    file: str = ""
    """The graph's file on this node; "" where it is not fetched yet."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One encoder, with nothing left to decide but the device it runs on."""

    origin: Origin
    folder: str
    """Absolute path of the model folder on this node."""
    transformer: str
    """The folder of transformer and tokenizer, relative to `folder`; "" is `folder` itself."""
    model_type: str
    """A key of ARCHITECTURES; "" is a static embedding, which has no transformer and adds no special tokens."""
    max_seq_length: int | None
    """Tokens the model reads at most, special tokens and prompt included; None is no limit."""
    do_lower_case: bool
    """A Lowercase normaliser goes in front of the tokenizer's own."""
    prompt: str
    """Stands in front of every text; "" is none."""
    include_prompt: bool
    """Whether the prompt's tokens are pooled."""
    token_modules: tuple[TokenModule, ...] = ()
    """These modules stand between transformer and pooling."""
    pooling: tuple[str, ...]
    """saved_modules.POOLING_MODES, in the order of concatenation; none for a static embedding."""
    post_modules: tuple[PostModule, ...]
    truncate_dim: int | None
    """Cut after all modules; None where it would cut nothing."""
    normalize: bool
    """One more normalisation after the cut; False where it would change nothing."""
    precision: str
    """float32, float16, bfloat16 or int8: the transformer's weights and arithmetic. What follows it runs in float32."""
    engine: str = "torch"
    """It says who computes, which moves no vector beyond its tolerance: `torch` or `openvino`, or one of these. `auto` is
    openvino on a CPU, in float32, where it gives torch's vectors, else torch. `made` is openvino where its graph was made
    on this node before, else torch. `numpy` starts without torch, where there is such an engine for the model. `light` is
    openvino where its graph was made, else numpy. A run makes one of them of the user's `auto`, by how much it has to do."""
    int8: Int8Graph | None = None
    """This is None until the table has one, and for other precisions."""
    dim: int
    """Width of the final vector."""
    similarity: str = "cosine"
    """The function the model's vectors are compared with: of saved.SIMILARITIES."""
    query_prompt: str = ""
    """The model's own prompt for queries; "" is none."""
    notes: tuple[str, ...] = ()
    """The user is told these."""

    @property
    def transformer_folder(self) -> Path:
        return Path(self.folder) / self.transformer

    @property
    def is_static(self) -> bool:
        """Whether the model is a table of token vectors, without a transformer."""
        return not self.model_type

    @property
    def needs_all_layers(self) -> bool:
        """Whether a module reads the token vectors of all of the transformer's layers."""
        return any(isinstance(module, WeightedLayerPooling) for module in self.token_modules)

    def for_queries(self) -> "EncoderSpec":
        """This encoder with the prompt that `encode_query` of sentence-transformers puts in front of queries."""
        return replace(self, prompt=self.query_prompt)

    @property
    def unit_length(self) -> bool:
        """Whether every vector has length 1: a normalisation comes last."""
        return self.normalize or (self.post_modules[-1:] == (Normalize(),) and self.truncate_dim is None)

    def here(self) -> "EncoderSpec":
        """This encoder with its folder on this node: found or fetched, and checked to be the planned model.

        Raises InputError or StorageError, which name the node.
        """
        return replace(self, folder=str(self.origin.folder_here()))

    def load(self, load: Callable[[], Loaded]) -> Loaded:
        """What `load()` makes of the folder's files in memory, if they are those of the plan.

        All that reads the folder after planning goes through here; the result must hold no mapping of a file. Raises
        ModelChanged where a file changed before `load` was done.
        """
        return load_unchanged(Path(self.folder), self.origin.digest, load)

    def identity(self) -> dict[str, Any]:
        """Everything that changes a vector and nothing else, wherever the model is from, as JSON values."""
        known: dict[str, Any] = {
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
        if self.precision == "int8":
            known["int8"] = self.int8.digest if self.int8 else None
        if self.token_modules:
            known["token_modules"] = [_module_identity(module) for module in self.token_modules]
        return known


def encoder_spec(spec: ModelSpec, table: Mapping[str, Any] | None = None) -> EncoderSpec:
    """Resolve `spec` against the model's files; InputError where they don't fit or hold what is not supported.

    `table` is the `identity()` of the encoder that built a table, where there is one: a table that this model built before
    documents got their own prompt keeps the prompt it has, unless `spec` names one.
    """
    if spec.precision == "auto":
        spec = replace(spec, precision=(table or {}).get("precision", "float32"))
    origin, folder = locate(spec)
    try:
        saved = load_unchanged(folder, origin.digest, lambda: read_saved_model(folder))
    except ModelChanged as error:
        raise InputError(str(error)) from None  # no work was begun
    kept = earlier_prompt(spec, saved, table) if table and table.get("model") == origin.digest else None
    truncate_dim = _truncate_dim(spec, saved)
    ends_normalized = saved.post_modules[-1:] == (Normalize(),) and truncate_dim is None
    transformer = None if isinstance(saved.first, StaticEmbedding) else saved.first
    _check_engine(spec, saved)
    return EncoderSpec(
        origin=origin,
        folder=str(folder),
        transformer=saved.first.folder,
        model_type=transformer.model_type if transformer else "",
        max_seq_length=_max_seq_length(spec, transformer),
        do_lower_case=transformer is not None and transformer.do_lower_case,
        prompt=document_prompt(spec, saved) if kept is None else kept,
        include_prompt=saved.include_prompt,
        token_modules=saved.token_modules,
        pooling=saved.pooling,
        post_modules=saved.post_modules,
        truncate_dim=truncate_dim,
        normalize=bool(spec.normalize) and not ends_normalized,
        precision=spec.precision,
        engine="torch" if spec.engine == "auto" else spec.engine,
        dim=truncate_dim or saved.width,
        similarity=saved.similarity,
        query_prompt=query_prompt(saved),
        notes=(
            *filter(None, [origin.note]),
            *saved.notes,
            *_precision_notes(spec, transformer),
            *_prompt_notes(saved, kept),
        ),
    )


def check_model_unchanged(spec: EncoderSpec) -> None:
    """Raises ModelChanged unless the model's files on this node still are those of the plan; for before a commit.

    What was loaded is what was planned, see `EncoderSpec.load`. This also finds a write that the filesystem told late, as
    network filesystems may. It costs a stat of each file.
    """
    check_digest(Path(spec.folder), spec.origin.digest)


def _check_engine(spec: ModelSpec, saved: SavedModel) -> None:
    """Raises InputError where this engine can't compute this model in this precision."""
    if isinstance(saved.first, StaticEmbedding):
        if spec.precision != "float32":
            raise InputError(
                f"model.precision is {spec.precision!r}, but a static embedding is a table, with no arithmetic to do in "
                "it: leave it out"
            )
        if spec.engine == "openvino":
            raise InputError("model.engine is 'openvino', but a static embedding is a table: leave it out")
        return
    if spec.precision == "int8" and spec.engine == "torch":
        raise InputError("model.engine is 'torch', but int8 is computed by openvino: leave model.engine out")
    if spec.precision != "int8" and spec.engine != "openvino":
        return
    wanted = "model.precision 'int8'" if spec.precision == "int8" else "model.engine 'openvino'"
    if spec.precision not in ("float32", "int8"):
        raise InputError(f"{wanted} computes in float32 or int8; model.precision is {spec.precision!r}")
    if any(isinstance(module, WeightedLayerPooling) for module in saved.token_modules):
        raise InputError(f"{wanted} can't run this model: it pools the layers of its transformer; leave it out")
    if not openvino_is_installed():
        raise InputError(f"{wanted} needs OpenVINO: {install('openvino')} on every node, or leave it out")


def openvino_is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _prompt_notes(saved: SavedModel, kept: str | None) -> list[str]:
    """Tells of a table that keeps another prompt than a new one would get."""
    own = next((saved.prompts[name] for name in ("document", "passage", "corpus") if saved.prompts.get(name)), "")
    if kept is None or not own or own == kept:
        return []
    return [
        f"the table was built with the prompt {kept!r} and keeps it; the model's own prompt for documents is {own!r}: to "
        "take it, set model.prompt_name and build the table anew with --new-model"
    ]


def _precision_notes(spec: ModelSpec, transformer: Transformer | None) -> list[str]:
    if spec.precision in ("float16", "bfloat16"):
        return [f"model.precision {spec.precision} is for GPUs: a CPU without instructions for it is many times slower"]
    if transformer is not None and transformer.saved_in in ("float16", "bfloat16"):
        saved_in = transformer.saved_in
        return [
            f"the weights were saved in {saved_in}; they are computed in float32, in {saved_in} with model.precision"
        ]
    return []


def _max_seq_length(spec: ModelSpec, transformer: Transformer | None) -> int | None:
    given = spec.max_seq_length
    if transformer is None:
        if given is not None:
            raise InputError(f"model.max_seq_length is {given}, but a static embedding reads texts whole: leave it out")
        return None
    length, positions = transformer.max_seq_length if given is None else given, transformer.positions
    if positions is not None and (length is None or not 1 <= length <= positions):
        who = "the model's own max_seq_length" if given is None else "model.max_seq_length"
        raise InputError(
            f"{who} is {length}, but the model has positions for 1 to {positions} tokens: "
            f"set model.max_seq_length to at most {positions}"
        )
    return length


def _truncate_dim(spec: ModelSpec, saved: SavedModel) -> int | None:
    given = saved.truncate_dim if spec.truncate_dim is None else spec.truncate_dim
    if given is None or given == saved.width:
        return None
    if not 1 <= given < saved.width:
        who = "the model's own truncate_dim" if spec.truncate_dim is None else "model.truncate_dim"
        raise InputError(
            f"{who} is {given}, but the model's vectors have {saved.width} numbers: give 1 to {saved.width}"
        )
    return given


def _module_identity(module: TokenModule | PostModule) -> dict[str, Any]:
    """A field that has a default counts only where it differs: a new one leaves the fingerprints of older tables
    alone."""
    values = {item.name: getattr(module, item.name) for item in fields(module) if item.name != "folder"}
    defaults = {item.name: item.default for item in fields(module) if item.default is not MISSING}
    given = {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
    return {"module": type(module).__name__, **given}  # its weights are in the digest
