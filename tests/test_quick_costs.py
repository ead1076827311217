"""The shipped records say what each method of the quick study costs, at CLIP-L/14-336 too."""

from pathlib import Path

import pytest

from fusionbench.costs.records import read
from fusionbench.store import Store

RESULTS = Path(__file__).resolve().parent.parent / "results" / "quick"
CLIP = "shape:clip-vit-l-14-336"
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="an installed wheel has no records")


@pytest.fixture(scope="module")
def profiles():
    problems = []
    found = list(read(RESULTS, problems))
    assert not problems
    return found


@pytest.mark.parametrize("encoder", [CLIP, "nano"])
def test_every_method_of_the_quick_study_has_its_cost(encoder, profiles):
    here = {one.label: one for one in profiles if one.conditions.encoder == encoder}
    labels = {record.label for record in Store.open(RESULTS).records()}
    # To write what is missing: fusionbench profile --device meta --out results/quick, with
    # --encoder shape:clip-vit-l-14-336 --mode train --dtype bf16, and with --width 64 for nano.
    assert labels - set(here) == set()
    for one in here.values():
        assert one.flops_over_encoder is not None and one.parameters["encoder"] > 0


def test_the_counts_at_clip_size_are_whole(profiles):
    for one in profiles:
        if one.conditions.encoder == CLIP:
            assert one.flops_backward_over_encoder is not None, one.label
            assert one.flops_language_model_over is not None, one.label
            # Through the frozen encoder and back: more than half of its forward pass.
            assert (one.flops_backward_over_encoder > 0.5 * one.flops_encoder) >= one.in_encoder
