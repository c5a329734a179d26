"""Each guard of the protocol is needed: without it the explorer finds a counterexample between the processes named here."""

import dataclasses

import pytest

from tests.protocol.model import explored
from tests.protocol.rules import ALL, Rules
from tests.protocol.scenarios import FAILURES


@pytest.mark.parametrize("rule", FAILURES)
def test_without_a_guard_a_counterexample_is_found(rule):
    scenario, fault = FAILURES[rule]
    found = explored(*scenario, rules=ALL.without(rule))
    assert fault in found.fault, found
    # It can be read: a line a step, each with the process that takes it.
    assert str(found).count("\n") == len(found.way) > 3


def test_no_guard_is_left_out():
    assert FAILURES.keys() == {rule.name for rule in dataclasses.fields(Rules)}
