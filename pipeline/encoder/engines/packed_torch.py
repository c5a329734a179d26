"""The transformers model on torch, with rows packed one behind the other: token ids in, float32 vectors out.

No token of padding is computed, and batches come in few sizes, each of which a GPU records once and replays. Which
architectures can be packed is not listed: each model proves it against the padded engine when it is loaded.
"""

import inspect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoder.batching import packed_tokens, token_batches
from pipeline.encoder.engines import row_attention
from pipeline.encoder.engines.base import Answer, OutOfMemory
from pipeline.encoder.engines.device import translated_errors
from pipeline.encoder.engines.packing import PackedRows, pack_rows
from pipeline.encoder.engines.recording import Outputs, Recording
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.errors import RunError
from pipeline.model.architectures import ARCHITECTURES
from pipeline.model.folder import EncoderSpec
from pipeline.model.quiet import quiet_transformers

LEAST_SIZE = 1024
"""Tokens of the smallest constant size; the others are its doubles."""
LONGEST_STEP = 128
"""A kernel is launched for rows of up to so many tokens, or a multiple of them: the longest row is no constant. Kernels
work on rows in pieces of this length."""
LEAST_SLOTS, MOST_SLOTS = 64, 65_535
"""A kernel is launched for so many rows at least, or for one of the doubles of that, empty ones included. It can't be
launched for more than the most."""
POOLING_OVERHEAD_TOKENS = 16384
"""Pooling one more matrix costs about as much time as this many tokens more in it."""


AT_CONSTANT_SIZES, PACKED = "torch, packed at constant sizes", "torch, packed"


