"""Concatenations of whole layers: the published order of channels and tokens, and the controls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from equations import SHAPE, drawn, layer_norm
from registered_methods import build

from fusionbench.api.types import Unsupported
from fusionbench.methods.concat_all import LayerConcat, TokenConcat
from fusionbench.methods.dinov2_linear import DINOv2Linear
from fusionbench.methods.middle_mean import MiddleMean

PREFIX = SHAPE.prefix


def fused(method):
    hidden, query = drawn(method)
    return hidden.numpy(), method(hidden, query).tokens.detach().numpy()


def taps_at(depth, name):
    return build(name, replace(SHAPE, layers=depth)).taps


def normed(depth, *layers):
    return tuple((2 * depth + 1 - layer,) for layer in layers)


def test_each_form_reads_the_layers_of_its_paper():
    assert taps_at(24, "last4_patches") == normed(24, 21, 22, 23, 24)
    assert taps_at(24, "token_concat") == normed(24, 18, 20, 22, 24)
    assert taps_at(24, "concat_all") == tuple((layer,) for layer in range(1, 25))
    assert taps_at(24, "dinov2_linear") == normed(24, 21, 22, 23, 24)
    assert taps_at(24, "dinov2_linear-1") == normed(24, 24)
    even = LayerConcat(replace(SHAPE, layers=24), layers="even").taps
    assert even == ((6,), (12,), (18,), (24,))
    assert LayerConcat(replace(SHAPE, layers=2), layers="last").taps == ((1,), (2,))


@pytest.mark.parametrize("name", ["last4_patches", "concat_all"])
def test_patches_of_all_layers_stand_side_by_side_in_ascending_order(name):
    hidden, tokens = fused(build(name, SHAPE))
    for image in range(tokens.shape[0]):
        for patch in range(tokens.shape[1]):
            wanted = np.concatenate([layer[image, PREFIX + patch] for layer in hidden])
            assert np.array_equal(tokens[image, patch], wanted)


def test_the_linear_arm_joins_cls_and_mean_patch_of_each_layer():
    hidden, tokens = fused(build("concat_all-pooled", SHAPE))
    for image in range(tokens.shape[0]):
        parts = [(x[image, 0], x[image, PREFIX:].mean(axis=0)) for x in hidden]
        wanted = np.concatenate([part for pair in parts for part in pair])
        assert np.allclose(tokens[image], wanted[None], atol=1e-12)
    bare = replace(SHAPE, prefix=0)
    hidden, tokens = fused(build("concat_all-pooled", bare))
    assert np.allclose(tokens[0, 0], np.concatenate([x[0].mean(axis=0) for x in hidden]))


def test_own_norms_are_one_for_each_layer():
    method = LayerConcat(SHAPE, layers="last", norm="own")
    hidden, tokens = fused(method)
    wanted = [layer_norm(norm, x[:, PREFIX:]) for norm, x in zip(method.norms, hidden, strict=True)]
    assert np.allclose(tokens, np.concatenate(wanted, axis=-1), atol=1e-10)


def test_tokens_of_several_layers_form_one_sequence():
    hidden, tokens = fused(build("token_concat", SHAPE))
    wanted = np.concatenate([x[:, PREFIX:] for x in hidden], axis=1)
    assert np.array_equal(tokens, wanted)
    assert TokenConcat(SHAPE, layers="23", norm=False).identity_at_init


def test_dinov2s_recipe_joins_the_last_cls_tokens_and_one_mean_patch():
    for name, blocks in (("dinov2_linear", 4), ("dinov2_linear-1", 1)):
        hidden, tokens = fused(build(name, SHAPE))
        assert tokens.shape == (2, 1, (blocks + 1) * SHAPE.dim)
        wanted = [x[:, 0] for x in hidden] + [hidden[-1][:, PREFIX:].mean(axis=1)]
        assert np.allclose(tokens[:, 0], np.concatenate(wanted, axis=-1), atol=1e-12)
    hidden, tokens = fused(DINOv2Linear(SHAPE, blocks=2, average=False))
    assert np.array_equal(tokens[:, 0], np.concatenate([x[:, 0] for x in hidden], axis=-1))


def test_dinov2s_recipe_refuses_an_encoder_without_cls():
    with pytest.raises(Unsupported, match="CLS"):
        DINOv2Linear(replace(SHAPE, prefix=0))
    with pytest.raises(ValueError, match="at least 1"):
        DINOv2Linear(SHAPE, blocks=0)


@pytest.mark.parametrize(
    "name",
    ["last4_patches", "concat_all", "concat_all-pooled", "token_concat", "dinov2_linear"],
)
def test_the_control_is_the_same_module_on_the_penultimate_layer(name):
    method, control = build(name, SHAPE), build(f"{name}-repeat", SHAPE)
    assert {method.shape.source(layer)[0] for (layer,) in control.taps} == {SHAPE.layers - 1}
    state = torch.randn(1, 2, SHAPE.tokens, SHAPE.dim)
    query = torch.zeros(2, SHAPE.query_dim)
    # Where every layer is the same, method and control are too.
    same = method(state.expand(len(method.taps), -1, -1, -1), query).tokens
    assert torch.equal(control(state, query).tokens, same)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, range(3, 11)),
        (24, range(5, 20, 2)),
        (8, (2, 3, 4, 5, 6, 7)),
        (2, (1, 2)),
    ],
)
def test_the_middle_mean_averages_dinomalys_blocks(depth, layers):
    assert MiddleMean(replace(SHAPE, layers=depth)).taps == (tuple(layers),)


def test_the_middle_mean_drops_the_prefix():
    hidden, tokens = fused(MiddleMean(SHAPE))
    assert np.array_equal(tokens, hidden[0][:, PREFIX:])


def test_unknown_words_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="did you mean 'last'"):
        LayerConcat(SHAPE, layers="lst")
    with pytest.raises(ValueError, match="norm"):
        LayerConcat(SHAPE, norm="layer")
