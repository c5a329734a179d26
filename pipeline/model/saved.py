"""A model folder in sentence-transformers format in, a frozen description of it out; 2.0 to 6.x, both styles of key.

Follows modules.json from the transformer (or static embedding) through pooling to the last module. What it doesn't know
it refuses by name: a guess here would be a wrong vector in every row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from pipeline.errors import InputError
from pipeline.model import saved_modules as read
from pipeline.model.files import at, get, listed, read_list, read_object, refuse_unknown_keys, stays_inside
from pipeline.model.requirements import check_requirements
from pipeline.model.saved_modules import PostModule, StaticEmbedding, TokenModule
from pipeline.model.transformer import Transformer, read_transformer

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """This is what the files say, before any setting of the configuration overrides it."""

    first: Transformer | StaticEmbedding
    token_modules: tuple[TokenModule, ...]
    """These modules stand between transformer and pooling."""
    pooling: tuple[str, ...]
    """Names in POOLING_MODES, in the order of concatenation; a static embedding has none."""
    include_prompt: bool
    post_modules: tuple[PostModule, ...]
    width: int
    """A vector has so many numbers after all modules."""
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    similarity: str
    """One of SIMILARITIES."""
    notes: tuple[str, ...]


def read_saved_model(folder: Path) -> SavedModel:
    """Describe the model in `folder`; InputError where it is incomplete or holds what this program doesn't know."""
    if (folder / "modules.json").is_file():
        return _read_modules(folder)
    if (folder / "config.json").is_file():
        return _read_plain_transformer(folder)
    raise InputError(
        f"model folder {str(folder)!r} holds neither modules.json nor config.json; expected a model saved by "
        "sentence-transformers or transformers: check the path"
    )


