"""A load on a Ray cluster puts the same rows into the store, and no password is printed."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import ResourceSpec
from pipeline.runs import feed as runs
from tests.feeds.nights import assert_same_rows, nights_of
from tests.feeds.stores import Place


def test_a_load_on_a_cluster(
    tmp_path: Path,
    tiny_model: Path,
    ray_address: str,
    postgres_places: Callable[[], contextlib.AbstractContextManager[Place]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pipeline.execution.ray.executor import RayExecutor

    with postgres_places() as place:
        spec = dataclasses.replace(place.spec, options={"password": "hunter2"})
        nights = nights_of(tmp_path / "n", tiny_model, dataclasses.replace(place, spec=spec))
        nights.night(range(200))
        with RayExecutor(ResourceSpec(ray_address=ray_address)) as executor:
            found = runs.feed(nights.spec, "docs", lambda: executor)
        assert (found.sent, found.switched) == (200, True)
        assert_same_rows(nights)
        assert "hunter2" not in "".join(capfd.readouterr())
