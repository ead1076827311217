"""Checkpoints of transformers as they lie about: whole models, odd configs, missing parts."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import available, describe

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VISION = {**TINY, "image_size": 32, "patch_size": 8}
TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 8}


@pytest.fixture(scope="module")
def images() -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 32, 32, 3), generator=draw, dtype=torch.uint8)


def save_vit(folder: Path, **config: object) -> str:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    ViTModel(ViTConfig(**VISION, **config)).save_pretrained(folder)
    return f"hf:{folder}"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_the_vision_tower_is_taken_out_of_a_model_with_text(family, tmp_path, images):
    import transformers

    config = getattr(transformers, f"{family}Config")(text_config=TEXT, vision_config=VISION)
    torch.manual_seed(2)
    model = getattr(transformers, f"{family}Model")(config).eval()
    model.save_pretrained(tmp_path)
    encoder = build(f"hf:{tmp_path}")
    mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
    pixels = ((images / 255 - mean) / std).movedim(-1, 1)
    native = model.vision_model(pixels, output_hidden_states=True).hidden_states
    for mine, theirs in zip(encoder.hidden_states(images), native, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    card = describe(f"hf:{tmp_path}")
    assert (card.layers, card.tokens, card.size) == (3, encoder.shape.tokens, 32)


def test_hidden_states_that_transformers_5_leaves_out_or_overwrites_do_not_matter(tmp_path, images):
    from transformers import ViTModel

    plain = build(save_vit(tmp_path / "plain")).hidden_states(images)
    name = save_vit(tmp_path / "odd")
    edit(tmp_path / "odd" / "config.json", tie_last_hidden_states=True, output_hidden_states=[1])
    native = ViTModel.from_pretrained(tmp_path / "odd")(torch.zeros(1, 3, 32, 32)).hidden_states
    assert any(state is None for state in native), "this config is meant to be sparse"
    for mine, theirs in zip(build(name).hidden_states(images), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_weights_that_are_missing_are_an_error_and_not_random(tmp_path):
    from safetensors.torch import load_file, save_file

    name = save_vit(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if "1" in key and "weight" in key)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        build(name)


def test_mean_std_and_size_come_from_the_folder(tmp_path):
    name = save_vit(tmp_path)
    assert build(name).mean == (0.5, 0.5, 0.5)
    processor = tmp_path / "preprocessor_config.json"
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    processor.write_text(
        json.dumps(values | {"size": {"shortest_edge": 60}, "do_center_crop": True})
    )
    edit(processor, crop_size={"height": 48, "width": 48})
    encoder = build(name)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert encoder.size == describe(name).size == 48


def test_a_folder_of_another_kind_is_refused_by_name(tmp_path):
    save_vit(tmp_path)
    edit(tmp_path / "config.json", model_type="swin")
    with pytest.raises(ValueError, match="'swin'.*supported: clip"):
        describe(f"hf:{tmp_path}")
    with pytest.raises(ValueError, match="not a timm VisionTransformer"):
        describe(f"timm:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 not json at all")
    with pytest.raises(ValueError, match="truncated"):
        describe(f"timm:{tmp_path}")
    with pytest.raises(ValueError, match="there is no folder"):
        describe(f"hf:{tmp_path}/nothing")


def test_checkpoints_in_the_hub_cache_are_found_and_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--tiny-vit"
    save_vit(repo / "snapshots" / "abc")
    assert not describe("hf:someone/tiny-vit").available
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    broken = tmp_path / "models--someone--half"
    (broken / "snapshots" / "x").mkdir(parents=True)
    (broken / "refs").mkdir()
    (broken / "refs" / "main").write_text("x")
    (broken / "snapshots" / "x" / "config.json").write_text('{"model_type": "vit"}')
    card = describe("hf:someone/tiny-vit")
    assert card.available and card.layers == 3
    names = [card.name for card in available()[0]]
    assert "hf:someone/tiny-vit" in names and "hf:someone/half" not in names


def test_a_timm_name_without_its_tag_is_found_unless_two_are_there(tmp_path, monkeypatch):
    from fusionbench.models.encoders.snapshots import locate

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for tag in ("one", "two"):
        repo = tmp_path / f"models--timm--vit_tiny.{tag}"
        (repo / "snapshots" / "x").mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("x")
        if tag == "one":
            assert locate("timm:vit_tiny") == repo / "snapshots" / "x"
    with pytest.raises(ValueError, match=r"timm:vit_tiny.one, timm:vit_tiny.two\): add the tag"):
        locate("timm:vit_tiny")
    assert locate("timm:vit_tiny.two") == tmp_path / "models--timm--vit_tiny.two/snapshots/x"
