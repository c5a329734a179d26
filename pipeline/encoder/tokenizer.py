"""Texts in, token ids out: exactly those that sentence-transformers 6.2 would feed the model, in flat int32 arrays.

Uses the Rust tokenizer behind transformers' AutoTokenizer; prompt, truncation and special tokens are put on here. Knows
no model weights, no batches and no files but the tokenizer's own.
"""

import copy
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer_backend import load_fast, load_static, refused, safe_cuts, special_frame
from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec

Key = TypeVar("Key")
_Row = tuple[list[int], bool]
"""(ids, truncated) of one text."""
Offsets = tuple[NDArray[np.int64], NDArray[np.int64]]
"""[tokens] each: where the tokens of a text begin and where they end, in characters."""
_NO_TOKENS: _Row = ([], False)

_HEAD_CHARS_PER_TOKEN = 8
"""So many characters per token of the model's length nearly always fill it; where they don't, all text is read."""

_SEGMENT_CHARS = 2**16
"""The library holds some hundred bytes a token, so a long text gives its offsets piece by piece."""
_BATCH_CHARS = 2**20
"""The library also keeps all tokens of all texts of a call, whatever will be cut off: a call gets so many
characters."""

_PROBE_TOKENS = 512
"""A longer room for text is proven at this one: what is proven is the way of cutting, not the length."""
_PROBES = (
    "",
    " ",
    "A plain sentence, with punctuation!",
    "x [SEP] y </s> z [MASK] <mask> [CLS]",
    "한국어 문장과 中文句子 and 🙂 émoji",
)


