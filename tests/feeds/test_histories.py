"""Random histories of a table and its feed, crashes included: in the end the store holds the table, and nothing else."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.table.operations import purge, restore, vacuum
from tests.feeds.nights import Nights, assert_same_rows, crashing, nights_of
from tests.feeds.stores import Place

NAMES = st.sets(st.integers(0, 25), max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("night"), NAMES, NAMES, NAMES),
    st.tuples(st.just("feed"), st.booleans()),
    st.tuples(st.just("crash"), st.integers(1, 30), st.booleans(), st.booleans()),
    st.tuples(st.just("purge"), st.integers(0, 25)),
    st.tuples(st.just("roll back"), st.integers(1, 5)),
    st.tuples(st.just("clean")),
)


def take(nights: Nights, step: tuple[Any, ...]) -> None:
    match step:
        case ("night", new, changed, gone):
            left = {int(name) for name in nights.documents}
            texts = {name: f"changed {name} {len(nights.documents)}" for name in changed}
            nights.night(new, changed=texts, gone=(gone & left) - {min(left)})
        case ("feed", anew):
            nights.feed(allow_deletes=True, rebuild=anew)
        case ("crash", number, after, anew):
            with crashing(number, after):
                nights.feed(allow_deletes=True, rebuild=anew)
        case ("purge", name):
            with contextlib.suppress(InputError):  # not there
                purge.purge(nights.table, [str(name)])
            nights.documents.pop(str(name), None)
            if not nights.documents:
                nights.documents["99"] = {"id": "99", "text": "t", "title": "t", "number": 1, "lang": "en"}
            nights.night()
        case ("roll back", number):
            with contextlib.suppress(InputError):  # the current one, or purged
                restore.roll_back(nights.table, number)
                restore.release(nights.table)
        case ("clean",):
            vacuum.clean(nights.table, 0)


@pytest.mark.parametrize("kind", ["postgres", "lance"])
@given(steps=st.lists(STEPS, min_size=2, max_size=7))
@settings(
    max_examples=int(os.environ.get("FEED_HISTORIES", "6")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_the_store_follows_the_table_through_any_history(
    kind: str, steps: list[tuple[Any, ...]], request: pytest.FixtureRequest, tmp_path_factory: Any, tiny_model: Path
) -> None:
    places: Callable[[], AbstractContextManager[Place]] = request.getfixturevalue(f"{kind}_places")
    with places() as place:
        spec = dataclasses.replace(
            place.spec, limits=dataclasses.replace(place.spec.limits, lease_s=0.01, bytes_in_flight=1000)
        )
        nights = nights_of(tmp_path_factory.mktemp("h") / "n", tiny_model, dataclasses.replace(place, spec=spec))
        nights.night(range(12))
        for step in steps:
            take(nights, step)
        nights.feed(allow_deletes=True)
        assert_same_rows(nights)
        assert nights.verify().verification.passed
        assert nights.feed().action == "nothing to do"
