"""One contract for encoders of every family, checked against each library's own forward pass."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch
import transformers
from encoder_families import DIM, LAYERS, MAKERS, PATCH, SIZE, Family, normalisation
from method_sizes import build as build_method
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from toy_encoder import Maps

from fusionbench.api.encoders import LAYERS as LINEARS_LAYERS
from fusionbench.api.encoders import Encoder, added, linears_of
from fusionbench.api.types import StackShape, Unsupported
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.planted import planted
from fusionbench.models.encoders.vit import ViT, ViTConfig


@pytest.fixture(scope="module", params=MAKERS)
def family(request, tmp_path_factory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    made = MAKERS[request.param](folder)
    if made.name.startswith("hf:"):
        normalisation(folder, 0.4, 0.3)
    return made


@pytest.fixture(scope="module")
def encoder(family) -> Encoder:
    return build(family.name)


@pytest.fixture(scope="module")
def images() -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, SIZE, SIZE, 3), generator=draw, dtype=torch.uint8)


def normalised(images: Tensor, encoder: Encoder) -> Tensor:
    mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
    return ((images / 255 - mean) / std).movedim(-1, 1)


def test_there_is_one_hidden_state_more_than_blocks_and_each_has_the_promised_shape(
    family, encoder, images
):
    states = encoder.hidden_states(images)
    assert len(states) == LAYERS + 1 == encoder.shape.layers + 1
    assert encoder.shape.grid == (SIZE // PATCH, SIZE // PATCH)
    assert encoder.shape.prefix == family.prefix
    for state in states:
        assert state.shape == (2, encoder.shape.tokens, DIM)


@pytest.mark.few(12)
@torch.no_grad()
@pytest.mark.parametrize("size", [SIZE, 48])
def test_hidden_states_and_final_norm_are_those_of_the_library(family, size):
    encoder = build(family.name, image_size=size)
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, size, size, 3), generator=draw, dtype=torch.uint8)
    native, normed = family.native(normalised(images, encoder))
    ours = encoder.hidden_states(images)
    assert len(native) == len(ours)
    for index, (theirs, mine) in enumerate(zip(native, ours, strict=True)):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=f"hs[{index}]")
    mine = encoder.norm(ours[-1])[:, : family.normed_count]
    torch.testing.assert_close(mine, normed, atol=1e-5, rtol=1e-5)
    same = torch.allclose(mine, ours[-1][:, : family.normed_count], atol=1e-2)
    assert same != family.norms


def test_the_card_agrees_with_the_encoder_without_loading_it(family, encoder):
    card = describe(family.name)
    assert card.available and len(card.weights) == 32
    assert (card.layers, card.dim, card.grid, card.prefix, card.size, card.tokens) == (
        encoder.shape.layers,
        encoder.shape.dim,
        encoder.shape.grid,
        encoder.shape.prefix,
        encoder.size,
        encoder.shape.tokens,
    )


@pytest.mark.few(12)
@pytest.mark.parametrize("size", [24, 48])
def test_another_input_size_gives_another_grid(family, size, images):
    encoder = build(family.name, image_size=size)
    assert encoder.shape.grid == (size // PATCH, size // PATCH)
    assert describe(family.name, image_size=size).tokens == encoder.shape.tokens
    assert encoder.hidden_states(images)[-1].shape[1] == encoder.shape.tokens


def test_a_size_that_the_patches_do_not_fill_is_refused(family):
    with pytest.raises(ValueError, match="multiple of 8"):
        describe(family.name, image_size=30)
    with pytest.raises(ValueError, match="multiple of 8"):
        build(family.name, image_size=30)


@torch.no_grad()
def test_a_shape_is_rotary_exactly_where_a_block_tells_positions_apart(encoder, images):
    # Attention without positions of its own is equivariant: dealt anew, tokens stay what they are.
    tokens, first = encoder.embed(images), encoder.shape.prefix
    deal = torch.randperm(tokens.shape[1] - first, generator=torch.Generator().manual_seed(2))
    order = torch.cat([torch.arange(first), first + deal])
    told_apart = not torch.allclose(
        encoder.block(1, tokens[:, order]), encoder.block(1, tokens)[:, order], atol=1e-4
    )
    assert encoder.shape.rotary == told_apart


def test_prompts_are_refused_exactly_where_the_blocks_are_rotary(encoder):
    shape = replace(encoder.shape, query_dim=8, mlp=encoder.mlp)
    if shape.rotary:
        with pytest.raises(Unsupported, match="rotary positions"):
            build_method("vpt_deep", shape)
    else:
        assert list(build_method("vpt_deep", shape).parameters())


def test_bf16_runs_and_stays_near_fp32(family, encoder, images):
    coarse = build(family.name, dtype=torch.bfloat16)
    state = coarse.hidden_states(images)[-1]
    assert state.dtype == torch.bfloat16
    exact = encoder.hidden_states(images)[-1]
    assert (state.float() - exact).norm() / exact.norm() < 0.05


def test_weights_are_frozen_and_gradients_reach_the_tokens(encoder, images):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    tokens = encoder.embed(images).detach().requires_grad_()
    out = tokens
    for index in range(1, LAYERS + 1):
        out = encoder.block(index, out)
    out.square().mean().backward()
    assert tokens.grad is not None and (tokens.grad.abs().sum(dim=-1) > 0).all()
    assert all(p.grad is None for p in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_block_makes_an_attention_map_on_the_way_there_or_back(encoder, images):
    tokens = encoder.embed(images).detach().requires_grad_()

    def maps() -> list[tuple[int, ...]]:
        with Maps(encoder.shape.tokens) as watched:
            encoder.block(2, encoder.block(1, tokens)).square().mean().backward()
        return watched.found

    assert not maps()
    with sdpa_kernel(SDPBackend.MATH):
        assert maps()  # the plain way has them, and they would be seen


def test_an_image_gives_the_same_tokens_alone_and_in_company_and_twice(encoder):
    draw = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (3, 45, 61, 3), generator=draw, dtype=torch.uint8)
    together = encoder.hidden_states(images)
    for mine, again in zip(together, encoder.hidden_states(images), strict=True):
        assert torch.equal(mine, again)
    alone = encoder.hidden_states(images[1:2])
    for mine, single in zip(together, alone, strict=True):
        torch.testing.assert_close(mine[1:2], single, atol=1e-5, rtol=1e-5)


def test_other_weights_have_another_fingerprint_and_other_pixels_too(tmp_path):
    first = describe(MAKERS["vit"](tmp_path / "a").name)
    second = describe(MAKERS["vit"](tmp_path / "b").name)
    assert first.weights == second.weights
    assert first == replace(second, name=first.name, source=first.source, path=first.path)
    normalisation(tmp_path / "b", 0.1, 0.2)
    assert describe(second.name).weights != first.weights
    file = tmp_path / "a" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert describe(first.name).weights != first.weights


# Linear layers of blocks are found under common names and changed through hooks.

LINEARS_DIM, MLP = 16, 32
COMMON = {"hidden_size": LINEARS_DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON |= {"image_size": 16, "patch_size": 8}


def ours() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(layers=3, dim=LINEARS_DIM, heads=2, patch=8, grid=2, size=16, mlp=MLP)
    encoder = ViT(config)
    encoder.freeze()
    return encoder


def clip() -> nn.Module:
    config = transformers.CLIPVisionConfig(**COMMON, intermediate_size=MLP)
    return transformers.CLIPVisionModel(config).eval().get_submodule("encoder.layers.1")


def dinov2() -> nn.Module:
    config = transformers.Dinov2Config(**COMMON, mlp_ratio=2)
    return transformers.Dinov2Model(config).eval().get_submodule("encoder.layer.1")


def plain() -> nn.Module:
    config = transformers.ViTConfig(**COMMON, intermediate_size=MLP)
    model = transformers.ViTModel(config).eval()
    return next(m for n, m in model.named_modules() if n.endswith(("layers.1", "layer.1")))


def timm() -> nn.Module:
    from timm.models.vision_transformer import Block

    return Block(LINEARS_DIM, 2, mlp_ratio=2, qkv_bias=True).eval()


def output(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    takes = inspect.signature(block.forward).parameters
    found = block(tokens, **({"attention_mask": None} if "attention_mask" in takes else {}))
    return found[0] if isinstance(found, tuple) else found


def terms() -> dict[str, torch.Tensor]:
    """A change of each weight."""
    rng = torch.Generator().manual_seed(5)
    sizes = dict.fromkeys(LINEARS_LAYERS, (LINEARS_DIM, LINEARS_DIM)) | {
        "fc1": (MLP, LINEARS_DIM),
        "fc2": (LINEARS_DIM, MLP),
    }
    return {name: torch.randn(size, generator=rng) / 4 for name, size in sizes.items()}


@pytest.mark.parametrize("make", [clip, dinov2, plain, timm, lambda: ours().blocks[1]])
def test_a_change_beside_a_layer_is_a_change_of_its_weight(make):
    block, changes, tokens = make(), terms(), torch.randn(2, 5, LINEARS_DIM)
    linears = linears_of(block)
    assert linears["fc1"].out_features == MLP
    merged = copy.deepcopy(block)
    with torch.no_grad():
        for name, layer in linears_of(merged).items():
            parts = ("q", "k", "v") if name == "qkv" else (name,)
            layer.weight += torch.cat([changes[part] for part in parts])
        before = output(block, tokens)
        with added(linears, lambda name, given: F.linear(given, changes[name])):
            changed = output(block, tokens)
        torch.testing.assert_close(changed, output(merged, tokens), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(changed, before)
        # Nothing is left behind.
        assert torch.equal(output(block, tokens), before)


def zero(name: str, given: torch.Tensor) -> torch.Tensor:
    return given.new_zeros(*given.shape[:-1], MLP if name == "fc1" else LINEARS_DIM)


def test_an_encoder_knows_the_width_of_its_mlps_and_runs_changed_blocks():
    encoder, tokens = ours(), torch.randn(2, 5, LINEARS_DIM)
    assert encoder.mlp == Checkpointed(encoder).mlp == MLP
    # Images are padded with the mean colour, recomputed or not.
    assert (Checkpointed(encoder).mean, Checkpointed(encoder).std) == (encoder.mean, encoder.std)
    assert torch.equal(encoder.adapted(2, tokens, zero), encoder.block(2, tokens))


@pytest.mark.thorough
def test_compiled_blocks_do_not_hide_the_change():
    encoder, tokens, changes = ours(), torch.randn(2, 5, LINEARS_DIM), terms()

    def delta(name, given):
        return F.linear(given, changes[name])

    expected = encoder.adapted(2, tokens, delta)
    torch._dynamo.reset()
    assert compile_blocks(encoder, backend="eager")
    encoder.block(2, tokens)
    torch.testing.assert_close(encoder.adapted(2, tokens, delta), expected)
    torch._dynamo.reset()


def test_recomputed_blocks_give_the_same_gradient():
    encoder, tokens = ours(), torch.randn(2, 5, LINEARS_DIM)
    found = []
    for each in (encoder, Checkpointed(encoder)):
        weight = torch.zeros(LINEARS_DIM, LINEARS_DIM, requires_grad=True)

        def delta(name, given, weight=weight):
            return F.linear(given, weight) if name == "o" else zero(name, given)

        each.adapted(2, tokens, delta).square().sum().backward()
        found.append(weight.grad)
    torch.testing.assert_close(*found)
    assert found[0].any()


class Reads(nn.Module):
    """A block that reads a layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = (
            nn.Linear(LINEARS_DIM, 3 * LINEARS_DIM),
            nn.Linear(LINEARS_DIM, LINEARS_DIM),
        )
        self.fc1, self.fc2 = nn.Linear(LINEARS_DIM, MLP), nn.Linear(MLP, LINEARS_DIM)

    def forward(self, tokens):
        mixed = F.linear(tokens, self.qkv.weight).chunk(3, dim=-1)[0]
        return self.fc2(self.fc1(self.out(mixed)))


