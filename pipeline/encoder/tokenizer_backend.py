"""A model's tokenizer files in, the Rust tokenizer behind them out, and what its rules allow.

transformers is loaded only for a model with a transformer. This file knows no texts.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers
from pipeline.model.tokenizer_files import is_library_error

Key = TypeVar("Key")
Row = TypeVar("Row")


def framing_tokens(spec: EncoderSpec) -> int | None:
    """`Tokenizer.framing_tokens` without loading transformers; None where the folder has no tokenizer.json."""
    path = spec.transformer_folder / "tokenizer.json"
    if not path.is_file():
        return None
    backend = spec.load(lambda: read_backend(path))
    backend.no_padding()
    backend.no_truncation()
    with refused(f"{str(path)!r} is no tokenizer that works"):
        return len(backend.encode(spec.prompt, add_special_tokens=not spec.is_static).ids)


def read_backend(path: Path) -> Any:
    with refused(f"{str(path)!r} is no tokenizer that can be read"):
        return tokenizers.Tokenizer.from_file(str(path))


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """InputError for whatever the library raises, which has no types of its own, and panics of Rust among it."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise InputError(f"{what}: {type(error).__name__}: {error}") from None


def encode_each(
    texts: dict[Key, str], failed: dict[Key, str], encode: Callable[[list[str]], Sequence[Row]]
) -> dict[Key, Row]:
    """The answer of `encode` for each text. A batch that raises is halved down to the text at fault, which goes to
    `failed`."""
    if not texts:
        return {}
    try:
        return dict(zip(texts, encode(list(texts.values())), strict=True))
    except BaseException as error:
        if not is_library_error(error):
            raise
        if len(texts) > 1:
            items = list(texts.items())
            first, second = dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])
            return encode_each(first, failed, encode) | encode_each(second, failed, encode)
        failed[next(iter(texts))] = f"the tokenizer refused the text: {type(error).__name__}: {error}"
        return {}


def load_static(spec: EncoderSpec) -> Any:
    """The tokenizer as sentence-transformers 6.2 loads it for a StaticEmbedding: a block of truncation in the file does
    cut."""
    backend = spec.load(lambda: read_backend(spec.transformer_folder / "tokenizer.json"))
    backend.no_padding()
    return backend


def load_fast(spec: EncoderSpec) -> Any:
    """transformers' fast tokenizer without padding or truncation, lower-casing as sentence-transformers 6.2 adds it."""
    from transformers import AutoTokenizer

    folder = str(spec.transformer_folder)

    def load() -> Any:
        with refused(f"the tokenizer in {folder!r} doesn't load"), quiet_transformers():
            # Where trust_remote_code is left out, transformers would ask the person at the keyboard.
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    tokenizer = spec.load(load)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder!r} is not a fast one: save the model with a tokenizer.json")
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    if spec.do_lower_case:
        lower_case(backend)
    return tokenizer


def lower_case(backend: Any) -> None:
    """Put a Lowercase normaliser in front of the tokenizer's own, unless it has one."""
    own = _normalizers(backend)
    if not any(isinstance(normalizer, Lowercase) for normalizer in own):
        backend.normalizer = NormalizerSequence([Lowercase(), *own])


def special_frame(backend: Any) -> tuple[list[int], list[int]]:
    """The special tokens (before, after) a text."""
    encoding = backend.encode("a")
    special = encoding.special_tokens_mask
    before = special.index(0) if 0 in special else len(special)
    after = special[::-1].index(0) if 0 in special else 0
    return encoding.ids[:before], encoding.ids[len(special) - after :]


def safe_cuts(backend: Any) -> str | None:
    """The characters before which any text can be cut so that what stands before has the first ids of the whole.

    A space is one where pre-tokenizing splits there and nothing before it looks across: none of these normalizers joins
    a character to a space after it, none of these pre-tokenizers makes a piece that goes on at a space, no added token
    holds one. BERT also sets every Chinese character apart. None where nothing of the kind is known.
    """
    rules = json.loads(backend.to_str())
    pre_tokenizers = steps_of(rules["pre_tokenizer"], "pretokenizers")
    normalizers = steps_of(rules["normalizer"], "normalizers")
    first = pre_tokenizers[0] if pre_tokenizers else {"type": None}
    splits = (
        first["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        or (first["type"] == "Metaspace" and first.get("split", True) and first.get("replacement") == "\u2581")
        or (first["type"] == "ByteLevel" and first["use_regex"])
    )
    local = all(step["type"] in _LOCAL_NORMALIZERS or _joins_spaces(step) for step in normalizers)
    spaced = any(re.search(r"\s", token.content) for token in backend.get_added_tokens_decoder().values())
    if not splits or not local or spaced:
        return None
    chinese = any(step["type"] == "BertNormalizer" and step["handle_chinese_chars"] for step in normalizers)
    return " \u3400-\u4dbf\u4e00-\u9fff" if chinese else " "


_LOCAL_NORMALIZERS = frozenset(
    ["BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Strip", "StripAccents"]
)


def _joins_spaces(step: Mapping[str, Any]) -> bool:
    """The rule by which T5 and XLM-RoBERTa make one space of several."""
    return step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"} and step["content"] in (" ", "\u2581")


def steps_of(rule: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """A rule of tokenizer.json as the list of its steps."""
    if rule is None:
        return []
    return [each for step in rule[name] for each in steps_of(step, name)] if rule["type"] == "Sequence" else [rule]


def _normalizers(backend: Any) -> list[Any]:
    normalizer: Any = backend.normalizer
    if isinstance(normalizer, NormalizerSequence):
        return [*iter(normalizer)]
    return [] if normalizer is None else [normalizer]
