"""Linear layers of blocks are found under common names and changed through hooks."""

import copy
import inspect

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from fusionbench.api.encoders import LAYERS, Encoder, added, linears_of
from fusionbench.api.types import StackShape, Unsupported
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.models.encoders.planted import planted
from fusionbench.models.encoders.vit import ViT, ViTConfig

DIM, MLP = 16, 32
COMMON = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON |= {"image_size": 16, "patch_size": 8}


def ours() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(layers=3, dim=DIM, heads=2, patch=8, grid=2, size=16, mlp=MLP)
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

    return Block(DIM, 2, mlp_ratio=2, qkv_bias=True).eval()


def output(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    takes = inspect.signature(block.forward).parameters
    found = block(tokens, **({"attention_mask": None} if "attention_mask" in takes else {}))
    return found[0] if isinstance(found, tuple) else found


def terms() -> dict[str, torch.Tensor]:
    """A change of each weight."""
    rng = torch.Generator().manual_seed(5)
    sizes = dict.fromkeys(LAYERS, (DIM, DIM)) | {"fc1": (MLP, DIM), "fc2": (DIM, MLP)}
    return {name: torch.randn(size, generator=rng) / 4 for name, size in sizes.items()}


@pytest.mark.parametrize("make", [clip, dinov2, plain, timm, lambda: ours().blocks[1]])
def test_a_change_beside_a_layer_is_a_change_of_its_weight(make):
    block, changes, tokens = make(), terms(), torch.randn(2, 5, DIM)
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
    return given.new_zeros(*given.shape[:-1], MLP if name == "fc1" else DIM)


def test_an_encoder_knows_the_width_of_its_mlps_and_runs_changed_blocks():
    encoder, tokens = ours(), torch.randn(2, 5, DIM)
    assert encoder.mlp == Checkpointed(encoder).mlp == MLP
    assert torch.equal(encoder.adapted(2, tokens, zero), encoder.block(2, tokens))


def test_compiled_blocks_do_not_hide_the_change():
    encoder, tokens, changes = ours(), torch.randn(2, 5, DIM), terms()

    def delta(name, given):
        return F.linear(given, changes[name])

    expected = encoder.adapted(2, tokens, delta)
    torch._dynamo.reset()
    assert compile_blocks(encoder, backend="eager")
    encoder.block(2, tokens)
    torch.testing.assert_close(encoder.adapted(2, tokens, delta), expected)
    torch._dynamo.reset()


def test_recomputed_blocks_give_the_same_gradient():
    encoder, tokens = ours(), torch.randn(2, 5, DIM)
    found = []
    for each in (encoder, Checkpointed(encoder)):
        weight = torch.zeros(DIM, DIM, requires_grad=True)

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
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, MLP), nn.Linear(MLP, DIM)

    def forward(self, tokens):
        mixed = F.linear(tokens, self.qkv.weight).chunk(3, dim=-1)[0]
        return self.fc2(self.fc1(self.out(mixed)))


def test_a_block_that_reads_a_weight_past_its_layer_is_refused():
    block = Reads()
    with pytest.raises(Unsupported, match="do not run qkv as a layer"):
        with added(linears_of(block), zero):
            block(torch.randn(1, 2, DIM))
    assert not block.fc1._forward_hooks


def test_blocks_with_other_layers_are_out_of_reach():
    gated = Reads()
    gated.gate = nn.Linear(DIM, MLP)
    assert linears_of(gated) == {}
    assert linears_of(nn.Linear(DIM, DIM)) == {}
    encoder = planted("planted")
    assert encoder.mlp == 0
    with pytest.raises(Unsupported, match="out of reach"):
        encoder.adapted(2, torch.zeros(1, 17, 64), zero)


def test_a_plugin_with_a_list_of_such_blocks_needs_no_code_of_its_own():
    class Plugged(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.shape = StackShape(layers=2, dim=DIM, grid=(2, 2))
            self.layers = nn.ModuleList(ours().blocks[:2])

        def embed(self, images):
            raise AssertionError

        def block(self, index, tokens):
            return self.layers[index - 1](tokens)

        def norm(self, tokens):
            return tokens

    assert Plugged().mlp == MLP and set(Plugged().linears(2)) == {"qkv", "o", "fc1", "fc2"}
