"""Layers and parameters of every method at the size of the papers: CLIP ViT-L/14 at 336 px."""

import pytest
import torch
from registered_methods import build, names, registrations

from fusionbench.layers import paper_taps
from fusionbench.methods.controls import RandomLayers
from fusionbench.types import StackShape

CLIP_L = StackShape(layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=4096)
LLM = 4096


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


@pytest.mark.parametrize("layers", ["", "a", "3,", "5..3", "25", "3;4", "-1"])
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
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_those_of_the_published_formula(name):
    shape = CLIP_L if name != "igva" else StackShape(**vars(CLIP_L) | {"query_dim": 768})
    with torch.device("meta"):
        method = build(name, shape)
    fusion = sum(parameter.numel() for parameter in method.parameters())
    assert fusion + projector(method.out_dim) - projector(1024) == PARAMETERS[name]


def test_the_wide_projector_is_as_large_as_mmfuser_to_a_percent():
    with torch.device("meta"):
        sizes = [
            sum(parameter.numel() for parameter in build(name, CLIP_L).parameters())
            for name in ("wide_projector", "mmfuser")
        ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_a_quarter_of_the_tokens_or_some_more_of_them_are_given_where_the_papers_say_so():
    counts = {"token_packer": 4, "llava_stf": 4, "dense_connector-sti": 20, "alf": 1}
    shape = StackShape(layers=24, dim=16, grid=(4, 4), prefix=1, query_dim=6)
    for name, count in counts.items():
        method = build(name, shape)
        hidden = torch.zeros(len(method.taps), 2, shape.tokens, shape.dim)
        assert method(hidden, torch.zeros(2, 6)).tokens.shape[1] == count


def test_every_control_that_a_method_names_exists():
    for registered in registrations():
        control = registered.facts["control"]
        assert control.startswith("none: ") or control in names(), registered.family


def test_random_layers_are_the_same_for_every_seed_and_differ_by_draw():
    assert RandomLayers(CLIP_L).taps == RandomLayers(CLIP_L).taps
    assert len({RandomLayers(CLIP_L, draw=draw).taps for draw in range(8)}) > 1
