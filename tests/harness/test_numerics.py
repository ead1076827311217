"""Every fast path beside the plain one: alike in float32, and in bfloat16 near double precision.

The tolerances stated here are the project's: 1e-5 of a value in float32; in bfloat16, whose
numbers have 8 bits, 0.02 of a loss and 2 % of the norm of what comes out or back. Passes of
several runs and whole compiled steps: `test_batched*.py` and `test_fast_passes.py`.
"""

from dataclasses import replace

import pytest
import torch
import torch._functorch.config as partitioner
from attention_maps import Maps
from einops import rearrange
from toy_cells import BrightHalf, PixelToyEncoder
from toy_encoder import SHAPE
from toy_passes import BUDGET, in_double, named, shared_by

from fusionbench.harness.bundle import cut
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.pipeline import build_pipeline
from fusionbench.harness.stack import Stack
from fusionbench.harness.train import autocast
from fusionbench.models.encoders import features
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.models.encoders.vit import ViT, ViTBlock, ViTConfig

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
    torch._dynamo.reset()
    assert compile_blocks(encoder, backend="aot_eager")
    return encoder


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
    torch._dynamo.reset()
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
        torch._dynamo.reset()
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
