"""Side networks over frozen or stepped blocks against their equations, written out in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy_encoder
from equations import SHAPE, attention, drawn, gelu, layer_norm, linear, sigmoid, softmax, values
from registered_methods import build

from fusionbench.api.types import StackShape, Unsupported
from fusionbench.harness.stepping import fuse
from fusionbench.methods.dtl import DTL
from fusionbench.methods.lst import LST
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
