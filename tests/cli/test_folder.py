"""What a folder of results says of itself, and the rest of it: status, resume, verify, command."""

import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import in_process
import pytest
from vlm_records import asked_items, cell, copied, save_picture, trained_folder

from fusionbench.api.errors import UserError
from fusionbench.cli import again as verify
from fusionbench.cli.models import split_words
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task

PLUGIN = Path(__file__).parent.parent / "support" / "sweep_plugin.py"
STUDY = ("run", "--preset", "smoke", "--tasks", "planted_layer", "--device", "cpu", "--quiet")
METHODS = ("--methods", "penultimate,scalar_mix")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "results"
    in_process.fusionbench(*STUDY, *METHODS, "--out", folder)
    return folder


@pytest.fixture
def folder_copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    return tmp_path / "results"


def cells(folder):
    return {record.label: record for record in Store.open(folder).records()}


@pytest.mark.fault("stored data", "a cell removed", "`resume` runs it alone")
def test_a_removed_cell_is_left_and_resume_runs_it_alone(folder_copied):
    assert "2 cells: 2 done, 0 running" in in_process.fusionbench("status", folder_copied)
    victim = cells(folder_copied)["scalar_mix"].id
    outcomes = (folder_copied / "outcomes" / f"{victim}.bin").read_bytes()
    asked = (folder_copied / "study.json").read_bytes()
    (folder_copied / "cells" / f"{victim}.json").unlink()
    said = in_process.fusionbench("status", folder_copied)
    assert "1 done, 0 running, 0 failed, 0 lost, 1 left" in said
    assert re.search(r"scalar_mix +- +- +- +- +1", said) and "penultimate" not in said
    assert "1 cells run, 1 were there" in in_process.fusionbench("resume", folder_copied, "--quiet")
    assert (folder_copied / "outcomes" / f"{victim}.bin").read_bytes() == outcomes
    assert "nothing is left: 2 cells" in in_process.fusionbench("resume", folder_copied)
    assert (folder_copied / "study.json").read_bytes() == asked


@pytest.mark.fault("stored data", "killed before the first cell", "the request is on disk")
def test_a_run_that_ends_at_once_leaves_its_request(tmp_path, monkeypatch):
    def interrupted(self, jobs, on_event):
        raise KeyboardInterrupt

    monkeypatch.setattr(in_process.InProcessLauncher, "run", interrupted)
    code, _, _ = in_process.run(*STUDY, *METHODS, "--out", tmp_path)
    assert code == 130
    assert "2 cells: 0 done" in in_process.fusionbench("status", tmp_path)


