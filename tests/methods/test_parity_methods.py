"""Every method with an official implementation gives the numbers recorded from it."""

import json

import pytest
from parity_cases import cases, mismatches
from parity_replays import REPLAYS, find
from safetensors.torch import save_file


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_recorded_case_of_an_official_implementation_comes_out_equal(case):
    replay = find(REPLAYS, case)
    assert replay is not None, f"no replay knows {case.symbol} of {case.facts['method']}"
    assert mismatches(case, replay(case)) == []


def test_a_folder_with_a_file_for_each_case_is_read_alike(tmp_path):
    for case in (one := cases()[0], other := cases()[1]):
        assert case.facts["file"] == one.facts["file"]
        save_file(case.tensors, tmp_path / f"{case.id}.safetensors")
    listed = [dict(case.facts) | {"file": f"{case.id}.safetensors"} for case in (one, other)]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": listed}))
    for read, case in zip(cases(tmp_path), (one, other), strict=True):
        assert read.tensors.keys() == case.tensors.keys()
        assert all(read.tensors[name].equal(value) for name, value in case.tensors.items())
