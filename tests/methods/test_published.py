"""Layers and parameters of every method at the size of the papers: CLIP ViT-L/14 at 336 px."""

import json
import os
from pathlib import Path

import pytest
import torch
from method_sizes import CARDS, build, names
from safetensors.torch import load_file
from torch import nn
from toy_cells import train_cell

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import paper_taps
from fusionbench.api.types import ReaderShape, StackShape, Unsupported
from fusionbench.harness.stepping import fuse
from fusionbench.methods._inside import first_of_each_layer, targets
from fusionbench.methods._sizes import SIZES, parameters_of
from fusionbench.methods.controls import RandomLayers
from fusionbench.methods.dtl import DTL
from fusionbench.methods.qladder import QLadder
from fusionbench.methods.unipt import UniPT
from fusionbench.methods.wide_projector import WideProjector
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

LLM = 4096
VICUNA = ReaderShape(layers=32, width=LLM, heads=32, mlp=11008)
CLIP_L = StackShape(layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=4096, reader=VICUNA)


def singles(*layers):
    return tuple((layer,) for layer in layers)


def span(first, last):
    return tuple(range(first, last + 1))


TAPS = {
    "last": singles(24),
    "penultimate": singles(23),
    "dense_connector-sti": singles(23, 7, 15),
    "dense_connector-sci": singles(23, 7, 15),
    "dense_connector-dci": ((23,), span(0, 11), span(12, 23)),
    "vip_llava": singles(23, 20, 17, 14, 6),
    "lsf_external_direct-18": singles(18, 23),
    "lsf_external_direct-3_18_23": singles(3, 18, 23),
    "lsf_external_direct-former": (span(1, 12), (23,)),
    "lsf_external_direct-latter": (span(13, 24), (23,)),
    "lsf_external_direct-all": (span(1, 12), span(13, 24), (23,)),
    "mmfuser": singles(3, 8, 13, 18, 23),
    "lsf_external_modular-3_18_23": singles(3, 18, 23),
    "lsf_external_modular-former": singles(*span(1, 12), 23),
    "lsf_external_modular-latter": singles(*span(13, 24)),
    "scalar_mix": singles(*span(1, 24)),
    "tgif": singles(*span(1, 24)),
    "lln_layerscale-shared": singles(*span(1, 24)),
    "igva": (span(1, 6), span(7, 12), span(13, 18), span(19, 24), (23,)),
    "llava_stf": singles(23, 21, 18, 15, 12, 9, 6, 3),
    "token_packer": singles(12, 16, 22, 23),
    "uniform_mean": (span(1, 24),),
    "last_norm": singles(25),
    "lsf_internal_direct": singles(23, 3, 18),
    "lsf_internal_modular": singles(23, 3, 18),
    "cli_amp": singles(23, 3, 18),
    "lsf_internal_direct-repeat": singles(23),
    "dense_connector-efficient": ((23,), span(0, 11), span(12, 23)),
}


@pytest.mark.parametrize("name", TAPS)
def test_a_papers_layers_are_the_hidden_states_that_its_code_reads(name):
    with torch.device("meta"):
        method = build(name, CLIP_L)
    assert method.taps == TAPS[name]


def test_siglips_layer_numbers_are_those_of_a_tower_that_has_27_blocks():
    shape = StackShape(layers=27, dim=8, grid=(27, 27))
    assert paper_taps(shape, "26,0..12,13..25", blocks=27) == ((26,), span(0, 12), span(13, 25))
    assert paper_taps(shape, "4,8,16,27", blocks=27) == singles(4, 8, 16, 27)


def test_on_a_shallow_encoder_the_penultimate_stays_penultimate_and_duplicates_are_dropped():
    shape = StackShape(layers=8, dim=8, grid=(4, 4))
    assert paper_taps(shape, "23,7,15") == singles(7, 2, 5)
    assert paper_taps(shape, "24,23,22,1") == singles(8, 7, 1)
    assert paper_taps(shape, "23,0..11,12..23") == ((7,), span(0, 3), span(4, 7))


@pytest.mark.parametrize("layers", ["", "a", "3,", "5..3", "25", "3;4", "-1", "²"])
def test_layers_that_cannot_be_read_are_refused(layers):
    with pytest.raises(ValueError, match="layer"):
        paper_taps(CLIP_L, layers)


def projector(width):
    """k D H + H + H^2 + H."""
    return width * LLM + LLM + LLM**2 + LLM


