"""Texts in, token ids out: exactly those that sentence-transformers 6.2 would feed the model, in flat int32 arrays.

Uses the Rust tokenizer behind transformers' AutoTokenizer; prompt, truncation and special tokens are put on here. Knows
no model weights, no batches and no files but the tokenizer's own.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import BertPreTokenizer

from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers

_Row = tuple[list[int], bool]
"""(ids, truncated) of one text."""
_NO_TOKENS: _Row = ([], False)

_HEAD_CHARS_PER_TOKEN = 8
"""So many characters per token of the model's length nearly always fill it; where they don't, all text is read."""

_PROBES = (
    "",
    " ",
    "A plain sentence, with punctuation!",
    "x [SEP] y </s> z [MASK] <mask> [CLS]",
    "한국어 문장과 中文句子 and 🙂 émoji",
)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The token ids of n texts; a failed row has none."""

    ids: NDArray[np.int32]
    """All rows one after the other, special tokens included."""
    offsets: NDArray[np.int64]
    """[n + 1]: row i is ids[offsets[i] : offsets[i + 1]]."""
    truncated: NDArray[np.bool_]
    """[n]: the text went on beyond the model's max_seq_length."""
    failed: dict[int, str] = field(default_factory=dict)
    """Row -> why the tokenizer refused its text."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n]: tokens per row."""
        return np.diff(self.offsets)


def tokens_to_arrow(rows: TokenRows) -> pa.LargeListArray:
    """large_list<int32> [n] on the same memory; a failed row is null."""
    mask = None
    if rows.failed:
        failed = np.zeros(len(rows), np.bool_)
        failed[list(rows.failed)] = True
        mask = pa.array(failed)
    return pa.LargeListArray.from_arrays(pa.array(rows.offsets), pa.array(rows.ids), mask=mask)


def arrow_to_tokens(tokens: pa.LargeListArray | pa.ChunkedArray, truncated: pa.BooleanArray | None = None) -> TokenRows:
    """The inverse; a null row is a failed one. `truncated` is all False where it is not given."""
    array = tokens.combine_chunks() if isinstance(tokens, pa.ChunkedArray) else tokens
    offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
    values = array.values.to_numpy(zero_copy_only=True)
    if array.null_count:  # a null may span values; flatten() leaves them out
        lengths = np.diff(offsets) * ~np.asarray(array.is_null())
        values, offsets = array.flatten().to_numpy(), np.concatenate(([0], np.cumsum(lengths)))
    nulls = np.flatnonzero(np.asarray(array.is_null())) if array.null_count else ()
    flags = np.zeros(len(array), np.bool_) if truncated is None else np.asarray(truncated)
    ids = values[offsets[0] : offsets[-1]]
    return TokenRows(ids, offsets - offsets[0], flags, {int(row): "the text has no tokens" for row in nulls})


