"""What methods cost: the numbers of the papers, counted; times in turn; one record a method."""

import io
import sys
from dataclasses import replace

import pytest
import torch
from method_sizes import REFERENCE

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape
from fusionbench.harness import measure
from fusionbench.harness import measure as flops
from fusionbench.harness import pipeline as language
from fusionbench.harness import profile as bench
from fusionbench.harness.measure import interleaved, spread
from fusionbench.harness.pipeline import SHAPES, subject
from fusionbench.harness.profile import Bench
from fusionbench.records.cost import ProfileOptions, read
from fusionbench.registry import provenance
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

CLIP = "shape:clip-vit-l-14-336"
META = torch.device("meta")


@pytest.fixture(scope="module")
def at_scale():
    """Every method that a test asks for, at CLIP ViT-L/14-336 in front of a 7B model."""
    bench, known = Bench(ProfileOptions(encoder=CLIP, device="meta")), {}

    def profile(name):
        if name not in known:
            (chosen,) = select_methods(read_catalog(), (name,), {})
            known[name] = bench.profile(chosen)
        return known[name]

    return profile


# IGVA, whose question is narrower there, has a test of its own; the others deviate and say so.
APART = ("igva", "llava_stf", "mrla-base", "mrla-light")
PUBLISHED = {name: size for name, size in REFERENCE.items() if name not in APART}
# Forward GFLOP per image over encoder and projector; Mema's and DIA's are for
# 24 blocks, of which 23 are needed.
PUBLISHED_GFLOP = {
    "dense_connector-sti": 6.0,
    "dense_connector-sci": 9.66,
    "mmfuser": 9.6,
    "vip_llava": 19.3,
    "lln_layerscale-per_layer": 29.0,
    "mema": 58 * 23 / 24,
    "dia_lstm": 0.13 * 23 / 24,
    "lsf_internal_direct": 72.5,
    "qwen3vl_deepstack": 18.1,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_at_real_scale_are_the_published_ones(name, at_scale):
    assert at_scale(name).parameters["over_projector"] == PUBLISHED[name]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", PUBLISHED_GFLOP)
def test_operations_at_real_scale_are_those_worked_out_by_hand(name, at_scale):
    found = at_scale(name).flops_over_encoder / 1e9
    assert found == pytest.approx(PUBLISHED_GFLOP[name], rel=0.06)


def test_igva_counts_as_published_with_a_question_of_clip_text_width():
    card = read_catalog().methods["igva"]
    shape = StackShape(layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=768)
    built = load_method(card)(shape, **card.settings)
    assert sum(p.numel() for p in built.parameters()) == 27_047_940


def test_the_count_of_clip_is_the_known_one_and_the_count_by_hand():
    encoder, weights = subject(CLIP, image_size=0, device=META, dtype=torch.float32)
    images = torch.zeros(1, 336, 336, 3, dtype=torch.uint8, device=META)
    found = flops.count(lambda: encoder.hidden_states(images))
    assert weights == "random"
    assert found == pytest.approx(381e9, rel=0.01)
    assert found == pytest.approx(flops.analytic(encoder, blocks=24), rel=flops.LARGEST_ERROR)


def test_fused_attention_on_the_cpu_is_counted_forward_and_back():
    parts = [torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3)]
    attend = torch.nn.functional.scaled_dot_product_attention
    forward = flops.count(lambda: attend(*parts))
    both = flops.count(lambda: attend(*parts).sum().backward())
    assert forward == 2 * 2 * 2 * 3 * 16 * 16 * 8
    # Three products back for each forward, or two and a half where the scores are not kept.
    assert both in (forward + 2 * forward, forward + forward * 5 // 2)


@pytest.mark.parametrize("back", [False, True])
def test_a_module_that_reads_a_parameter_is_counted(back):
    layer, start = torch.nn.Linear(4, 4, bias=False), torch.nn.Parameter(torch.ones(1, 3, 4))
    assert flops.step(lambda: layer(start), back=back).forward == 2 * 3 * 4 * 4


def test_a_counter_that_is_off_is_refused(monkeypatch):
    monkeypatch.setattr(flops, "_attention", lambda *args, **kwargs: 0)
    with pytest.raises(ValueError, match="off by"):
        flops.check(torch.device("cpu"))


@pytest.mark.thorough
def test_more_visual_tokens_cost_in_the_language_model(at_scale):
    assert at_scale("mema").flops_language_model_over == 0
    # 144 tokens more at about 13.5 GFLOP a token.
    over = at_scale("dense_connector-sti").flops_language_model_over
    assert over == pytest.approx(144 * 13.5e9, rel=0.05)


@pytest.mark.thorough
def test_what_a_method_does_in_the_language_models_layers_is_counted_there(at_scale):
    # Added to a hidden state: no product. Cross-attention in four layers: products.
    assert at_scale("qwen3vl_deepstack").flops_language_model_over == 0
    found = at_scale("lsf_internal_modular")
    assert found.flops_language_model_over > 0.01 * language.operations(576)
    assert found.parameters["fusion"] > 100e6


def test_the_prefill_of_a_7b_model_is_two_operations_a_weight_and_token():
    weights = sum(p.numel() for p in language.nowhere().model.layers.parameters())
    tokens = 576 + language.TEXT_TOKENS
    attention = 4 * 32 * tokens**2 * 4096
    assert weights == pytest.approx(6.48e9, rel=0.01)
    assert language.operations(576) == pytest.approx(2 * weights * tokens + attention, rel=0.001)


def test_the_final_norm_adds_no_product(at_scale):
    found = at_scale("last_norm")
    assert (found.flops_over_encoder, found.parameters["over_projector"]) == (0, 0)
    assert "24 of 24 blocks" in found.notes[0]


def test_the_frozen_encoder_is_in_the_total(at_scale):
    # CLIP ViT-L/14-336 has 303.5 million, without its projection and its norm in front.
    assert at_scale("mema").parameters["encoder"] == pytest.approx(303.5e6, rel=0.005)


def test_a_profile_that_is_there_is_not_measured_again(tmp_path):
    from fusionbench.cli.profile import profile

    asked = ProfileOptions(encoder="nano", device="meta", width=64)
    one, both = (select_methods(read_catalog(), names, {}) for names in
                 (("scalar_mix",), ("scalar_mix", "last")))  # fmt: skip
    said = io.StringIO()
    profile(one, asked, tmp_path, said, missing=True)
    profile(both, asked, tmp_path, said, missing=True)
    assert said.getvalue().count("scalar_mix:") == 1 and said.getvalue().count("last:") == 1


@pytest.mark.thorough
def test_a_language_model_behind_the_encoder_is_timed_with_the_method(monkeypatch, tmp_path):
    small = ReaderShape(layers=4, width=64, heads=4, mlp=96)
    built = language.RandomLlama
    monkeypatch.setattr(language, "SHAPE", small)
    monkeypatch.setattr(bench, "SHAPE", small)
    monkeypatch.setattr(bench, "RandomLlama", lambda *given: built(*given, shape=small))
    nowhere = built(META, torch.float32, shape=small)
    monkeypatch.setattr(language, "nowhere", lambda dtype: nowhere)
    monkeypatch.setattr(language, "operations", lambda tokens: 0)
    asked = ProfileOptions(
        encoder="nano", device="cpu", width=64, batch=2, blocks=2, language_model=True
    )
    here = Bench(asked)
    (chosen,) = select_methods(read_catalog(), ("qwen3vl_deepstack",), {})
    record = here.profile(chosen)
    assert record.conditions.language_model and record.latency_ms.median > 0
    # The method changes what the language model says, with the very tokens of the bare encoder.
    pipeline = here._pipeline(chosen, meta=False)
    with torch.no_grad():
        plain = here.model(pipeline.fused())
        assert not torch.allclose(pipeline.prefilled(here.model), plain, atol=1e-4)
    with pytest.raises(UserError, match="in inference only"):
        Bench(replace(asked, mode="train"))


@pytest.mark.thorough
def test_training_through_the_encoder_costs_its_backward_pass():
    bench = Bench(
        ProfileOptions(encoder="shape:vit-b-16-224", device="meta", mode="train", width=64)
    )
    found = {
        name: bench.profile(select_methods(read_catalog(), (name,), {})[0])
        for name in ("mema", "scalar_mix")
    }
    whole = found["mema"].flops_encoder
    assert found["mema"].flops_backward_over_encoder > 0.9 * whole
    assert found["scalar_mix"].flops_backward_over_encoder < 0.05 * whole


def test_a_difference_is_taken_between_neighbours_in_time():
    slow, quick = (lambda: [i**2 for i in range(20000)]), (lambda: [i for i in range(200)])
    times = interleaved(slow, quick, device=torch.device("cpu"), blocks=2)
    assert times.method.median > times.bare.median > 0
    assert times.difference.median > 0 and times.difference.blocks == 2


def test_quartiles_are_those_of_the_blocks():
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.q1, found.median, found.q3, found.blocks) == (2.0, 3.0, 4.0, 5)
    with pytest.raises(ValueError, match="two blocks"):
        spread([1.0])