# Parameters on top of LLaVA's projector; igva's sentence vector is 768 wide.
PARAMETERS = {
    "last": 0,
    "penultimate": 0,
    "dense_connector-sti": 0,
    "dense_connector-sci": 8_388_608,
    "dense_connector-dci": 8_388_608,
    "mmfuser": 5_190_592,
    "lsf_external_direct-18": 4_194_304,
    "lsf_external_direct-3_18": 8_388_608,
    "lsf_external_direct-3_18_23": 8_388_608,
    "lsf_external_direct-all": 8_388_608,
    "lsf_external_modular-18": 4_600_192,
    "lsf_external_modular-3_18_23": 4_796_992,
    "lsf_external_modular-former": 6_764_992,
    "lsf_external_modular-latter": 6_764_992,
    "lsf_external_modular-all": 9_126_592,
    "scalar_mix": 25,
    "scalar_mix-norm": 25,
    "scalar_mix-one_hot": 24,
    "scalar_mix-per_channel": 24_576,
    "lln_layerscale-shared": 1_051_672,
    "lln_layerscale-per_layer": 25_239_576,
    "come_vl": 2_099_224,
    "vip_llava": 16_787_456,
    "hf_list": 3 * 1024 * LLM,
    "mllama": 5 * 1024 * LLM,
    "igva": 27_047_940 + 4_194_304,
    "frozen_average": 4_194_304,
    "tgif": 2_112_024,
    "tgif-leaky": 2_112_024,
    "token_packer": 15_742_976,
    # Up to the joined neighbours; the papers' own projector, 16 D wide inside, is not ours.
    "llava_stf": 37_753_856 + 3 * 1024 * LLM,
    "mema": 11_021_569,
    "mema-no_feedback": 0,
    "mema-no_memory": 2_100_225,
    "mema-readout": 11_021_569,
    "dia_lstm": 2_630_144,
    # Per block as published, for blocks 1 to 23, and one gate each, which is ours.
    "mrla-light": 23 * (14_346 + 1),
    # Blocks 1, 5, 9, ... have a single key and so no query, which would be 5 parameters.
    "mrla-base": 23 * (11_274 + 1) - 6 * 5,
    "repeat": 8_388_608,
    "random_layers": 8_388_608,
    "uniform_mean": 0,
    "last_norm": 0,
    "dense_connector-efficient": 8_388_608,
    "lsf_internal_direct": 62_939_136,
    "lsf_internal_direct-repeat": 62_939_136,
    "lsf_internal_modular": 670_064_646,
    "qwen3vl_deepstack": 15_750_144,
    "cli_amp": 3 * 8 * (1024 + LLM),
    "deepstack": 0,
    "tgif-shuffled_query": 2_112_024,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_those_of_the_published_formula(name):
    shape = CLIP_L if name != "igva" else StackShape(**vars(CLIP_L) | {"query_dim": 768})
    with torch.device("meta"):
        method = build(name, shape)
    fusion = sum(parameter.numel() for parameter in method.parameters())
    assert fusion + projector(method.out_dim) - projector(1024) == PARAMETERS[name]


@pytest.mark.few(36)
@pytest.mark.parametrize("layers", [2, 5, 8, 24])
@pytest.mark.parametrize("dim", [13, 96, 1024])
@pytest.mark.parametrize("like", SIZES)
def test_the_wide_projector_has_the_parameters_of_the_method_it_names(like, dim, layers):
    shape = StackShape(layers=layers, dim=dim, grid=(8, 8), prefix=1, query_dim=64)
    with torch.device("meta"):
        matched, named = WideProjector(shape, like=like), build(like, shape)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (matched, named)]
    assert sizes[1] == parameters_of(like, shape)
    # A hidden unit more or less is 2 D + 1 parameters.
    assert abs(sizes[0] - sizes[1]) <= dim + 1


def test_a_projector_like_a_method_without_a_formula_is_refused():
    with pytest.raises(ValueError, match="did you mean 'mmfuser'"):
        WideProjector(CLIP_L, like="mmfusr")


def test_a_quarter_of_the_tokens_or_some_more_of_them_are_given_where_the_papers_say_so():
    counts = {"token_packer": 4, "llava_stf": 4, "dense_connector-sti": 20, "alf": 1}
    shape = StackShape(layers=24, dim=16, grid=(4, 4), prefix=1, query_dim=6)
    for name, count in counts.items():
        method = build(name, shape)
        hidden = torch.zeros(len(method.taps), 2, shape.tokens, shape.dim)
        assert method(hidden, torch.zeros(2, 6)).tokens.shape[1] == count


