"""Parameter-efficient controls: their equations, their size, and where they act."""

import math

import pytest
import torch
from method_sizes import SHAPES, added_parameters, built
from registered_methods import CARDS, build
from torch.nn import functional as F
from toy_passes import both_ways

from fusionbench.api.types import StackShape, Unsupported
from fusionbench.checks.toy import SHAPE, ToyEncoder, draw, jitter, run_on
from fusionbench.methods.lora import ranks_of
from fusionbench.methods.peft import Adapter

SIZED = ("adapter", "adapter-shared", "adapter-dead", "vpt_deep", "lora")


def jittered(name: str, shape: StackShape = SHAPE):
    method = build(name, shape)
    jitter(method, seed=2)
    return method


def states_of(encoder: ToyEncoder) -> torch.Tensor:
    return encoder.states_from(draw(SHAPE)[0])


def tokens_of(method, encoder: ToyEncoder) -> torch.Tensor:
    return run_on(method, states_of(encoder), draw(SHAPE)[1], encoder).tokens


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", SIZED)
def test_they_have_the_parameters_of_mema(name, size):
    shape = SHAPES[size]
    expected = added_parameters(built("mema", shape))
    assert added_parameters(built(name, shape)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["adapter", "adapter-shared"])
def test_an_adapter_adds_its_bottleneck_after_every_block_up_to_the_penultimate(name):
    encoder, method = ToyEncoder(SHAPE), jittered(name)
    tokens = states_of(encoder)[1]
    for block in range(1, SHAPE.layers):
        if block > 1:
            tokens = encoder.block(block, tokens)
        own = method.bottlenecks[0 if name == "adapter-shared" else block - 1]
        normed = F.layer_norm(tokens, (SHAPE.dim,))
        hidden = (normed @ own.down.weight.T + own.down.bias).clamp_min(0)
        tokens = tokens + 0.1 * (hidden @ own.up.weight.T + own.up.bias)
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:])
    widths = [own.down.out_features for own in method.bottlenecks]
    assert max(widths) - min(widths) <= 1


def test_of_the_dead_adapter_only_a_bias_gets_a_gradient():
    method, encoder = build("adapter-dead", SHAPE), ToyEncoder(SHAPE)
    for _ in range(2):
        tokens_of(method, encoder).square().sum().backward()
        moving = {n for n, p in method.named_parameters() if p.grad.any()}
        assert moving == {f"bottlenecks.{i}.up.bias" for i in range(SHAPE.layers - 1)}
        with torch.no_grad():
            for parameter in method.parameters():
                parameter -= parameter.grad


def test_ssf_scales_and_shifts_every_channel_after_every_block():
    encoder, method = ToyEncoder(SHAPE), build("ssf", SHAPE)
    tokens = states_of(encoder)[1]
    for block in range(1, SHAPE.layers):
        if block > 1:
            tokens = encoder.block(block, tokens)
        tokens = tokens * method.gamma[block - 1] + method.beta[block - 1]
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:])
    assert abs(method.gamma.mean() - 1) < 0.02 and method.gamma.std() < 0.05


def test_each_block_from_the_second_on_sees_prompts_of_its_own_behind_the_prefix():
    encoder, method = ToyEncoder(SHAPE), jittered("vpt_deep")
    tokens = states_of(encoder)[1]
    for block in range(2, SHAPE.layers):
        prompts = method.prompts[block - 2].expand(len(tokens), -1, -1)
        given = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
        output = encoder.block(block, given)
        tokens = torch.cat([output[:, :1], output[:, 1 + prompts.shape[1] :]], dim=1)
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:])


def test_prompts_start_within_the_bound_of_a_patch_embedding():
    method = build("vpt_deep", SHAPE)
    bound = math.sqrt(6 / (3 * 14**2 + SHAPE.dim))
    values = torch.cat([each.flatten() for each in method.prompts])
    assert 0.9 * bound < values.abs().max() <= bound and abs(values.mean()) < 0.1 * bound


def test_lora_is_the_frozen_block_with_merged_weights():
    encoder, method = ToyEncoder(SHAPE), jittered("lora")
    merged = ToyEncoder(SHAPE)
    tokens = states_of(encoder)[1]
    with torch.no_grad():
        for block in range(2, SHAPE.layers):
            changes = method.blocks[block - 2]
            terms = {name: change.B @ change.A for name, change in changes.items()}
            merged.mix[block - 1] += torch.cat([terms[name] for name in "qkv"])
            # The toy's attention has no product behind it: o changes the identity.
            merged.narrow[block - 1] += terms["fc2"]
            merged.widen[block - 1] += terms["fc1"]
            output = torch.eye(SHAPE.dim) + terms["o"]
            normed = F.layer_norm(tokens, (SHAPE.dim,))
            parts = F.linear(normed, merged.mix[block - 1]).chunk(3, dim=-1)
            tokens = tokens + F.scaled_dot_product_attention(*parts) @ output.T
            hidden = F.gelu(F.linear(F.layer_norm(tokens, (SHAPE.dim,)), merged.widen[block - 1]))
            tokens = tokens + F.linear(hidden, merged.narrow[block - 1])
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "vpt_deep"])
def test_seeds_in_one_pass_are_those_trained_one_by_one(name):
    expected, found, same = both_ways(name)
    for one, other in zip(expected, found, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-5)
        assert one.losses[0] != one.losses[-1]
    assert same >= 0.999


def test_ranks_fill_the_size_up_to_half_a_unit_of_the_cheapest_layer():
    for budget in range(216, 4000, 37):
        costs = [8, 8, 8, 8, 20, 20] * 3
        ranks = ranks_of(costs, budget)
        assert abs(sum(r * c for r, c in zip(ranks, costs, strict=True)) - budget) <= 10
        assert max(ranks) - min(ranks) <= 1
    assert ranks_of([8, 20], 0) == [1, 1]


def test_what_they_need_and_an_encoder_lacks_is_said():
    rotary = StackShape(**vars(SHAPE) | {"rotary": True})
    with pytest.raises(Unsupported, match="rotary positions"):
        build("vpt_deep", rotary)
    closed = StackShape(**vars(SHAPE) | {"mlp": 0})
    with pytest.raises(Unsupported, match="out of reach"):
        build("lora", closed)
    for name in ("vpt_deep", "lora"):
        with pytest.raises(Unsupported, match="blocks 2 to L-1"):
            build(name, StackShape(**vars(SHAPE) | {"layers": 2}))
    for name in ("adapter", "ssf"):
        with pytest.raises(Unsupported, match="one block"):
            build(name, StackShape(**vars(SHAPE) | {"layers": 1}))


def test_a_start_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="did you mean 'zeros'"):
        Adapter(SHAPE, start="zero")


def test_they_are_controls_that_a_planned_contrast_names():
    assert all(CARDS[name].control.startswith("none: ") for name in (*SIZED, "ssf"))
    assert CARDS["mema"].control == "mema-readout"
