"""Modules of official code, recorded alone: the same outputs and gradients from our methods."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.types import StackShape
from fusionbench.harness.stepping import fuse
from fusionbench.methods.dtl import DTL
from fusionbench.methods.qladder import QLadder
from fusionbench.methods.unipt import UniPT

FOLDER = Path(__file__).parent / "recorded"
NO_QUERY = torch.zeros(2, 0)


def recorded(name):
    tensors = load_file(FOLDER / f"{name}.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    return tensors, weights


def shape_of(states):
    """Of recorded states [state batch token dim] with one CLS."""
    return StackShape(
        layers=len(states) - 1, dim=states.shape[-1], grid=(1, states.shape[2] - 1), prefix=1
    )


def assert_near(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_unipt_gives_the_official_tokens_and_gradients():
    tensors, weights = recorded("unipt")
    states = tensors["input.states"].requires_grad_()
    method = UniPT(shape_of(states), reduction=2)
    method.load_official(weights)
    tokens = method(states, NO_QUERY).tokens
    assert_near(tokens, tensors["output.patches"])
    (tokens**2).mean().backward()
    assert_near(states.grad, tensors["grad.input.states"])
    assert_near(method.gate_layer.weight.grad, tensors["grad.gate_layer.weight"])
    for layer, down in enumerate(method.downsample_layers):
        assert_near(down.weight.grad, tensors[f"grad.downsample_layers.{layer}.1.weight"])
    assert_near(method.upsample_layer.bias.grad, tensors["grad.upsample_layer.1.bias"])


def test_qladder_gives_the_official_queries_and_gradients():
    tensors, weights = recorded("qladder")
    states = tensors["input.states"].requires_grad_()
    count = tensors["output.queries"].shape[1]
    method = QLadder(shape_of(states), queries=count, shared=False, heads=2)
    method.load_official(weights)
    queries = method(states[:-1], NO_QUERY).tokens[:, -count:]
    assert_near(queries, tensors["output.queries"])
    (queries**2).mean().backward()
    assert_near(states.grad, tensors["grad.input.states"])
    assert_near(method.qladder_embeds.grad, tensors["grad.qladder_embeds"][0])
    for step, rung in enumerate(method.rungs):
        named = f"grad.LadderAdapters.{step}."
        assert_near(rung.fc1.weight.grad, tensors[f"{named}mlp.fc1.weight"])
        parts = [tensors[f"{named}cross_attn.{part}_proj.weight"] for part in "qkv"]
        assert_near(rung.cross_attn.in_proj_weight.grad, torch.cat(parts))
    with pytest.raises(ValueError, match="shared=False"):
        QLadder(shape_of(states), queries=count).load_official(weights)


def test_weights_are_given_back_under_the_official_names():
    tensors, weights = recorded("unipt")
    method = UniPT(shape_of(tensors["input.states"]), reduction=2)
    method.load_official(weights)
    given = method.official_weights()
    # A bias in front of a softmax over layers changes nothing: ours has none.
    assert given.keys() == weights.keys() - {"gate_layer.bias"}
    assert all(torch.equal(given[name], weights[name]) for name in given)

    tensors, weights = recorded("qladder")
    states, count = tensors["input.states"], tensors["output.queries"].shape[1]
    ladder = QLadder(shape_of(states), queries=count, shared=False, heads=2)
    ladder.load_official(weights)
    given = ladder.official_weights()
    # The official code has a last rung that nothing reads.
    unread = {name for name in weights if name.startswith(f"LadderAdapters.{ladder.steps}.")}
    assert given.keys() == weights.keys() - unread
    assert all(torch.equal(given[name], weights[name]) for name in given)
    with pytest.raises(ValueError, match="shared=False"):
        QLadder(shape_of(states), queries=count).official_weights()


class Recorded(Encoder):
    """The blocks of the recorded cases of DTL, and a last one that nothing reads."""

    def __init__(self, shape, weights):
        super().__init__()
        self.shape, self.size = shape, 0
        mixes = (weights[f"blocks.{index}.mix"] for index in range(shape.layers - 1))
        self.mixes = nn.ParameterList([*mixes, torch.zeros(shape.dim, shape.dim)])
        self.freeze()

    def embed(self, images):
        raise NotImplementedError("starts from hs[0]")

    def block(self, index, tokens):
        return tokens + torch.tanh(tokens @ self.mixes[index - 1])

    def norm(self, tokens):
        return tokens


@pytest.mark.parametrize(("name", "kernel"), [("dtl", 0), ("dtl_plus", 3)])
def test_dtl_gives_the_official_tokens_and_gradients(name, kernel):
    tensors, weights = recorded(name)
    tokens = tensors["input.states"].requires_grad_()
    blocks = sum(key.startswith("blocks.") for key in weights)
    shape = StackShape(layers=blocks + 1, dim=tokens.shape[-1], grid=(3, 3), prefix=1)
    encoder, method = Recorded(shape, weights), DTL(shape, kernel=kernel)
    method.load_official(weights)
    states = [tokens, encoder.block(1, tokens)]
    found = fuse(method, lambda taps: torch.stack([states[i] for (i,) in taps]), NO_QUERY, encoder)
    assert_near(found.tokens, tensors["output.patches"])
    (found.tokens**2).mean().backward()
    assert_near(tokens.grad, tensors["grad.input.states"])
    for key, parameter in method.named_parameters():
        assert_near(parameter.grad, tensors[f"grad.{key}"])
