"""Side networks over frozen or stepped blocks against their equations, written out in NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy_encoder
from equations import SHAPE, attention, drawn, gelu, layer_norm, linear, sigmoid, softmax, values
from method_sizes import CARDS, SHAPES, added_parameters, build, built
from torch.nn import functional as F
from toy_cells import both_ways

from fusionbench.api.types import StackShape, Unsupported
from fusionbench.checks.toy import SHAPE as PEFT_SHAPE
from fusionbench.checks.toy import ToyEncoder, draw, jitter, run_on
from fusionbench.harness.stepping import fuse
from fusionbench.methods.dtl import DTL
from fusionbench.methods.lora import ranks_of
from fusionbench.methods.lst import LST
from fusionbench.methods.peft import Adapter
from fusionbench.methods.qladder import QLadder
from fusionbench.methods.unipt import UniPT

PREFIX = SHAPE.prefix


def images(method):
    """(states of one image, what the method makes of it) for each image."""
    hidden, query = drawn(method)
    tokens = values(method(hidden, query).tokens)
    return [(hidden.numpy()[:, image], tokens[image]) for image in range(hidden.shape[1])]


def sized(method):
    return sum(parameter.numel() for parameter in method.parameters())


def side_block(block, x):
    seen = layer_norm(block.norm1, x)
    x = x + attention(block.attn, seen, seen)
    return x + linear(block.fc2, gelu(linear(block.fc1, layer_norm(block.norm2, x))))


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, range(7)),
        ({"gated": False}, range(7)),
        ({"every": 2}, (0, 2, 4, 6)),
        ({"every": 4}, (0, 2, 6)),
    ],
)
def test_the_ladder_mixes_each_layer_with_the_side_state_before_its_block(settings, layers):
    method = LST(SHAPE, reduction=2, heads=2, **settings)
    assert method.taps == tuple((layer,) for layer in layers)
    for states, tokens in images(method):
        side = linear(method.downs[0], states[0])
        for step, block in enumerate(method.blocks):
            seen = linear(method.downs[step + 1], states[step + 1])
            if method.gates is None:
                side = side_block(block, side + seen)
                continue
            share = sigmoid(values(method.gates)[step] / 0.1)
            side = side_block(block, share * side + (1 - share) * seen)
        assert np.allclose(tokens, linear(method.up, side)[PREFIX:], atol=1e-9)


def test_the_ladder_starts_with_equal_shares():
    method = LST(SHAPE, reduction=4)
    hidden = torch.randn(len(method.taps), 2, SHAPE.tokens, SHAPE.dim)
    assert torch.equal(method(hidden, torch.zeros(2, 4)).trace["gate"], torch.full((6,), 0.5))
    with pytest.raises(ValueError, match="at least 1"):
        LST(SHAPE, every=0)
    with pytest.raises(Unsupported, match="width 1"):
        LST(SHAPE, reduction=8)


@pytest.mark.parametrize("shared", [True, False])
def test_the_queries_climb_one_rung_for_each_layer_below_the_penultimate(shared):
    method = QLadder(SHAPE, queries=3, shared=shared, heads=2)
    assert method.taps == tuple((layer,) for layer in range(SHAPE.layers))
    assert len(method.rungs) == (1 if shared else SHAPE.layers - 1)
    for states, tokens in images(method):
        asked = values(method.qladder_embeds)
        for step in range(SHAPE.layers - 1):
            rung = method.rungs[0 if shared else step]
            seen = layer_norm(rung.layer_norm1, states[step])
            asked = asked + attention(rung.cross_attn, layer_norm(rung.layer_norm0, asked), seen)
            hidden = linear(rung.fc1, layer_norm(rung.layer_norm2, asked))
            asked = asked + linear(rung.fc2, hidden * sigmoid(1.702 * hidden))
        assert np.array_equal(tokens[:-3], states[SHAPE.layers - 1][PREFIX:])
        assert np.allclose(tokens[-3:], asked, atol=1e-9)


def test_a_ladder_needs_two_blocks():
    with pytest.raises(Unsupported, match="one block"):
        QLadder(replace(SHAPE, layers=1))


def anchored(states, summary, method):
    """UniPT's equations for one image; `summary` gives the row that stands for CLS."""
    anchor = linear(method.downsample_layer, np.maximum(states[-1], 0))
    merged, scores = [], []
    for layer, state in enumerate(states):
        seen = linear(method.downsample_layers[layer], np.maximum(state, 0))
        looks = np.maximum(anchor @ seen.T, 0)
        for row in looks:
            row /= max(row.sum(), 1e-6)
        own = looks @ seen if method.interaction else seen
        merged.append(own + summary(seen))
        if method.gate_layer is not None:
            scores.append(linear(method.gate_layer, summary(anchor) * seen.mean(axis=0))[0])
    shares = softmax(np.array(scores)) if scores else np.full(len(states), 1 / len(states))
    found = sum(share * each for share, each in zip(shares, merged, strict=True))
    return states[-1] + linear(method.upsample_layer, np.maximum(found, 0))


