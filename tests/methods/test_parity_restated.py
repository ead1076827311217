"""Cases of the recorded kinds at other widths, grids, depths, batches and groups.

The numbers come from an independent re-statement of the equations (`parity/README.md`).
"""

import json
from dataclasses import replace

import pytest
from parity_cases import FOLDER, SHIPPED, cases, mismatches
from parity_replays import REPLAYS, find

RESTATED = SHIPPED / "restated"
# Another folder, named by FUSIONBENCH_PARITY_DIR, is replayed alone.
CASES = cases(RESTATED) if FOLDER == SHIPPED else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_restated_case_comes_out_equal(case):
    replay = find(REPLAYS, case)
    assert replay is not None
    assert mismatches(case, replay(case)) == []


def test_every_recorded_kind_is_tried_at_another_size():
    kinds = {(case.facts["method"], case.symbol.split()[0]) for case in cases(SHIPPED)}
    restated = {(case.facts["method"], case.symbol.split()[0]) for case in cases(RESTATED)}
    assert restated == kinds


def test_a_restated_case_differs_in_size_from_the_official_one():
    official = {case.id: case for case in cases(SHIPPED)}
    for case in cases(RESTATED):
        assert case.config != official[case.facts["like"]].config


def test_a_case_whose_settings_name_another_layer_is_rejected():
    [case] = [case for case in cases(RESTATED) if case.id == "mmfuser_random_c"]
    config = json.loads(json.dumps(case.config))
    config["select_layer"][0] -= 1
    wrong = replace(case, facts={**case.facts, "config": config})
    assert mismatches(wrong, find(REPLAYS, wrong)(wrong))
