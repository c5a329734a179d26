"""Order, duplicates, memory and bad rows: what the encoder promises about any engine."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder import encoder as encoder_module
from pipeline.encoder.encoder import MOST_SAVED, Encoder, build_encoder
from pipeline.encoder.engines.base import DeviceLost, EngineLost, OutOfMemory
from pipeline.encoder.token_rows import TokenRows
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import RunError
from pipeline.model.folder import encoder_spec
from tests.tiny import build_tiny_model


class FakeEngine:
    name = "fake"

    """A vector is (first token, number of tokens, sum of tokens); counts its calls and fails as told."""

    dim = 3

    def __init__(self, max_cells=10**9, poison=None, answer=None):
        self.max_cells = max_cells
        self.poison = poison
        self.answer = answer
        self.batches = []

    def encode(self, ids, lengths):
        assert ids.dtype == np.int32
        assert lengths.dtype == np.int32
        assert ids.flags.c_contiguous
        assert lengths.max() == ids.shape[1]
        self.batches.append(ids.shape)
        if ids.size > self.max_cells:
            raise OutOfMemory("too large")
        if self.poison is not None and (ids[:, 0] == self.poison).any():
            if self.answer is None:
                raise ValueError("can't stand this row")
            vectors = self._vectors(ids, lengths)
            vectors[ids[:, 0] == self.poison] = self.answer
            return vectors
        return self._vectors(ids, lengths)

    def _vectors(self, ids, lengths):
        return np.stack([ids[:, 0], lengths, ids.sum(axis=1)], axis=1).astype(np.float32)


def token_rows(*rows, failed=None):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    ids = np.array([token for row in rows for token in row], np.int32)
    return TokenRows(ids, offsets, np.zeros(len(rows), np.bool_), failed or {})


def random_rows(count, seed=0):
    generator = np.random.default_rng(seed)
    return [[number + 1, *generator.integers(1, 9, generator.integers(0, 30))] for number in range(count)]


def expected_vectors(rows):
    return np.array([[row[0], len(row), sum(row)] for row in rows], np.float32)


@pytest.mark.parametrize("budget", [1, 50, 100_000])
def test_vectors_come_back_in_the_order_of_the_rows(budget):
    rows = random_rows(200)
    encoded = Encoder(FakeEngine(), budget).encode(token_rows(*rows))
    np.testing.assert_array_equal(encoded.vectors, expected_vectors(rows))
    assert encoded.vectors.dtype == np.float32
    assert encoded.failed == {}
    assert encoded.rows_encoded == 200
    assert encoded.tokens == sum(map(len, rows))
    assert encoded.padded_tokens >= encoded.tokens


def test_equal_rows_are_encoded_once():
    engine = FakeEngine()
    rows = [[1, 2], [1, 3], [1, 2], [1, 2, 3], [1, 2]]
    encoded = Encoder(engine, 1000).encode(token_rows(*rows))
    np.testing.assert_array_equal(encoded.vectors, expected_vectors(rows))
    assert encoded.rows_encoded == 3
    assert sum(shape[0] for shape in engine.batches) == 3
    assert encoded.tokens == 7


def test_rows_that_only_begin_alike_are_not_equal():
    rows = [[1], [1, 1], [1, 1, 1]]
    encoded = Encoder(FakeEngine(), 1000).encode(token_rows(*rows))
    np.testing.assert_array_equal(encoded.vectors, expected_vectors(rows))


class Overlapping(FakeEngine):
    """It computes a batch only once the rows of the next call were prepared."""

    def __init__(self, prepared):
        super().__init__()
        self.prepared, self.inside, self.most_inside = prepared, 0, 0

    def encode(self, ids, lengths):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        assert self.prepared.wait(30), "nobody prepares while the engine works"
        found = super().encode(ids, lengths)
        self.inside -= 1
        return found


def test_one_call_has_the_engine_while_another_prepares_its_rows(monkeypatch):
    prepared, calls = threading.Event(), []

    def counted(tokens):
        found = distinct_rows(tokens)
        calls.append(tokens)
        if len(calls) == 2:
            prepared.set()
        return found

    distinct_rows = encoder_module._distinct_rows
    monkeypatch.setattr(encoder_module, "_distinct_rows", counted)
    engine = Overlapping(prepared)
    encoder = Encoder(engine, 50)
    rows = [random_rows(60, seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda some: encoder.encode(token_rows(*some)), rows))
    for some, encoded in zip(rows, found, strict=True):
        np.testing.assert_array_equal(encoded.vectors, expected_vectors(some))
        assert encoded.tokens == sum(map(len, some))
    assert engine.most_inside == 1
    turns = sorted(encoded.turn for encoded in found)
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(turns))
    assert max(encoded.waited_seconds for encoded in found) > 0


def test_too_little_memory_halves_the_budget_and_is_remembered():
    engine = FakeEngine(max_cells=64)
    encoder = Encoder(engine, 1000)
    rows = random_rows(100)
    encoded = encoder.encode(token_rows(*rows))
    np.testing.assert_array_equal(encoded.vectors, expected_vectors(rows))
    assert encoded.failed == {}
    assert encoder.budget_tokens <= 64
    engine.batches.clear()
    encoder.encode(token_rows(*rows))
    assert all(height * width <= 64 for height, width in engine.batches)


def test_a_row_that_does_not_fit_alone_fails_alone():
    rows = [[1] * 5, [2] * 50, [3] * 5]
    encoded = Encoder(FakeEngine(max_cells=20), 1000).encode(token_rows(*rows))
    assert list(encoded.failed) == [1]
    assert "memory" in encoded.failed[1]
    np.testing.assert_array_equal(encoded.vectors[[0, 2]], expected_vectors(rows)[[0, 2]])


def test_a_failing_batch_is_halved_down_to_the_row():
    rows = random_rows(64)
    engine = FakeEngine(poison=20)
    encoded = Encoder(engine, 100_000, overhead_tokens=100_000).encode(token_rows(*rows))
    assert list(encoded.failed) == [19]
    assert "can't stand this row" in encoded.failed[19]
    others = np.arange(64) != 19
    np.testing.assert_array_equal(encoded.vectors[others], expected_vectors(rows)[others])
    assert len(engine.batches) <= 2 * 7 + 1


@pytest.mark.parametrize(
    ("answer", "word"), [([np.nan, 1, 1], "NaN"), ([1, np.inf, 1], "infinity"), ([0, 0, 0], "zeros")]
)
def test_a_vector_that_is_none_is_a_failed_row(answer, word):
    rows = [[1], [2], [3], [2]]
    encoded = Encoder(FakeEngine(poison=2, answer=answer), 1000).encode(token_rows(*rows))
    assert list(encoded.failed) == [1, 3]
    assert word in encoded.failed[1]
    assert np.isnan(encoded.vectors[[1, 3]]).all()
    assert encoded.rows_encoded == 2


def test_rows_without_tokens_fail_with_the_reason_of_the_tokenizer():
    encoded = Encoder(FakeEngine(), 1000).encode(token_rows([1], [], [], failed={1: "broken text"}))
    assert encoded.failed == {1: "broken text", 2: "the text has no tokens"}
    assert encoded.rows_encoded == 1


def test_a_lost_device_blames_no_row():
    class LostEngine(FakeEngine):
        def encode(self, ids, lengths):
            raise RunError("the GPU failed")

    with pytest.raises(RunError):
        Encoder(LostEngine(), 1000).encode(token_rows([1], [2]))


@pytest.mark.parametrize(
    ("alone", "failed"),
    [
        (None, {}),
        (ValueError("not even alone"), {4: "can't stand this row"}),
        (EngineLost("was ended", hung=False), {4: "it"}),
    ],
    ids=["encoded", "refused", "fatal"],
)
def test_a_row_that_may_be_the_devices_fault_is_tried_in_a_process_of_its_own(alone, failed):
    class Apart(FakeEngine):
        def encode(self, ids, lengths):
            self.batches.append(ids.shape)
            if alone is not None:
                raise alone
            return self._vectors(ids, lengths)

    rows = random_rows(40)
    encoder = Encoder(FakeEngine(poison=5), 1000)
    encoder.apart = Apart()
    encoded = encoder.encode(token_rows(*rows))
    assert encoder.apart.batches == [(1, len(rows[4]))]
    assert encoded.failed.keys() == failed.keys()
    assert all(reason in encoded.failed[row] for row, reason in failed.items())
    good = [row for row in range(40) if row not in failed]
    np.testing.assert_array_equal(encoded.vectors[good], expected_vectors(rows)[good])


def test_a_process_in_which_good_rows_fail_is_held_to_be_broken():
    class Broken(FakeEngine):
        def encode(self, ids, lengths):
            raise RuntimeError("cuBLAS API failed with status 14")

    encoder = Encoder(Broken(), 1000)
    encoder.apart = FakeEngine()
    with pytest.raises(DeviceLost, match="cuBLAS"):
        encoder.encode(token_rows(*random_rows(40)))
    assert len(encoder.apart.batches) == MOST_SAVED + 1


def test_progress_counts_every_row_once():
    calls = []
    rows = [*random_rows(50), [7], [7], [20, 1]]
    encoded = Encoder(FakeEngine(poison=20), 100).encode(token_rows(*rows), lambda *call: calls.append(call))
    assert sum(settled for settled, _ in calls) == len(rows)
    assert sum(tokens for _, tokens in calls) == encoded.tokens
    assert len(calls) > 1


def test_no_rows_are_no_vectors():
    encoded = Encoder(FakeEngine(), 1000).encode(token_rows())
    assert encoded.vectors.shape == (0, 3)
    assert encoded.engine_seconds == 0


def test_a_text_has_the_same_vector_alone_and_among_others(tmp_path):
    spec = encoder_spec(ModelSpec(path=str(build_tiny_model(tmp_path))))
    tokenizer, encoder = Tokenizer(spec, threads=1), build_encoder(spec, "cpu", threads=1)
    texts = [f"report {'oil ' * (number % 17)} number {number}" for number in range(60)]
    together = encoder.encode(tokenizer.tokenize(texts)).vectors
    for number in range(0, 60, 7):
        alone = encoder.encode(tokenizer.tokenize([texts[number]])).vectors[0]
        np.testing.assert_allclose(together[number], alone, atol=1e-6)


class FragileEngine(FakeEngine):
    name = "fake"

    """Loses its process at some first tokens, at others when they are in work with one of the first, or by chance."""

    def __init__(self, killers=(), hangers=(), together=(), chance=()):
        super().__init__()
        self.killers, self.hangers, self.together, self.chance = set(killers), set(hangers), set(together), set(chance)
        self.lost = 0

    def encode(self, ids, lengths):
        first = set(ids[:, 0].tolist())
        number = len(self.batches)
        vectors = super().encode(ids, lengths)
        kills = first & self.killers or number in self.chance or (self.together and self.together <= first)
        if kills or first & self.hangers:
            self.lost += 1
            raise EngineLost("was ended by SIGSEGV" if kills else "gave no answer for 5 s", hung=not kills)
        return vectors


@pytest.mark.parametrize(
    ("faults", "failed", "most_lost"),
    [
        ({"killers": [7]}, {6}, 3),
        ({"hangers": [7]}, {6}, 2),
        ({"killers": [1, 40], "hangers": [20]}, {0, 19, 39}, 8),
        ({"together": [5, 6]}, set(), 1),
        ({"chance": [0, 5, 30]}, set(), 3),
    ],
)
def test_a_row_that_ends_its_process_fails_alone_and_chance_condemns_none(faults, failed, most_lost):
    rows = [[number + 1, 1, 1] for number in range(40)]
    engine = FragileEngine(**faults)
    settled = []
    encoded = Encoder(engine, 30, 1).encode(token_rows(*rows), lambda rows, tokens: settled.append(rows))
    assert set(encoded.failed) == failed
    good = sorted(set(range(40)) - failed)
    assert np.array_equal(encoded.vectors[good], expected_vectors(rows)[good])
    assert engine.lost <= most_lost
    assert sum(settled) == 40


@pytest.mark.parametrize("kind", ["killers", "hangers"])
def test_a_process_that_is_lost_at_every_row_is_not_the_rows_fault(kind):
    rows = [[number + 1] for number in range(40)]
    with pytest.raises(RunError, match="hardly the rows' fault"):
        Encoder(FragileEngine(**{kind: range(1, 41)}), 1000).encode(token_rows(*rows))


class PackedEngine(FakeEngine):
    name = "fake"

    """Takes `in_flight` batches of packed rows before it answers; what it can't stand it says then (`late`) or at once."""

    def __init__(self, in_flight=3, late=True, **faults):
        super().__init__(**faults)
        self.in_flight = in_flight
        self.late = late
        self.running = self.most_running = 0
        self.sizes = []

    def encode(self, ids, lengths):
        raise AssertionError("rows were to be packed")

    def size(self, lengths):
        return int(lengths.sum())

    def start_packed(self, ids, lengths):
        assert ids.dtype == lengths.dtype == np.int32
        assert ids.shape == (lengths.sum(),)
        self.sizes.append(len(ids))
        vectors = None if self.late else self._encoded(ids, lengths)
        self.running += 1
        self.most_running = max(self.most_running, self.running)

        def answer():
            self.running -= 1
            return self._encoded(ids, lengths) if vectors is None else vectors

        return answer

    def _encoded(self, ids, lengths):
        if len(ids) > self.max_cells:
            raise OutOfMemory("too large")
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        if self.poison is not None and any(row[0] == self.poison for row in rows):
            raise ValueError("can't stand this row")
        return expected_vectors([row.tolist() for row in rows])


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_batches_in_flight_come_back_in_the_order_of_the_rows(in_flight, late):
    rows = random_rows(200)
    engine = PackedEngine(in_flight, late)
    encoded = Encoder(engine, 100).encode(token_rows(*rows))
    np.testing.assert_array_equal(encoded.vectors, expected_vectors(rows))
    assert encoded.padded_tokens == encoded.tokens == sum(map(len, rows))
    assert engine.running == 0
    assert engine.most_running == in_flight