@pytest.mark.parametrize(
    "settings", [{}, {"interaction": False}, {"confidence": False}, {"reduction": 4}]
)
@pytest.mark.parametrize("prefix", [2, 0])
def test_the_final_tokens_look_at_every_layer_which_the_image_weighs(settings, prefix):
    method = UniPT(replace(SHAPE, prefix=prefix), **settings)
    for states, tokens in images(method):
        wanted = anchored(states, lambda x: x[0] if prefix else x.mean(axis=0), method)
        assert np.allclose(tokens, wanted[prefix:], atol=1e-9)


def test_parts_that_are_switched_off_have_no_parameters():
    full = sized(UniPT(SHAPE))
    width = SHAPE.dim // 2
    assert sized(UniPT(SHAPE, confidence=False)) == full - width
    both = UniPT(SHAPE, confidence=False, interaction=False)
    assert sized(both) == full - width - width * (SHAPE.dim + 1)
    with pytest.raises(ValueError, match="reduction"):
        UniPT(SHAPE, reduction=0)


@pytest.mark.parametrize("name", ["lst", "qladder", "unipt", "head2toe"])
def test_the_control_is_the_same_module_on_one_layer(name):
    shape = replace(SHAPE, dim=16)
    method, control = build(name, shape), build(f"{name}-repeat", shape)
    assert control.taps == ((SHAPE.layers if name == "unipt" else SHAPE.layers - 1,),)
    control.load_state_dict(method.state_dict())
    state = torch.randn(1, 2, shape.tokens, shape.dim)
    query = torch.zeros(2, SHAPE.query_dim)
    # Where every layer is the same, method and control are too.
    same = method(state.expand(len(method.taps), -1, -1, -1), query).tokens
    torch.testing.assert_close(control(state, query).tokens, same)


TOY = toy_encoder.SHAPE


def written(feedback):
    """Of an encoder of five blocks, whose penultimate is read."""
    return {"deeper_half": (3, 4), "each": (1, 2, 3, 4), "last": (4,), "after": ()}[feedback]


def stepped(method, tokens):
    """DTL's equations on the toy encoder for a batch of `hs[0]`."""
    encoder = toy_encoder.ToyEncoder(TOY).double()
    state, x = np.zeros_like(tokens), tokens
    for block in range(1, TOY.layers):
        name = str(block - 1)
        seen = x[:, TOY.prefix :].mean(axis=1, keepdims=True) if method.pooled else x
        state = state if method.carried else np.zeros_like(state)
        if name in method.lora_dict:
            low = method.lora_dict[name]
            state = state + seen @ values(low.lora_A).T @ values(low.lora_B).T
        x = values(encoder.block(block, torch.from_numpy(x)))
        if block in method.written and method.writes:
            x = x + feedback_of(method, state)
    return x if method.writes else x + feedback_of(method, state)


def feedback_of(method, state):
    found = state * sigmoid(method.sharpness * state)
    if method.lora_fusion is None:
        return found
    (height, width), prefix = TOY.grid, TOY.prefix
    kernel = values(method.lora_fusion.weight)[:, 0]
    side = kernel.shape[1] // 2
    mixed = found.copy()
    for y in range(height):
        for x in range(width):
            mixed[:, prefix + y * width + x] = sum(
                kernel[:, dy + side, dx + side] * found[:, prefix + (y + dy) * width + x + dx]
                for dy in range(-side, side + 1)
                for dx in range(-side, side + 1)
                if 0 <= y + dy < height and 0 <= x + dx < width
            )
    return mixed


@pytest.mark.parametrize("kernel", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"memory": "rebuilt"},
        {"pooled": True, "rank": 3},
        {"feedback": "each", "sharpness": 1.0},
        {"feedback": "last"},
        {"feedback": "after"},
    ],
)
def test_the_low_rank_state_runs_beside_the_blocks_and_is_added_in_the_deeper_half(
    settings, kernel
):
    method = DTL(TOY, kernel=kernel, **settings)
    drawn(method)
    feedback = settings.get("feedback", "deeper_half")
    assert method.written == (written(feedback) or (TOY.layers - 1,))
    assert method.writes == bool(written(feedback))
    tokens, query = (part.double() for part in toy_encoder.draw(TOY))
    found = values(run_in_double(method, tokens, query).tokens)
    assert np.allclose(found, stepped(method, tokens.numpy())[:, TOY.prefix :], atol=1e-9)


