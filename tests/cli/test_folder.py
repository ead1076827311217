"""What a folder of results says of itself, and the rest of it: status, resume, verify, command."""

import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import in_process
import pytest

from fusionbench.cli import again as verify
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store

PLUGIN = Path(__file__).parent.parent / "support" / "sweep_plugin.py"
STUDY = ("run", "--preset", "smoke", "--tasks", "planted_layer", "--device", "cpu", "--quiet")
METHODS = ("--methods", "penultimate,scalar_mix")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "results"
    in_process.fusionbench(*STUDY, *METHODS, "--out", folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    return tmp_path / "results"


def cells(folder):
    return {record.label: record for record in Store.open(folder).records()}


def test_a_removed_cell_is_left_and_resume_runs_it_alone(copied):
    assert "2 cells: 2 done, 0 running" in in_process.fusionbench("status", copied)
    victim = cells(copied)["scalar_mix"].id
    outcomes = (copied / "outcomes" / f"{victim}.bin").read_bytes()
    asked = (copied / "study.json").read_bytes()
    (copied / "cells" / f"{victim}.json").unlink()
    said = in_process.fusionbench("status", copied)
    assert "1 done, 0 running, 0 failed, 0 lost, 1 left" in said
    assert re.search(r"scalar_mix +- +- +- +- +1", said) and "penultimate" not in said
    assert "1 cells run, 1 were there" in in_process.fusionbench("resume", copied, "--quiet")
    assert (copied / "outcomes" / f"{victim}.bin").read_bytes() == outcomes
    assert "nothing is left: 2 cells" in in_process.fusionbench("resume", copied)
    assert (copied / "study.json").read_bytes() == asked


def test_a_run_that_ends_at_once_leaves_its_request(tmp_path, monkeypatch):
    def interrupted(self, jobs, on_event):
        raise KeyboardInterrupt

    monkeypatch.setattr(in_process.InProcessLauncher, "run", interrupted)
    code, _, _ = in_process.run(*STUDY, *METHODS, "--out", tmp_path)
    assert code == 130
    assert "2 cells: 0 done" in in_process.fusionbench("status", tmp_path)


def test_what_cannot_be_resumed_is_one_line(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, said = in_process.run("resume", tmp_path / "empty")
    assert code == 2 and "holds no request" in said
    folder = tmp_path / "plugin"
    arguments = (*STUDY, "--methods", "penultimate,breaks", "--plugin", PLUGIN, "--out", folder)
    assert in_process.run(*arguments)[0] == 1
    said = in_process.fusionbench("status", folder)
    assert "failed: breaks on planted_layer, seed 0 [" in said and "broken on purpose" in said
    code, _, said = in_process.run("resume", folder)
    assert code == 2 and "breaks" in said and "Traceback" not in said
    # With its plug-in it is tried again, and fails again.
    assert in_process.run("resume", folder, "--plugin", PLUGIN, "--quiet")[0] == 1


def damaged(file, at=-1):
    """Flip a bit of a file; its size and its times stay."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    state = file.stat()
    file.write_bytes(bytes(content))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_verify_reads_every_file_whatever_was_checked_before(copied):
    assert "2 cells read and hashed, 0 problems" in in_process.fusionbench("verify", copied)
    cell = cells(copied)["scalar_mix"].id
    damaged(copied / "outcomes" / f"{cell}.bin")
    code, said, _ = in_process.run("verify", copied)
    assert code == 1 and cell in said and "1 problems" in said
    damaged(copied / "outcomes" / f"{cell}.bin")
    (items,) = (copied / "items").glob("*.json")
    items.write_text(items.read_text().replace("0", "1", 1))
    code, said, _ = in_process.run("verify", copied)
    assert code == 1 and items.stem in said


def test_a_sample_comes_out_bit_for_bit_on_this_machine(finished):
    said = in_process.fusionbench("verify", finished, "--sample", "2", "--device", "cpu")
    assert "2 of 2 cells run again: 2 equal bit for bit, 0 within tolerance, 0 different" in said


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


def test_a_table_is_made_again_and_an_edited_one_is_found(copied, tmp_path):
    table = copied / "report" / "tables" / "coverage.csv"
    said = in_process.fusionbench("reproduce", table, "--records")
    assert "follows from the records" in said and "2 records" in said
    assert (
        cells(copied)["scalar_mix"].id in said and "report results/again --table coverage" in said
    )
    assert study_of(said, tmp_path)[0] == "run"
    table.write_text(table.read_text().replace("1", "2"))
    code, said, _ = in_process.run("reproduce", table)
    assert code == 1 and "differs from the records" in said
    code, _, said = in_process.run("reproduce", copied / "report" / "tables" / "nothing.csv")
    assert code == 2 and "no table" in said