def test_a_block_that_reads_a_weight_past_its_layer_is_refused():
    block = Reads()
    with pytest.raises(Unsupported, match="do not run qkv as a layer"):
        with added(linears_of(block), zero):
            block(torch.randn(1, 2, LINEARS_DIM))
    assert not block.fc1._forward_hooks


def test_blocks_with_other_layers_are_out_of_reach():
    gated = Reads()
    gated.gate = nn.Linear(LINEARS_DIM, MLP)
    assert linears_of(gated) == {}
    assert linears_of(nn.Linear(LINEARS_DIM, LINEARS_DIM)) == {}
    encoder = planted("planted")
    assert encoder.mlp == 0
    with pytest.raises(Unsupported, match="out of reach"):
        encoder.adapted(2, torch.zeros(1, 17, 64), zero)


def test_a_plugin_with_a_list_of_such_blocks_needs_no_code_of_its_own():
    class Plugged(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.shape = StackShape(layers=2, dim=LINEARS_DIM, grid=(2, 2))
            self.layers = nn.ModuleList(ours().blocks[:2])

        def embed(self, images):
            raise AssertionError

        def block(self, index, tokens):
            return self.layers[index - 1](tokens)

        def norm(self, tokens):
            return tokens

    assert Plugged().mlp == MLP and set(Plugged().linears(2)) == {"qkv", "o", "fc1", "fc2"}
