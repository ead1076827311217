"""Pixel values against the image processors of transformers and the transforms of timm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_families import MAKERS, of_timm, of_transformers
from PIL import Image
from torch import Tensor

from fusionbench.api.errors import UserError
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.preprocessing import Preprocessing, of_processor, side, split_fit
from fusionbench.models.encoders.vit import prepare

LEVEL = 1 / 255


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth pictures, since resampling noise says little; taller than wide."""
    draw = torch.Generator().manual_seed(4)
    coarse = torch.rand(2, 3, 9, 7, generator=draw) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(90, 70), mode="bicubic")
    return fine.clamp(0, 255).round().to(torch.uint8).movedim(1, -1)


def vit_folder(folder: Path, kind: str = "vit") -> Path:
    return Path(MAKERS[kind](folder).name.removeprefix("hf:"))


def processor_of(name: str, **given: Any) -> Any:
    import transformers

    return getattr(transformers, f"{name}ImageProcessor")(**given)


def theirs(processor: Any, images: Tensor) -> Tensor:
    return processor(list(images.movedim(-1, 1)), return_tensors="pt")["pixel_values"]


CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
SQUASHED = {"size": {"height": 32, "width": 32}}
CASES = {
    "clip": ("CLIP", "clip", CROPPED, "crop"),
    "dinov2": ("Bit", "dinov2", CROPPED | {"image_mean": [0.1, 0.2, 0.3]}, "crop"),
    "siglip": ("Siglip", "siglip", SQUASHED, "squash"),
    "siglip2": ("Siglip", "siglip", SQUASHED | {"resample": 2}, "squash"),
    "vit": ("ViT", "vit", SQUASHED | {"image_std": [0.1, 0.2, 0.3]}, "squash"),
    "nearest": ("ViT", "vit", SQUASHED | {"resample": 0}, "squash"),
    "dinov3": ("DINOv3ViT", "dinov3", SQUASHED, "squash"),
    "no normalisation": ("ViT", "vit", SQUASHED | {"do_normalize": False}, "squash"),
    "no rescaling": ("ViT", "vit", SQUASHED | {"do_rescale": False}, "squash"),
    "neither": ("ViT", "vit", SQUASHED | {"do_rescale": False, "do_normalize": False}, "squash"),
    "other factor": ("ViT", "vit", SQUASHED | {"rescale_factor": 1 / 127.5}, "squash"),
}


@pytest.mark.parametrize("case", CASES)
def test_pixel_values_are_those_of_the_processor_up_to_one_grey_level(case, images, tmp_path):
    kind, family, settings, fit = CASES[case]
    folder = vit_folder(tmp_path, family)
    processor = processor_of(kind, **settings)
    processor.save_pretrained(folder)
    encoder = build(f"hf:{folder}[fit={fit}]")
    mine, right = encoder.pixels(images), theirs(processor, images)
    # One level of 256, in units of the pixel values.
    level = (1 / encoder.images.divisor) / min(encoder.std)
    assert mine.shape == right.shape == (2, 3, 32, 32)
    assert (mine - right).abs().max() <= 1.01 * level
    assert (mine - right).abs().mean() <= 0.3 * level


def test_images_of_the_input_size_give_exactly_the_processors_values(tmp_path):
    folder = vit_folder(tmp_path)
    processor = processor_of("ViT", **SQUASHED, image_mean=[0.1, 0.2, 0.3], rescale_factor=0.01)
    processor.save_pretrained(folder)
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 32, 32, 3), generator=draw, dtype=torch.uint8)
    mine, right = build(f"hf:{folder}").pixels(images), theirs(processor, images)
    torch.testing.assert_close(mine, right, atol=2e-6, rtol=1e-6)


def test_what_transformers_5_writes_for_a_whole_processor_is_read(tmp_path, images):
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    folder = vit_folder(tmp_path, "clip")
    inner = CLIPImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48},
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2,
    )  # fmt: skip
    tokenizer = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    CLIPProcessor(inner, tokenizer).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    encoder = build(f"hf:{folder}")
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert encoder.size == describe(f"hf:{folder}").size == 48
    square = images[:, :70]
    level = LEVEL / min(encoder.std)
    assert (encoder.pixels(square) - theirs(inner, square)).abs().max() <= 1.01 * level