def _read_modules(folder: Path) -> SavedModel:
    entries = [_module_entry(folder, entry) for entry in read_list(folder / "modules.json")]
    chain = _read_chain(folder, entries)
    where = folder / "config_sentence_transformers.json"
    config = read_object(where, missing={})
    model_type = config.get("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        raise InputError(f"{at(where)}: model_type {model_type!r} is not supported; expected 'SentenceTransformer'")
    similarity = config.get("similarity_fn_name")
    return SavedModel(
        first=chain.first,
        token_modules=tuple(chain.token_modules),
        pooling=chain.pooling.modes if chain.pooling else (),
        include_prompt=chain.pooling is None or chain.pooling.include_prompt,
        post_modules=tuple(chain.post_modules),
        width=chain.width,
        prompts=_prompts(where, config),
        default_prompt_name=get(config, "default_prompt_name", str, where, default=None),
        truncate_dim=get(config, "truncate_dim", int, where, default=None),
        similarity=similarity if similarity in SIMILARITIES else "cosine",  # as sentence-transformers 6.2
        notes=(*chain.notes, *check_requirements(where, config.get("requirements"))),
    )


def _read_plain_transformer(folder: Path) -> SavedModel:
    """A folder without modules.json: mean pooling (of a causal model the last token) and nothing after it, as
    sentence-transformers 6.2 loads it."""
    transformer = read_transformer(folder, "", settings_file=False)
    mode, name = ("lasttoken", "last-token") if transformer.causal else ("mean", "mean")
    return SavedModel(
        first=transformer,
        token_modules=(),
        pooling=(mode,),
        include_prompt=True,
        post_modules=(),
        width=transformer.hidden,
        prompts={"query": "", "document": ""},
        default_prompt_name=None,
        truncate_dim=None,
        similarity="cosine",
        notes=(f"the model folder has no modules.json: {name} pooling is used and the vectors are not normalised",),
    )


# --- modules.json ----------------------------------------------------------------------------------------------------

_CLASS_HOMES = (
    "sentence_transformers.models.",  # saved by 5.3 and older
    "sentence_transformers.base.modules.",
    "sentence_transformers.sentence_transformer.modules.",
)

# fmt: off
_CLASSES = frozenset([
    "Transformer", "StaticEmbedding", "WeightedLayerPooling", "WordWeights", "Pooling", "Dense", "Normalize", "LayerNorm",
    "Dropout",
])
# fmt: on


_REASONS: Mapping[str, str] = {
    "Asym": "it encodes queries and documents differently, and what a text is stands in no source",
    "BoW": "it counts words, which its own Python tokenizer finds",
    "CLIPModel": "it encodes images too",
    "CNN": "a convolution over tokens depends on the padding behind a text, and so on its batch",
    "LSTM": "a recurrent network is not a transformer",
    "Router": "it encodes queries and documents differently, and what a text is stands in no source",
    "WordEmbeddings": "its words are found by a Python tokenizer of its own",
}
"""Why a class of sentence-transformers is refused."""


def _reason(kind: str, name: str) -> str:
    if not kind.startswith("sentence_transformers."):
        return "it is custom code, which is never run"
    if kind.startswith(("sentence_transformers.sparse_encoder.", "sentence_transformers.multi_vector_encoder.")):
        return "it is of a model that gives no single dense vector"
    return _REASONS.get(name, "this program doesn't know it")


def _module_entry(folder: Path, entry: Any) -> tuple[str, str]:
    """(class name, relative path) of one entry of modules.json."""
    where = folder / "modules.json"
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or not isinstance(entry.get("path"), str):
        raise InputError(f"{at(where)} has the entry {entry!r}; expected an object with a type and a path")
    refuse_unknown_keys(entry, {"idx", "name", "path", "type", "kwargs"}, where)
    if entry.get("kwargs"):
        raise InputError(f"{at(where)}: module {entry['type']!r} takes kwargs {entry['kwargs']!r}: not supported")
    if not stays_inside(entry["path"]):
        raise InputError(f"{at(where)}: path {entry['path']!r} leaves the model folder; expected a folder inside it")
    name = entry["type"].rpartition(".")[2]
    if not entry["type"].startswith(_CLASS_HOMES) or name not in _CLASSES:
        raise InputError(
            f"{at(where)}: module {entry['type']!r} is not supported: {_reason(entry['type'], name)}; use a model made of "
            f"{listed(_CLASSES)}"
        )
    return name, PureWindowsPath(entry["path"]).as_posix() if entry["path"] else ""


class _Chain:
    """The modules read so far, and how wide the vectors are behind them."""

    def __init__(self, first: Transformer | StaticEmbedding) -> None:
        self.first = first
        self.width = first.hidden if isinstance(first, Transformer) else first.dim
        self.token_modules: list[TokenModule] = []
        self.pooling: read.Pooling | None = None
        self.post_modules: list[PostModule] = []
        self.notes: list[str] = []

    @property
    def on(self) -> str:
        """The kind of vectors that the next module works on: read.TOKENS or read.SENTENCE."""
        pooled = self.pooling is not None or isinstance(self.first, StaticEmbedding)
        return read.SENTENCE if pooled else read.TOKENS


def _read_chain(folder: Path, entries: list[tuple[str, str]]) -> _Chain:
    names = [name for name, _ in entries]
    if names[:1] != ["StaticEmbedding"] and (names[:1] != ["Transformer"] or "Pooling" not in names):
        raise _not_a_chain(folder, names)
    first, path = entries[0]
    chain = _Chain(
        read_transformer(folder, path) if first == "Transformer" else read.read_static_embedding(folder, path)
    )
    for name, path in entries[1:]:
        if not _read_next(chain, folder, name, path):
            raise _not_a_chain(folder, names)
    return chain


def _read_next(chain: _Chain, folder: Path, name: str, path: str) -> bool:
    """Add a module to the chain; False where it can't stand there."""
    modules: list[Any] = chain.token_modules if chain.on == read.TOKENS else chain.post_modules
    if name == "Dense":
        modules.append(read.read_dense(folder, path, chain.on, chain.width))
        chain.width = modules[-1].out_features
    elif name == "Normalize":
        modules.append(read.read_normalize(folder, path, chain.on))
    elif chain.on == read.TOKENS and name == "Pooling":
        chain.pooling = read.read_pooling(folder, path, chain.width)
        chain.width *= len(chain.pooling.modes)
    elif chain.on == read.TOKENS and name == "WordWeights":
        modules.append(read.read_word_weights(folder, path))
    elif chain.on == read.TOKENS and name == "WeightedLayerPooling":
        assert isinstance(chain.first, Transformer)
        module = read.read_weighted_layers(folder, path, chain.first.hidden, chain.first.layers)
        if chain.first.all_layers:
            modules.append(module)
            chain.width = chain.first.hidden
        else:  # as sentence-transformers 6.2 has it, which says nothing
            chain.notes.append(
                "the model's WeightedLayerPooling does nothing: its config.json has no output_hidden_states"
            )
    elif chain.on == read.SENTENCE and name == "LayerNorm":
        modules.append(read.read_layer_norm(folder, path, chain.width))
    elif chain.on == read.SENTENCE and name == "Dropout":
        read.check_dropout(folder, path)
    else:
        return False
    return True


def _not_a_chain(folder: Path, names: list[str]) -> InputError:
    return InputError(
        f"{at(folder / 'modules.json')} lists {' -> '.join(names) or 'no modules'}; supported is Transformer -> "
        "(WeightedLayerPooling, WordWeights, Dense, Normalize) -> Pooling, or StaticEmbedding, then any number of Dense, "
        "Normalize, LayerNorm and Dropout: use a model of that form"
    )


def _prompts(where: Path, config: Mapping[str, Any]) -> dict[str, str]:
    given = config.get("prompts") or {}
    if not isinstance(given, dict) or any(not isinstance(text, str | None) for text in given.values()):
        raise InputError(f"{at(where)}: prompts {given!r} is not an object of strings")
    return {"query": "", "document": "", **{name: text or "" for name, text in given.items()}}