def run_in_double(method, tokens, query):
    encoder = toy_encoder.ToyEncoder(TOY).double()
    states = encoder.states_from(tokens)
    return fuse(method, lambda taps: torch.stack([states[i] for (i,) in taps]), query, encoder)


def test_dtl_counts_its_ranks_and_its_shared_convolution():
    assert sized(DTL(TOY)) == (TOY.layers - 1) * 2 * 2 * TOY.dim
    assert sized(DTL(TOY, kernel=3)) == sized(DTL(TOY)) + 9 * TOY.dim
    # Without a memory the ranks of blocks that nothing is added after reach nothing.
    assert set(DTL(TOY, memory="rebuilt").lora_dict) == {"2", "3"}
    for name in ("dtl", "dtl-plus"):
        method, control = build(name, TOY), build(f"{name}-readout", TOY)
        assert method.writes and not control.writes
        assert {k: v.shape for k, v in method.state_dict().items()} == {
            k: v.shape for k, v in control.state_dict().items()
        }


def test_sizes_at_clip_l_are_those_of_the_papers_code():
    shape = StackShape(layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=8)
    with torch.device("meta"):
        found = {name: sized(build(name, shape)) for name in ("lst", "qladder", "dtl", "dtl-plus")}
    # A rung of CLIP-L: 4 D^2 + 4 D of attention, 8 D^2 + 5 D of the MLP, 6 D of three norms.
    rung = 12 * 1024**2 + 15 * 1024
    assert found["qladder"] == rung + 16 * 1024
    assert round(found["lst"] / 1e6, 2) == 8.17
    # 24 ranks and the convolution have 107,520; the last block's rank is left out.
    assert found["dtl-plus"] == 107_520 - 2 * 2 * 1024
    assert found["dtl"] == found["dtl-plus"] - 9 * 1024


def test_dtl_refuses_what_it_cannot_step():
    with pytest.raises(Unsupported, match="no block"):
        DTL(replace(TOY, layers=2))
    with pytest.raises(ValueError, match="odd"):
        DTL(TOY, kernel=2)
    with pytest.raises(ValueError, match="did you mean 'after'"):
        DTL(TOY, feedback="aftr")


# Parameter-efficient controls: their equations, their size, and where they act.

SIZED = ("adapter", "adapter-shared", "adapter-dead", "vpt_deep", "lora")


def jittered(name: str, shape: StackShape = PEFT_SHAPE):
    method = build(name, shape)
    jitter(method, seed=2)
    return method


def states_of(encoder: ToyEncoder) -> torch.Tensor:
    return encoder.states_from(draw(PEFT_SHAPE)[0])


def tokens_of(method, encoder: ToyEncoder) -> torch.Tensor:
    return run_on(method, states_of(encoder), draw(PEFT_SHAPE)[1], encoder).tokens


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", SIZED)
def test_they_have_the_parameters_of_mema(name, size):
    shape = SHAPES[size]
    expected = added_parameters(built("mema", shape))
    assert added_parameters(built(name, shape)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["adapter", "adapter-shared"])
def test_an_adapter_adds_its_bottleneck_after_every_block_up_to_the_penultimate(name):
    encoder, method = ToyEncoder(PEFT_SHAPE), jittered(name)
    tokens = states_of(encoder)[1]
    for block in range(1, PEFT_SHAPE.layers):
        if block > 1:
            tokens = encoder.block(block, tokens)
        own = method.bottlenecks[0 if name == "adapter-shared" else block - 1]
        normed = F.layer_norm(tokens, (PEFT_SHAPE.dim,))
        hidden = (normed @ own.down.weight.T + own.down.bias).clamp_min(0)
        tokens = tokens + 0.1 * (hidden @ own.up.weight.T + own.up.bias)
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:])
    widths = [own.down.out_features for own in method.bottlenecks]
    assert max(widths) - min(widths) <= 1


def test_of_the_dead_adapter_only_a_bias_gets_a_gradient():
    method, encoder = build("adapter-dead", PEFT_SHAPE), ToyEncoder(PEFT_SHAPE)
    for _ in range(2):
        tokens_of(method, encoder).square().sum().backward()
        moving = {n for n, p in method.named_parameters() if p.grad.any()}
        assert moving == {f"bottlenecks.{i}.up.bias" for i in range(PEFT_SHAPE.layers - 1)}
        with torch.no_grad():
            for parameter in method.parameters():
                parameter -= parameter.grad