class Tokenizer:
    """Built once per worker; `tokenize` may be called any number of times."""

    def __init__(self, spec: EncoderSpec, threads: int) -> None:
        """`threads`: cores for the Rust tokenizer, for the whole process, if it has tokenized nothing before."""
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        tokenizer = _load(spec)
        self._prompt = spec.prompt
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._backend = tokenizer.backend_tokenizer
        self._prefix, self._suffix = _special_frame(self._backend)
        self._room = spec.max_seq_length - len(self._prefix) - len(self._suffix)
        if self._room < 1:
            least = spec.max_seq_length - self._room + 1
            raise InputError(
                f"max_seq_length is {spec.max_seq_length}, which leaves no room for text beside the special tokens: "
                f"set model.max_seq_length to at least {least}"
            )
        self._framed_here = True
        self._framed_here = self._agrees_with_library(spec.max_seq_length)
        if not self._framed_here:
            self._backend.enable_truncation(spec.max_seq_length)
        exact = self._framed_here and _splits_at_spaces(self._backend)
        self._head_chars = _HEAD_CHARS_PER_TOKEN * spec.max_seq_length if exact else None

    def tokenize(self, texts: Sequence[str]) -> TokenRows:
        """The ids of prompt + text for each text, at most spec.max_seq_length; a refused text fails alone."""
        failed = {
            row: f"the text is a {type(text).__name__}, not a string"
            for row, text in enumerate(texts)
            if not isinstance(text, str)
        }
        prompted = {row: self._prompt + text for row, text in enumerate(texts) if row not in failed}
        done = self._heads(prompted)
        done |= self._encode({row: text for row, text in prompted.items() if row not in done}, failed)
        rows = [done.get(row, _NO_TOKENS) for row in range(len(texts))]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(ids) for ids, _ in rows], out=offsets[1:])
        ids = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in rows), np.int32, int(offsets[-1]))
        return TokenRows(ids, offsets, np.array([cut for _, cut in rows], np.bool_), failed)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt and the special tokens before it: what pooling leaves out if include_prompt is False.

        Counted as sentence-transformers does: the prompt alone, less one special token at its end.
        """
        if not self._prompt:
            return 0
        ids, _ = self._encode({0: self._prompt}, {}).get(0, _NO_TOKENS)
        return len(ids) - (1 if ids and ids[-1] in self._special_ids else 0)

    def _heads(self, texts: dict[int, str]) -> dict[int, _Row]:
        """The long texts whose beginning alone fills the model's length: the rest can't change what is kept.

        The library would tokenize all of a text before it cuts; this is ten times faster on 20,000 characters.
        """
        limit = self._head_chars
        if limit is None:
            return {}
        ends = {row: text.rfind(" ", 0, limit) for row, text in texts.items() if len(text) > limit}
        found = self._encode({row: texts[row][:end] for row, end in ends.items() if end > limit // 2}, {})
        return {row: (ids, cut) for row, (ids, cut) in found.items() if cut}

    def _encode(self, texts: dict[int, str], failed: dict[int, str]) -> dict[int, _Row]:
        """Row -> (ids, truncated). A batch that raises is halved down to the text at fault, which goes to `failed`."""
        if not texts:
            return {}
        try:
            encodings = self._backend.encode_batch_fast(list(texts.values()), add_special_tokens=not self._framed_here)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, a BaseException
                raise
            if len(texts) > 1:
                first, second = _halves(texts)
                return self._encode(first, failed) | self._encode(second, failed)
            failed[next(iter(texts))] = f"the tokenizer refused the text: {type(error).__name__}: {error}"
            return {}
        return {row: self._row(encoding) for row, encoding in zip(texts, encodings, strict=True)}

    def _row(self, encoding: Any) -> _Row:
        ids = encoding.ids
        if not self._framed_here:
            return ids, bool(encoding.overflowing)
        return self._prefix + ids[: self._room] + self._suffix, len(ids) > self._room

    def _agrees_with_library(self, max_length: int) -> bool:
        """Whether cutting and framing here gives the ids that the library's own truncation and template give."""
        probes = [*_PROBES, "word " * (2 * max_length), "字" * (2 * max_length)]
        self._backend.enable_truncation(max_length)
        expected = self._backend.encode_batch(probes)
        self._backend.no_truncation()
        if any(any(encoding.type_ids) for encoding in expected):
            raise InputError("the model's tokenizer gives token types other than 0: not supported")
        return [row[0] for row in self._encode(dict(enumerate(probes)), {}).values()] == [e.ids for e in expected]


def _load(spec: EncoderSpec) -> Any:
    """transformers' fast tokenizer without padding or truncation, lower-casing as sentence-transformers 6.2 adds it."""
    from transformers import AutoTokenizer

    folder = str(spec.transformer_folder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InputError(f"the tokenizer in {folder!r} doesn't load: {type(error).__name__}: {error}") from None
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder!r} is not a fast one: save the model with a tokenizer.json")
    for side in ("padding_side", "truncation_side"):
        if getattr(tokenizer, side) != "right":
            raise InputError(
                f"the tokenizer in {folder!r} has {side} {getattr(tokenizer, side)!r}; supported is 'right'"
            )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    own = _normalizers(backend)
    if spec.do_lower_case and not any(isinstance(normalizer, Lowercase) for normalizer in own):
        backend.normalizer = NormalizerSequence([Lowercase(), *own])
    return tokenizer


def _special_frame(backend: Any) -> tuple[list[int], list[int]]:
    """The special tokens (before, after) a text."""
    encoding = backend.encode("a")
    special = encoding.special_tokens_mask
    before = special.index(0) if 0 in special else len(special)
    after = special[::-1].index(0) if 0 in special else 0
    return encoding.ids[:before], encoding.ids[len(special) - after :]


def _splits_at_spaces(backend: Any) -> bool:
    """Whether a text cut before a space has the first ids of the whole: BERT's rules, and no token with a space."""
    return (
        isinstance(backend.pre_tokenizer, BertPreTokenizer)
        and all(isinstance(normalizer, Lowercase | BertNormalizer) for normalizer in _normalizers(backend))
        and not any(re.search(r"\s", token.content) for token in backend.get_added_tokens_decoder().values())
    )


def _normalizers(backend: Any) -> list[Any]:
    normalizer: Any = backend.normalizer
    if isinstance(normalizer, NormalizerSequence):
        return [*iter(normalizer)]
    return [] if normalizer is None else [normalizer]


def _halves(texts: dict[int, str]) -> tuple[dict[int, str], dict[int, str]]:
    items = list(texts.items())
    return dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])
