"""`fusionbench fetch` for language models and encoders."""

import io
from pathlib import Path

import pytest

from fusionbench.api.errors import UserError
from fusionbench.cli.fetch import fetch


def test_a_language_model_and_an_encoder_are_fetched_by_one_command(monkeypatch, tmp_path):
    asked = []
    for module in ("encoders.fetch.fetch", "readers.fetch.fetch_language"):
        monkeypatch.setattr(
            f"fusionbench.models.{module}",
            lambda name, module=module: asked.append((module.split(".")[0], name)) or tmp_path,
        )
    stream = io.StringIO()
    for name, language in (
        ("smollm2-135m", False),
        ("dinov2-small", False),
        ("hf:some/model", False),
        ("hf:some/model", True),
    ):
        assert fetch(name, language=language, stream=stream) == 0
    assert [kind for kind, _ in asked] == ["readers", "encoders", "encoders", "readers"]
    assert [Path(line) for line in stream.getvalue().splitlines()] == [tmp_path] * 4


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'smollm2-135m'"):
        fetch("smollm-135m", language=False, stream=io.StringIO())
    with pytest.raises(UserError, match="trained from scratch"):
        fetch("words", language=False, stream=io.StringIO())


def test_a_checkpoint_that_cannot_be_reached_is_an_error_for_people(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for language in (True, False):
        with pytest.raises(UserError, match="switched off"):
            fetch("hf:nobody/nothing", language=language, stream=io.StringIO())