def test_ssf_scales_and_shifts_every_channel_after_every_block():
    encoder, method = ToyEncoder(PEFT_SHAPE), build("ssf", PEFT_SHAPE)
    tokens = states_of(encoder)[1]
    for block in range(1, PEFT_SHAPE.layers):
        if block > 1:
            tokens = encoder.block(block, tokens)
        tokens = tokens * method.gamma[block - 1] + method.beta[block - 1]
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:])
    assert abs(method.gamma.mean() - 1) < 0.02 and method.gamma.std() < 0.05


def test_each_block_from_the_second_on_sees_prompts_of_its_own_behind_the_prefix():
    encoder, method = ToyEncoder(PEFT_SHAPE), jittered("vpt_deep")
    tokens = states_of(encoder)[1]
    for block in range(2, PEFT_SHAPE.layers):
        prompts = method.prompts[block - 2].expand(len(tokens), -1, -1)
        given = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
        output = encoder.block(block, given)
        tokens = torch.cat([output[:, :1], output[:, 1 + prompts.shape[1] :]], dim=1)
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:])


def test_lora_is_refused_where_rank_1_is_larger_than_the_method_that_it_controls():
    with pytest.raises(Unsupported, match="rank 1 in every linear layer has 34,560 parameters"):
        build("lora", StackShape(layers=32, dim=64, grid=(4, 4), query_dim=64, mlp=256))


def test_prompts_start_within_the_bound_of_a_patch_embedding():
    method = build("vpt_deep", PEFT_SHAPE)
    bound = math.sqrt(6 / (3 * 14**2 + PEFT_SHAPE.dim))
    values = torch.cat([each.flatten() for each in method.prompts])
    assert 0.9 * bound < values.abs().max() <= bound and abs(values.mean()) < 0.1 * bound


def test_lora_is_the_frozen_block_with_merged_weights():
    encoder, method = ToyEncoder(PEFT_SHAPE), jittered("lora")
    merged = ToyEncoder(PEFT_SHAPE)
    tokens = states_of(encoder)[1]
    with torch.no_grad():
        for block in range(2, PEFT_SHAPE.layers):
            changes = method.blocks[block - 2]
            terms = {name: change.B @ change.A for name, change in changes.items()}
            merged.mix[block - 1] += torch.cat([terms[name] for name in "qkv"])
            # The toy's attention has no product behind it: o changes the identity.
            merged.narrow[block - 1] += terms["fc2"]
            merged.widen[block - 1] += terms["fc1"]
            output = torch.eye(PEFT_SHAPE.dim) + terms["o"]
            normed = F.layer_norm(tokens, (PEFT_SHAPE.dim,))
            parts = F.linear(normed, merged.mix[block - 1]).chunk(3, dim=-1)
            tokens = tokens + F.scaled_dot_product_attention(*parts) @ output.T
            hidden = F.gelu(
                F.linear(F.layer_norm(tokens, (PEFT_SHAPE.dim,)), merged.widen[block - 1])
            )
            tokens = tokens + F.linear(hidden, merged.narrow[block - 1])
    torch.testing.assert_close(tokens_of(method, encoder), tokens[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
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
    rotary = StackShape(**vars(PEFT_SHAPE) | {"rotary": True})
    with pytest.raises(Unsupported, match="rotary positions"):
        build("vpt_deep", rotary)
    closed = StackShape(**vars(PEFT_SHAPE) | {"mlp": 0})
    with pytest.raises(Unsupported, match="out of reach"):
        build("lora", closed)
    for name in ("vpt_deep", "lora"):
        with pytest.raises(Unsupported, match="blocks 2 to L-1"):
            build(name, StackShape(**vars(PEFT_SHAPE) | {"layers": 2}))
    for name in ("adapter", "ssf", "dla", "mrla-light", "dia_lstm", "mema"):
        with pytest.raises(Unsupported, match="one block"):
            build(name, StackShape(**vars(PEFT_SHAPE) | {"layers": 1}))


def test_a_start_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="did you mean 'zeros'"):
        Adapter(PEFT_SHAPE, start="zero")


def test_they_are_controls_that_a_planned_contrast_names():
    assert all(CARDS[name].control.startswith("none: ") for name in (*SIZED, "ssf"))
    assert CARDS["mema"].control == "mema-readout"
