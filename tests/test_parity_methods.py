"""Every method with an official implementation gives the numbers recorded from it."""

import pytest
from parity_cases import Case, Replay, cases, mismatches
from parity_dense_connector import replay_connector
from parity_mema import replay_gate, replay_loop, replay_unit

REPLAYS: dict[tuple[str, str], Replay] = {
    ("mema", "DynamicSharingUnit"): replay_unit,
    ("mema", "SpatialGate"): replay_gate,
    ("mema", "CLIPVisionTower.forward"): replay_loop,
    ("dense_connector", "dense_connector_"): replay_connector,
}
"""By method and by how the official symbol starts."""

PENDING = {
    ("mema", "LlavaLlamaForCausalLM"): "needs a language model as the reader",
    ("dense_connector", "LlavaMetaForCausalLM.temporal_aggregation"): "video, not images",
}
"""Kinds without a replay, and why."""


def find(table, case: Case):
    keys = [key for key in table if case.facts["method"] == key[0]]
    return next((table[key] for key in keys if case.symbol.startswith(key[1])), None)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_recorded_case_of_an_official_implementation_comes_out_equal(case):
    reason = find(PENDING, case)
    if reason is not None:
        pytest.skip(f"{case.symbol}: {reason}")
    replay = find(REPLAYS, case)
    assert replay is not None, f"no replay knows {case.symbol} of {case.facts['method']}"
    assert mismatches(case, replay(case)) == []
