"""Exported models: official names, the same answers, numbers of the records, whole or absent."""

import dataclasses
import json
from pathlib import Path

import pytest
import registered_methods
import torch
from safetensors.torch import load_file, save_file
from vlm_cells import TASKS, asked_items, cell, trained_folder

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape, Unsupported
from fusionbench.records.lookup import of_model, twins
from fusionbench.records.schema import Facts
from fusionbench.records.store import Store
from fusionbench.vlm import export
from fusionbench.vlm.export import is_export, official, read_export, write_export
from fusionbench.vlm.open import open_model

SHAPE = StackShape(
    layers=6, dim=32, grid=(4, 4), prefix=1, query_dim=32, mlp=64,
    reader=ReaderShape(layers=4, width=32, heads=4, mlp=64),
)  # fmt: skip


def exported(method: str, folder: Path) -> Path:
    store, record = Store.open(trained_folder()), cell(method)
    blind = twins(store, record, "blind")
    opened = open_model(record.id, store.folder)
    return write_export(opened, of_model(store, record), folder, blind=blind)


@pytest.mark.parametrize("name", registered_methods.names())
def test_the_official_names_read_back_exactly(name):
    try:
        fusion, other = (registered_methods.build(name, SHAPE, seed=seed) for seed in (0, 1))
    except Unsupported as reason:
        pytest.skip(str(reason))
    with torch.no_grad():
        for weight in fusion.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    weights, names = official(fusion)
    if name.startswith("qladder"):
        # The official code has a rung for each layer, the registered form one for all.
        assert "shared=False" in names
        return
    assert names == "official"
    other.load_official(weights) if weights else None
    own, again = fusion.state_dict(), other.state_dict()
    assert all(torch.equal(own[key], again[key]) for key in own)


@pytest.mark.parametrize("method", ["scalar_mix", "mema", "penultimate"])
def test_an_exported_model_gives_the_same_answers_and_losses(method, tmp_path):
    first = open_model(cell(method).id, trained_folder())
    again = open_model(str(exported(method, tmp_path / "model")), tmp_path)
    assert again.settings == first.settings
    for _, picture, question in asked_items("scenes_count", 2):
        assert again.ask([picture], question, limit=3) == first.ask([picture], question, limit=3)
        options = ("1", "2")
        assert again.losses([picture], question, options) == first.losses(
            [picture], question, options
        )


def test_the_language_models_file_loads_into_transformers(tmp_path):
    folder = exported("mema", tmp_path / "model")
    model = open_model(cell("mema").id, trained_folder()).built.model
    language = model.language.model
    weights = load_file(folder / "language.safetensors")
    assert weights.keys() == language.state_dict().keys()
    with torch.no_grad():
        language.lm_head.weight.zero_()
    language.load_state_dict(weights)
    assert float(language.lm_head.weight.abs().sum()) > 0
    projector = load_file(folder / "projector.safetensors")
    assert sorted(projector) == [
        f"linear_{number}.{kind}" for number in (1, 2) for kind in ("bias", "weight")
    ]


def test_frozen_weights_of_the_language_model_are_not_exported(tmp_path):
    opened = open_model(cell("penultimate").id, trained_folder())
    training = opened.spec.training
    frozen = tuple(
        dataclasses.replace(stage, trained=("fusion", "projector")) for stage in training.stages
    )
    spec = dataclasses.replace(opened.spec, training=dataclasses.replace(training, stages=frozen))
    record = dataclasses.replace(opened.record, spec=spec)
    folder = write_export(dataclasses.replace(opened, record=record), [record], tmp_path / "new")
    files = {file.name for file in folder.iterdir()}
    assert "projector.safetensors" in files
    assert not files & {"language.safetensors", "fusion.safetensors"}  # penultimate has no weights


def test_the_card_has_the_numbers_of_the_records(tmp_path):
    folder = exported("mema", tmp_path / "model")
    text = (folder / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    measured = {row[0]: row[1:] for row in rows if row[0] in TASKS}
    store = Store.open(trained_folder())
    for task in TASKS:
        record, blind = cell("mema", task), cell("blind", task)
        assert measured[task] == [
            "accuracy", f"{100 * record.score:.2f} %", f"{100 * blind.score:.2f} %",
            f"{100 * record.chance:.2f} %", str(len(store.outcomes(record))),
        ]  # fmt: skip
    assert "fusion, projector, language trained" in text
    assert "12 steps of 8 rows" in text
    assert "64 rows of digits, scenes_count" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    for file in ("fusion", "projector", "language"):
        assert f"| {file}.safetensors |" in text


def test_measures_and_missing_numbers_in_the_card():
    from fusionbench.vlm.export import model_card

    opened = open_model(cell("mema").id, trained_folder())
    record = dataclasses.replace(opened.record, measures={"F1": 0.5, "questions": 8910}, score=None)
    config = export._config(opened, "official", {})
    text = model_card(config, [record], [])
    assert "| digits | accuracy | - | - | 10.00 % | 16 |" in text
    assert "| digits | F1 | 0.5 | - | - | - |" in text
    assert "| digits | questions | 8910 | - | - | - |" in text


def test_the_folder_has_the_whole_records_and_its_configuration(tmp_path):
    folder = exported("mema", tmp_path / "model")
    lines = (folder / "records.jsonl").read_text().splitlines()
    records = [Facts().read(line) for line in lines]
    assert [one.id for one in records] == [cell("mema", task).id for task in TASKS]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == records[0].model
    assert config["method"]["names"] == "official"
    assert set(config["files"]) | {"config.json", "README.md"} == {
        file.name for file in folder.iterdir()
    }
    assert is_export(folder) and not is_export(trained_folder()) and not is_export(tmp_path / "no")


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", fails)
    with pytest.raises(UserError, match="no space left"):
        exported("mema", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_into(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        exported("penultimate", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        exported("penultimate", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert is_export(exported("penultimate", tmp_path / "empty"))


@pytest.mark.parametrize("name", ["fusion.safetensors", "records.jsonl", "training.json"])
def test_a_file_that_is_missing_or_edited_is_an_error(name, tmp_path):
    folder = exported("mema", tmp_path / "model")
    file = folder / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name} is damaged or edited"):
        read_export(folder)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_model(str(folder), tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    folder = exported("mema", tmp_path / "model")
    model = open_model(str(folder), tmp_path).built.model
    save_file({"linear_1.weight": torch.zeros(2, 2)}, folder / "projector.safetensors")
    with pytest.raises(UserError, match="weights of another model"):
        export.load_export(folder, model)
    (folder / "projector.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="projector.safetensors is damaged"):
        export.load_export(folder, model)
