"""Every benchmark runs, in a tiny size on a CPU; no time that is measured here means anything."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_records import outcomes, record, spec
from toy_suite import items_of, study

from fusionbench.records.history import Request
from fusionbench.records.store import Store
from fusionbench.registry.plugins import load_encoder
from fusionbench.study.study import PAPER, QUICK, as_plain

HERE = Path(__file__).resolve().parent.parent.parent / "benchmarks"
pytestmark = [
    pytest.mark.skipif(not HERE.exists(), reason="an installed wheel has no benchmarks"),
    pytest.mark.filterwarnings("ignore"),
]
CPU = ("--device", "cpu")
LONG = (
    "accuracy_seconds.py",
    "mema_clip.py",
    "quick_study.py",
    "seeds_in_encoder.py",
    "whole_study.py",
)
"""Five seconds or more."""
# Script, its arguments, and the targets of the rows that must be there.
RUNS = {
    "mema_clip.py": (
        (*CPU, "--shrink", "--batch", "2", "--blocks", "2", "--ways", "default", "half"),
        {"way=default", "way=half", "mema-train-clip", "mema-inference-clip"},
    ),
    "seeds_on_features.py": (
        (*CPU, "--seeds", "2", "--steps", "2", "--methods", "scalar_mix"),
        {"seed-loop-cpu", "scoring-seeds"},
    ),
    "seeds_in_encoder.py": (
        (*CPU, "--seeds", "2", "--steps", "11", "--batch", "1", "--ways", "steps",
         "--method", "dia_lstm"),
        {"seeds=2", "mema-seeds"},
    ),
    "feature_loading.py": (
        (*CPU, "--seeds", "2", "--steps", "2", "--pool", "64"), {"feature-loading"},
    ),
    "encoding.py": ((*CPU, "--images", "64"), {"encoding"}),
    "llava_step.py": ((*CPU, "--shrink", "--batch", "2", "--blocks", "2"), {"llava-step"}),
    "profile_twice.py": (
        (*CPU, "--encoder", "nano", "--width", "32", "--batch", "2", "--blocks", "2", "--dtype",
         "fp32", "--methods", "scalar_mix"),
        {"method=scalar_mix", "profile-twice"},
    ),
    "start_and_plan.py": (
        ("--turns", "0", "--cells", "1000", "--tasks", "digits"), {"start", "plan"},
    ),
    "report_size.py": (
        ("--methods", "3", "--tasks", "2", "--seeds", "4", "--encoders", "1", "--examples", "32"),
        {"report", "report-memory"},
    ),
    "quick_study.py": (("--task", "digits", "--sample", "1"), {"quick-study"}),
    "accuracy_seconds.py": (
        ("--methods", "penultimate", "--tasks", "digits", "--seeds", "1"),
        {"score=penultimate", "seconds=penultimate", "score=all", "seconds=all", "quick-accuracy"},
    ),
    "whole_study.py": (
        (*CPU, "--encoder", "nano", "--methods", "scalar_mix", "--tasks", "digits",
         "--sampled", "2", "3", "--seeds", "2"),
        {"whole-study"},
    ),
}  # fmt: skip
AXES = {
    "tokens": ("16", "tokens=16 blocks=12"),
    "blocks": ("2", "tokens=64 blocks=2"),
    "seeds": ("2", "seeds=2"),
    "methods": ("2", "methods=2"),
    "cells": ("1000", "cells=1000"),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A script in this process; compiling is left out, the fast paths have tests of their own."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    import rows

    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    threads = torch.get_num_threads()

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(HERE / script), run_name="__main__")
        files = sorted(tmp_path.glob("*.json"))
        return [row for file in files for row in json.loads(file.read_text())["rows"]]

    yield call
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What benchmarks exchange in the engine is put back."""
    from fusionbench.harness import passes as batched
    from fusionbench.harness import train
    from fusionbench.harness.materials import Materials

    monkeypatch.setattr(batched, "schedule", batched.schedule)
    monkeypatch.setattr(train, "schedule", train.schedule)
    monkeypatch.setattr(Materials, "resident", Materials.resident)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "script", [pytest.param(one, marks=pytest.mark.slow if one in LONG else ()) for one in RUNS]
)
def test_a_benchmark_measures_both_ways(script, run):
    arguments, targets = RUNS[script]
    rows = run(script, *arguments)
    assert {row["target"] for row in rows} == targets
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in rows)
    # Two protocols, not one of them twice.
    scores = [row for row in rows if row["target"].startswith("score=")]
    assert all(row["ours"] > row["plain"] for row in scores)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "axis", [pytest.param(a, marks=pytest.mark.slow if a == "methods" else ()) for a in AXES]
)
def test_an_axis_of_scaling_has_its_points(axis, run):
    point, target = AXES[axis]
    found = run("scaling.py", *CPU, "--axes", axis, "--points", point, "--methods", "scalar_mix",
                "--batch", "1", "--tasks", "digits")  # fmt: skip
    assert [row["target"] for row in found] == [target]


def test_without_a_gpu_a_step_of_seven_billion_weights_stays_open(run, capsys):
    assert run("llava_step.py", *CPU) == []
    assert capsys.readouterr().out.startswith("open: ")