@pytest.mark.thorough
def test_the_command_measures_writes_and_says_what_does_not_fit(tmp_path, capsys):
    from fusionbench.cli.profile import profile

    asked = ProfileOptions(encoder="nano", device="cpu", width=64, batch=2, blocks=2, mode="train")
    chosen = select_methods(read_catalog(), ("scalar_mix", "mema"), {})
    assert profile(chosen, asked, tmp_path, sys.stdout) == 0
    records = {record.label: record for record in read(tmp_path)}
    assert set(records) == {"scalar_mix", "mema"}
    for record in records.values():
        assert record.latency_ms.median > 0 and record.throughput > 0
        assert record.peak_memory_bytes is None and record.measured["hardware"]["cpu"]
        assert record.conditions.device == record.measured["hardware"]["cpu"]
    assert records["mema"].in_encoder and not records["scalar_mix"].in_encoder
    assert "images/s" in capsys.readouterr().out
    again = replace(asked, device="meta")
    assert profile(chosen, again, tmp_path, sys.stdout) == 0
    assert len(list(read(tmp_path))) == 4


def test_a_profile_says_under_what_it_was_measured(monkeypatch):
    asked = ProfileOptions(
        encoder="nano", device="meta", width=64, batch=8, dtype="bf16", compile="default",
        mode="train",
    )  # fmt: skip
    (chosen,) = select_methods(read_catalog(), ("scalar_mix",), {})
    found = Bench(asked).conditions(chosen)
    assert (found.dtype, found.batch, found.compile, found.mode) == (
        "bfloat16", 8, "default", "train"
    )  # fmt: skip
    assert asked.blocks == measure.BLOCKS >= 30
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(provenance, "_command", lambda *words: " ".join(words))
    there = provenance.hardware.__wrapped__("cuda:0")
    assert there["gpu"] == "a card" and "driver_version" in there["driver"]


def test_the_peak_is_above_what_was_there_at_the_start(monkeypatch):
    calls, used = [], {"now": 100, "most": 900}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: used["most"])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: used.update(most=used["now"])
    )
    run = lambda: (calls.append("run"), used.update(most=250))  # noqa: E731
    assert measure.peak_bytes(run, torch.device("cuda")) == 150
    assert calls == ["wait", "run", "wait"]


def test_on_a_cpu_no_peak_is_reported():
    assert measure.peak_bytes(lambda: torch.zeros(1000), torch.device("cpu")) is None


@torch.no_grad()
def test_of_all_hidden_states_those_that_are_read_are_kept():
    bench = Bench(ProfileOptions(encoder=CLIP, device="meta"))
    (chosen,) = select_methods(read_catalog(), ("penultimate",), {})
    assert set(bench._pipeline(chosen, meta=True)._states({3, 23})) == {3, 23}


def test_an_unknown_shape_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="clip-vit-l-14-336"):
        subject("shape:clip-vit-l-14", image_size=0, device=META, dtype=torch.float32)
    assert CLIP in SHAPES