class Tokenizer:
    """Built once per worker; `tokenize` may be called any number of times."""

    def __init__(self, spec: EncoderSpec, threads: int) -> None:
        """`threads`: cores for the Rust tokenizer, for the whole process, if it has tokenized nothing before."""
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        self._prompt = spec.prompt
        self._adds_special_tokens = not spec.is_static
        self.gives_token_types = False
        """Whether token types, all 0, go into the model beside the ids."""
        if spec.is_static:
            self._backend, self._special_ids, self._side = load_static(spec), frozenset[int](), "right"
        else:
            tokenizer = load_fast(spec)
            self._backend = tokenizer.backend_tokenizer
            self._special_ids = frozenset(tokenizer.all_special_ids)
            self.gives_token_types = "token_type_ids" in tokenizer.model_input_names
            self._side = tokenizer.truncation_side
        with refused(f"the tokenizer in {str(spec.transformer_folder)!r} doesn't work"):
            self._try_out(spec.max_seq_length, is_static=spec.is_static)

    def _try_out(self, length: int | None, *, is_static: bool) -> None:
        """Find out how the tokenizer frames and cuts texts."""
        self._prefix, self._suffix = special_frame(self._backend) if self._adds_special_tokens else ([], [])
        frame = len(self._prefix) + len(self._suffix)
        if length is not None and length <= frame:
            raise InputError(
                f"max_seq_length is {length}, which leaves no room for text beside the special tokens: "
                f"set model.max_seq_length to at least {frame + 1}"
            )
        self._room = None if length is None else length - frame
        """Tokens of a text that are kept; None is all."""
        self._framed_here = self._backend.truncation is None if is_static else self._agrees_with_library()
        self._whole = self._backend
        """A copy of the tokenizer that never truncates."""
        if not self._framed_here:
            self._whole = copy.deepcopy(self._backend)
            self._whole.no_truncation()
            if length is not None:
                self._backend.enable_truncation(length, direction=self._side)
        cuts = safe_cuts(self._backend) if self._framed_here and self._side == "right" else None
        self._cut = re.compile(f"[{cuts}]") if cuts and length is not None else None
        self._head_chars = _HEAD_CHARS_PER_TOKEN * (length or 0)

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

    def offsets(self, texts: Sequence[str]) -> tuple[dict[int, Offsets], dict[int, str]]:
        """(the offsets of each text alone, why the others failed): no prompt, no special tokens, nothing cut off.

        A long text is read in pieces that end at a space; where the tokens of a piece are not those that the whole text
        would have there, they still begin and end where the text can be cut.
        """
        found: dict[int, list[Offsets]] = {row: [] for row in range(len(texts))}
        failed: dict[int, str] = {}
        for batch in _batches(
            ((row, first), piece) for row, text in enumerate(texts) for first, piece in _segments(text)
        ):
            refused: dict[tuple[int, int], str] = {}
            encodings = self._halving(
                batch, refused, lambda some: self._whole.encode_batch(some, add_special_tokens=False)
            )
            for (row, first), encoding in encodings.items():
                spans = np.array(encoding.offsets, np.int64).reshape(-1, 2) + first
                found[row].append((spans[:, 0], spans[:, 1]))
            failed |= {row: reason for (row, _), reason in refused.items()}
        joined = {
            row: (np.concatenate([o[0] for o in parts]), np.concatenate([o[1] for o in parts]))
            for row, parts in found.items()
            if row not in failed
        }
        return joined, failed

    @property
    def framing_tokens(self) -> int:
        """The number of special tokens and tokens of the prompt: a text has no room there."""
        return len(self._whole.encode(self._prompt, add_special_tokens=self._adds_special_tokens).ids)

    @property
    def prompt_length(self) -> int:
        """The number of tokens that pooling leaves out if include_prompt is False: the prompt and the special tokens
        before it.

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
        if self._cut is None:
            return {}
        heads = {row: self._head(text) for row, text in texts.items() if len(text) > self._head_chars}
        found = self._encode({row: head for row, head in heads.items() if head is not None}, {})
        return {row: (ids, cut) for row, (ids, cut) in found.items() if cut}

    def _head(self, text: str) -> str | None:
        """A beginning of the text that ends where it can be cut; None where there is no such place."""
        assert self._cut is not None
        for end in range(self._head_chars, self._head_chars // 2, -1):
            # Behind white space a token may hang on what comes next.
            if self._cut.match(text[end]) and not text[end - 1].isspace():
                return text[:end]
        return None

    def _encode(self, texts: dict[int, str], failed: dict[int, str]) -> dict[int, _Row]:
        """Row -> (ids, truncated)."""
        add_special_tokens = self._adds_special_tokens and not self._framed_here
        rows: dict[int, _Row] = {}
        for batch in _batches(texts.items()):
            encodings = self._halving(
                batch, failed, lambda some: self._backend.encode_batch_fast(some, add_special_tokens=add_special_tokens)
            )
            rows |= {row: self._row(encoding) for row, encoding in encodings.items()}
        return rows

    def _halving(
        self, texts: dict[Key, str], failed: dict[Key, str], encode: Callable[[list[str]], Sequence[Any]]
    ) -> dict[Key, Any]:
        """The answer of `encode` for each text. A batch that raises is halved down to the text at fault, which goes to
        `failed`."""
        if not texts:
            return {}
        try:
            return dict(zip(texts, encode(list(texts.values())), strict=True))
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, a BaseException
                raise
            if len(texts) > 1:
                first, second = _halves(texts)
                return self._halving(first, failed, encode) | self._halving(second, failed, encode)
            failed[next(iter(texts))] = f"the tokenizer refused the text: {type(error).__name__}: {error}"
            return {}

    def _row(self, encoding: Any) -> _Row:
        ids = encoding.ids
        if not self._framed_here:
            return ids, bool(encoding.overflowing)
        return self._framed(ids, self._room), self._room is not None and len(ids) > self._room

    def _framed(self, ids: list[int], room: int | None) -> list[int]:
        """The ids that fit, between the special tokens."""
        if room is not None and len(ids) > room:
            ids = ids[-room:] if self._side == "left" else ids[:room]
        return self._prefix + ids + self._suffix

    def _agrees_with_library(self) -> bool:
        """Whether cutting and framing here gives the ids that the library's own truncation and template give."""
        room = min(self._room or _PROBE_TOKENS, _PROBE_TOKENS)
        probes = [*_PROBES, "word " * (2 * room), "字" * (2 * room)]
        self._backend.enable_truncation(room + len(self._prefix) + len(self._suffix), direction=self._side)
        expected = self._backend.encode_batch(probes)
        self._backend.no_truncation()
        if any(any(encoding.type_ids) for encoding in expected):
            raise InputError("the model's tokenizer gives token types other than 0: not supported")
        bare = self._backend.encode_batch_fast(probes, add_special_tokens=False)
        return [self._framed(encoding.ids, room) for encoding in bare] == [encoding.ids for encoding in expected]


def _segments(text: str) -> Iterator[tuple[int, str]]:
    """(first character, piece) of pieces that end after a space where there is one; all of the text, in order."""
    start = 0
    while len(text) - start > _SEGMENT_CHARS:
        space = max(text.rfind(" ", start, start + _SEGMENT_CHARS), text.rfind("\n", start, start + _SEGMENT_CHARS))
        stop = space + 1 if space > start else start + _SEGMENT_CHARS
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]


def _batches(texts: Iterable[tuple[Key, str]]) -> Iterator[dict[Key, str]]:
    """The texts by their keys, a megabyte or so at a time."""
    batch: dict[Key, str] = {}
    held = 0
    for key, text in texts:
        batch[key] = text
        held += len(text)
        if held >= _BATCH_CHARS:
            yield batch
            batch, held = {}, 0
    if batch:
        yield batch


def _halves(texts: dict[Key, str]) -> tuple[dict[Key, str], dict[Key, str]]:
    items = list(texts.items())
    return dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])
