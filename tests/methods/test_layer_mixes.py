"""Mixes, selections and shortcuts of layers against their equations, written out in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from equations import SHAPE, drawn, linear, softmax, values
from registered_methods import build

from fusionbench.api.types import ReaderShape, Unsupported
from fusionbench.methods.attnres import AttnRes
from fusionbench.methods.head2toe import Head2Toe
from fusionbench.methods.sparsecut import SparseCut
from fusionbench.models.readers.decoder import DecoderReader, decoder_shape

PREFIX = SHAPE.prefix


def rms_scores(method, states):
    scale = np.sqrt((states**2).mean(axis=-1, keepdims=True) + 1e-6)
    keys = states / scale * values(method.gain)
    return keys @ values(method.query)


@pytest.mark.parametrize("settings", [{}, {"first": 0}, {"values": "updates"}])
def test_attention_residuals_weigh_the_layers_of_each_token_by_one_query(settings):
    method = AttnRes(SHAPE, **settings)
    hidden, query = drawn(method)
    fused = method(hidden, query)
    states = hidden.numpy()[:, :, PREFIX:]
    assert len(states) == SHAPE.layers + (settings != {})
    if "values" in settings:
        states = np.concatenate([states[:1], np.diff(states, axis=0)])
    weights = softmax(rms_scores(method, states), axis=0)
    wanted = sum(w[..., None] * x for w, x in zip(weights, states, strict=True))
    assert np.allclose(values(fused.tokens), wanted, atol=1e-10)
    assert np.allclose(fused.trace["layer_weights"], weights.mean(axis=(1, 2)))


def test_attention_residuals_start_as_the_uniform_mean():
    method = build("attnres", SHAPE)
    hidden = torch.randn(SHAPE.layers, 2, SHAPE.tokens, SHAPE.dim)
    mean = hidden.mean(dim=0)[:, PREFIX:]
    torch.testing.assert_close(method(hidden, torch.zeros(2, 4)).tokens, mean)


def test_superbs_mix_has_the_embedding_and_no_gamma():
    method = build("scalar_mix-superb", SHAPE)
    assert method.taps == tuple((layer,) for layer in range(SHAPE.layers + 1))
    assert sum(p.numel() for p in method.parameters()) == SHAPE.layers + 1
    hidden, query = drawn(method)
    weights = softmax(values(method.scores))
    wanted = np.tensordot(weights, hidden.numpy()[:, :, PREFIX:], axes=1)
    assert np.allclose(values(method(hidden, query).tokens), wanted, atol=1e-12)
    plain = build("scalar_mix", SHAPE)
    assert plain.taps == method.taps[1:] and plain.gamma is not None


def test_head2toe_is_a_linear_head_over_unit_means_of_all_layers():
    method = Head2Toe(SHAPE)
    hidden, query = drawn(method)
    fused = method(hidden, query)
    for image in range(hidden.shape[1]):
        features = []
        for layer in hidden.numpy():
            mean = layer[image, PREFIX:].mean(axis=0)
            features.append(mean / np.sqrt((mean**2).sum()))
        wanted = linear(method.head, np.concatenate(features))
        assert np.allclose(values(fused.tokens)[image, 0], wanted, atol=1e-10)


def test_head2toes_penalty_is_the_group_lasso_on_columns_free_of_scale():
    method = Head2Toe(SHAPE, weight=0.3)
    hidden, query = drawn(method)
    weight = values(method.head.weight)
    groups = [np.sqrt((column**2).sum()) for column in weight.T]
    wanted = 0.3 * sum(groups) / np.sqrt(len(groups)) / np.sqrt((weight**2).sum())
    fused = method(hidden, query)
    assert values(fused.losses["group_lasso"]) == pytest.approx(wanted)
    shares = np.square(groups).reshape(SHAPE.layers + 1, SHAPE.dim).sum(axis=1)
    assert np.allclose(fused.trace["layer_weights"], shares / shares.sum())
    with torch.no_grad():
        method.head.weight.mul_(7)
    assert values(method(hidden, query).losses["group_lasso"]) == pytest.approx(wanted)
    assert not Head2Toe(SHAPE, weight=0.0).double()(hidden, query).losses


def test_head2toes_penalty_alone_concentrates_the_head_on_few_features():
    method = Head2Toe(SHAPE, weight=1.0)
    hidden = torch.randn(len(method.taps), 2, SHAPE.tokens, SHAPE.dim)
    optimiser = torch.optim.SGD(method.parameters(), lr=0.3)
    before = float(method(hidden, torch.zeros(2, 4)).losses["group_lasso"].detach())
    for _ in range(100):
        optimiser.zero_grad()
        method(hidden, torch.zeros(2, 4)).losses["group_lasso"].backward()
        optimiser.step()
    after = float(method(hidden, torch.zeros(2, 4)).losses["group_lasso"].detach())
    assert 1 / np.sqrt(method.head.in_features) < after < before < 1
    with pytest.raises(ValueError, match="negative"):
        Head2Toe(SHAPE, weight=-1.0)


def places(depth, reader, **settings):
    shape = replace(
        SHAPE, layers=depth, reader=ReaderShape(layers=reader, width=12, heads=2, mlp=16)
    )
    method = SparseCut(shape, **settings)
    return [(method.taps[row][0], m) for row, m in zip(method.rows, method.targets, strict=True)]


def test_sparsecuts_eight_shortcuts_are_those_of_the_code():
    code = list(zip(range(1, 23, 3), range(4, 40, 5), strict=True))
    assert places(24, 40) == code
    assert [m for _, m in places(24, 4)] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert places(24, 40, order="descending")[0] == (22, 4)
    assert places(24, 40, shortcuts=2) == [(1, 19), (13, 39)]
    assert set(places(24, 40, repeat=True)) == {(23, m) for _, m in code}


def test_sparsecuts_values_are_the_patches_of_their_layers_behind_the_readers_projector():
    method = build("sparsecut", SHAPE)
    hidden, query = drawn(method)
    fused = method(hidden, query)
    assert torch.equal(fused.tokens, hidden[0][:, PREFIX:])
    assert method.taps[0] == (SHAPE.layers - 1,)
    for injection, row in zip(fused.injections, method.rows, strict=True):
        assert injection.through_projector and injection.when == "before"
        assert torch.equal(injection.values, hidden[row][:, PREFIX:])


def test_sparsecut_needs_a_reader_with_layers_and_changes_its_answer():
    with pytest.raises(Unsupported, match="none"):
        SparseCut(replace(SHAPE, reader=None))
    with pytest.raises(ValueError, match=r"1\.\.24"):
        SparseCut(SHAPE, shortcuts=0)
    shape = replace(SHAPE, reader=decoder_shape(16, 4))
    torch.manual_seed(0)
    reader = DecoderReader(shape.dim, shape.reader, query_dim=4, length=3, answers=5).eval()
    method = build("sparsecut", shape)
    hidden, query = torch.randn(len(method.taps), 2, shape.tokens, shape.dim), torch.zeros(2, 4)
    fused = method(hidden, query)
    question, mask = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        bare = reader(replace(fused, injections=()), question, mask)
        assert not torch.allclose(reader(fused, question, mask), bare)
