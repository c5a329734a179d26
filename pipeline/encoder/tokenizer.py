"""Texts in, token ids out: exactly those that sentence-transformers 6.2 would feed the model, in flat int32 arrays.

Uses the Rust tokenizer behind transformers' AutoTokenizer; prompt, truncation and special tokens are put on here. Knows
no model weights, no batches and no files but the tokenizer's own.
"""

import contextlib
import copy
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers

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
"""For the same reason: it keeps all tokens of all texts of a call, whatever will be cut off."""

_PROBE_TOKENS = 512
"""A longer room for text is proven at this one: what is proven is the way of cutting, not the length."""
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

    def slice(self, start: int, stop: int) -> "TokenRows":
        """Rows [start, stop), on the same memory."""
        bounds = self.offsets[start : stop + 1]
        ids = self.ids[bounds[0] : bounds[-1]]
        failed = {row - start: reason for row, reason in self.failed.items() if start <= row < stop}
        return TokenRows(ids, bounds - bounds[0], self.truncated[start:stop], failed)

    @staticmethod
    def of(rows: "Sequence[NDArray[np.int32]]") -> "TokenRows":
        """Rows that stand alone."""
        return TokenRows(
            ids=np.concatenate([np.zeros(0, np.int32), *rows]),
            offsets=np.cumsum([0, *map(len, rows)]),
            truncated=np.zeros(len(rows), np.bool_),
        )

    @staticmethod
    def concatenated(pieces: "Sequence[TokenRows]") -> "TokenRows":
        """All rows of all pieces, in order."""
        firsts = np.cumsum([0, *map(len, pieces)]).tolist()
        lengths = [piece.lengths for piece in pieces]
        return TokenRows(
            ids=np.concatenate([np.zeros(0, np.int32), *(piece.ids for piece in pieces)]),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]),
            truncated=np.concatenate([np.zeros(0, np.bool_), *(piece.truncated for piece in pieces)]),
            failed={
                first + row: reason
                for first, piece in zip(firsts, pieces, strict=False)
                for row, reason in piece.failed.items()
            },
        )


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
        self._prompt = spec.prompt
        self._adds_special_tokens = not spec.is_static
        self.gives_token_types = False
        """Whether token types, all 0, go into the model beside the ids."""
        if spec.is_static:
            self._backend, self._special_ids, self._side = _load_static(spec), frozenset[int](), "right"
        else:
            tokenizer = _load(spec)
            self._backend = tokenizer.backend_tokenizer
            self._special_ids = frozenset(tokenizer.all_special_ids)
            self.gives_token_types = "token_type_ids" in tokenizer.model_input_names
            self._side = tokenizer.truncation_side
        with _refused(f"the tokenizer in {str(spec.transformer_folder)!r} doesn't work"):
            self._try_out(spec.max_seq_length, is_static=spec.is_static)

    def _try_out(self, length: int | None, *, is_static: bool) -> None:
        """Find out how it frames and cuts."""
        self._prefix, self._suffix = _special_frame(self._backend) if self._adds_special_tokens else ([], [])
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
        """The same tokenizer, that never truncates."""
        if not self._framed_here:
            self._whole = copy.deepcopy(self._backend)
            self._whole.no_truncation()
            if length is not None:
                self._backend.enable_truncation(length, direction=self._side)
        cuts = _cuts(self._backend) if self._framed_here and self._side == "right" else None
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
        """Special tokens and those of the prompt: what a text leaves no room for."""
        return len(self._whole.encode(self._prompt, add_special_tokens=self._adds_special_tokens).ids)

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
        """What `encode` gives for each text. A batch that raises is halved down to the text at fault: it goes to `failed`."""
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


def framing_tokens(spec: EncoderSpec) -> int | None:
    """`Tokenizer.framing_tokens` without loading transformers; None where the folder has no tokenizer.json."""
    path = spec.transformer_folder / "tokenizer.json"
    if not path.is_file():
        return None
    backend = _read(path)
    backend.no_padding()
    backend.no_truncation()
    with _refused(f"{str(path)!r} is no tokenizer that works"):
        return len(backend.encode(spec.prompt, add_special_tokens=not spec.is_static).ids)


def _read(path: Path) -> Any:
    with _refused(f"{str(path)!r} is no tokenizer that can be read"):
        return tokenizers.Tokenizer.from_file(str(path))


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """InputError for whatever the library raises, which has no types of its own, and panics of Rust among it."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A panic is no Exception, as an interrupt by the user isn't.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what}: {type(error).__name__}: {error}") from None


def _load_static(spec: EncoderSpec) -> Any:
    """As sentence-transformers 6.2 loads it for a StaticEmbedding: a block of truncation in the file does cut."""
    backend = _read(spec.transformer_folder / "tokenizer.json")
    backend.no_padding()
    return backend


def _load(spec: EncoderSpec) -> Any:
    """transformers' fast tokenizer without padding or truncation, lower-casing as sentence-transformers 6.2 adds it."""
    from transformers import AutoTokenizer

    folder = str(spec.transformer_folder)
    with _refused(f"the tokenizer in {folder!r} doesn't load"), quiet_transformers():
        # False, not left out: transformers would ask the person at the keyboard.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder!r} is not a fast one: save the model with a tokenizer.json")
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


def _cuts(backend: Any) -> str | None:
    """The characters before which any text can be cut so that what stands before has the first ids of the whole.

    A space is one where pre-tokenizing splits there and nothing before it looks across: none of these normalizers joins
    a character to a space after it, none of these pre-tokenizers makes a piece that goes on at a space, no added token
    holds one. BERT also sets every Chinese character apart. None where nothing of the kind is known.
    """
    rules = json.loads(backend.to_str())
    pre_tokenizers = _steps(rules["pre_tokenizer"], "pretokenizers")
    normalizers = _steps(rules["normalizer"], "normalizers")
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


def _steps(rule: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """A rule of tokenizer.json as the list of its steps."""
    if rule is None:
        return []
    return [each for step in rule[name] for each in _steps(step, name)] if rule["type"] == "Sequence" else [rule]


def _normalizers(backend: Any) -> list[Any]:
    normalizer: Any = backend.normalizer
    if isinstance(normalizer, NormalizerSequence):
        return [*iter(normalizer)]
    return [] if normalizer is None else [normalizer]


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
