"""Training: the optimisers against their equations, and every fast path against the plain one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._functorch.config as partitioner
from einops import rearrange
from toy_cells import BUDGET, BrightHalf, PixelToyEncoder, both_ways, in_double, named, shared_by
from toy_encoder import SHAPE, Maps

from fusionbench.api.errors import UserError
from fusionbench.harness.bundle import cut
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, train_together
from fusionbench.harness.pipeline import build_pipeline
from fusionbench.harness.stack import Stack
from fusionbench.harness.train import Muon, Optimisers, autocast, orthogonalised, train
from fusionbench.models.encoders import features
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.models.encoders.vit import ViT, ViTBlock, ViTConfig
from fusionbench.study.reading import load_study

MUON = replace(BUDGET, optimiser="muon", vector_lr=5e-3)
RUNS = [PassMember(seed=seed, lr=lr) for lr in (0.02, 0.05) for seed in (0, 1)]


def _drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape):
    matrix = _drawn(*shape)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ np.diag(values) @ right
    np.testing.assert_allclose(orthogonalised(matrix).numpy(), expected, atol=1e-5)
    assert ((values > 0.6) & (values < 1.3)).all()


def test_the_matrices_of_runs_are_orthogonalised_one_by_one():
    stacked = _drawn(3, 4, 7) * torch.tensor([0.01, 1.0, 100.0]).reshape(3, 1, 1)
    for matrix, found in zip(stacked, orthogonalised(stacked), strict=True):
        torch.testing.assert_close(found, orthogonalised(matrix))
    assert not orthogonalised(torch.zeros(2, 3)).any()


def test_it_is_the_muon_of_pytorch_up_to_the_rounding_of_its_bfloat16():
    ours, theirs = (torch.nn.Parameter(_drawn(8, 12)) for _ in range(2))
    start = ours.detach().clone()
    mine = Muon([{"params": [ours], "lr": 0.1, "weight_decay": 0.5}])
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.5, momentum=0.95, adjust_lr_fn="spectral_unclamped"
    )
    for step in range(6):
        ours.grad, theirs.grad = (_drawn(8, 12, seed=step + 1) for _ in range(2))
        mine.step()
        reference.step()
    apart = (ours - theirs).detach().norm() / (ours.detach() - start).norm()
    assert apart < 0.02


def test_a_repeated_input_moves_the_output_as_much_as_a_single_one():
    single, inputs = _drawn(4, 6), _drawn(5, 6, seed=1)
    moves = []
    for times in (1, 3):
        weight = torch.nn.Parameter(torch.zeros(4, 6 * times))
        weight.grad = single.repeat(1, times)
        Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]).step()
        moves.append(inputs.repeat(1, times) @ weight.detach().T)
    torch.testing.assert_close(*moves)


@pytest.mark.parametrize("axes", [0, 1])
def test_matrices_go_to_muon_and_all_else_to_adamw_at_rates_of_their_own(axes):
    runs = (2,) * axes
    matrix, vector, number, kernel = (
        torch.zeros((*runs, *shape), requires_grad=True) for shape in [(3, 4), (4,), (), (2, 3, 3)]
    )
    adamw, muon = Optimisers([matrix, vector, number, kernel], MUON, 0.02, axes=axes).parts
    groups = {
        id(p): (type(part).__name__, group["peak"], group["weight_decay"])
        for part in (adamw, muon)
        for group in part.param_groups
        for p in group["params"]
    }
    decay = MUON.weight_decay
    assert groups[id(matrix)] == ("Muon", 0.02, decay)
    assert groups[id(vector)] == groups[id(number)] == ("AdamW", 5e-3, 0.0)
    assert groups[id(kernel)] == ("AdamW", 5e-3, decay)
    (plain,) = Optimisers([matrix, vector], BUDGET, 0.02, axes=axes).parts
    assert [group["peak"] for group in plain.param_groups] == [0.02, 0.02]


def test_a_share_of_the_schedule_scales_every_rate():
    weights = [torch.nn.Parameter(_drawn(3, 4)), torch.nn.Parameter(_drawn(4))]
    optimisers = Optimisers(weights, MUON, 0.02)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimisers.step(0.5)
    assert [part.param_groups[0]["lr"] for part in optimisers.parts] == [2.5e-3, 0.01]
    assert all(optimisers.moment(weight) is not None for weight in weights)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["penultimate", "scalar_mix", "mema", "dense_connector-sti"])
def test_a_pass_with_muon_equals_the_loop(name):
    expected, found, same = both_ways(name, MUON, RUNS)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 1e-5
        assert one.unmoved == other.unmoved
    assert same >= 0.999


def test_a_run_that_diverges_under_muon_disturbs_no_other():
    method, settings = named("penultimate")
    shared = shared_by(method, settings, MUON)
    runs = [PassMember(seed=0, lr=0.02), PassMember(seed=1, lr=math.inf)]
    found = train_together(
        [build_model(method, settings, shared, run.seed) for run in runs], shared, runs
    )
    assert isinstance(found[1], FloatingPointError)
    alone = train(build_model(method, settings, shared, 0), shared, 0, 0.02)
    assert np.abs(np.array(alone.losses) - found[0].losses).max() <= 1e-5


def test_a_study_may_ask_for_muon_and_is_told_of_a_wrong_name(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("preset: smoke\nbudget: {optimiser: muon, lrs: [0.05], vector_lr: 0.005}\n")
    assert load_study(path).budget.optimiser == "muon"
    path.write_text("preset: smoke\nbudget: {optimiser: muo}\n")
    with pytest.raises(UserError, match="optimiser must be adamw or muon, got 'muo'"):
        load_study(path)


# Every fast path beside the plain one: alike in float32, and in bfloat16 near double precision.
#
# The tolerances stated here are the project's: 1e-5 of a value in float32; in bfloat16, whose
# numbers have 8 bits, 0.02 of a loss and 2 % of the norm of what comes out or back. Passes of
# several runs and whole compiled steps: `test_passes.py`.

SMALL = ViTConfig(layers=4, dim=32, heads=4, patch=4, grid=3, size=12, mlp=64)


def apart(found, exact):
    difference = (found.detach().double() - exact.detach()).norm()
    return float(difference / exact.detach().norm())


def drawn_block(dtype):
    torch.manual_seed(3)
    block = ViTBlock(SMALL)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block.to(dtype)


def with_maps(block, tokens):
    """The block as textbooks have it: three products of their own, and an attention map."""
    parts = [
        rearrange(torch.nn.functional.linear(block.norm1(tokens), weight, bias),
                  "b n (h d) -> b h n d", h=block.heads)
        for weight, bias in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True)
    ]  # fmt: skip
    query, key, value = parts
    maps = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    tokens = tokens + block.out(rearrange(maps @ value, "b h n d -> b n (h d)"))
    return tokens + block.fc2(torch.nn.functional.gelu(block.fc1(block.norm2(tokens))))


def there_and_back(run, block, tokens):
    tokens = tokens.to(block.out.weight.dtype).detach().requires_grad_()
    out = run(block, tokens)
    (gradient,) = torch.autograd.grad(out.float().square().mean(), tokens)
    return out, gradient


def test_fused_attention_and_one_product_for_all_three_equal_the_written_out_block():
    tokens = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
    exact = there_and_back(with_maps, drawn_block(torch.float64), tokens.double())
    plain = there_and_back(with_maps, drawn_block(torch.float32), tokens)
    fused = there_and_back(ViTBlock.__call__, drawn_block(torch.float32), tokens)
    half = there_and_back(ViTBlock.__call__, drawn_block(torch.bfloat16), tokens)
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert apart(half[0], exact[0]) <= 0.02 and apart(half[1], exact[1]) <= 0.02


def first_step(shared, model):
    """Loss and the gradient of all that is trained, as one vector."""
    batch = shared.splits["train"].pick(torch.arange(16))
    with autocast(shared):
        loss = model.loss(batch, shared)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.item(), torch.cat([g.flatten() for g in found if g is not None])


def compiled(encoder):
    torch.compiler.reset()
    assert compile_blocks(encoder, backend="aot_eager")
    return encoder


@pytest.mark.thorough
@pytest.mark.parametrize("change", [lambda encoder: encoder, Checkpointed, compiled])
def test_a_step_through_the_encoder_in_bfloat16_stays_near_double_precision(change):
    method, settings = named("mema")
    half = shared_by(method, settings, replace(BUDGET, precision="bf16"))
    half.encoder = change(half.encoder)
    model = build_model(method, settings, half, 0)
    with torch.no_grad():  # its gates start closed: nothing would pass through the blocks
        for parameter in model.fusion.parameters():
            parameter.add_(0.1)
    loss, gradient = first_step(half, model)
    exact = in_double(shared_by(method, settings))
    reference, wanted = first_step(exact, model.double())
    assert loss == pytest.approx(reference, abs=0.02)
    assert apart(gradient, wanted) <= 0.02


def test_no_step_of_a_pass_makes_an_attention_map_of_the_encoder():
    method, settings = named("mema")
    shared = shared_by(method, settings)
    shared.encoder = ViT(replace(SMALL, layers=SHAPE.layers, dim=SHAPE.dim))
    shared.encoder.freeze()
    stack = Stack([build_model(method, settings, shared, seed) for seed in (0, 1)], shared)
    with Maps(SHAPE.tokens) as watched:
        batch = shared.splits["train"].pick(torch.arange(8).reshape(2, 4))
        torch.autograd.backward(stack.losses(batch).sum())
    assert not watched.found


@pytest.mark.slow
def test_half_of_the_activations_kept_gives_the_same_gradients():
    encoder = ViT(replace(SMALL, layers=3))
    encoder.freeze()
    method, settings = named("mema")
    torch.manual_seed(0)
    pipeline = build_pipeline(method, settings, encoder, width=16, batch=2)
    torch.compiler.reset()
    kept = []

    def gradients(run):
        saved = []
        note = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x)
        with note:
            loss = run().square().mean()
        kept.append(sum(one.numel() for one in saved))
        return torch.autograd.grad(loss, pipeline.trained(), allow_unused=True)

    plain = gradients(pipeline.fused)
    for share in (1.0, 0.5):
        torch.compiler.reset()
        with partitioner.patch(activation_memory_budget=share):
            fast = torch.compile(pipeline.fused, backend="aot_eager_decomp_partition")
            found = gradients(fast)
        for one, other in zip(plain, found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert kept[2] < kept[1]


@pytest.mark.parametrize(
    ("precision", "dtype", "limit"), [("fp32", "float16", 1e-3), ("bf16", "float16", 0.02)]
)
def test_hidden_states_as_they_are_stored_stay_near_double_precision(precision, dtype, limit):
    _, images = cut("bright_half", BrightHalf().load(), BUDGET)
    encoder, taps = PixelToyEncoder(), [(1,), (SHAPE.layers,), (2, 3, 4)]
    key = FeatureKey(weights="numerics", size=4, images="x", count=len(images),
                     precision=precision, dtype=dtype)  # fmt: skip
    features.encode(encoder, images, key, taps, limit_gib=1)
    exact = encoder.double().states_from(encoder.embed(torch.from_numpy(images)).double())
    for tap in taps:
        wanted = torch.stack([exact[index] for index in tap]).mean(dim=0)
        assert apart(features.read(key, tap), wanted) <= limit
