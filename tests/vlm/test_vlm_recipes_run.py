"""The recipes run on tiny checkpoints and files: trained, killed, resumed, recorded, read again."""

import re
from pathlib import Path

import in_process
import pytest
import torch
from benchmark_cases import POPE
from benchmark_files import CARDS
from llava_checkpoints import MIX, PLAIN, WIDTH, Tiny, checkpoint, data_root, make_tokenizer
from safetensors.torch import load_file

from fusionbench.api.benchmarks import stream
from fusionbench.api.sources import find_source
from fusionbench.models.readers.llava.checkpoint import FRESH
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.reading import load_study, with_overrides
from fusionbench.study.study import LOCAL_TASKS
from fusionbench.study.training import smoke_of
from fusionbench.vlm.checkpoint import Checkpoints
from fusionbench.vlm.open import open_model

STUDIES = Path(__file__).resolve().parents[2] / "studies"
pytestmark = [
    pytest.mark.skipif(not STUDIES.exists(), reason="an installed wheel has no recipes"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("fusionbench.cli.summary._update", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_root(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A tiny language model with its tokenizer, for recipes that name encoder and language."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("language"), make_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=2, pad_token_id=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def llava(made: Tiny = PLAIN) -> str:
    return f"llava:{checkpoint(made)}"


def records(folder: Path) -> dict:
    return {(one.label, one.spec.task): one for one in Store.open(folder).records()}


def models(folder: Path) -> dict[str, str]:
    return {
        path.name: path.read_bytes().hex() for path in (folder / "models").glob("*.safetensors")
    }


RECIPES = {
    # Name: flags, checkpoint that is the last to be written, stages that train a language model.
    "mema": (("--model", "TINY", "--methods", "mema"), 1, False),
    "llava15": (("--model", "TINY"), 3, True),
    "mini_llava": (
        ("--encoder", "nano", "--language", "LANGUAGE", "--methods", "lsf_internal_direct"), 3, True
    ),
}  # fmt: skip


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mema", slow("llava15"), slow("mini_llava")])
def test_a_recipe_trains_is_killed_resumes_records_and_reloads(name, data, language, tmp_path):
    flags, behind, whole = RECIPES[name]
    named = {"TINY": llava(), "LANGUAGE": language}
    command = [
        "run", STUDIES / f"{name}.yaml", *(named.get(flag, flag) for flag in flags),
        "--data-root", data, "--preset", "smoke", "--tasks", "digits,pope",
    ]  # fmt: skip
    out, killed = tmp_path / "whole", tmp_path / "killed"
    assert "4 cells run" in in_process.fusionbench(*command, "--out", out)
    assert in_process.killed_behind(behind, Checkpoints, "write", *command, "--out", killed) == -9
    assert not records(killed) and not list((killed / "models").glob("*.json"))
    stages = {file.parent.name for file in (killed / "models").glob("*.partial/*/*.safetensors")}
    assert stages == ({"stage0", "stage1"} if behind > 2 else {"stage0"})
    assert "4 cells run" in in_process.fusionbench(*command, "--out", killed)
    first, again = records(out), records(killed)
    assert {one.id for one in first.values()} == {one.id for one in again.values()}
    for key, one in first.items():
        assert one.status == "done" and again[key].loss == one.loss
        store, other = Store.open(out), Store.open(killed)
        assert other.answers(again[key]) == store.answers(one) and store.answers(one)
        assert (other.outcomes(again[key]) == store.outcomes(one)).all()
    assert models(killed) == models(out) and not list((killed / "models").glob("*.partial"))
    assert "0 cells run, 4 were there" in in_process.fusionbench(*command, "--out", killed)
    _answers(again[next(key for key in again if key[0] != "blind")], killed, data, tmp_path)
    trained = {part.split(".")[0] for file in (out / "models").glob("*.safetensors")
               for part in load_file(file)}  # fmt: skip
    assert trained == ({"fusion", "projector", "language"} if whole else {"fusion"}) - (
        {"fusion"} if name == "llava15" else set()
    )


def _answers(record, results: Path, data: Path, folder: Path) -> None:
    """A recorded model answers like its record, and like itself where it was exported."""
    asked = (data / "coco" / "2.png", "How many cubes are there?")
    said = in_process.fusionbench("ask", record.id, *asked, "--out", results)
    in_process.fusionbench("export", record.id, folder / "export", "--out", results)
    assert said.strip() and in_process.fusionbench("ask", folder / "export", *asked) == said
    opened, store, card = open_model(record.id, results), Store.open(results), CARDS["pope"]
    (pope,) = [
        one for one in store.records() if one.spec.task == "pope" and one.label == record.label
    ]
    told = {one.item: one.text for one in store.answers(pope)}
    if record.spec.method == "mema":
        # The query of a benchmark is its question, that of `ask` the whole prompt.
        return
    for item in stream(POPE.benchmark, find_source("pope", card.needs, data)):
        assert opened.ask(item.images, item.prompt) == told[item.name]


@pytest.mark.thorough
def test_what_a_record_says_of_a_training_inside_a_checkpoint(data, tmp_path):
    in_process.fusionbench(
        "run", STUDIES / "mema.yaml", "--model", llava(), "--data-root", data, "--preset", "smoke",
        "--methods", "penultimate,dense_connector-dci,mema", "--tasks", "pope", "--out", tmp_path,
    )  # fmt: skip
    found = {label: one for (label, _), one in records(tmp_path).items()}
    own, wide, mema = (
        found[n] for n in ("penultimate", "dense_connector-dci", "mema[alignment=0.1]")
    )
    training = mema.spec.training
    # By kind and content, wherever the folder lies.
    assert re.fullmatch("llava:llava@[0-9a-f]{12}", training.language)
    assert training.language == mema.spec.encoder
    assert llava().removeprefix("llava:") not in str(mema)
    assert (training.query, training.mean, training.pixels) == ("prompt", "sample", "pad")
    (stage,) = training.stages
    assert (stage.template, stage.trained, stage.parts) == ("llava15", ("fusion",), (MIX,))
    # 4 conversations have two turns.
    assert stage.count == 20 and mema.spec.budget.image_size == 0
    assert FRESH in wide.notes and FRESH not in (*own.notes, *mema.notes)
    assert wide.parameters["projector"] == 96 * WIDTH + WIDTH + WIDTH**2 + WIDTH
    assert own.parameters["projector"] == own.parameters["fusion"] == 0 and not own.loss
    assert mema.parameters["projector"] == 0 < mema.parameters["fusion"]
    assert own.taps == ((3,),) and own.tokens == mema.tokens == 16 and own.scores["accuracy"] >= 0
    for one in (wide, mema):
        assert len(one.loss) == 2 and one.loss[0] > 0


@pytest.mark.thorough
def test_a_language_model_that_is_trained_starts_each_training_as_in_the_checkpoint(data, tmp_path):
    command = ("run", STUDIES / "llava15.yaml", "--model", llava(), "--data-root", data,
               "--preset", "smoke", "--tasks", "pope")  # fmt: skip
    in_process.fusionbench(*command, "--methods", "last,penultimate", "--out", tmp_path / "both")
    in_process.fusionbench(*command, "--methods", "penultimate", "--out", tmp_path / "one")
    both, one = models(tmp_path / "both"), models(tmp_path / "one")
    assert len(both) == 3 and len(one) == 2 and set(one.items()) < set(both.items())
    training = records(tmp_path / "one")["penultimate", "pope"].spec.training
    assert training.grouped and [stage.steps for stage in training.stages] == [2, 2]
    assert [stage.batch for stage in training.stages] == [8, 8]
    assert [stage.template for stage in training.stages] == ["plain", "llava15"]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [slow("llava"), "llava_next"])
def test_every_method_trains_two_steps_or_says_why_not(kind, data, tmp_path):
    made = Tiny() if kind == "llava" else Tiny(kind=kind)
    pixels = {"llava": "pad", "llava_next": "processor"}[kind]
    study = tmp_path / "all.yaml"
    text = (STUDIES / "mema.yaml").read_text().replace("pixels: pad ", f"pixels: {pixels} ")
    study.write_text(text.replace("settings:\n", "").replace("  mema: {align", "#"))
    methods = "all" if kind == "llava" else (
        "own,mema,token_packer,concat_all-pooled,dense_connector-dci,lsf_internal_direct,"
        "deepstack,best_single"
    )  # fmt: skip
    said = in_process.fusionbench(
        "run", study, "--model", llava(made), "--data-root", data, "--preset", "smoke",
        "--methods", methods, "--tasks", "pope", "--out", tmp_path / "out",
    )  # fmt: skip
    found = {label: one for (label, _), one in records(tmp_path / "out").items()}
    skipped = {label: one.reason for label, one in found.items() if one.status == "skipped"}
    assert "failed" not in said and len(found) > (40 if kind == "llava" else 8)
    assert all(one.status in ("done", "skipped") for one in found.values())
    assert "val questions" in skipped.pop("best_single")
    if kind == "llava":
        assert not skipped
    else:
        assert all("changes the number of tokens (16 to" in one for one in skipped.values())
        assert {"token_packer", "concat_all-pooled"} <= set(skipped)
        assert found["penultimate"].tokens > 32 and found["lsf_internal_direct"].status == "done"
    losses = {label: one.loss for label, one in found.items() if one.status == "done"}
    assert all(len(loss) in (0, 2) for loss in losses.values())


@pytest.mark.thorough
def test_evaluation_alone_trains_nothing_and_answers_as_the_checkpoint(data, tmp_path):
    command = ("run", STUDIES / "bench.yaml", "--model", llava(), "--tasks", "pope", "--data-root",
               data, "--out", tmp_path)  # fmt: skip
    assert "2 cells run" in in_process.fusionbench(*command)
    own = records(tmp_path)["penultimate", "pope"]
    assert own.spec.budget.steps == 0 and own.spec.budget.lrs == (0.0,) and not own.loss
    (stage,) = own.spec.training.stages
    assert (stage.parts, stage.count, stage.trained) == ((), 0, ())
    assert own.measures["questions"] == 3 and own.parameters["fusion"] == 0
    assert not any(load_file(file) for file in (tmp_path / "models").glob("*.safetensors"))
    said = Store.open(tmp_path).answers(own)
    assert len(said) == 3 and any(one.text for one in said)
    assert "0 cells run, 2 were there" in in_process.fusionbench(*command)
    assert "nothing is left: 2 cells" in in_process.fusionbench("resume", tmp_path)
    assert "training:" in in_process.fusionbench("command", own.id, "--out", tmp_path)
    assert Store.open(tmp_path).history.requests()[-1].study["baseline"] == "penultimate"
    more = in_process.fusionbench(*command, "--methods", "own,mema,dense_connector-dci")
    assert "0 cells run, 2 were there" in more
    skipped = {label: one.reason for (label, _), one in records(tmp_path).items()
               if one.status == "skipped"}  # fmt: skip
    assert "weights of its own" in skipped["mema"]
    assert "another width" in skipped["dense_connector-dci"]


def test_evaluation_alone_needs_a_finished_model(tmp_path):
    study = tmp_path / "nothing.yaml"
    study.write_text("track: vlm\npreset: smoke\ntraining: {trained: []}\n")
    code, _, err = in_process.run("run", study, "--tasks", "digits", "--out", tmp_path / "out")
    assert code and "words has no projector for images" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("made", "label"),
    [
        (Tiny(layer=-1), "last"),
        (Tiny(layer=(-2, 2)), "hf_list[blocks=4,layers=3,2]"),
        (Tiny(kind="llava_next"), "penultimate"),
    ],
)
def test_without_methods_a_checkpoint_is_studied_at_its_own_layer(made, label, data):
    study = load_study(STUDIES / "bench.yaml")
    for one in (
        with_overrides(study, model=llava(made), tasks=["pope"]),
        with_overrides(study, model=llava(made), tasks=["pope"], methods=["own"]),
    ):
        found = resolve(one, read_catalog(), data_root=str(data))
        assert [method.label for method in found.methods] == [label, "blind"]
        assert found.study.baseline == label
        (cell, _) = make_plan(found, ()).cells
        assert cell.spec.training.pixels == ("processor" if made.kind == "llava_next" else "pad")
        assert cell.spec.training.stages[0].template == "llava15"


def test_all_tasks_of_a_mixture_of_files_are_local_tasks_and_the_benchmarks_that_are_there(data):
    study = smoke_of(load_study(STUDIES / "mema.yaml"))
    study = with_overrides(study, model=llava())
    found = resolve(study, read_catalog(), data_root=str(data))
    names = {task.name for task in found.tasks}
    assert "pope" in names and names - {"pope"} <= set(LOCAL_TASKS) and "digits" in names
    assert not {task.name for task in resolve(study, read_catalog()).tasks} & {"pope"}
