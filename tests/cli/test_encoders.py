"""Commands about encoders and language models: `fetch` and `probe-layers`."""

import io
import json
from pathlib import Path

import pytest

from fusionbench.api.errors import UserError
from fusionbench.cli.fetch import fetch
from fusionbench.cli.profile import probe
from fusionbench.records.probes import probe_file, probe_maps, read_probe

SMALL = (120, 60, 60)


def run(out, *, tasks=("planted_layer",), limits=SMALL, encoder="nano", size=0):
    stream = io.StringIO()
    code = probe(out, encoder=encoder, tasks=tasks, size=size, limits=limits, plugins=(),
                 stream=stream)  # fmt: skip
    assert code == 0
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("probes")
    run(out)
    return out


def test_the_one_layer_that_knows_stands_out_of_the_map(folder):
    found = read_probe(probe_file(folder, "planted_layer"))
    best = max(range(len(found.layers)), key=found.layers.__getitem__)
    assert found.layers[best] > 0.95 and found.val[best] > 0.95
    others = [score for layer, score in enumerate(found.layers) if layer != best]
    assert max(others) < 0.8 and len(found.layers) == len(found.val)
    assert (found.n_train, found.n_val, found.n) == SMALL
    assert found.encoder == "planted" and found.chance == 0.5


def test_what_is_there_is_kept_and_not_made_again(folder):
    file = probe_file(folder, "planted_layer")
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert "kept, best layer" in run(folder)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_a_map_of_other_sizes_data_or_weights_is_never_overwritten(folder, tmp_path):
    with pytest.raises(UserError, match="made with another n: 60, now 61"):
        run(folder, limits=(120, 60, 61))
    text = probe_file(folder, "planted_layer").read_text()
    for key, value in (("data", "e" * 64), ("weights", "f" * 32)):
        values = json.loads(text) | {key: value}
        del values["checksum"]
        file = probe_file(tmp_path, "planted_layer")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(values))
        with pytest.raises(UserError, match=f"made with another {key}"):
            run(tmp_path)
        assert json.loads(file.read_text()) == values


def test_a_damaged_map_stops_the_command_and_is_only_noted_by_a_reader(folder, tmp_path):
    good = probe_file(folder, "planted_layer").read_text()
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "good.json").write_text(good)
    (tmp_path / "probes" / "planted_layer.json").write_text(good[:100])
    with pytest.raises(UserError, match="is no probe map"):
        run(tmp_path)
    problems = []
    assert [one.task for one in probe_maps(tmp_path, problems)] == ["planted_layer"]
    assert len(problems) == 1 and "planted_layer.json" in problems[0].source


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "nono"}, "did you mean 'nano'"),
        ({"tasks": ("planted_laier",)}, "did you mean 'planted_layer'"),
        ({"size": 7}, "7"),
    ],
)
def test_wrong_names_and_sizes_are_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        run(tmp_path, **changes)
    assert not (tmp_path / "probes").exists()


# `fusionbench fetch` for language models and encoders.


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
