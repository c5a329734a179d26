"""Order, duplicates, memory and bad rows: what the encoder promises about any engine."""

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder import Encoder, build_encoder
from pipeline.engines.base import EngineLost, OutOfMemory
from pipeline.errors import RunError
from pipeline.model.folder import encoder_spec
from pipeline.tokenizing import Tokenizer, TokenRows
from tests.tiny import build_tiny_model


class FakeEngine:
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
