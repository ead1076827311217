"""Recorded models are found, rebuilt and asked; a cell without a model is refused."""

import dataclasses
import json
import os

import pytest
import torch
from vlm_cells import METHODS, TASKS, asked_items, cell, copied, trained_folder

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.lookup import find_record, of_model, split_place, twins
from fusionbench.records.merge import merge
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.vlm.open import asked, open_model, rebuild, trained_of

LONGEST = 3
"""New tokens of an answer in the tests' records: a word and the end mark at least."""


@pytest.fixture(scope="module")
def folder():
    return trained_folder()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_an_opened_model_gives_the_recorded_answers(folder, method, task):
    # From pictures through the encoder; the record was made from cached hidden states, in batches.
    record = cell(method, task)
    said = {one.item: one.text for one in Store.open(folder).answers(record)}
    opened = open_model(record.id, folder)
    for name, picture, question in asked_items(task, 4):
        text = opened.ask([picture], question, limit=LONGEST)
        assert said[name] == text or said[name].startswith(text) and len(text.split()) == LONGEST


def test_losses_are_those_of_the_logits_of_a_plain_forward_pass(folder):
    opened = open_model(cell("mema", "digits").id, folder)
    (_, picture, question), *_ = asked_items("digits", 1)
    options = ("three", "seven", "0")
    found = opened.losses([picture], question, options)
    model, language = opened.built.model, opened.built.model.language
    for option, loss in zip(options, found, strict=True):
        (batch,) = opened.told([asked([picture], question, option)])
        with torch.no_grad():
            spliced, inside = model.spliced(batch, model.fused(batch), side="right")
            assert inside is None
            logits = language.model(inputs_embeds=spliced.embeds).logits[0].double()
        row = batch.rows[0]
        told = [token for token, labelled in zip(row.ids, row.labelled, strict=True) if labelled]
        assert told[-1] == language.tokenizer.end
        chosen = logits.log_softmax(-1)[-1 - len(told) : -1].gather(1, torch.tensor(told)[:, None])
        assert loss == pytest.approx(-float(chosen.sum()), rel=1e-5)


@pytest.mark.parametrize("form", ["whole", "start", "model", "models/", "cells/", "file"])
def test_a_cell_is_named_by_an_id_a_start_a_model_or_a_file(folder, form):
    record = cell("scalar_mix", "digits")
    store = Store.open(folder)
    others = [one.id for one in store.records() if one.id != record.id]
    start = os.path.commonprefix
    unique = max(len(start([record.id, other])) for other in others) + 1
    named = {
        "whole": record.id,
        "start": record.id[:unique],
        "model": record.model,
        "models/": f"models/{record.model}",
        "cells/": f"{folder}/cells/{record.id}.json",
        "file": f"{folder}/models/{record.model}.safetensors",
    }[form]
    home, name, is_model = split_place(named, folder)
    assert home == folder
    found = find_record(store, name, model=is_model)
    assert found.model == record.model
    assert found.id == record.id  # of a model the first task by name


def test_the_records_of_a_model_and_its_blind_twins(folder):
    store, record = Store.open(folder), cell("mema", "scenes_count")
    assert [one.spec.task for one in of_model(store, record)] == list(TASKS)
    blind = twins(store, record, "blind")
    assert {(one.spec.method, one.spec.task) for one in blind} == {("blind", t) for t in TASKS}


def test_an_unknown_id_is_an_error_with_the_nearest(folder):
    record = cell("mema", "digits")
    wrong = record.id[:-1] + ("0" if record.id[-1] != "0" else "1")
    with pytest.raises(UserError, match=f"{record.id} \\(mema on digits, seed 0\\)"):
        open_model(wrong, folder)
    with pytest.raises(UserError, match="no cell or model 'models/'"):
        open_model("models/", folder)


def test_a_start_of_several_ids_is_an_error_that_names_them(folder, tmp_path):
    store = Store.open(folder)
    with pytest.raises(UserError, match="ids in .* start with ''|no cell or model ''"):
        find_record(store, "")
    with Store.create(tmp_path / "many") as many:
        record = cell("mema", "digits")
        for seed in range(40):
            many.write(
                CellRecord(spec=dataclasses.replace(record.spec, seed=seed), status="skipped")
            )
        firsts = [one.id[0] for one in many.records()]
        twice = next(one for one in firsts if firsts.count(one) > 1)
        with pytest.raises(UserError, match=f"{firsts.count(twice)} ids in .* '{twice}'"):
            find_record(many, twice)


