"""Exported models: official names, the same answers, numbers of the records, whole or absent."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import method_sizes
import numpy as np
import pytest
import torch
from lmms_tasks import ITEMS, MISSING, evaluate, train, write_tasks
from lmms_tasks import TASKS as LMMS_TASKS
from safetensors.torch import load_file, save_file
from vlm_records import CELL_TASKS, asked_items, cell, trained_folder

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape, Unsupported
from fusionbench.records.imports import import_folder
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


@pytest.mark.parametrize("name", method_sizes.names())
def test_the_official_names_read_back_exactly(name):
    try:
        fusion, other = (method_sizes.build(name, SHAPE, seed=seed) for seed in (0, 1))
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_the_card_has_the_numbers_of_the_records(tmp_path):
    folder = exported("mema", tmp_path / "model")
    text = (folder / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    measured = {row[0]: row[1:] for row in rows if row[0] in CELL_TASKS}
    store = Store.open(trained_folder())
    for task in CELL_TASKS:
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


@pytest.mark.thorough
def test_measures_and_missing_numbers_in_the_card():
    from fusionbench.vlm.export import model_card

    opened = open_model(cell("mema").id, trained_folder())
    record = dataclasses.replace(opened.record, measures={"F1": 0.5, "questions": 8910}, score=None)
    config = export._config(opened, "official", {})
    text = model_card(config, [record], [])
    assert "| digits | accuracy | - | - | 10.00 % | 16 |" in text
    assert "| digits | F1 | 0.5 | - | - | - |" in text
    assert "| digits | questions | 8910 | - | - | - |" in text


@pytest.mark.thorough
def test_the_folder_has_the_whole_records_and_its_configuration(tmp_path):
    folder = exported("mema", tmp_path / "model")
    lines = (folder / "records.jsonl").read_text().splitlines()
    records = [Facts().read(line) for line in lines]
    assert [one.id for one in records] == [cell("mema", task).id for task in CELL_TASKS]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == records[0].model
    assert config["method"]["names"] == "official"
    assert set(config["files"]) | {"config.json", "README.md"} == {
        file.name for file in folder.iterdir()
    }
    assert is_export(folder) and not is_export(trained_folder()) and not is_export(tmp_path / "no")


@pytest.mark.thorough
def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", fails)
    with pytest.raises(UserError, match="no space left"):
        exported("mema", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_folder_that_holds_something_is_not_written_into(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        exported("penultimate", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        exported("penultimate", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert is_export(exported("penultimate", tmp_path / "empty"))


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_weights_of_another_model_are_refused(tmp_path):
    folder = exported("mema", tmp_path / "model")
    model = open_model(str(folder), tmp_path).built.model
    save_file({"linear_1.weight": torch.zeros(2, 2)}, folder / "projector.safetensors")
    with pytest.raises(UserError, match="weights of another model"):
        export.load_export(folder, model)
    (folder / "projector.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="projector.safetensors is damaged"):
        export.load_export(folder, model)


# lmms-eval evaluates a recorded model on local tasks, offline; needs the extra `lmms`.

lmms_only = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained model in `cells` and the same test items in `tasks`."""
    folder = tmp_path_factory.mktemp("lmms")
    train(folder)
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def own(home):
    """The records of the method that sees, by task."""
    found = Store.open(home / "cells").records()
    return {one.spec.task: one for one in found if one.label == "penultimate"}


@pytest.fixture
def model(home, own):
    return opened(home, own)


def opened(home, own, **options):
    from fusionbench.vlm.lmms import FusionBench

    found = FusionBench(cell=own["digits"].id, results=str(home / "cells"), **options)
    found.task_dict["local"] = {"test": documents(home)}
    return found


def documents(home, task="scenes_count"):
    import datasets

    return datasets.Dataset.from_parquet(str(home / "tasks" / f"{task}.parquet"))


def visual(document):
    return [document["image"].convert("RGB")]


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def asking(home, count=ITEMS, **options):
    rows = documents(home)
    return requests(
        *((rows[at]["question"], {"max_new_tokens": 8, **options}, visual, at, "local", "test")
          for at in range(count))
    )  # fmt: skip


@lmms_only
def test_scores_outcomes_and_answers_equal_those_of_our_own_tasks(home, own):
    cells = Store.open(home / "cells")
    output = evaluate(home, f"cell={own['digits'].model},results=cells")
    found, problems = import_folder(output, home / "imported", results=home / "cells")
    assert not problems
    store, records = Store.open(home / "imported"), {one.record.spec.task: one for one in found}
    assert set(records) == {f"lmms:local_{task}" for task in LMMS_TASKS}
    for task in LMMS_TASKS:
        record = records[f"lmms:local_{task}"].record
        assert record.score == own[task].score
        outcomes = store.outcomes(record)
        assert len(np.unique(outcomes)) == 2, "right and wrong answers, or equal proves little"
        np.testing.assert_array_equal(outcomes, cells.outcomes(own[task]))
        told = [one.text for one in store.answers(record)]
        assert told == [one.text for one in cells.answers(own[task])]
        assert record.spec.model_id == own[task].model