@pytest.mark.parametrize("late", [True, False])
def test_too_little_memory_with_batches_in_flight_halves_the_budget_once(late):
    rows = [[number + 1, *[1] * 19] for number in range(400)]
    engine = PackedEngine(3, late, max_cells=1000)
    encoder = Encoder(engine, 1600)
    calls = []
    encoded = encoder.encode(token_rows(*rows), lambda *call: calls.append(call))
    np.testing.assert_array_equal(encoded.vectors, expected_vectors(rows))
    assert encoded.failed == {}
    assert encoder.budget_tokens == 800
    assert sum(settled for settled, _ in calls) == 400
    assert sum(tokens for _, tokens in calls) == encoded.tokens == 8000
    engine.sizes.clear()
    encoder.encode(token_rows(*rows))
    assert max(engine.sizes) == 800


@pytest.mark.parametrize("late", [True, False])
def test_a_bad_row_fails_alone_with_batches_in_flight(late):
    rows = random_rows(64)
    encoded = Encoder(PackedEngine(3, late, poison=20), 200).encode(token_rows(*rows))
    assert list(encoded.failed) == [19]
    others = np.arange(64) != 19
    np.testing.assert_array_equal(encoded.vectors[others], expected_vectors(rows)[others])


@pytest.mark.parametrize("late", [True, False])
def test_a_device_lost_with_batches_in_flight_blames_no_row(late):
    class LostEngine(PackedEngine):
        def _encoded(self, ids, lengths):
            raise RunError("the GPU failed")

    with pytest.raises(RunError):
        Encoder(LostEngine(3, late), 10).encode(token_rows([1], [2], [3, 4], [5] * 9))
