"""What the layers contribute to an answer, against a computation with other weights."""

from dataclasses import replace

import pytest
import torch
from vlm_cells import asked_items, cell, trained_folder

from fusionbench.vlm.open import asked, explain, open_model, without


def opened(method):
    return open_model(cell(method).id, trained_folder())


def test_the_mean_of_the_others_stands_in_the_place_of_a_state():
    states = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    changed = without(states, 2)
    assert torch.equal(changed[[0, 1, 3]], states[[0, 1, 3]])
    torch.testing.assert_close(changed[2], (states[0] + states[1] + states[3]) / 3)
    with pytest.raises(ValueError, match="no others"):
        without(states[:1], 0)


def test_leaving_out_a_state_of_a_weighted_sum_deals_its_weight_to_the_others():
    # sum_j w_j h_j with h_k := mean of the others has the weights w_j + w_k / (K - 1), and 0.
    model = opened("scalar_mix")
    (_, picture, question), *_ = asked_items("digits", 1)
    found = explain(model, [picture], question, limit=3)
    fusion = model.built.model.fusion
    (name,) = [one for one, value in fusion.named_parameters() if value.numel() == len(fusion.taps)]
    logits = dict(fusion.named_parameters())[name]
    start = logits.detach().clone()
    weights = start.flatten().softmax(0)
    assert found.trace["layer_weights"] == pytest.approx(weights.tolist(), rel=1e-5)

    def log_probability():
        return -model.losses([picture], question, [found.answer])[0]

    whole = log_probability()
    assert found.log_probability == pytest.approx(whole, abs=1e-6)
    for place, change in enumerate(found.changes):
        others = weights + weights[place] / (len(weights) - 1)
        others[place] = 0
        logits.data = others.clamp(min=1e-30).log().reshape(start.shape)
        assert change == pytest.approx(log_probability() - whole, abs=2e-5)
        logits.data = start
    assert len(found.changes) == len(fusion.taps) > 2
    assert max(map(abs, found.changes)) > 1e-3


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("penultimate", "penultimate reads one hidden state"),
        ("mema", "mema writes between the encoder's blocks"),
    ],
)
def test_a_method_without_such_changes_says_why(method, reason):
    (_, picture, question), *_ = asked_items("scenes_count", 1)
    found = explain(opened(method), [picture], question, limit=3)
    assert found.changes == ()
    assert reason in found.reason
    assert (found.log_probability is None) == (not found.answer)
    assert bool(found.trace) == (method == "mema")


def test_a_method_between_blocks_that_writes_nothing_is_left_out_state_by_state():
    # Without feedback Mema's reading memory starts silent: the answer needs the last state alone.
    model = opened("mema")
    fusion = model.built.model.fusion
    fusion.writes = False
    (_, picture, question), *_ = asked_items("scenes_count", 1)
    found = explain(model, [picture], question, limit=3)
    assert list(found.taps) == [(index,) for index in range(fusion.depth + 1)]
    assert len(found.changes) == len(found.taps)
    assert found.reason == ""


@pytest.mark.parametrize(
    ("said", "pictures", "reason"),
    [("", 1, "the answer is empty"), ("three", 0, "there is no picture"), ("three", 1, "")],
)
def test_neither_an_empty_answer_nor_a_question_without_a_picture_has_changes(
    said, pictures, reason
):
    model = opened("scalar_mix")
    (_, picture, question), *_ = asked_items("digits", 1)
    fused = model.answer(asked([picture], question), limit=1)[1]
    saying = replace(model)
    object.__setattr__(saying, "answer", lambda row, limit: ([said], fused))
    found = explain(saying, [picture] * pictures, question)
    assert reason in found.reason and bool(found.reason) == bool(reason)
    assert (found.log_probability is None) == (not said)
    assert bool(found.changes) == (not reason)
