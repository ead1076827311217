"""Every declared control has its method's added parameters, width and number of tokens, or says in
words what differs."""

from functools import cache

import pytest
import torch
from registered_methods import CARDS
from torch import nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, ReaderShape, StackShape
from fusionbench.harness.model import build_fusion
from fusionbench.harness.stepping import fuse
from fusionbench.readers.decoder import decoder_shape
from fusionbench.registry.plugins import load_method

SMALL = decoder_shape(128, 8)
VICUNA = ReaderShape(layers=32, width=4096, heads=32, mlp=11008)
SHAPES = {
    "8 blocks, width 96": StackShape(
        layers=8, dim=96, grid=(6, 6), prefix=0, query_dim=64, reader=SMALL, mlp=384
    ),
    "12 blocks, width 384, CLS": StackShape(
        layers=12, dim=384, grid=(8, 8), prefix=1, query_dim=64, reader=SMALL, mlp=1536
    ),
    "CLIP ViT-L/14 at 336 pixels": StackShape(
        layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=4096, reader=VICUNA, mlp=4096
    ),
}
PAIRS = [name for name, card in CARDS.items() if not card.control.startswith("none: ")]


class Passing(Encoder):
    """Blocks that return their input: shapes need no more."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape, self.size = shape, max(shape.grid)

    def embed(self, images):
        raise AssertionError("no image is read")

    def block(self, index, tokens):
        return tokens

    def norm(self, tokens):
        return tokens


def built(name: str, shape: StackShape) -> Method:
    card = CARDS[name]
    with torch.device("meta"):
        return build_fusion(load_method(card), card.settings, shape)


def added_parameters(method: Method) -> int:
    """What the method trains in addition to a projector of the encoder's width."""
    fusion = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return fusion + (method.out_dim - method.shape.dim) * method.shape.reader_layers().width


def tokens_of(method: Method) -> tuple[int, int]:
    """Number and width of the tokens that enter the projector, and behind it."""
    shape = method.shape
    with torch.device("meta"):
        query = torch.empty(2, shape.query_dim)

        def states(taps):
            return torch.empty(len(taps), 2, shape.tokens, shape.dim)

        fused: Fused = fuse(method, states, query, Passing(shape))
        tokens = fused.tokens
        after = tokens if fused.after_projector is None else fused.after_projector(tokens)
    return tokens.shape[2], after.shape[1]


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


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_control_matches_its_method_or_its_declaration_says_in_what_it_does_not(name, size):
    words = str(CARDS[name].facts.get("unmatched", ""))
    declared, _, why = words.partition(": ")
    found = unlike(name, SHAPES[size])
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