def test_every_script_that_measures_is_run_here():
    helpers = {"gpu_work.py", "rows.py", "sampled.py", "workload.py", "targets.py", "random_vit.py"}
    helpers |= {"answers.py", "tables.py", "reliability.py", "mutation_testing.py"}
    others = {"attentive.py", "all_gpu.py", "scaling.py", "two_devices.py"}
    scripts = {path.name for path in HERE.glob("*.py")}
    assert scripts == set(RUNS) | helpers | others


def test_two_folders_of_one_study_are_compared_example_by_example(run, tmp_path):
    gpu = {"hardware": {"gpu": "a card", "cpu": "a processor"}}
    rows = {}
    for draw, name in enumerate(("first", "again", "other")):
        gains = {"last": 0.1, "moved": 0.1}
        there = study(tmp_path / name, gains, seeds=2, count=20, facts={"provenance": gpu},
                      draw=max(draw - 1, 0))  # fmt: skip
        (rows[name],) = run("two_devices.py", str(tmp_path / "first"), str(there), "--without",
                            "moved")  # fmt: skip
    assert rows["again"]["plain"] == rows["again"]["ours"]
    assert "6 cells, 6 alike in every example; 100.0000% of 120" in rows["again"]["note"]
    assert "0.00 points apart; without moved" in rows["again"]["note"]
    assert "100.0000%" not in rows["other"]["note"]
    assert json.loads((tmp_path / "two_devices-a-card.json").read_text())["device"] == "a card"


def test_the_goals_of_the_quick_study_are_read_from_its_records(run, tmp_path, capsys):
    shares = {"digits": (0.5, 0.9, 0.8), "textile": (0.6, 0.8, 0.9), "easy_vqa": (0.2, 0.25, 0.25)}
    with Store.create(tmp_path / "r") as store:
        for task, layers in shares.items():
            for layer, share in enumerate(layers):
                for seed in range(4):
                    cell = spec("layer", task, seed, settings={"index": layer})
                    right = outcomes(share, seed)
                    facts = {"label": f"layer[index={layer}]", "taps": ((layer,),), "chance": 0.25}
                    store.write(record(cell, right, **facts), right, items_of(task, len(right)))
        contrasts = [
            {"method": "layer[index=2]", "baseline": "layer[index=0]", "control": "layer[index=0]"},
            {"method": "layer[index=2]", "baseline": "layer[index=1]", "control": "layer[index=1]"},
        ]
        plain = as_plain(QUICK) | {"contrasts": contrasts}
        labels = tuple(f"layer[index={layer}]" for layer in range(3))
        store.history.add(Request(study=plain, labels=labels, tasks=tuple(shares)))
    assert run("accuracy_seconds.py", "--goals", str(tmp_path / "r"), "--methods") == []
    said = capsys.readouterr().out
    assert "best single layer: hs[1], mean over 3 tasks 65.0 % (goal: 66)" in said
    assert "sensitive tasks: 2 of 3 (goal: 9 of 11); insensitive: easy_vqa" in said
    assert "planned contrasts decided: 1 of 2" in said
    assert "layer[index=2] - layer[index=0]: better" in said


@pytest.mark.thorough
def test_the_table_of_the_attentive_reader_has_a_row_for_each_setting(run, capsys):
    small = ("--steps", "2", "--batch", "8", "--items", "32", "--draw", "24", "--val-items", "16")
    run("attentive.py", *small, "--tasks", "digits", "--methods", "layer[index=4]",
        "--places", "none", "tokens", "keys", "tokens-100")  # fmt: skip
    _, closed, *rows = capsys.readouterr().out.splitlines()
    assert closed.startswith("closed form") and len(rows) == 4 * 3
    assert all(0 <= float(row.split(" steps")[1].split()[0]) <= 100 for row in rows)


@pytest.mark.slow
def test_a_study_that_stops_goes_on_with_what_is_left(run, tmp_path):
    arguments, _ = RUNS["whole_study.py"]
    assert run("whole_study.py", *arguments, "--minutes", "0") == []
    (state,) = tmp_path.glob("*.partial")
    values = json.loads(state.read_text())
    values["found"]["scalar_mix"] = [300.0, 100.0]
    state.write_text(json.dumps(values))
    (row,) = run("whole_study.py", *arguments)
    assert (row["plain"], row["ours"]) == (300.0, 100.0) and not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_a_method_that_fails_is_named_in_the_row_of_the_whole_study(run, monkeypatch, tmp_path):
    arguments, _ = RUNS["whole_study.py"]
    words = list(arguments)
    words.insert(words.index("scalar_mix"), "last")
    assert run("whole_study.py", *words, "--minutes", "0") == []
    (state,) = tmp_path.glob("*.partial")
    values = json.loads(state.read_text())
    values["found"]["last"] = [300.0, 100.0]
    state.write_text(json.dumps(values))
    import sampled

    def fails(cells, device, **_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sampled, "run", fails)
    (row,) = run("whole_study.py", *words)
    assert (row["plain"], row["ours"]) == (300.0, 100.0) and "without scalar_mix" in row["note"]


