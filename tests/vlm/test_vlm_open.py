"""Recorded models are found, rebuilt and asked; a cell without a model is refused."""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import in_process
import pytest
import torch
from in_process import fusionbench, run
from llava_checkpoints import MIX, Tiny, checkpoint, data_root
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_languages import byte_level
from vlm_records import CELL_METHODS, CELL_TASKS, asked_items, cell, copied, trained_folder

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.lookup import find_record, of_model, split_place, twins
from fusionbench.records.merge import merge
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.training import checkpoint_folder, describe_language
from fusionbench.vlm.open import asked, explain, open_model, rebuild, trained_of, without

# They share a folder of small trained models, whose training takes most of the time.
pytestmark = pytest.mark.thorough

LONGEST = 3
"""New tokens of an answer in the tests' records: a word and the end mark at least."""


@pytest.fixture(scope="module")
def folder():
    return trained_folder()


@pytest.mark.parametrize("method", CELL_METHODS)
@pytest.mark.parametrize("task", CELL_TASKS)
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
    assert [one.spec.task for one in of_model(store, record)] == list(CELL_TASKS)
    blind = twins(store, record, "blind")
    assert {(one.spec.method, one.spec.task) for one in blind} == {("blind", t) for t in CELL_TASKS}


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


# Cells with a language model or a whole checkpoint from files: asked, exported, read again.


def trained(folder: Path, study: str, *options: object) -> Path:
    """The results of a study of two steps, below a folder."""
    (folder / "study.yaml").write_text(f"track: vlm\npreset: smoke\n{study}")
    out = folder / "cells"
    fusionbench("run", folder / "study.yaml", "--out", out, "--quiet", *options)
    assert not list((out / "failures").iterdir())
    return out


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A folder with a tiny causal language model and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("language"), byte_level()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=512, eos_token_id=tokenizer.end,
            bos_token_id=None,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.of_hub.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["hf:", "llava:"])
def test_files_in_two_folders_have_one_name_that_finds_them(kind, language, tmp_path, monkeypatch):
    # Another worker's copy of the same checkpoint would be noted in the cache that all share.
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))

    def card(name):
        return describe_language(*((name, "") if kind == "hf:" else ("", name)), download=False)

    first = language if kind == "hf:" else checkpoint()
    other = shutil.copytree(first, tmp_path / "elsewhere")
    found, again = card(f"{kind}{first}"), card(f"{kind}{other}")
    assert found.name == again.name and found.weights == again.weights
    assert re.fullmatch(f"{kind}(llama|llava)@[0-9a-f]{{12}}", found.name)
    # The folder that was named last.
    assert checkpoint_folder(found.name) == other
    assert card(found.name).weights == found.weights
    changed = other / "model.safetensors"
    weights = load_file(changed)
    name = sorted(weights)[0]
    weights[name] += 1
    save_file(weights, changed, metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds other weights"):
        card(found.name)


@pytest.mark.parametrize("how", ["none", "language", "lora"])
def test_a_language_model_of_files_is_exported_as_far_as_it_was_trained(how, language, tmp_path):
    if how == "lora":
        pytest.importorskip("peft")
    parts = ["fusion", "projector", *([] if how == "none" else [how])]
    study = (
        f"language: 'hf:{language}'\nmethods: [scalar_mix]\ntasks: [digits]\nmixture: [digits]\n"
        f"training: {{trained: [{', '.join(parts)}]}}\n"
    )
    out = trained(tmp_path, study)
    record = cell("scalar_mix", "digits", out)
    first = open_model(record.id, out)
    fusionbench("export", record.id, tmp_path / "model", "--out", out)
    again = open_model(str(tmp_path / "model"), out)
    (_, picture, question), *_ = asked_items("digits", 1)
    options = ("three", "7")
    losses = first.losses([picture], question, options)
    assert again.losses([picture], question, options) == losses
    assert again.ask([picture], question, limit=4) == first.ask([picture], question, limit=4)
    file = tmp_path / "model" / "language.safetensors"
    assert file.exists() == (how != "none")
    if how == "lora":
        assert all("lora_" in name for name in load_file(file))
    # Another model in the folder of the language model is noticed.
    config = language / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert config.read_text() != text
    code, _, err = run("ask", record.id, "What?", "--out", out)
    config.write_text(text)
    assert code == 2 and "holds other weights than those of" in err


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_cell_of_a_checkpoint_is_asked_exported_and_scored_again(kind, tmp_path):
    root = data_root(tmp_path / "data", captions=False)
    study = f"methods: [scalar_mix]\ntasks: [pope]\nmixture: ['{MIX}']\n"
    model = f"llava:{checkpoint(Tiny(kind=kind))}"
    out = trained(tmp_path, study, "--data-root", root, "--model", model)
    record = cell("scalar_mix", "pope", out)
    first = open_model(record.id, out)
    image = Picture(name="cubes", content=root / "coco" / "3.png")
    text = first.ask([image], "How many cubes are there?", limit=5)
    losses = first.losses([image], "How many cubes are there?", ("One.", "There are 3."))
    fusionbench("export", record.model, tmp_path / "model", "--out", out)
    again = open_model(str(tmp_path / "model"), out)
    assert again.ask([image], "How many cubes are there?", limit=5) == text
    assert again.losses([image], "How many cubes are there?", ("One.", "There are 3.")) == losses
    said = fusionbench(
        "ask", tmp_path / "model", image.content, "How many cubes are there?", "--layers",
        "--limit", 5,
    )  # fmt: skip
    assert said.startswith(f"{text}\n")
    assert said.count("  tap ") in (len(record.taps), 2 * len(record.taps))
    count = len(list(Store.open(out).records()))
    told = fusionbench("rescore", out, "--data-root", root)
    assert told == f"{count} cells with answers: {count} equal, 0 differ, 0 left out\n"


# What the layers contribute to an answer, against a computation with other weights.


def opened(method):
    return open_model(cell(method).id, trained_folder())


def test_the_mean_of_the_others_stands_in_the_place_of_a_state():
    states = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    changed = without(states, 2)
    assert torch.equal(changed[[0, 1, 3]], states[[0, 1, 3]])
    torch.testing.assert_close(changed[2], (states[0] + states[1] + states[3]) / 3)
    with pytest.raises(ValueError, match="no others"):
        without(states[:1], 0)


def test_leaving_out_a_state_of_a_weighted_sum_deals_its_weight_to_the_others():
    # sum_j w_j h_j with h_k := mean of the others has the weights w_j + w_k / (K - 1), and 0.
    model = opened("scalar_mix")
    (_, picture, question), *_ = asked_items("digits", 1)
    found = explain(model, [picture], question, limit=3)
    fusion = model.built.model.fusion
    (name,) = [one for one, value in fusion.named_parameters() if value.numel() == len(fusion.taps)]
    logits = dict(fusion.named_parameters())[name]
    start = logits.detach().clone()
    weights = start.flatten().softmax(0)
    assert found.trace["layer_weights"] == pytest.approx(weights.tolist(), rel=1e-5)

    def log_probability():
        return -model.losses([picture], question, [found.answer])[0]

    whole = log_probability()
    assert found.log_probability == pytest.approx(whole, abs=1e-6)
    for place, change in enumerate(found.changes):
        others = weights + weights[place] / (len(weights) - 1)
        others[place] = 0
        logits.data = others.clamp(min=1e-30).log().reshape(start.shape)
        assert change == pytest.approx(log_probability() - whole, abs=2e-5)
        logits.data = start
    assert len(found.changes) == len(fusion.taps) > 2
    assert max(map(abs, found.changes)) > 1e-3


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("penultimate", "penultimate reads one hidden state"),
        ("mema", "mema writes between the encoder's blocks"),
    ],
)
def test_a_method_without_such_changes_says_why(method, reason):
    (_, picture, question), *_ = asked_items("scenes_count", 1)
    found = explain(opened(method), [picture], question, limit=3)
    assert found.changes == ()
    assert reason in found.reason
    assert (found.log_probability is None) == (not found.answer)
    assert bool(found.trace) == (method == "mema")