@lmms_only
def test_the_size_of_a_batch_changes_no_answer(home, own):
    alone = opened(home, own).generate_until(asking(home))
    assert opened(home, own, batch_size="7").generate_until(asking(home)) == alone
    told = [one.text for one in Store.open(home / "cells").answers(own["scenes_count"])]
    assert alone == told


@lmms_only
def test_an_answer_ends_in_front_of_the_first_text_that_ends_it(home, model):
    whole = model.generate_until(asking(home, 4))
    assert all(whole)
    cut = model.generate_until(asking(home, 4, until=["\n\n", whole[0]]))
    assert cut == ["" if text == whole[0] else text.split(whole[0])[0] for text in whole]
    assert model.generate_until(asking(home, 4, until=whole[1][-1:]))[1] == whole[1][:-1]


@lmms_only
def test_likelihoods_are_losses_a_token_and_the_smallest_is_the_choice(home, model):
    options, rows = ["1", "2", "3", "4"], documents(home)
    said = model.generate_until(asking(home, 6))
    for at in range(6):
        question = rows[at]["question"]
        found = model.loglikelihood(
            requests(*((question, f" {o}", visual, at, "local", "test") for o in options))
        )
        # One word and the end mark: two tokens, and the sum of their losses from elsewhere.
        from fusionbench.api.benchmarks import Picture

        picture = Picture(name="test", content=visual(rows[at])[0])
        losses = model._model.losses([picture], question, options)
        np.testing.assert_allclose([loss for loss, _ in found], np.array(losses) / 2, rtol=1e-5)
        assert [greedy for _, greedy in found] == [option == said[at] for option in options]
        if said[at] in options:
            assert options[int(np.argmin([loss for loss, _ in found]))] == said[at]


@lmms_only
def test_a_target_of_a_likelihood_may_be_a_function_of_the_document(home, model):
    question = documents(home)[0]["question"]
    both = [
        model.loglikelihood(requests((question, target, visual, 0, "local", "test")))
        for target in ("2", lambda document: "2")
    ]
    assert both[0] == both[1]
    with pytest.raises(UserError, match="a request with 2 arguments"):
        model.loglikelihood(requests(("", "2")))


@lmms_only
def test_rounds_go_on_until_the_task_says_that_they_are_over(home, model):
    rows, heard = documents(home), []

    def following(document, previous_output, round_idx, previous_round_info):
        heard.append((list(previous_output), round_idx, previous_round_info))
        over = round_idx == 2
        return visual(rows[1]), rows[1]["question"], over, list(previous_output), round_idx

    first = (rows[0]["question"], {"max_new_tokens": 8}, visual, following, 0, "local", "test")
    (found,) = model.generate_until_multi_round(requests(first))
    alone = model.generate_until(asking(home, 2))
    assert found == alone
    assert isinstance(found, list), "lmms-eval turns a tuple into one text"
    assert heard == [(alone[:1], 1, None), (alone, 2, 1)]


@lmms_only
def test_a_prompt_may_have_no_image_and_marks_of_its_own(home, model):
    question = documents(home)[0]["question"]

    def ask(prompt, images):
        ready = {"max_new_tokens": 8}
        return model.generate_until(requests((prompt, ready, images, 0, "local", "test")))[0]

    assert isinstance(ask(question, lambda document: []), str)
    assert ask(f"<image>\n{question}", visual) == ask(question, visual)
    with pytest.raises(UserError, match="local, document 0: the question has 2 marks"):
        ask(f"<image> <image> {question}", visual)
    with pytest.raises(UserError, match="local, document 0 shows str, which is no image"):
        ask(question, lambda document: ["film.mp4"])


@lmms_only
def test_an_answer_is_no_longer_than_the_context(home, model):
    many = asking(home, 1, max_new_tokens=100_000)
    assert model.generate_until(many) == model.generate_until(asking(home, 1))


@lmms_only
def test_sampling_is_not_done_and_said(home, model):
    with pytest.warns(UserWarning, match="greedily"):
        sampled = model.generate_until(asking(home, 1, do_sample=True, temperature=1.0))
    assert sampled == model.generate_until(asking(home, 1))


@lmms_only
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": "x"}, "no argument of model_args 'cells'; did you mean 'cell'"),
        ({"batch_size": "auto"}, "batch_size must be a whole number"),
        ({"batch_size": "²"}, "batch_size must be a whole number"),
        ({"cell": ""}, "names no cell"),
        ({"cell": "ffff"}, "no cell or model 'ffff'"),
    ],
)
def test_wrong_arguments_are_refused(home, own, options, message):
    from fusionbench.vlm.lmms import FusionBench

    good = {"cell": own["digits"].id, "results": str(home / "cells")}
    with pytest.raises(UserError, match=message):
        FusionBench(**{**good, **options})