def test_layer_select_fuses_layers_enter_the_readers_layers_of_the_published_rule():
    def places(strategy, layers):
        return [(k, m) for _, k, m in targets(strategy, layers)]

    assert places("3_18_23", 24) == [(3, 2), (18, 17), (23, 22)]
    assert places("3_18_23", 32) == [(3, 3), (18, 23), (23, 29)]
    assert places("former", 32) == [(k, k - 1) for k in span(1, 12)]
    assert places("latter", 32) == [(k, k + 7) for k in span(13, 24)]
    assert places("all", 24) == [(k, k - 1) for k in span(1, 24)]
    # A shallow reader: three states meet in two layers, and only some of the halves find room.
    assert places("3_18_23", 4) == [(3, 0), (18, 2), (23, 2)]
    assert first_of_each_layer(targets("3_18_23", 4)) == ((0, 3, 0), (1, 18, 2))
    assert places("former", 3) == [(1, 0), (2, 1), (3, 2)]
    assert places("latter", 3) == [(22, 0), (23, 1), (24, 2)]


def test_qwens_layers_are_counted_on_an_encoder_of_27_blocks():
    shape = StackShape(layers=27, dim=8, grid=(4, 4), reader=VICUNA)
    assert build("qwen3vl_deepstack-as_published", shape).taps == singles(27, 9, 17, 25)
    assert build("qwen3vl_deepstack", shape).taps == singles(26, 9, 17, 25)


def test_the_efficient_connector_shrinks_behind_the_projector():
    shape = StackShape(layers=24, dim=8, grid=(4, 6), prefix=1)
    method = build("dense_connector-efficient", shape)
    fused = method(torch.randn(3, 2, shape.tokens, 8), torch.zeros(2, 0))
    assert fused.tokens.shape == (2, 24, 24)
    projected = torch.randn(2, 24, 5)
    means = projected.unflatten(1, (2, 2, 3, 2)).mean(dim=(2, 4)).flatten(1, 2)
    # Halving bilinearly, without aligned corners, is the mean of each 2 x 2 window.
    torch.testing.assert_close(fused.after_projector(projected), means)


def test_every_control_that_a_method_names_exists():
    for card in CARDS.values():
        assert card.control.startswith("none: ") or card.control in names(), card.name


def test_random_layers_are_the_same_for_every_seed_and_differ_by_draw():
    assert RandomLayers(CLIP_L).taps == RandomLayers(CLIP_L).taps
    assert len({RandomLayers(CLIP_L, draw=draw).taps for draw in range(8)}) > 1


# Modules of official code, recorded alone: the same outputs and gradients from our methods.

FOLDER = Path(__file__).parent / "recorded"
NO_QUERY = torch.zeros(2, 0)


def recorded(name):
    held = load_file(FOLDER / "cases.safetensors")
    tensors = {k.removeprefix(f"{name}/"): v for k, v in held.items() if k.startswith(f"{name}/")}
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


# A method whose results change must bump its version: a short training against a stored one.
#
# After an intended change: bump `version` in the method's file, then
# `FUSIONBENCH_WRITE_GOLDEN=1 pytest tests/methods/test_published.py`.

GOLDEN = Path(__file__).parent / "golden_outcomes.json"
CATALOG = read_catalog()
METHODS = {n: c for n, c in CATALOG.methods.items() if c.source == "built-in"}
# Losses agree to this between processors and versions of torch; a wrong layer differs by 100x.
TOLERANCE = 2e-3


def stored() -> dict[str, dict[str, object]]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def losses(name: str) -> list[float] | None:
    (chosen,) = select_methods(CATALOG, [name])
    try:
        record, _ = train_cell(load_method(chosen.card), steps=5, **chosen.settings)
    except Unsupported:
        return None
    return list(record.loss)


@pytest.mark.few(16)
@pytest.mark.parametrize("name", METHODS)
def test_results_change_only_with_the_version(name):
    found = losses(name)
    if os.environ.get("FUSIONBENCH_WRITE_GOLDEN"):
        values = stored() | {name: {"version": METHODS[name].version, "loss": found}}
        kept = {key: values[key] for key in sorted(values) if key in METHODS}
        GOLDEN.write_text(json.dumps(kept, indent=1) + "\n")
    known = stored().get(name)
    assert known, f"{name} has no golden outcome yet; see the head of this file"
    if known["version"] == METHODS[name].version:
        assert found == pytest.approx(known["loss"], abs=TOLERANCE), "bump its version"
    else:
        pytest.fail("the version was bumped: write the golden outcome again")