def test_the_nested_file_comes_first_and_one_without_image_settings_counts_for_nothing(tmp_path):
    flat, nested = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    flat.write_text(json.dumps({"image_mean": [0.1] * 3}))
    nested.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert of_processor(tmp_path, Preprocessing())[0].mean == (0.1,) * 3
    nested.write_text(json.dumps({"image_processor": {"image_mean": [0.2] * 3}}))
    assert of_processor(tmp_path, Preprocessing())[0].mean == (0.2,) * 3
    flat.unlink()
    nested.write_text(json.dumps({"image_processor": {"image_mean": None, "image_std": 0.5}}))
    found = of_processor(tmp_path, Preprocessing())[0]
    assert (found.mean, found.std) == (Preprocessing().mean, (0.5,) * 3)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_squash_and_crop_are_pillows_resizing_and_a_cut(mode, images):
    plain = {"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), "dtype": torch.float32}
    squashed = prepare(images, **plain, interpolation=mode)
    cropped = prepare(images, **plain, interpolation=mode, fit="crop", crop=0.8)
    how = getattr(Image.Resampling, mode.upper())
    for row, image in enumerate(images.numpy()):
        whole = np.asarray(Image.fromarray(image).resize((32, 32), how)) / 255
        assert np.abs(squashed[row].movedim(0, -1).numpy() - whole).max() <= 1.01 * LEVEL
        # 90 x 70 with a short side of 32 / 0.8 = 40: 51 x 40, of which the centre is taken.
        tall = np.asarray(Image.fromarray(image).resize((40, 51), how))[9:41, 4:36] / 255
        assert np.abs(cropped[row].movedim(0, -1).numpy() - tall).max() <= 1.01 * LEVEL


def test_timm_images_are_prepared_as_its_config_says(tmp_path, images):
    import timm

    name = of_timm("vit_tiny_patch16_224")(tmp_path).name
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"interpolation": "bicubic", "crop_pct": 0.8, "mean": [0.1] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = build(f"{name}[fit=crop]")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    # 80 x 70 becomes 45 x 40, and 90 x 70 becomes 51 x 40: timm rounds half a margin of 13 pixels
    # to 6 and of 19 to 10, transformers always down.
    for height in (80, 90):
        seen = images[:, :height]
        right = torch.stack([transform(Image.fromarray(image)) for image in seen.numpy()])
        assert (encoder.pixels(seen) - right).abs().max() <= 1.01 * LEVEL / min(encoder.std), height
    assert encoder.images.identity()["rounds"] and "rounds" not in build(name).images.identity()
    assert build(name).images == Preprocessing(
        mean=(0.1,) * 3, std=encoder.std, interpolation="bicubic"
    )


def test_the_fit_is_part_of_the_name_and_of_the_identity(tmp_path):
    assert split_fit("hf:a/b") == ("hf:a/b", "squash")
    assert split_fit("hf:a/b[fit=crop]") == ("hf:a/b", "crop")
    name = f"hf:{vit_folder(tmp_path)}"
    plain, named, cropped = (
        describe(one) for one in (name, f"{name}[fit=squash]", f"{name}[fit=crop]")
    )
    assert plain.weights == named.weights != cropped.weights
    assert cropped.name.endswith("[fit=crop]")
    assert build(f"{name}[fit=crop]").images.fit == "crop"


@pytest.mark.parametrize("wrong", ["fit=cropp", "fit=", "size=3", ""])
def test_another_setting_of_an_encoder_is_refused_in_one_line(wrong, tmp_path):
    with pytest.raises(UserError) as refused:
        describe(f"hf:{tmp_path}[{wrong}]")
    assert "\n" not in str(refused.value) and "[fit=crop]" in refused.value.hint
    if wrong == "fit=cropp":
        assert "did you mean 'crop'" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [{"resample": 0}, {"do_rescale": False}, {"rescale_factor": 0.01}, {"do_normalize": False},
     {"image_mean": [0.1] * 3}, {"image_std": [0.1] * 3}],
)  # fmt: skip
def test_every_setting_of_the_processor_enters_the_fingerprint(change, tmp_path):
    name = f"hf:{vit_folder(tmp_path)}"
    before = describe(name).weights
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({}))
    assert describe(name).weights == before
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
    assert describe(name).weights != before


@pytest.mark.parametrize(("resample", "name"), [(1, "lanczos"), (4, "box"), ("magic", "magic")])
def test_an_interpolation_that_tensors_do_not_have_is_refused_in_one_line(resample, name, tmp_path):
    folder = vit_folder(tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"resample": resample}))
    with pytest.raises(UserError, match=rf"{name}.*supported: nearest, bilinear, bicubic") as error:
        describe(f"hf:{folder}")
    assert "\n" not in str(error.value)


def test_sizes_are_numbers_pairs_or_objects_and_rectangles_are_refused(tmp_path):
    for same in (32, [32], (32, 32), {"height": 32, "width": 32}, {"shortest_edge": 32}):
        assert side(same, tmp_path) == 32
    assert side(None, tmp_path) == side({}, tmp_path) == 0
    for wide in ([32, 64], {"height": 32, "width": 64}):
        with pytest.raises(UserError, match="must be square, got 32 x 64"):
            side(wide, tmp_path)


def test_a_config_with_pairs_is_loaded_like_one_with_numbers(tmp_path, images):
    plain = of_transformers("ViT", prefix=1)(tmp_path / "plain").name
    pairs = of_transformers("ViT", prefix=1, image_size=[32, 32], patch_size=[8, 8])(
        tmp_path / "pairs"
    ).name
    assert describe(pairs).grid == describe(plain).grid == (4, 4)
    mine, same = (build(name).hidden_states(images)[-1] for name in (pairs, plain))
    assert torch.equal(mine, same)