@pytest.mark.thorough
def test_the_encoder_without_weights_has_the_shape_of_the_one_that_is_fetched(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import sampled

    named = {"methods": ("scalar_mix",), "tasks": ("digits",), "seeds": 1}
    study = replace(PAPER, encoder="random-dinov2-s", **named)
    (job,) = sampled.jobs(study)
    encoder = load_encoder(job[0].encoder, image_size=112, device="cpu")
    states = encoder.hidden_states(torch.zeros(1, 112, 112, 3, dtype=torch.uint8))
    assert (len(states), tuple(states[-1].shape)) == (13, (1, 65, 384))
    assert job[0].spec.encoder == "random-dinov2-s" and not any(
        p.requires_grad for p in encoder.parameters()
    )


def all_gpu(monkeypatch, work):
    monkeypatch.syspath_prepend(str(HERE))
    import all_gpu as module

    monkeypatch.setattr(module, "tasks", lambda device, **_: work)
    return module


def test_all_rows_are_packed_and_a_second_call_does_what_the_first_left(
    monkeypatch, tmp_path, capsys
):
    script = tmp_path / "writes.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "home = pathlib.Path(os.environ['BENCHMARK_RESULTS'])\n"
        "home.mkdir(exist_ok=True)\n"
        "again = (home / f'{sys.argv[1]}-card.json').exists()\n"
        "(home / f'{sys.argv[1]}-card.json').write_text('twice' if again else 'once')\n"
        "sys.exit(sys.argv[1] == 'bad')\n"
    )
    work = {name: (0.1, [str(script), name]) for name in ("good", "bad", "late")}
    work["late"] = (60.0, work["late"][1])
    module = all_gpu(monkeypatch, work)
    packed = tmp_path / "gpu.json"
    for minutes in ("2", "9"):
        monkeypatch.setattr(sys, "argv", ["x", "--packed", str(packed), "--minutes", minutes])
        module.main()
        found = json.loads(packed.read_text())
        assert found["done"] == (["good"] if minutes == "2" else ["good", "late"])
    assert found["results"] == {
        "good-card.json": "once", "bad-card.json": "twice", "late-card.json": "once"
    }  # fmt: skip
    assert "failed: bad" in capsys.readouterr().out
    module.main()  # what failed twice is left alone, and still named
    said = capsys.readouterr().out
    assert "bad ..." not in said and "left: bad" in said and "failed: bad" in said
    module.unpack(found, tmp_path / "there", tmp_path / "quick")
    assert (tmp_path / "there" / "good-card.json").read_text() == "once"


def test_a_rehearsal_is_kept_apart_from_what_was_measured(monkeypatch, tmp_path):
    module = all_gpu(monkeypatch, {})
    packed = tmp_path / "gpu.json"
    packed.write_text(json.dumps(module._nothing(tiny=True)))
    for words in (["--unpack"], []):
        monkeypatch.setattr(sys, "argv", ["x", "--packed", str(packed), *words])
        with pytest.raises(SystemExit, match="--tiny"):
            module.main()


@pytest.mark.slow
def test_the_whole_of_it_can_be_rehearsed_and_becomes_pages(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    packed, results = tmp_path / "gpu.json", tmp_path / "results"

    def call(script, *words):
        return subprocess.run([sys.executable, str(HERE / script), *map(str, words)],
                              capture_output=True, text=True, check=True).stdout  # fmt: skip

    chain = ("all_gpu.py", "--device", "cpu", "--tiny", "--packed", packed)
    said = call(*chain, "--minutes", "0.5")
    assert "left:" in said and "failed:" not in said  # a call ends, and the next goes on
    assert call(*chain, "--minutes", "9").endswith("all is done\n")
    call("all_gpu.py", "--unpack", "--packed", packed, "--results", results, "--profiles", tmp_path)
    call("targets.py", "--results", results, "--page", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    left = [line for line in page.splitlines() if "not yet measured" in line]
    # A CPU has no peak memory, and its row of seeds another name; the others ask for no GPU.
    assert {line.split(" | ")[0] for line in left if "--device cuda" in line} <= {
        "| the same step: peak memory above the start",
        "| ten seeds of a post-encoder method",
    }
    assert len(list((tmp_path / "profiles").glob("*.json"))) > 60


def test_extrapolation_goes_along_the_line_of_two_trainings(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from whole_study import extrapolated

    assert extrapolated(3.0, 9.0, (20, 80), 1000) == pytest.approx(1.0 + 0.1 * 1000)
    assert extrapolated(3.0, 2.9, (20, 80), 1000) == 3.0  # noise is not turned into a gain


def test_every_piece_has_its_rehearsal_and_every_row_of_a_gpu_its_place_in_the_list(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import all_gpu
    import gpu_work
    import targets

    called = {Path(a[0]).name for _, a in all_gpu.tasks("cuda").values() if a[0] != "-m"}
    assert set(all_gpu.tasks("cuda")) == set(gpu_work.TINY)
    wanted = {t.command.split()[1].split("/")[1] for t in targets.TARGETS if "cuda" in t.command}
    assert wanted <= called
