"""Which checkpoints are taken, at which sizes, and in which words the others are refused."""

import json
import shutil

import pytest
import torch
from encoder_families import MAKERS, of_timm, of_transformers
from safetensors.torch import load_file, save_file

from fusionbench.api.errors import UserError
from fusionbench.models.encoders import build as building
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import available, describe, recorded_name

ODD = 30  # pixels: three patches of 8, and six pixels that no patch reads


def refusal(name: str, *, load: bool = False) -> str:
    """The message of the error, which must be one line for a user."""
    with pytest.raises(UserError) as refused:
        build(name) if load else describe(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@torch.no_grad()
@pytest.mark.parametrize(
    "maker",
    [of_transformers("SiglipVision", prefix=0, image_size=ODD),
     of_timm("vit_so400m_patch14_siglip_384", pixels=ODD)],
    ids=["transformers", "timm"],
)  # fmt: skip
def test_pixels_behind_the_last_whole_patch_are_left_out_at_the_checkpoints_own_size(
    maker, tmp_path
):
    made = maker(tmp_path)
    encoder = build(made.name)
    assert encoder.size == describe(made.name).size == ODD
    assert encoder.shape.grid == describe(made.name).grid == (3, 3)
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, ODD, ODD, 3), generator=draw, dtype=torch.uint8)
    native, normed = made.native(encoder.pixels(images))
    states = encoder.hidden_states(images)
    for mine, theirs in zip(states, native, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.norm(states[-1]), normed, atol=1e-5, rtol=1e-5)
    assert build(made.name, image_size=24).shape.grid == (3, 3)
    with pytest.raises(ValueError, match=r"multiple of 8 \(the nearest is 32\), or 30, the check"):
        describe(made.name, image_size=31)


def test_naflex_is_refused_and_the_way_out_is_named(tmp_path):
    from timm import create_model
    from timm.models import save_for_hf
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    config = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_patches=16, patch_size=8,
    )  # fmt: skip
    Siglip2VisionModel(config).save_pretrained(tmp_path / "hf")
    assert "NaFlex" in (text := refusal(f"hf:{tmp_path}/hf")) and "fixed resolution" in text
    model = create_model("naflexvit_base_patch16_gap", embed_dim=32, depth=1, num_heads=4)
    save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    assert "NaFlex" in refusal(f"timm:{tmp_path}/timm")


@pytest.mark.parametrize(
    ("architecture", "word"),
    [("beit_base_patch16_224", "relative position"), ("samvit_base_patch16", "relative position"),
     ("cait_xxs24_224", "class attention")],
)  # fmt: skip
def test_other_transformers_of_timm_are_refused_before_they_are_loaded(
    architecture, word, tmp_path
):
    from timm import create_model
    from timm.models import save_for_hf

    model = create_model(architecture, embed_dim=32, depth=1, num_heads=4)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert word in refusal(f"timm:{tmp_path}")


def test_a_model_that_differs_from_its_description_is_refused(tmp_path, monkeypatch):
    name = MAKERS["vit"](tmp_path).name
    right = describe(name)
    monkeypatch.setattr(building, "describe", lambda *_, **__: right.__class__(
        name=name, source="", available=True, path=right.path, layers=2, dim=right.dim,
        grid=right.grid, prefix=right.prefix, size=right.size,
    ))  # fmt: skip
    text = refusal(name, load=True)
    assert "(3, 32, (4, 4), 1, 32)" in text and "(2, 32, (4, 4), 1, 32)" in text


def test_a_release_without_the_class_is_named(tmp_path, monkeypatch):
    import transformers

    name = MAKERS["radio"](tmp_path).name
    monkeypatch.setattr(transformers, "RadioModel", None)
    assert f"transformers {transformers.__version__} has no RadioModel" in refusal(name, load=True)


@pytest.mark.fault(
    "real files and terminals",
    "a timm checkpoint without some of its weights",
    "refused: timm leaves them as they were drawn",
)
@pytest.mark.parametrize("kind", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("lost", ["blocks.0.attn.", "cls_token", "pos_embed", "renamed"])
def test_a_timm_checkpoint_that_lacks_weights_is_refused(kind, lost, tmp_path):
    name = of_timm(kind)(tmp_path).name
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    assert build(name)
    if lost == "renamed":
        left = {key.replace(".mlp.", ".ffn."): value for key, value in weights.items()}
    else:
        left = {key: value for key, value in weights.items() if not key.startswith(lost)}
    assert left.keys() != weights.keys()
    save_file(left, file, metadata={"format": "pt"})
    # timm loads strictly only where the number of classes is that of the file.
    for classes in (0, 10):
        config = json.loads((tmp_path / "config.json").read_text())
        config["num_classes"] = classes
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"lacks the weights|Missing key\(s\)") as refused:
            build(name)
        assert "\n" not in str(refused.value)


