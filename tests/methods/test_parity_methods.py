"""Every method with an official implementation gives the numbers recorded from it."""

import pytest
from parity_cases import cases, mismatches
from parity_replays import REPLAYS, find


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_recorded_case_of_an_official_implementation_comes_out_equal(case):
    replay = find(REPLAYS, case)
    assert replay is not None, f"no replay knows {case.symbol} of {case.facts['method']}"
    assert mismatches(case, replay(case)) == []