def test_a_method_between_blocks_that_writes_nothing_is_left_out_state_by_state():
    # Without feedback Mema's reading memory starts silent: the answer needs the last state alone.
    model = opened("mema")
    fusion = model.built.model.fusion
    fusion.writes = False
    (_, picture, question), *_ = asked_items("scenes_count", 1)
    found = explain(model, [picture], question, limit=3)
    assert list(found.taps) == [(index,) for index in range(fusion.depth + 1)]
    assert len(found.changes) == len(found.taps)
    assert found.reason == ""


@pytest.mark.parametrize(
    ("said", "pictures", "reason"),
    [("", 1, "the answer is empty"), ("three", 0, "there is no picture"), ("three", 1, "")],
)
def test_neither_an_empty_answer_nor_a_question_without_a_picture_has_changes(
    said, pictures, reason
):
    model = opened("scalar_mix")
    (_, picture, question), *_ = asked_items("digits", 1)
    fused = model.answer(asked([picture], question), limit=1)[1]
    saying = replace(model)
    object.__setattr__(saying, "answer", lambda row, limit: ([said], fused))
    found = explain(saying, [picture] * pictures, question)
    assert reason in found.reason and bool(found.reason) == bool(reason)
    assert (found.log_probability is None) == (not said)
    assert bool(found.changes) == (not reason)


# SmolLM2-135M itself: fetched by hash, and a study in which the frozen model learns to see.
#
# Needs a network and about ten minutes of processor time.

ROOT = Path(__file__).parents[2]
SMOLLM2_TASKS = {"digits", "animal_mnist", "scenes_count"}


@pytest.fixture(scope="module")
def fetched():
    pytest.importorskip("gguf")
    code, out, err = in_process.run("fetch", "smollm2-135m")
    if code and "no network" in err + out:
        pytest.skip("no network")
    assert not code, err


@pytest.mark.slow
def test_it_answers_as_recorded(fetched):
    from fusionbench.models.readers.labels import encode
    from fusionbench.models.readers.load import load_language
    from fusionbench.models.readers.splice import splice
    from fusionbench.models.readers.text import Turn

    made = load_language("smollm2-135m")
    asked = [Turn("What is the capital of France?", "")]
    row = encode(made.tokenizer, made.template, asked, answer=False)
    prompt = splice(made, [row], [], side="left")
    assert made.generate(prompt, limit=16) == ["The capital of France is Paris."]


@pytest.mark.slow
def test_it_learns_to_see_and_answers_in_words(fetched, tmp_path, record_property):
    out = tmp_path / "out"
    in_process.fusionbench("run", ROOT / "studies" / "mini_smollm2.yaml", "--out", out)
    found = {one.spec.task: one for one in Store.open(out).records() if one.label == "penultimate"}
    assert set(found) == SMOLLM2_TASKS
    for task, one in found.items():
        record_property(task, one.score)
        # Three standard errors of a guesser.
        error = (one.chance * (1 - one.chance) / one.examples) ** 0.5
        assert one.score > one.chance + 3 * error, (task, one.score, one.chance)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    record = found["scenes_count"]
    said = in_process.fusionbench("ask", record.id, picture, "How many cubes?", "--out", out)
    assert said.strip()
