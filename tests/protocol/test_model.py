"""Whatever two or three processes do to a table at once, and wherever each is stopped or dies: all states are sound."""

import importlib

import pytest

from tests.protocol.model import explored
from tests.protocol.scenarios import PAIRS, TRIPLES
from tests.protocol.steps import STANDS_FOR


@pytest.mark.parametrize("scenario", PAIRS, ids=" ".join)
def test_two_at_once_leave_no_broken_state(scenario):
    found = explored(*scenario)
    assert found.fault == "", found
    assert found.ends


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", TRIPLES, ids=" ".join)
def test_three_at_once_leave_no_broken_state(scenario):
    found = explored(*scenario)
    assert found.fault == "", found
    assert found.states > 10_000


@pytest.mark.parametrize(("step", "name"), STANDS_FOR.items())
def test_each_step_stands_for_a_function_of_the_program(step, name):
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for piece in path.split("."):
        found = getattr(found, piece)
    assert callable(found)
