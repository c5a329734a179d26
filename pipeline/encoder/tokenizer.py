"""Texts in, token ids out: exactly those that sentence-transformers 6.2 would feed the model, in flat int32 arrays.

Uses the Rust tokenizer behind transformers' AutoTokenizer, or a faster one where it gives the same ids; prompt,
truncation and special tokens are put on here. Knows no model weights, no batches and no files but the tokenizer's own.
"""

import copy
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.fast_tokenizer import FastTokenizer
from pipeline.encoder.text_ranges import text_lengths, text_ranges
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer_backend import encode_each, load_fast, load_static, refused, safe_cuts, special_frame
from pipeline.errors import InputError
from pipeline.model.folder import EncoderSpec

Key = TypeVar("Key")
Offsets = tuple[NDArray[np.int64], NDArray[np.int64]]
"""[tokens] each: where the tokens of a text begin and where they end, in characters."""

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

    def __init__(self, spec: EncoderSpec, threads: int, expected_chars: int | None = None) -> None:
        """`threads`: cores for the Rust tokenizer, for the whole process, if it has tokenized nothing before;
        `expected_chars`: about how many characters it will be given, where that is known."""
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
        self._fast = FastTokenizer(self._backend, spec.prompt, threads, expected_chars)

    def _try_out(self, length: int | None, *, is_static: bool) -> None:
        """Find out how the tokenizer frames and cuts texts."""
        own = self._backend.truncation if is_static else None
        if own is not None:
            length, self._side = own["max_length"], own["direction"]
        self._prefix, self._suffix = special_frame(self._backend) if self._adds_special_tokens else ([], [])
        frame = len(self._prefix) + len(self._suffix)
        if length is not None and length <= frame:
            raise InputError(
                f"max_seq_length is {length}, which leaves no room for text beside the special tokens: "
                f"set model.max_seq_length to at least {frame + 1}"
            )
        self._room = None if length is None else length - frame
        """Tokens of a text that are kept; None is all."""
        self._framed_here = self._agrees_with_library()
        self._whole = self._backend
        """A copy of the tokenizer that never truncates."""
        if not self._framed_here:
            self._whole = copy.deepcopy(self._backend)
            self._whole.no_truncation()
            if own is not None:
                self._backend.enable_truncation(**own)
            elif length is not None:
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
        good = [text for row, text in enumerate(texts) if row not in failed] if failed else texts
        rows = self._tokenize([self._prompt + text for text in good] if self._prompt else good)
        if not failed:
            return rows
        places = [row for row in range(len(texts)) if row not in failed]
        return TokenRows.placed([(places, rows)], len(texts), failed)

    @property
    def told(self) -> str:
        """What a person should be told of the library that gave the ids; mostly nothing."""
        return self._fast.told

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
            encodings = encode_each(
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
        ids = self._encode([self._prompt]).ids.tolist()
        return len(ids) - (1 if ids and ids[-1] in self._special_ids else 0)

    def _tokenize(self, texts: Sequence[str]) -> TokenRows:
        """The ids of each text, the prompt in it. Of a long one only the beginning is read if that fills the model's
        length.

        The rest can't change what is kept, and the library would tokenize all of it: this is ten times faster on 20,000
        characters.
        """
        heads = self._heads(texts)
        if not heads:
            return self._encode(texts)
        rows = self._encode([heads.get(row, text) for row, text in enumerate(texts)])
        short = [row for row in heads if not rows.truncated[row]]
        if not short:
            return rows
        whole = self._encode([texts[row] for row in short])
        return TokenRows.placed([(range(len(texts)), rows), (short, whole)], len(texts))

    def _heads(self, texts: Sequence[str]) -> dict[int, str]:
        """Row -> the beginning of its text, for long texts that can be cut."""
        if self._cut is None:
            return {}
        heads = {row: self._head(text) for row, text in enumerate(texts) if len(text) > self._head_chars}
        return {row: head for row, head in heads.items() if head is not None}

    def _head(self, text: str) -> str | None:
        """A beginning of the text that ends where it can be cut; None where there is no such place."""
        assert self._cut is not None
        for end in range(self._head_chars, self._head_chars // 2, -1):
            # Behind white space a token may hang on what comes next.
            if self._cut.match(text[end]) and not text[end - 1].isspace():
                return text[:end]
        return None

    def _encode(self, texts: Sequence[str]) -> TokenRows:
        """The ids of each text, framed and cut."""
        ranges = text_ranges(text_lengths(texts), _BATCH_CHARS)
        return TokenRows.concatenated([self._encode_batch(texts[start:stop]) for start, stop in ranges])

    def _encode_batch(self, texts: Sequence[str]) -> TokenRows:
        found = self._fast.encode(texts) if self._framed_here else None
        if found is None:
            return self._encode_installed(texts)
        rows = self._framed(found.ids, found.lengths, self._room)
        if len(rows) == len(texts):
            return rows
        rest = sorted(set(range(len(texts))).difference(found.places.tolist()))
        others = self._encode_installed([texts[row] for row in rest])
        return TokenRows.placed([(found.places, rows), (rest, others)], len(texts))

    def _encode_installed(self, texts: Sequence[str]) -> TokenRows:
        """The ids of each text by the installed library."""
        add_special_tokens = self._adds_special_tokens and not self._framed_here
        failed: dict[int, str] = {}
        encodings = encode_each(
            dict(enumerate(texts)),
            failed,
            lambda some: self._backend.encode_batch_fast(some, add_special_tokens=add_special_tokens),
        )
        ids, lengths = _flat([encoding.ids for encoding in encodings.values()])
        if self._framed_here:
            rows = self._framed(ids, lengths, self._room)
        else:
            cut = np.array([bool(encoding.overflowing) for encoding in encodings.values()], np.bool_)
            rows = TokenRows(ids, _offsets(lengths), cut)
        return TokenRows.placed([(list(encodings), rows)], len(texts), failed) if failed else rows

    def _framed(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], room: int | None) -> TokenRows:
        """The ids that fit, between the special tokens; `lengths` [n] are those of the texts without any."""
        kept = lengths if room is None else np.minimum(lengths, room)
        cut = kept < lengths
        if cut.any():
            first = np.repeat(_offsets(lengths)[:-1] + (lengths - kept if self._side == "left" else 0), lengths)
            place = np.arange(len(ids)) - first
            ids = ids[(place >= 0) & (place < np.repeat(kept, lengths))]
        if not self._prefix and not self._suffix:
            return TokenRows(ids, _offsets(kept), cut)
        offsets = _offsets(kept + len(self._prefix) + len(self._suffix))
        framed, of_text = np.empty(offsets[-1], np.int32), np.ones(offsets[-1], np.bool_)
        specials = [(offsets[:-1] + place, number) for place, number in enumerate(self._prefix)]
        specials += [(offsets[1:] - place, number) for place, number in enumerate(reversed(self._suffix), 1)]
        for places, number in specials:
            framed[places], of_text[places] = number, False
        framed[of_text] = ids
        return TokenRows(framed, offsets, cut)

    def _agrees_with_library(self) -> bool:
        """Whether cutting and framing here gives the ids that the library's own truncation and template give."""
        room = min(self._room or _PROBE_TOKENS, _PROBE_TOKENS)
        probes = [*_PROBES, "word " * (2 * room), "字" * (2 * room)]
        self._backend.enable_truncation(room + len(self._prefix) + len(self._suffix), direction=self._side)
        expected = self._backend.encode_batch(probes, add_special_tokens=self._adds_special_tokens)
        self._backend.no_truncation()
        if self._adds_special_tokens and any(any(encoding.type_ids) for encoding in expected):
            raise InputError("the model's tokenizer gives token types other than 0: not supported")
        bare = self._backend.encode_batch_fast(probes, add_special_tokens=False)
        rows = self._framed(*_flat([encoding.ids for encoding in bare]), room)
        ours = [rows.ids[start:stop].tolist() for start, stop in itertools.pairwise(rows.offsets)]
        return ours == [encoding.ids for encoding in expected]


def _flat(rows: Sequence[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(all ids one after the other, [n]: ids per row)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1]: where each row begins and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)])


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
