"""Mema: what its initialisations start from, what its ablations change, and what it costs."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from method_sizes import variants
from toy_encoder import SHAPE, draw, run

from fusionbench.api.types import StackShape
from fusionbench.methods.mema import Mema
from fusionbench.methods.single_layer import SingleLayer

CLIP_L = StackShape(layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=4096)
RECORDED = Path(__file__).parent / "parity" / "mema_effective_init.json"
VARIANTS = variants("mema")


def seeded(seed: int = 0, **settings) -> Mema:
    torch.manual_seed(seed)
    return Mema(SHAPE, **settings)


def with_random_weights(**settings) -> Mema:
    fusion = seeded(**settings)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return fusion


def train(fusion: Mema, steps: int) -> dict[str, torch.Tensor]:
    """How far each parameter moved while the tokens were drawn to random targets."""
    tokens, query = draw()
    target = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(5))
    before = {name: p.detach().clone() for name, p in fusion.named_parameters()}
    optimiser = torch.optim.AdamW(fusion.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = ((run(fusion, tokens, query).tokens - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: (p - before[name]).abs().max() for name, p in fusion.named_parameters()}


DEAD = {
    "spatial_gate.delta.0.weight",
    "spatial_gate.delta.0.bias",
    "spatial_gate.delta.2.weight",
}


def test_as_written_the_feedbacks_weights_stay_exactly_zero():
    fusion = seeded(init="as_written")
    moved = train(fusion, steps=30)
    assert all(not fusion.get_parameter(name).any() for name in DEAD)
    assert moved["spatial_gate.delta.2.bias"] > 0
    assert moved["spatial_gate.alpha_proj.weight"] > 0


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "as_written"])
def test_every_parameter_of_a_live_variant_moves_within_the_declared_steps(name):
    fusion = seeded(**VARIANTS[name])
    moved = train(fusion, steps=fusion.live_after_steps) if name != "no_feedback" else {}
    assert all(distance > 0 for distance in moved.values()), moved


def test_repaired_is_not_alive_a_step_earlier_than_it_says():
    fusion = seeded(init="repaired")
    moved = train(fusion, steps=fusion.live_after_steps - 1)
    assert not all(distance > 0 for distance in moved.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_starts_as_the_penultimate_layer_exactly_if_it_says_so(name):
    fusion = seeded(**VARIANTS[name])
    tokens, query = draw()
    penultimate = run(SingleLayer(SHAPE, index=-2), tokens, query).tokens
    same = torch.equal(run(fusion, tokens, query).tokens, penultimate)
    assert same == fusion.identity_at_init
    assert fusion.identity_at_init == (name in ("as_written", "repaired", "no_feedback"))


def test_without_feedback_and_alignment_it_is_the_penultimate_layer_and_has_no_parameters():
    fusion = seeded(feedback="none")
    tokens, query = draw()
    penultimate = run(SingleLayer(SHAPE, index=-2), tokens, query).tokens
    assert torch.equal(run(fusion, tokens, query).tokens, penultimate)
    assert list(fusion.parameters()) == []
    assert not fusion.writes


def test_with_alignment_the_memory_without_feedback_learns_from_the_summary():
    fusion = with_random_weights(feedback="none", alignment=0.1)
    fused = run(fusion, *draw())
    fused.summary.sum().backward()
    assert fusion.summary_weight == 0.1
    assert all(p.grad is not None and p.grad.any() for p in fusion.parameters())


def test_without_alignment_the_last_block_is_not_run():
    assert Mema(SHAPE).depth == SHAPE.layers - 1
    assert Mema(SHAPE, alignment=0.1).depth == SHAPE.layers
    assert run(Mema(SHAPE), *draw()).summary is None


def test_the_alignment_changes_no_token():
    plain, aligned = with_random_weights(), with_random_weights(alignment=0.1)
    aligned.load_state_dict(plain.state_dict())
    assert torch.equal(run(plain, *draw()).tokens, run(aligned, *draw()).tokens)


def test_the_readout_writes_nothing_and_gates_once():
    fusion = with_random_weights(feedback="after")
    assert not fusion.writes
    opened = run(fusion.eval(), *draw()).trace["gate_opening"]
    assert opened.count_nonzero() == 1 and opened[-1] > 0


def test_only_the_first_block_of_the_stateless_variant_agrees_with_the_full_method():
    """With c = 0 carried in, LN(c) and the forget gate add nothing."""
    full, stateless = with_random_weights(), with_random_weights(memory="rebuilt")
    weights = {k: v for k, v in full.state_dict().items() if k in stateless.state_dict()}
    weights["dsu.W1.weight"] = weights["dsu.W1.weight"][:, SHAPE.dim :]
    stateless.load_state_dict(weights)
    one, other = (run(f, *draw()).trace["memory_norm"] for f in (full, stateless))
    torch.testing.assert_close(one[0], other[0])
    assert not torch.isclose(one[1], other[1])


def test_the_query_reaches_the_tokens_through_the_memory_alone():
    tokens, query = draw()
    for settings, heard in [({}, True), ({"query": False}, False), ({"memory": "none"}, False)]:
        fusion = with_random_weights(**settings)
        same = torch.equal(run(fusion, tokens, query).tokens, run(fusion, tokens, -query).tokens)
        assert same != heard
        assert fusion.needs_query == heard


def test_every_named_ablation_changes_one_setting():
    assert all(len(changed) == (name != "") for name, changed in VARIANTS.items())


def test_at_clip_l_size_it_has_the_parameters_that_its_authors_code_has():
    expected = {1: 15_740_929, 2: 12_594_689, 4: 11_021_569, 8: 10_235_009}
    with torch.device("meta"):
        for reduction, count in expected.items():
            fusion = Mema(CLIP_L, reduction=reduction)
            assert sum(p.numel() for p in fusion.parameters()) == count


@pytest.mark.parametrize(
    ("init", "key"),
    [("effective", "llava_ckpt fp32 (train.py path)"), ("as_written", "direct construction")],
)
def test_the_initial_values_are_those_measured_in_the_official_code(init, key):
    recorded = json.loads(RECORDED.read_text())
    found = next(iter(recorded["versions"].values()))[key]
    torch.manual_seed(0)
    shape = StackShape(layers=4, dim=64, grid=(4, 4), prefix=1, query_dim=96)
    named = dict(Mema(shape, init=init).named_parameters())
    expected = found.get("values", found)
    assert set(named) == set(expected)
    for name, moments in expected.items():
        values = named[name].detach()
        if "constant" in moments:
            assert torch.equal(values, torch.full_like(values, moments["constant"])), name
            continue
        # Six standard errors of the smaller of two samples' standard deviation.
        allowed = 6 * moments["std"] / math.sqrt(2 * min(values.numel(), 64))
        assert abs(values.std() - moments["std"]) < allowed, name
        assert abs(values.mean() - moments["mean"]) < 2 * allowed, name


def test_repaired_differs_from_as_written_in_the_first_linear_of_the_feedback_alone():
    one = dict(seeded(init="as_written").named_parameters())
    other = dict(seeded(init="repaired").named_parameters())
    apart = {name for name in one if not torch.equal(one[name], other[name])}
    assert apart == {"spatial_gate.delta.0.weight", "spatial_gate.delta.0.bias"}


def test_it_runs_under_bfloat16_autocast_and_keeps_the_tokens_precision():
    fusion = with_random_weights()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = run(fusion, *draw())
    exact = run(fusion, *draw()).tokens
    assert fused.tokens.dtype == torch.float32
    assert (fused.tokens - exact).norm() < 0.05 * exact.norm()


def test_a_copy_and_a_pickle_give_the_same_tokens():
    fusion = with_random_weights()
    expected = run(fusion, *draw()).tokens
    for twin in (copy.deepcopy(fusion), pickle.loads(pickle.dumps(fusion))):
        assert torch.equal(run(twin, *draw()).tokens, expected)


def test_the_trace_has_one_value_a_block_and_no_gradient():
    trace = run(with_random_weights(), *draw()).trace
    assert set(trace) == {"gate_opening", "feedback_norm", "feedback_cosine", "memory_norm"}
    for values in trace.values():
        assert values.shape == (SHAPE.layers - 1,)
        assert not values.requires_grad


def test_an_encoder_without_cls_is_summarised_by_mean_and_maximum():
    shape = StackShape(layers=3, dim=16, grid=(3, 4), query_dim=6)
    fusion = Mema(shape)
    assert fusion.y_proj.in_features == 2 * shape.dim
    assert run(fusion, *draw(shape)).tokens.shape == (3, 12, 16)


PARTS = [
    {"gates": "forget"},
    {"gates": "input"},
    {"gates": "none"},
    {"summary": "mean"},
    {"summary": "max"},
    {"summary": "cls"},
    {"summary": "mean+cls"},
    {"opening": "scalar"},
    {"every": 2},
    {"where": "shallow"},
    {"where": "deep"},
]


@pytest.mark.parametrize("settings", PARTS, ids=str)
def test_a_part_that_is_switched_off_changes_the_tokens_and_leaves_the_rest_alive(settings):
    fusion = seeded(init="repaired", **settings)
    moved = train(fusion, steps=fusion.live_after_steps)
    assert all(distance > 0 for distance in moved.values()), moved
    whole, part = with_random_weights(), with_random_weights(**settings)
    shared = {k: v for k, v in whole.state_dict().items() if k in part.state_dict()}
    fitting = {k: v for k, v in shared.items() if v.shape == part.get_parameter(k).shape}
    part.load_state_dict(fitting, strict=False)
    assert not torch.allclose(run(whole, *draw()).tokens, run(part, *draw()).tokens)


@pytest.mark.parametrize(
    ("settings", "opened"),
    [
        ({}, (1, 2, 3, 4)),
        ({"every": 2}, (2, 4)),
        ({"where": "shallow"}, (1, 2)),
        ({"where": "deep"}, (3, 4)),
        ({"every": 3, "where": "deep"}, (3,)),
    ],
    ids=str,
)
def test_the_memory_is_written_back_after_the_blocks_that_are_named(settings, opened):
    openings = run(with_random_weights(**settings).eval(), *draw()).trace["gate_opening"]
    assert tuple((openings.nonzero().flatten() + 1).tolist()) == opened


def test_a_scalar_opening_is_one_number_for_all_tokens():
    fusion = seeded(init="repaired", opening="scalar")
    assert fusion.spatial_gate.alpha.item() == pytest.approx(-2.2)
    openings = run(fusion.eval(), *draw()).trace["gate_opening"]
    assert torch.equal(openings, torch.full_like(openings, torch.tensor(-2.2).sigmoid().item()))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"memory": "carreid"}, "did you mean 'carried'"),
        ({"init": "efective"}, "did you mean 'effective'"),
        ({"memory": "none", "alignment": 0.1}, "alignment"),
        ({"summary": "mean+cls+men"}, "did you mean 'mean'"),
        ({"every": 0}, "every"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(settings, told):
    with pytest.raises(ValueError, match=told):
        Mema(SHAPE, **settings)


def test_a_query_that_does_not_exist_is_refused_unless_it_is_not_asked_for():
    shape = StackShape(layers=3, dim=16, grid=(3, 4), prefix=1)
    with pytest.raises(ValueError, match="query=False"):
        Mema(shape)
    Mema(shape, query=False)


def test_a_released_checkpoint_loads_under_its_official_names():
    weights = {
        f"model.vision_tower.{name}": value + 1
        for name, value in with_random_weights().state_dict().items()
    }
    fusion = seeded()
    fusion.load_official(weights | {"model.mm_projector.0.weight": torch.zeros(2, 2)})
    for name, value in fusion.state_dict().items():
        assert torch.equal(value, weights[f"model.vision_tower.{name}"])
    with pytest.raises(ValueError, match=r"dsu\.W1\.weight"):
        fusion.load_official({k: v for k, v in weights.items() if "W1.weight" not in k})