def test_the_patches_of_a_hybrid_are_counted_behind_its_stem(tmp_path):
    from timm import create_model
    from timm.models import save_for_hf

    size = {"embed_dim": 32, "depth": 1, "num_heads": 4, "img_size": 64}
    model = create_model("vit_small_r26_s32_224", **size, num_classes=0)
    model.pretrained_cfg |= {"input_size": (3, 64, 64), "num_classes": 0}
    save_for_hf(model, tmp_path, model_args=size, safe_serialization=True)
    card = describe(f"timm:{tmp_path}")
    assert (card.grid, card.prefix) == ((2, 2), 1)
    assert build(f"timm:{tmp_path}").shape.grid == (2, 2)


@pytest.mark.fault(
    "real files and terminals",
    "weights that are cut, missing or of another shape",
    "refused before anything is planned",
)
def test_weights_of_another_shape_than_the_config_says_are_no_random_weights(tmp_path):
    name = MAKERS["dinov3"](tmp_path).name
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if key.endswith("norm.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights of DINOv3ViTModel" in refusal(name, load=True)


ODDITIES = {
    "list": "[1, 2]",
    "text": "not JSON",
    "bytes": b"\xff\xfe{\x00}\x00",
    "no patch": '{"model_type": "vit", "patch_size": null}',
    "no tower": '{"model_type": "clip", "vision_config": null}',
    "words": '{"model_type": "vit", "num_hidden_layers": "many"}',
    "rectangle": '{"model_type": "vit", "image_size": [32, 64]}',
    "grey": '{"model_type": "vit", "num_channels": 1}',
    "timm": '{"architecture": "vit_small_patch16_224", "pretrained_cfg": {"input_size": 3}}',
}


@pytest.mark.fault(
    "real files and terminals",
    "odd repositories in a hub's cache",
    "the good ones are listed, the odd one named",
)
@pytest.mark.parametrize("odd", ODDITIES)
def test_an_odd_repository_in_the_cache_hides_no_other(odd, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for owner in ("good", "odd"):
        repo = tmp_path / f"models--{owner}--vit"
        MAKERS["vit"](repo / "snapshots" / "x")
        (repo / "snapshots" / "x" / "preprocessor_config.json").write_text("{}")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("x")
    content = ODDITIES[odd]
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "models--odd--vit" / "snapshots" / "x" / "config.json").write_bytes(raw)
    cards, problems = available()
    names = [card.name for card in cards]
    assert "hf:good/vit" in names and "hf:odd/vit" not in names
    # What cannot be read as what it says is named.
    (problem,) = map(str, problems)
    assert "odd" in problem and "\n" not in problem
    with pytest.raises(ValueError) as refused:
        describe("timm:odd/vit" if odd == "timm" else "hf:odd/vit")
    assert "\n" not in str(refused.value) and "odd" in str(refused.value)


def test_processor_settings_of_a_new_release_travel_with_a_download():
    from fusionbench.models.encoders import fetch

    assert {"processor_config.json", "preprocessor_config.json"} <= set(fetch._FILES)


def test_the_names_in_the_library_and_here_agree():
    import transformers

    from fusionbench.models.encoders.snapshots import FAMILIES

    for kind, family in FAMILIES.items():
        config = getattr(transformers, family.cls).config_class()
        for field, value in family.defaults.items():
            assert getattr(config, field) == value, (kind, field)


@pytest.mark.fault(
    "real files and terminals",
    "odd repositories in a hub's cache",
    "the good ones are listed, the odd one named",
)
def test_a_model_of_another_kind_in_the_cache_is_no_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, content in (("llm", '{"model_type": "llama"}'), ("data", None)):
        snapshot = tmp_path / f"models--some--{name}" / "snapshots" / "x"
        snapshot.mkdir(parents=True)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("x")
        if content:
            (snapshot / "config.json").write_text(content)
    cards, problems = available()
    assert [card.name for card in cards] == ["nano", "dinov2-small"] and not problems


@pytest.mark.fault("real files and terminals", "sizes that are lists", "read")
def test_sizes_that_are_lists_are_read_as_squares(tmp_path):
    name = MAKERS["vit"](tmp_path).name
    right = describe(name)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {key: [config[key]] * 2 for key in ("image_size", "patch_size")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = describe(name)
    assert (card.grid, card.size) == (right.grid, right.size) == ((4, 4), 32)
    assert build(name).shape.grid == (4, 4)
    config["patch_size"] = [8, 16]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "must be square, got 8 x 16" in refusal(name)


def test_both_prefix_tokens_of_a_distilled_model_are_counted(tmp_path):
    from timm import create_model
    from timm.models import save_for_hf

    size = {"embed_dim": 32, "depth": 1, "num_heads": 4, "img_size": 32}
    model = create_model("deit_tiny_distilled_patch16_224", **size, num_classes=0)
    model.pretrained_cfg |= {"input_size": (3, 32, 32), "num_classes": 0}
    save_for_hf(model, tmp_path, model_args=size, safe_serialization=True)
    card, encoder = describe(f"timm:{tmp_path}"), build(f"timm:{tmp_path}")
    assert card.prefix == encoder.shape.prefix == 2
    assert card.tokens == encoder.shape.tokens == 6


@pytest.mark.fault(
    "real files and terminals",
    "weights that are cut, missing or of another shape",
    "refused before anything is planned",
)
@pytest.mark.parametrize("damage", ["cut", "longer", "header", "shard", "list"])
def test_incomplete_weights_are_refused_before_anything_is_planned(damage, tmp_path):
    name = MAKERS["vit"](tmp_path).name
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    if damage == "shard":
        file.rename(tmp_path / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                                "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        file.write_bytes({
            "cut": whole[:-1], "longer": whole + b"x", "header": whole[:100],
            "list": (2).to_bytes(8, "little") + b"[]",
        }[damage])  # fmt: skip
    with pytest.raises(ValueError) as refused:
        describe(name)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
    if damage == "shard":
        assert "lacks model-00002-of-00002.safetensors" in str(refused.value)


def copies(tmp_path, monkeypatch):
    """The same checkpoint in two folders, and the names of both."""
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    MAKERS["vit"](tmp_path / "alice" / "mine")
    shutil.copytree(tmp_path / "alice" / "mine", tmp_path / "bob" / "copy of it")
    return f"hf:{tmp_path}/alice/mine", f"hf:{tmp_path}/bob/copy of it"


@pytest.mark.fault(
    "real files and terminals", "one checkpoint in two folders", "one id, no path in a record"
)
def test_a_checkpoint_is_recorded_under_one_name_wherever_it_lies(tmp_path, monkeypatch):
    first, second = (describe(name) for name in copies(tmp_path, monkeypatch))
    assert first.recorded == second.recorded == f"hf:vit@{first.weights[:12]}"
    assert recorded_name(second.name) == first.recorded and recorded_name("nano") == "nano"
    cropped = describe(f"{first.name}[fit=crop]")
    assert cropped.recorded == f"hf:vit@{cropped.weights[:12]}[fit=crop]"
    assert cropped.weights != first.weights
    # The name in a record finds the folder on this machine, and nothing else.
    shutil.rmtree(tmp_path / "alice")
    describe(second.name)
    again = describe(first.recorded)
    assert (again.path, again.weights) == (second.path, first.weights)
    assert build(first.recorded).shape.grid == (4, 4)
    weights = tmp_path / "bob" / "copy of it" / "model.safetensors"
    changed = {key: value + 1 for key, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    assert "holds other weights" in refusal(first.recorded)
    shutil.rmtree(tmp_path / "bob")
    with pytest.raises(UserError) as refused:
        describe(first.recorded)
    assert refused.value.hint == "name the folder: hf:FOLDER"
    assert describe("hf:owner/vit").recorded == "hf:owner/vit"


@pytest.mark.fault(
    "real files and terminals", "one checkpoint in two folders", "one id, no path in a record"
)
def test_two_folders_of_a_checkpoint_give_one_cell_and_no_record_names_them(
    tmp_path, monkeypatch, without_figures
):
    from in_process import run

    names = copies(tmp_path, monkeypatch)
    job = ["run", "--methods", "last", "--tasks", "digits", "--preset", "smoke", "--quiet"]
    monkeypatch.setenv("HOME", str(tmp_path))
    outputs = [run(*job, "--encoder", name, "--out", tmp_path / "out") for name in names]
    assert [code for code, _, _ in outputs] == [0, 0], outputs
    assert "1 cells run, 0 were there" in outputs[0][1]
    assert "0 cells run, 1 were there" in outputs[1][1]
    written = [file for file in (tmp_path / "out").rglob("*.*")
               if file.suffix in (".json", ".md", ".html", ".csv", ".tex")]  # fmt: skip
    assert len(written) > 10
    for file in written:
        text = file.read_text()
        assert str(tmp_path) not in text, file
        # The request is what the user wrote: it must find the folder again.
        if file.name not in ("study.json", "report.html"):
            assert "copy of it" not in text, file