@pytest.mark.thorough
def test_what_cannot_be_resumed_is_one_line(folder_copied, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, said = in_process.run("resume", tmp_path / "empty")
    assert code == 2 and "holds no request" in said
    folder = tmp_path / "plugin"
    arguments = (*STUDY, "--methods", "penultimate,breaks", "--plugin", PLUGIN, "--out", folder)
    assert in_process.run(*arguments)[0] == 1
    said = in_process.fusionbench("status", folder)
    assert "failed: breaks on planted_layer, seed 0 [" in said and "broken on purpose" in said
    code, _, said = in_process.run("resume", folder)
    assert code == 2 and "the request has the method breaks" in said and "--plugin" in said
    # With its plug-in it is tried again, and fails again.
    assert in_process.run("resume", folder, "--plugin", PLUGIN, "--quiet")[0] == 1


def damaged(file, at=-1):
    """Flip a bit of a file; its size and its times stay."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    state = file.stat()
    file.write_bytes(bytes(content))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_verify_reads_every_file_whatever_was_checked_before(folder_copied):
    assert "2 cells read and hashed, 0 problems" in in_process.fusionbench("verify", folder_copied)
    cell = cells(folder_copied)["scalar_mix"].id
    damaged(folder_copied / "outcomes" / f"{cell}.bin")
    code, said, _ = in_process.run("verify", folder_copied)
    assert code == 1 and cell in said and "1 problems" in said
    damaged(folder_copied / "outcomes" / f"{cell}.bin")
    (items,) = (folder_copied / "items").glob("*.json")
    items.write_text(items.read_text().replace("0", "1", 1))
    code, said, _ = in_process.run("verify", folder_copied)
    assert code == 1 and items.stem in said


@pytest.mark.parametrize("command", ["run", "ablate", "verify", "resume", "paper"])
def test_what_encodes_images_takes_the_limit_that_its_error_names(command, call):
    code, said, _ = call(command, "--help")
    assert code == 0 and "--limit-cache" in said


def test_the_limit_of_hidden_states_reaches_a_second_run(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    asked = ("verify", finished, "--sample", "1", "--device", "cpu", "--limit-cache")
    code, said, errors = in_process.run(*asked, "0")
    assert code == 2 and "the limit is 0" in said + errors
    assert "raise --limit-cache" in said + errors


def test_a_sample_comes_out_bit_for_bit_on_this_machine(finished):
    said = in_process.fusionbench("verify", finished, "--sample", "2", "--device", "cpu")
    assert "2 of 2 cells run again: 2 equal bit for bit, 0 within tolerance, 0 different" in said


@pytest.mark.fault(
    "stored data", "a record that another machine made otherwise", "`verify` names it"
)
def test_a_record_that_this_machine_does_not_give_again_is_named(finished, tmp_path):
    old = Store.open(finished)
    record = cells(finished)["scalar_mix"]
    wrong = old.outcomes(record).copy()
    wrong[:5] = 1 - wrong[:5]
    with Store.create(tmp_path / "forged") as forged:
        score = float(wrong.mean())
        forged.write(replace(record, score=score), wrong, old.items(record))
    code, said, _ = in_process.run("verify", tmp_path / "forged", "--sample", "1")
    assert code == 1 and "5 of" in said and "outcomes" in said and "1 different" in said
    assert "scalar_mix on planted_layer, seed 0: different" in said


def test_a_cell_of_a_gpu_says_what_it_needs(finished):
    record = cells(finished)["scalar_mix"]
    hardware = {"device": "cuda", "gpu": "NVIDIA H100", "driver": "570"}
    of_gpu = replace(record, provenance={**record.provenance, "hardware": hardware})
    assert "needs one: NVIDIA H100, 570" in verify._needs(of_gpu, RunOptions(device="cpu"))
    assert not verify._needs(record, RunOptions(device="cpu"))
    assert "--device cpu" in verify._needs(record, RunOptions(device="cuda"))


def study_of(said, folder):
    """The words and the study of the command that was printed."""
    command, study = re.search(
        r"^fusionbench (run .*) <<'STUDY'\n(.*?)^STUDY$", said, re.DOTALL | re.MULTILINE
    ).groups()
    file = folder / "again.yaml"
    file.write_text(study)
    return [str(file) if word == "/dev/stdin" else word for word in shlex.split(command)]


def test_the_command_of_a_cell_runs_it_again(finished, tmp_path):
    record = cells(finished)["scalar_mix"]
    said = in_process.fusionbench("command", record.id[:8], "--out", finished)
    assert f"# {record.label} on planted_layer, seed 0: done\n" in said and "# torch" not in said
    assert f"torch {record.provenance['software']['torch']}" in said
    in_process.fusionbench(*study_of(said, tmp_path), "--quiet", folder=tmp_path)
    (again,) = Store.open(tmp_path / "results" / "again").records()
    assert again.id == record.id and again.outcomes == record.outcomes


def test_a_cell_that_is_not_in_the_study_is_one_line(finished, tmp_path):
    code, _, said = in_process.run(*STUDY, *METHODS, "--cell", "f" * 20, "--out", tmp_path)
    assert code == 2 and "no cell" in said
    code, _, said = in_process.run(*STUDY, "--cell", "a", "--shard", "1/2", "--out", tmp_path)
    assert code == 2 and "exclude each other" in said


def test_a_table_is_made_again_and_an_edited_one_is_found(folder_copied, tmp_path):
    table = folder_copied / "report" / "tables" / "coverage.csv"
    said = in_process.fusionbench("reproduce", table, "--records")
    assert "follows from the records" in said and "2 records" in said
    assert (
        cells(folder_copied)["scalar_mix"].id in said
        and "report results/again --table coverage" in said
    )
    assert study_of(said, tmp_path)[0] == "run"
    table.write_text(table.read_text().replace("1", "2"))
    code, said, _ = in_process.run("reproduce", table)
    assert code == 1 and "differs from the records" in said
    code, _, said = in_process.run("reproduce", folder_copied / "report" / "tables" / "nothing.csv")
    assert code == 2 and "no table" in said


# `ask`, `export` and `rescore` at the command line.

QUESTION = "how many shapes are there?"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return save_picture(tmp_path_factory.mktemp("ask") / "picture.png")


@pytest.mark.thorough
def test_ask_prints_the_answer_and_nothing_else(call, image):
    from fusionbench.vlm.open import open_model

    record, folder = cell("scalar_mix", "scenes_count"), trained_folder()
    code, out, err = call("ask", record.id, image, QUESTION, "--out", folder, "--limit", 3)
    (_, picture, _), *_ = asked_items("scenes_count", 1)
    wanted = open_model(record.id, folder).ask([picture], QUESTION, limit=3)
    assert (code, out, err) == (0, f"{wanted}\n", "")


@pytest.mark.thorough
def test_ask_with_layers_prints_weights_and_changes(call, image):
    record, folder = cell("scalar_mix", "scenes_count"), trained_folder()
    arguments = ("ask", record.id, image, QUESTION, "--out", folder, "--limit", 3, "--layers")
    code, out, _ = call(*arguments)
    assert code == 0
    lines = out.splitlines()
    assert lines[1].startswith("log-probability of the answer: -")
    assert lines[2] == "layer_weights, the method's own:"
    taps = [f"tap {tap}" for (tap,) in record.taps]
    assert [line.split(":")[0].strip() for line in lines[3 : 3 + len(taps)]] == taps
    assert "the mean of the others instead" in lines[3 + len(taps)]
    assert [line.split(":")[0].strip() for line in lines[4 + len(taps) :]] == taps
    _, out, _ = call("ask", cell("penultimate").id, image, QUESTION, "--out", folder, "--layers")
    assert "the method has no weights of layers of its own" in out
    assert "without one layer: not defined: " in out


@pytest.mark.thorough
def test_an_exported_model_is_asked_from_its_folder(call, image, tmp_path):
    record, folder = cell("mema"), trained_folder()
    code, out, _ = call("export", record.model, tmp_path / "model", "--out", folder)
    assert (code, out) == (0, f"{tmp_path / 'model'}\n")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{100 * record.score:.2f} %" in card
    asked = ("ask", record.id, image, QUESTION, "--out", folder, "--limit", 3)
    again = ("ask", tmp_path / "model", image, QUESTION, "--limit", 3)
    assert call(*again) == call(*asked)


@pytest.mark.thorough
def test_what_cannot_be_asked_or_exported_is_an_error_of_one_line(call, image, tmp_path):
    folder = copied(tmp_path / "cells")
    record = cell("mema")
    (folder / "models" / f"{record.model}.safetensors").unlink()
    for command in (("ask", record.id, image, QUESTION), ("export", record.id, tmp_path / "new")):
        code, out, err = call(*command, "--out", folder)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: cell {record.id} has no weights: ")
        unknown = (command[0], "f" * 20, *command[2:])
        code, out, err = call(*unknown, "--out", folder)
        assert (code, out) == (2, "")
        assert "; the nearest is " in err
    code, _, err = call("export", cell("blind").id, folder, "--out", folder)
    assert code == 2 and "exists already" in err
    code, _, err = call("ask", record.id, tmp_path / "no.png", QUESTION, "--out", folder)
    assert code == 2 and "there is no picture" in err
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = ("ask", cell("blind").id, tmp_path / "broken.png", QUESTION, "--out", folder)
    code, _, err = call(*broken)
    assert code == 2 and "is not an image that can be read" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.thorough
def test_an_exported_folder_is_not_exported_again(call, tmp_path):
    folder = trained_folder()
    assert call("export", cell("blind").id, tmp_path / "one", "--out", folder)[0] == 0
    code, _, err = call("export", tmp_path / "one", tmp_path / "two", "--out", folder)
    assert code == 2 and "is an exported model already" in err


def test_a_question_comes_behind_the_pictures(image):
    pictures, question = split_words([str(image), str(image), "Which is larger?"])
    assert ([one.name for one in pictures], question) == ([str(image)] * 2, "Which is larger?")
    assert split_words(["Who?"]) == ([], "Who?")
    assert split_words(["Why " * 5000])[0] == []
    with pytest.raises(UserError, match="there is no question behind"):
        split_words([str(image)])


@pytest.mark.thorough
def test_rescore_exits_with_1_on_a_difference_and_says_which(call, tmp_path, monkeypatch):
    folder = copied(tmp_path / "cells")
    code, out, err = call("rescore", folder)
    assert (code, out, err) == (0, "8 cells with answers: 8 equal, 0 differ, 0 left out\n", "")
    card = read_catalog().tasks["digits"]
    with monkeypatch.context() as patch:
        patch.setattr(type(load_task(card)), "judge", lambda self, text, example: 0.5)
        code, out, _ = call("rescore", folder)
    assert code == 1
    assert f"{cell('mema').id} mema on digits: differs\n  16 of 16 outcomes\n" in out
    assert out.endswith("8 cells with answers: 4 equal, 4 differ, 0 left out\n")
    (folder / "answers" / f"{cell('mema').id}.jsonl.gz").write_bytes(b"")
    code, out, err = call("rescore", folder)
    assert (code, out) == (1, "7 cells with answers: 7 equal, 0 differ, 0 left out\n")
    assert cell("mema").id in err