class PackedTorchEngine:
    """Implements engines.base.PackingEngine and SeveralWays, and Engine by the padded engine that it is made of."""

    def __init__(self, padded: TorchEngine, spec: EncoderSpec, *, constant: bool) -> None:
        """`constant`: batches are filled up to a constant size, and replayed where there is a GPU."""
        self.name = AT_CONSTANT_SIZES if constant else PACKED
        self.dim = padded.dim
        self.in_flight = padded.in_flight
        self._padded, self._spec = padded, spec
        self._constant = constant
        self._fill_length = min(LONGEST_STEP, spec.max_seq_length or LONGEST_STEP)
        """It is no longer than rows may be: the model has no positions for more."""
        self._pad_id = padded.model.config.pad_token_id if ARCHITECTURES[spec.model_type].positions_after_pad else None
        self._recordings: dict[tuple[int, int, int], Recording] = {}
        self._pool = torch.cuda.graph_pool_handle() if constant and padded.device.type == "cuda" else None
        row_attention.register()

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """Why sizes couldn't be recorded: they are computed as they come."""
        return tuple({f"not recorded: {each.refused}" for each in self._recordings.values() if each.refused})

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """The vectors of the padded engine, for callers that have a matrix."""
        return self._padded.encode(ids, lengths)

    def size(self, lengths: NDArray[np.int64]) -> int:
        """The tokens that a batch is computed as. Short rows count as LEAST_TOKENS each, so that rows are few."""
        return doubled(LEAST_SIZE, packed_tokens(lengths)) if self._constant else int(lengths.sum())

    @torch.inference_mode()
    def start_packed(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Answer:
        """ids int32 [sum of lengths], lengths int32 [n] -> float32 [n, dim], in the order of the rows."""
        try:
            return self._started(ids, lengths)
        except OutOfMemory:
            self.forget()  # Batches are smaller from now on, and recordings of larger ones would hold what they need.
            raise

    def _started(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Answer:
        with translated_errors(), quiet_transformers():
            rows = self._packed(ids, lengths)
            groups = token_batches(lengths.astype(np.int64), 2 * len(rows.ids), POOLING_OVERHEAD_TOKENS)
            order = np.concatenate(groups)
            given = self._padded.transfer.to_device(
                rows.ids, rows.positions, rows.bounds, rows.bounds[order], lengths[order]
            )
            hidden, layers = self._transform(given[:3], rows.longest)
            vectors = self._pool_rows(hidden, given[0].long(), layers, given[3], given[4], lengths, groups)
            answer = self._padded.transfer.to_host(vectors)
        return lambda: answer()[np.argsort(order)]

    def others(self) -> Iterator["TorchEngine | PackedTorchEngine"]:
        """Yield the padded engine, and the one that is packed at sizes as they come, where it is proven; they share their
        weights."""
        yield self._padded
        if self._constant:
            packed = PackedTorchEngine(self._padded, self._spec, constant=False)
            if not _why_not(packed, self._padded, self._spec):
                yield packed

    def forget(self) -> None:
        """Give back the memory of what was recorded; sizes that come again are recorded anew."""
        self._recordings.clear()

    def _packed(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> PackedRows:
        longest = int(lengths.max())
        if not self._constant:
            return pack_rows(ids, lengths, pad_id=self._pad_id, longest=longest)
        size = self.size(lengths.astype(np.int64))
        fills = -(-(size - len(ids)) // self._fill_length)
        return pack_rows(
            ids,
            lengths,
            pad_id=self._pad_id,
            size=size,
            slots=slots_for(len(lengths) + fills),
            longest=-(-longest // LONGEST_STEP) * LONGEST_STEP,
            fill_length=self._fill_length,
        )

    def _transform(self, inputs: Sequence[Tensor], longest: int) -> Outputs:
        if not self._constant:
            return self._forward(longest, *inputs)
        key = len(inputs[0]), len(inputs[2]), longest
        if key not in self._recordings:
            self._recordings[key] = Recording(lambda *static: self._forward(longest, *static), inputs, self._pool)
        return self._recordings[key](*inputs)

    def _forward(self, longest: int, ids: Tensor, positions: Tensor, bounds: Tensor) -> Outputs:
        """Run the transformer on packed rows; the names of the arguments are those of transformers for its own packed
        input."""
        self._padded.attend_by(row_attention.NAME)
        return self._padded.transform(
            ids.long()[None],
            attention_mask=None,
            position_ids=positions.long()[None],
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
        )

    def _pool_rows(
        self,
        hidden: Tensor,
        ids: Tensor,
        layers: Sequence[Tensor],
        starts: Tensor,
        sizes: Tensor,
        lengths: NDArray[np.int32],
        groups: Sequence[NDArray[np.int64]],
    ) -> Tensor:
        """Matrices again, of rows of about one length, so that poolings have one formula: float32 [n, dim] in the order of
        the groups, as `starts` and `sizes` are."""
        vectors = []
        first = 0
        for group in groups:
            behind, width = first + len(group), int(lengths[group].max())
            cells = starts[first:behind, None] + torch.arange(width, device=ids.device)[None, :]
            cells = cells.clamp(max=len(ids) - 1)  # a row's end may stand before that of the matrix
            filled = int(lengths[group].min()) == width
            vectors.append(
                self._padded.head(
                    hidden[0, cells],
                    ids[cells],
                    None if filled else sizes[first:behind],
                    [layer[0, cells] for layer in layers],
                )
            )
            first = behind
        return torch.cat(vectors)


def doubled(least: int, value: int) -> int:
    """The smallest of least, least * 2, least * 4, ... that is not below value."""
    while least < value:
        least *= 2
    return least


def slots_for(rows: int) -> int:
    """The rows that a kernel is launched for. Raises OutOfMemory where a batch has too many: fewer fit."""
    if rows > MOST_SLOTS:
        raise OutOfMemory(f"a batch of {rows:,} rows; a kernel takes {MOST_SLOTS:,}")
    return min(doubled(LEAST_SLOTS, rows), MOST_SLOTS)


MOST_DIFFERENT = {"float32": 1e-5, "float16": 1e-4, "bfloat16": 1e-3}
"""A packed vector may differ by so much from the padded one: in float32 in each number, else in 1 - cosine."""
PROOF_WIDTH = 2048
"""The longest rows that are tried, where a model takes longer ones."""


def packed_if_proven(padded: TorchEngine, spec: EncoderSpec) -> tuple[TorchEngine | PackedTorchEngine, tuple[str, ...]]:
    """(the first engine that gives the vectors of the padded one, why those before it don't)."""
    notes: list[str] = []
    for words, constant in (("packed, at constant sizes", True), ("packed", False)):
        packed = PackedTorchEngine(padded, spec, constant=constant)
        reason = _why_not(packed, padded, spec)
        if not reason:
            return packed, (*notes, *packed.unrecorded)
        packed.forget()
        notes.append(f"not {words}: {reason}")
    return padded, tuple(notes)


def _why_not(packed: PackedTorchEngine, padded: TorchEngine, spec: EncoderSpec) -> str:
    """How it fails, or differs from the padded engine; "" for one that may be used."""
    try:
        return difference(packed, padded, spec)
    except RunError:  # the device is lost
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def difference(packed: PackedTorchEngine, padded: TorchEngine, spec: EncoderSpec) -> str:
    """How packed vectors differ from padded ones beyond what the precision explains; "" where they don't.

    Rows of one token to the full width, of any ids and of those that some models treat in a way of their own, in several
    batches of one size: what was recorded with one must hold for the next.
    """
    if not padded.model._can_set_attn_implementation():
        return f"the attention of {spec.model_type} can't be replaced"
    # Tried all the same, positions beyond a table's end would cost the process its GPU.
    if "position_ids" not in inspect.signature(padded.model.forward).parameters:
        return f"{spec.model_type} is not told positions, it counts them itself"
    width = min(spec.max_seq_length or PROOF_WIDTH, PROOF_WIDTH)
    for number, lengths in enumerate(_proof_lengths(width)):
        ids = _proof_ids(padded, lengths, seed=number)
        matrix = np.zeros((len(lengths), lengths.max()), np.int32)
        matrix[np.arange(lengths.max()) < lengths[:, None]] = ids
        expected, given = padded.encode(matrix, lengths), packed.start_packed(ids, lengths)()
        reason = _compare(expected, given, spec.precision)
        if reason:
            return reason
    return ""


def _proof_lengths(width: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(0)
    mixed = [np.append(generator.integers(1, width + 1, 9), [1, 2, 3, width, width // 2 + 1, 1]) for _ in range(2)]
    return [np.minimum(lengths, width).astype(np.int32) for lengths in (*mixed, np.array([width]), np.array([1]))]


def _proof_ids(padded: TorchEngine, lengths: NDArray[np.int32], seed: int) -> NDArray[np.int32]:
    generator = np.random.default_rng(seed)
    vocabulary = int(padded.model.get_input_embeddings().num_embeddings)
    named = [value for name, value in padded.model.config.to_dict().items() if name.endswith("_token_id")]
    special = [value for value in named if isinstance(value, int) and 0 <= value < vocabulary] or [0]
    ids = generator.integers(0, vocabulary, lengths.sum())
    return np.where(generator.random(len(ids)) < 0.1, generator.choice(special, len(ids)), ids).astype(np.int32)


def _compare(expected: NDArray[np.float32], given: NDArray[np.float32], precision: str) -> str:
    """Rows that have no vector, as one that is all prompt, must have none in both."""
    norms = np.linalg.norm(expected, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    if (usable != (np.isfinite(given).all(axis=1) & given.any(axis=1))).any():
        return "rows have a vector in one way and none in the other"
    if not usable.any():
        return ""
    expected, given, norms = expected[usable], given[usable], norms[usable]
    if precision == "float32":
        most = float((np.abs(given - expected).max(axis=1) / np.maximum(np.abs(expected).max(axis=1), 1)).max())
    else:
        most = float(1 - ((expected * given).sum(axis=1) / (norms * np.linalg.norm(given, axis=1))).min())
    limit = MOST_DIFFERENT[precision]
    kind = "numbers differ by" if precision == "float32" else "cosines fall short of 1 by"
    return "" if most <= limit else f"{kind} up to {most:.2g} from those of padded rows, over {limit:g}"
