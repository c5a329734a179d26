"""What is made ahead: everything once and in order, one thing early, and nothing after the block."""

import threading
from collections.abc import Generator

import pytest

from pipeline.errors import StorageError
from pipeline.feeds.ahead import ahead


def test_the_next_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(5)]

    def making() -> Generator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    used = []
    with ahead(making()) as numbers:
        for number in numbers:
            assert number == 4 or made[number + 1].wait(10)
            used.append(number)
    assert used == [0, 1, 2, 3, 4]


def test_an_error_comes_to_who_uses_and_leaving_ends_the_making() -> None:
    ended = []

    def making() -> Generator[int]:
        try:
            yield 1
            yield 2
            raise StorageError("the file is gone")
        finally:
            ended.append(True)

    with ahead(making()) as numbers:
        assert [next(numbers), next(numbers)] == [1, 2]
        with pytest.raises(StorageError, match="gone"):
            next(numbers)
    with ahead(making()) as numbers:
        assert next(numbers) == 1
    assert ended == [True, True]
