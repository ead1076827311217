"""Mixes, selections and shortcuts of layers against their equations, written out in NumPy."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from equations import SHAPE, drawn, layer_norm, linear, softmax, values
from method_sizes import CARDS, SHAPES, added_parameters, build, built, tokens_of
from torch import nn
from toy_cells import train_cell

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape, Unsupported
from fusionbench.harness.model import build_fusion
from fusionbench.methods.attnres import AttnRes
from fusionbench.methods.concat_all import LayerConcat, TokenConcat
from fusionbench.methods.dense_connector import EfficientDenseConnector
from fusionbench.methods.dinov2_linear import DINOv2Linear
from fusionbench.methods.head2toe import Head2Toe
from fusionbench.methods.middle_mean import MiddleMean
from fusionbench.methods.mol import MoL
from fusionbench.methods.sparsecut import SparseCut
from fusionbench.models.readers.decoder import DecoderReader, decoder_shape
from fusionbench.registry.plugins import load_method
from fusionbench.report.coverage import warnings

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
    with pytest.raises(ValueError, match="weight must be at least 0"):
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
    reader = DecoderReader(shape.dim, shape.reader, query_dim=4, answers=5).eval()
    method = build("sparsecut", shape)
    hidden, query = torch.randn(len(method.taps), 2, shape.tokens, shape.dim), torch.zeros(2, 4)
    fused = method(hidden, query)
    question, mask = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        bare = reader(replace(fused, injections=()), question, mask)
        assert not torch.allclose(reader(fused, question, mask), bare)


# Concatenations of whole layers: the published order of channels and tokens, and the controls.


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


# Every declared control has its method's added parameters, width and number of tokens, or says in
# words what differs.

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


@pytest.mark.few(17)
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


# Taps of a paper that coincide on a shallow encoder are noted in the record and in the report.


def notes(name: str, layers: int) -> tuple[str, ...]:
    return build(name, StackShape(layers=layers, dim=16, grid=(4, 4), query_dim=8)).notes


@pytest.mark.parametrize(
    ("name", "layers", "count"),
    [
        ("llava_stf", 8, "7 of 8"),
        ("token_packer", 12, "3 of 4"),
        ("mmfuser", 3, "2 of 4"),
        ("repeat_like-mllama", 4, "4 of 6"),
    ],
)
def test_a_method_notes_how_many_of_its_papers_taps_an_encoder_has(name, layers, count):
    (note,) = notes(name, layers)
    assert note == f"{count} taps: the others coincide with them on {layers} blocks"
    assert notes(name, 33) == ()


def test_the_note_stands_in_the_record_and_in_the_report():
    card = CARDS["vip_llava"]
    record, _ = train_cell(load_method(card), steps=1, **card.settings)
    (note,) = record.notes
    assert len(record.taps) < 5 and note.startswith(f"{len(record.taps)} of 5 taps")
    assert any(note in line for line in warnings([record]))


def test_a_method_whose_taps_are_apart_notes_nothing():
    card = CARDS["dense_connector-dci"]
    record, _ = train_cell(load_method(card), steps=1, **card.settings)
    assert record.notes == ()


@pytest.mark.parametrize("form", ["layer", "patch", "hybrid"])
def test_a_mixture_keeps_as_many_layers_in_bf16_as_it_names(form):
    torch.manual_seed(0)
    shape = StackShape(layers=24, dim=32, grid=(8, 8), prefix=1, query_dim=16)
    method, kept = MoL(shape, form=form), []
    largest = method._largest
    method._largest = lambda weights: kept.append(largest(weights)) or kept[-1]
    with torch.autocast("cpu", torch.bfloat16):
        method(torch.randn(24, 16, 65, 32), torch.randn(16, 16))
    assert ((kept[0] > 0).sum(dim=-1) == 4).all()
    torch.testing.assert_close(kept[0].sum(dim=-1), torch.ones(16, 64))


def test_the_efficient_dense_connector_needs_tokens_that_are_a_grid():
    with pytest.raises((ValueError, UserError), match="sti"):
        EfficientDenseConnector(SHAPE, form="sti")
