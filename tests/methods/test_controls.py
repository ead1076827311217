"""Every declared control has its method's added parameters, width and number of tokens, or says in
words what differs."""

import re
from functools import cache

import pytest
import torch
from method_sizes import SHAPES, added_parameters, built, tokens_of
from registered_methods import CARDS
from torch import nn

from fusionbench.api.types import StackShape, Unsupported
from fusionbench.harness.model import build_fusion
from fusionbench.registry.plugins import load_method

PAIRS = [name for name, card in CARDS.items() if not card.control.startswith("none: ")]


@cache
def measures(name: str, shape: StackShape) -> dict[str, float]:
    method = built(name, shape)
    width, tokens = tokens_of(method)
    return {"parameters": added_parameters(method), "width": width, "tokens": tokens}


def unlike(name: str, shape: StackShape) -> set[str]:
    """Measures in which a method and its control differ, parameters by more than 1 %."""
    method, control = measures(name, shape), measures(CARDS[name].control, shape)
    apart = abs(control["parameters"] - method["parameters"])
    found = {key for key in ("width", "tokens") if method[key] != control[key]}
    return found | ({"parameters"} if apart > 0.01 * method["parameters"] else set())


def sizes() -> list:
    """All; the one in the middle, which differs from the others in no way of its own, is slow."""
    first, middle, last = SHAPES
    return [first, pytest.param(middle, marks=pytest.mark.slow), last]


@pytest.mark.parametrize("size", sizes())
@pytest.mark.parametrize("name", PAIRS)
def test_a_control_matches_its_method_or_its_declaration_says_in_what_it_does_not(name, size):
    words = str(CARDS[name].facts.get("unmatched", ""))
    declared, _, why = words.partition(": ")
    try:
        found = unlike(name, SHAPES[size])
    except Unsupported as reason:
        with pytest.raises(Unsupported, match=re.escape(str(reason))):
            measures(CARDS[name].control, SHAPES[size])
        return
    assert found == set(filter(None, declared.split(", "))), (name, CARDS[name].control)
    assert not words or why


def test_words_about_a_control_stand_only_where_there_is_one():
    stray = [n for n, card in CARDS.items() if "unmatched" in card.facts and n not in PAIRS]
    assert stray == []


def test_a_control_of_another_width_is_found(monkeypatch):
    before = CARDS["mllama"]
    monkeypatch.setitem(CARDS, "mllama", type(before)(**vars(before) | {"control": "repeat"}))
    assert unlike("mllama", SHAPES["8 blocks, width 96"]) == {"parameters", "width"}


@pytest.mark.parametrize("name", ["vip_llava", "hf_list", "mllama", "lsf_external_direct-18"])
@pytest.mark.parametrize("layers", [2, 3, 4, 5])
def test_a_repeated_layer_is_as_wide_as_the_concatenation_also_where_taps_coincide(name, layers):
    shape = StackShape(layers=layers, dim=8, grid=(4, 4))
    assert built(CARDS[name].control, shape).out_dim == built(name, shape).out_dim


def test_repeated_tokens_are_the_penultimate_patches_and_their_means():
    shape = StackShape(layers=8, dim=3, grid=(3, 6), prefix=1)
    control = build_fusion(load_method(CARDS["repeat_tokens"]), {}, shape)
    hidden = torch.randn(1, 2, shape.tokens, 3)
    assert control.taps == ((7,),)
    patches = hidden[0, :, 1:]
    means = torch.stack([patches[:, :8].mean(dim=1), patches[:, 8:16].mean(dim=1)], dim=1)
    torch.testing.assert_close(
        control(hidden, torch.zeros(2, 0)).tokens, torch.cat([patches, means, means], dim=1)
    )


def test_the_coarse_wide_projectors_join_or_average_neighbours():
    shape = StackShape(layers=8, dim=4, grid=(4, 6), prefix=1)
    hidden = torch.randn(1, 2, shape.tokens, 4)
    patches = hidden[0, :, 1:].unflatten(1, (2, 2, 3, 2))
    means = patches.mean(dim=(2, 4)).flatten(1, 2)
    beside = torch.stack(
        [patches[:, y, :, x].flatten(1) for y in range(2) for x in range(3)], dim=1
    )
    for like, expected in (("token_packer", means), ("llava_stf", beside)):
        card = CARDS[f"wide_projector-{like}"]
        # The MLP's last layer starts at zero.
        control = build_fusion(load_method(card), card.settings, shape)
        torch.testing.assert_close(control(hidden, torch.zeros(2, 0)).tokens, expected)
        assert isinstance(control.outer, nn.Linear)
        assert not control.outer.weight.any()