def test_a_probe_cell_is_refused(tmp_path):
    from toy_records import put, spec

    with Store.create(tmp_path) as store:
        record = put(store, spec(), 0.5)
    with pytest.raises(UserError, match="is of the track probe: it has no language model"):
        open_model(record.id, tmp_path)


def test_a_cell_that_was_skipped_or_imported_is_refused(tmp_path):
    record = cell("mema", "digits")
    skipped = CellRecord(spec=record.spec, status="skipped", reason="needs 3 layers")
    other = dataclasses.replace(record.spec, task="scenes_count")
    imported = CellRecord(spec=other, status="done", source="lmms-eval 0.7.3")
    with Store.create(tmp_path) as store:
        store.write(skipped)
        store.write(imported)
    with pytest.raises(UserError, match="it was skipped: needs 3 layers"):
        open_model(skipped.id, tmp_path)
    with pytest.raises(UserError, match="imported from lmms-eval"):
        open_model(imported.id, tmp_path)


def test_a_cell_whose_weights_are_missing_or_damaged_is_refused(folder, tmp_path):
    record = cell("mema", "digits")
    merge([folder], tmp_path / "compact")
    with pytest.raises(UserError, match=f"has no weights: .*{record.model}.safetensors is missing"):
        open_model(record.id, tmp_path / "compact")
    damaged = copied(tmp_path / "damaged")
    file = damaged / "models" / f"{record.model}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match="is damaged"):
        open_model(record.id, damaged)


def test_weights_of_another_training_under_the_same_name_are_refused(tmp_path):
    here = copied(tmp_path / "swapped")
    one, two = cell("mema", "digits", here), cell("penultimate", "digits", here)
    for end in ("safetensors", "json"):
        (here / "models" / f"{two.model}.{end}").replace(here / "models" / f"{one.model}.{end}")
    with pytest.raises(UserError, match=f"not of cell {one.id}"):
        open_model(one.id, here)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method_version": 99}, "trained with version 99 of mema, here is version 1"),
        ({"method": "memas"}, "did you mean 'mema'"),
        ({"weights": "f" * 32}, "encoder 'nano' has other weights"),
        ({"encoder": "nan"}, "nan"),
    ],
)
def test_another_method_or_encoder_than_that_of_the_training_is_refused(folder, change, message):
    record = cell("mema", "digits")
    trained = trained_of(Store.open(folder), record)
    other = dataclasses.replace(record, spec=dataclasses.replace(record.spec, **change))
    with pytest.raises(UserError, match=message):
        rebuild(other, trained, catalog=read_catalog())


def test_another_language_model_than_that_of_the_training_is_refused(folder):
    record = cell("mema", "digits")
    training = dataclasses.replace(record.spec.training, language_weights="0" * 32)
    other = dataclasses.replace(record, spec=dataclasses.replace(record.spec, training=training))
    with pytest.raises(UserError, match="language model 'words' has other weights"):
        rebuild(other, trained_of(Store.open(folder), record))


def test_what_was_chosen_on_val_is_part_of_the_rebuilt_method(folder):
    record = cell("penultimate", "digits")
    trained = trained_of(Store.open(folder), record)
    chosen = json.loads(json.dumps({**trained.tuned, "settings": {"index": 3}}))
    opened = rebuild(record, dataclasses.replace(trained, tuned=chosen))
    assert opened.settings["index"] == 3
    assert opened.built.model.fusion.taps == ((3,),)


def test_questions_have_one_mark_for_each_picture_or_none():
    (_, picture, _), *_ = asked_items("digits", 1)
    two = asked([picture, picture], "Which is larger?")
    assert two.turns[0].question == "<image>\n<image>\nWhich is larger?"
    assert asked([picture], "Here <image> what?").turns[0].question == "Here <image> what?"
    assert asked([], "Who?").turns[0].question == "Who?"
    with pytest.raises(UserError, match="2 marks <image>, but 1 pictures"):
        asked([picture], "<image> or <image>?")
    with pytest.raises(UserError, match="the question is empty"):
        asked([picture], " <image> ")


def test_an_answer_longer_than_the_context_is_refused(folder):
    opened = open_model(cell("penultimate", "digits").id, folder)
    (_, picture, question), *_ = asked_items("digits", 1)
    with pytest.raises(UserError, match="has a context of 2048 tokens"):
        opened.ask([picture], question, limit=2048)


def test_a_question_without_a_picture_has_an_answer(folder):
    opened = open_model(cell("penultimate", "digits").id, folder)
    assert isinstance(opened.ask([], "what digit is this?", limit=LONGEST), str)
