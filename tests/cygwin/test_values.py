"""The enumerations of our own behave as those of `enum` where a caller may rely on it."""

from __future__ import annotations

import copy
import pickle

import pytest

from cygwin.fault import Fault
from rebaser.scan.skip import Skipped, Stay


@pytest.mark.parametrize("cause", [*Fault, *Stay], ids=repr)
def test_a_copied_cause_is_that_cause(cause: Fault | Stay) -> None:
    # A caller of the API may copy a report, or have another process make it.
    told = Skipped("a.dll", cause)
    copies = [copy.copy(told), copy.deepcopy(told)]
    copies += [pickle.loads(pickle.dumps(told, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
    assert all(one == told and one.cause is cause for one in copies)


def test_the_members_are_values_with_names() -> None:
    assert [one.name for one in Fault][:2] == ["EMPTY", "NO_IMAGE"]
    assert len({*Fault, *Stay}) == len([*Fault]) + len([*Stay])
    assert (str(Fault.LOW), f"{Stay.IN_USE}") == ("Fault.LOW", "Stay.IN_USE")
