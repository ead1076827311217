"""`run` and `ablate`: what is said before anything runs, to the tables; nothing twice."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import in_process
import pytest
from in_process import run
from toy_records import record
from toy_suite import section
from vlm_records import STAGE, TRAINING, cell_of

from fusionbench.api.errors import UserError
from fusionbench.cli import summary
from fusionbench.cli.app import seldom
from fusionbench.cli.forecast import forecast, model_seconds
from fusionbench.cli.run import assemble
from fusionbench.launchers.jobs import Event
from fusionbench.launchers.progress import Lines
from fusionbench.launchers.runner import told
from fusionbench.launchers.sweep import run_plan
from fusionbench.models.encoders import catalog
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.data import tried_hashes
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.reading import with_overrides
from fusionbench.study.study import PRESETS, SMOKE, VLM_SMOKE, preset

QUICK = Path(__file__).resolve().parent.parent.parent / "results" / "quick"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_paper_preset_is_planned_without_its_weights_in_few_lines(call, cache, tmp_path):
    arguments = ("run", "--preset", "paper", "--tasks", "digits", "--dry-run", "--out", tmp_path)
    code, out, said = call(*arguments)
    assert code == 0, said
    assert "first: the weights of dinov2-small are not here" in out
    assert len(out.splitlines()) < 200 and "--full" in out
    (total,) = re.findall(r"^(\d+) of \1 cells to run", out)
    by_method, by_task = out.split("\n\n")[1:3]
    for table in (by_method, by_task):
        counts = [int(line.split()[0]) for line in table.splitlines()[1:]]
        assert sum(counts) == int(total)
    # What `all` adds on this encoder: its layers are known without the weights.
    assert "layer[index=12" in by_method and "layer[index=13" not in by_method


def test_the_guess_is_near_what_the_shipped_study_took(tmp_path):
    study = with_overrides(preset("quick", "probe"), methods=["all"], tasks=["digits"])
    plan = make_plan(resolve(study, read_catalog(), absent=True), {})
    text = forecast(plan, RunOptions(out=str(tmp_path), device="cpu", workers=1), [])
    (minutes,) = re.findall(r"time: about (\d+) min \(a rough guess", text)
    records = [one for one in Store.open(QUICK).records() if one.spec.task == "digits"]
    took = sum(one.seconds for one in records) / 60
    assert len(records) == len(plan.cells) and took / 2 < int(minutes) < 2 * took


def minutes(plan, options, records):
    (found,) = re.findall(
        r"time: about (\d+) min \(from the cells", forecast(plan, options, records)
    )
    return int(found)


def test_the_forecast_of_a_probe_takes_no_record_that_trained_nothing_here(tmp_path):
    study = with_overrides(preset("quick", "probe"), methods=["last"], tasks=["digits"], seeds=1)
    plan = make_plan(resolve(study, read_catalog()), {})
    cell = next(one for one in plan.cells if one.chosen.label == "last")
    took = {"seconds": 600.0, "in_encoder": cell.chosen.card.in_encoder}
    none = replace(cell.spec, budget=replace(cell.spec.budget, steps=0))
    others = [
        record(none, **took), record(replace(cell.spec, track="vlm"), **took | {"seconds": 1.0}),
        *(record(cell.spec, source="lmms-eval", **took | {"seconds": 1.0}) for _ in range(2)),
    ]  # fmt: skip
    options = RunOptions(out=str(tmp_path), device="cpu", workers=1)
    assert "a rough guess" in forecast(plan, options, others)
    own = record(cell.spec, **took)
    assert minutes(plan, options, [*others, own]) == minutes(plan, options, [own]) >= 10


def test_the_forecast_of_a_method_comes_from_its_own_cells_before_those_of_others(tmp_path):
    study = with_overrides(preset("quick", "probe"), methods=["scalar_mix"], tasks=["digits"])
    plan = make_plan(resolve(study, read_catalog()), {})
    (cell, *_) = [one for one in plan.cells if one.chosen.label == "scalar_mix"]
    own = [record(cell.spec, label="scalar_mix", seconds=seconds) for seconds in (590.0, 610.0)]
    other = replace(cell.spec, method="last", settings={})
    others = [record(replace(other, seed=seed), label="last", seconds=60.0) for seed in range(5)]
    options = RunOptions(out=str(tmp_path), device="cpu", workers=1)
    count = len(plan.cells)
    text = forecast(plan, options, others)
    assert f"about {count} min (a rough guess: of some methods no cell" in text
    assert minutes(plan, options, [*others, *own]) == 10 * count


def test_the_forecast_of_a_training_counts_the_rows_of_all_its_stages(tmp_path):
    (tmp_path / "models").mkdir()
    stages = (replace(STAGE, steps=50), replace(STAGE, steps=450))
    cell = cell_of("penultimate", "digits", training=replace(TRAINING, stages=stages))
    none = replace(cell, seed=1, budget=replace(cell.budget, steps=0), training=TRAINING)
    records = [record(one, model=one.model_id, seconds=1e-9) for one in (cell, none)]
    for one in records:
        (tmp_path / "models" / f"{one.model}.json").write_text('{"seconds": 1000.0}')
    card = SimpleNamespace(in_encoder=False, tries="")
    chosen = SimpleNamespace(chosen=SimpleNamespace(card=card), encoder=None)
    again = replace(cell, seed=2)
    job = SimpleNamespace(id=again.model_id, spec=again, cells=[chosen])
    options = RunOptions(out=str(tmp_path), workers=1)
    seconds, measured = model_seconds([job], options, records)
    assert measured and seconds == pytest.approx(1000)


def test_reading_the_data_for_the_first_time_is_told_now_and_then(cache, monkeypatch, capsys):
    cards = [read_catalog().tasks[name] for name in ("planted_layer", "planted_pair")]
    said = []
    assert set(tried_hashes(cards, hear=said.append)[0]) == {"planted_layer", "planted_pair"}
    assert said == [
        "reading or rendering the images of 2 tasks, once on this machine",
        "1 of 2 tasks read: planted_layer", "2 of 2 tasks read: planted_pair",
    ]  # fmt: skip
    said.clear()
    assert tried_hashes(cards, hear=said.append)[0] and not said
    # On the terminal: nothing for what is quick, then a line every three seconds.
    clock = iter([0.0, 1.0, 3.5, 3.5, 4.0])
    monkeypatch.setattr("fusionbench.cli.app.time.monotonic", lambda: next(clock))
    hear = seldom()
    for word in ("one", "two", "three"):
        hear(word)
    assert capsys.readouterr().err == "note: two\n"


def test_a_split_in_full_has_no_size_yet(call, cache, tmp_path):
    plan = ("run", "--preset", "paper", "--tasks", "digits", "--methods", "last", "--dry-run")
    out = call(*plan, "--out", tmp_path)[1]
    assert "disk: hidden states of 1 tasks in full, size not known yet; the limit is" in out


def test_the_sizes_that_a_plan_uses_are_those_of_the_weights(cache):
    from fusionbench.models.encoders.dinov2 import ARCHITECTURE

    card = catalog.card("dinov2-small", image_size=112)
    assert (card.layers, card.dim) == (ARCHITECTURE["layers"], ARCHITECTURE["dim"])
    assert card.grid == (8, 8) and card.size == 112 and not card.available and not card.weights
    assert catalog.card("dinov2-small").size == ARCHITECTURE["size"]


def test_start_up_and_report_are_those_of_the_last_run_here(call, cache, tmp_path):
    plan = ("run", "--tasks", "planted_layer", "--methods", "last", "--preset", "smoke",
            "--dry-run", "--out", tmp_path / "out")  # fmt: skip
    assert "were not measured here yet" in call(*plan)[1]
    summary.note_times(12.34, 30.0, 4)
    assert "start-up with encoding 12 s and report 30 s on top" in call(*plan)[1]
    (cache / "times" / "run.json").write_text("{torn")
    assert "were not measured here yet" in call(*plan)[1]


def test_an_encoding_says_how_many_images_and_how_long(monkeypatch):
    clock = iter(range(0, 100, 5))
    monkeypatch.setattr("fusionbench.launchers.runner.time.monotonic", lambda: next(clock))
    texts = [event.text for event in told("digits", [500, 1000, 2000], 2000)]
    assert texts == [
        "encoding digits: 2,000 images", "encoding digits: 500 of 2,000 images, 15 s left",
        "encoding digits: 1,000 of 2,000 images, 10 s left",
        "encoding digits: 2,000 of 2,000 images, 0 s left",
    ]  # fmt: skip


class Launcher:
    def __init__(self, events, error=None):
        self.events, self.error, self.closed = events, error, None

    def run(self, jobs, on_event):
        for event in self.events:
            on_event(event)
        if self.error:
            raise self.error

    def close(self):
        self.closed = True


class Plan:
    cells, finished = (), 0
    pending = (SimpleNamespace(spec=SimpleNamespace(id="a", training="of the track vlm")),)

    def jobs(self):
        return iter(())


def test_a_stage_is_shown_and_ctrl_c_is_answered_before_the_workers_end(monkeypatch):
    stream = io.StringIO()
    progress = Lines(stream)
    launcher = Launcher(
        [Event(kind="stage", text="encoding digits: 5 images")], KeyboardInterrupt()
    )
    monkeypatch.setattr("fusionbench.launchers.sweep.jobs_of", lambda plan: [object()])
    closing = launcher.close
    monkeypatch.setattr(launcher, "close", lambda: (stream.write("CLOSED\n"), closing()))
    monkeypatch.setattr("fusionbench.launchers.progress._LINE_EVERY", 0.0)
    result = run_plan(Plan(), launcher, progress)
    assert result.interrupted
    lines = stream.getvalue().splitlines()
    assert "encoding digits: 5 images" in lines
    assert lines.index("stopping: the workers end; cells that are recorded stay") < lines.index(
        "CLOSED"
    )


def test_without_a_network_the_ways_out_are_named(call, cache, monkeypatch):
    def unreachable():
        raise OSError("no connection to the hub")

    monkeypatch.setattr("fusionbench.models.encoders.fetch.require_hub", unreachable)
    for command in (
        ("fetch", "hf:somebody/vit"),
        ("run", "--encoder", "hf:somebody/vit", "--tasks", "planted_layer", "--methods", "last"),
    ):
        code, _, said = call(*command)
        assert code == 2 and "no connection to the hub" in said
        for way in ("hf:/path", "HF_HOME", "fusionbench pack", "FUSIONBENCH_DATA"):
            assert way in said, way


def test_completion_is_offered(call, monkeypatch):
    code, out, _ = call("--help")
    assert code == 0 and "--install-completion" in out


# `fusionbench ablate` from the first cell to the tables; a second run has nothing to do.

FEW = ["--preset", "smoke", "--tasks", "planted_layer", "--seeds", "2", "--workers", "1", "--quiet"]


def test_an_ablation_runs_resumes_and_adds_a_factorial_to_the_same_records(tmp_path):
    code, out, said = run("ablate", "mema", "--only", "query,feedback", *FEW, "--out", tmp_path)
    assert code == 0, said
    assert "8 cells run, 0 were there, 0 failed" in out
    assert "simple effects" in out and "| query=false" in out and "| feedback=none" in out
    first = (tmp_path / "report" / "tables" / "ablation.csv").read_bytes()
    code, out, _ = run("ablate", "mema", "--only", "query,feedback", *FEW, "--out", tmp_path)
    assert code == 0 and "0 cells run, 8 were there" in out
    assert (tmp_path / "report" / "tables" / "ablation.csv").read_bytes() == first
    code, out, _ = run("ablate", "mema", "--factorial", "query,feedback", *FEW, "--out", tmp_path)
    # mema, mema-no_query and mema-readout are there already.
    assert code == 0 and "2 cells run, 6 were there" in out
    rows = list(csv.DictReader((tmp_path / "report" / "tables" / "ablation.csv").open()))
    assert {row["design"] for row in rows} == {"one_factor_out", "factorial"}
    assert "query x feedback" in {row["effect"] for row in rows}
    assert "Ablations" in (tmp_path / "report" / "report.md").read_text()


def test_an_ablation_that_ends_at_once_is_resumed_with_its_tables(tmp_path, monkeypatch):
    limits = []

    def interrupted(self, jobs, on_event):
        limits.append(self.fail.options.cell_seconds)
        raise KeyboardInterrupt

    arguments = ("ablate", "mema", "--only", "query", *FEW, "--seeds", "1", "--out", tmp_path,
                 "--limit-cell", "70")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(in_process.InProcessLauncher, "run", interrupted)
        assert run(*arguments)[0] == 130 and limits == [70]
    code, out, said = run("resume", tmp_path, "--quiet")
    assert code == 0 and "2 cells run, 0 were there" in out, said
    table = section(tmp_path / "report", "ablation")
    assert "query=false" in table


def test_a_run_that_is_stopped_while_it_writes_its_report_says_how_to_go_on(tmp_path, monkeypatch):
    arguments = ("run", "--methods", "penultimate", *FEW, "--out", tmp_path)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(summary, "write", stopped)
        code, out, _ = run(*arguments)
    assert code == 130 and "interrupted: the same command resumes the run" in out
    code, out, _ = run(*arguments)
    assert code == 0 and "0 cells run, 2 were there" in out


def test_layers_after_the_final_norm_are_recorded_as_plain_integers(tmp_path):
    names = "last_norm,dinov2_linear,token_concat,last4_patches"
    code, out, said = run("run", "--methods", names, *FEW, "--out", tmp_path)
    assert code == 0 and "failed" not in out, said
    records = list(Store.open(tmp_path).records())
    taps = {record.label: record.taps for record in records}
    assert len(records) == 8 and taps["last_norm"] == ((9,),)
    assert {type(index) for found in taps.values() for tap in found for index in tap} == {int}


def test_an_ablation_of_a_study_takes_its_cells_budget_and_tasks(tmp_path):
    study = tmp_path / "own.yaml"
    study.write_text(
        "preset: smoke\nname: own\nmethods: [mema, mema-no_memory]\ntasks: [planted_layer]\n"
        "seeds: 2\nbudget: {steps: 3}\n"
    )
    out = tmp_path / "out"
    code, _, said = run("run", study, "--out", out, "--workers", "1", "--quiet")
    assert code == 0, said
    code, told, said = run(
        "ablate", "mema", "--study", study, "--factorial", "memory=none,query", "--out", out,
        "--workers", "1", "--quiet",
    )  # fmt: skip
    # mema and mema-no_memory with two seeds are there; mema-no_query is not.
    assert code == 0 and "2 cells run, 4 were there, 0 failed" in told, said
    (design,) = json.loads((out / "ablations.json").read_text())["ablations"]
    assert "3 steps" in design["budget"] and "2 seeds" in design["budget"]
    code, _, said = run("ablate", "mema", "--study", study, "--preset", "quick", "--dry-run")
    assert code == 2 and "exclude each other" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", ""], "--out is empty"),
        (["--tasks", "folder:"], "folder: names no folder"),
        (["--processes", "3"], "--processes is for the track vlm"),
        (["--seeds", "1000000000000"], "seeds must be at most 10,000"),
    ],
)
def test_a_flag_that_means_nothing_is_refused(call, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, said = call("run", "--methods", "penultimate", "--dry-run", *arguments)
    assert code == 2 and not out and told in said and "hint: " in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_would_run_and_writes_nothing(call, tmp_path):
    code, out, _ = call("ablate", "mema", *FEW, "--out", tmp_path / "no", "--dry-run")
    assert code == 0 and "58 of 58 cells to run" in out
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mema", "--only", "queri"], "did you mean 'query'"),
        (["memo"], "did you mean 'mema'"),
        (["last"], "declares no switches"),
        (["mema", "--only", "query", "--factorial", "query,init"], "exclude each other"),
        (["mema", "--factorial", "query"], "2 to 8"),
    ],
)
def test_mistakes_are_answered_with_one_line_and_a_hint(call, arguments, told):
    code, out, said = call("ablate", *arguments)
    assert code == 2 and not out
    lines = said.strip().splitlines()
    assert told in lines[0] and lines[1].startswith("hint: ")


# `--preset smoke` with a study file: the same study, two steps in every stage.

NO_FLAGS = {"methods": (), "tasks": (), "encoder": "", "seeds": None, "settings": ()}
STAGES = """
track: vlm
preset: paper
methods: [mema]
seeds: 4
mixture: [digits]
budget: {steps: 900, batch: 64, precision: bf16, image_size: 336}
training:
  query: prompt
  stages:
    - {name: one, steps: 700, batch: 256, lr: 1.0e-3, warmup: 0.03}
    - {name: two, trained: [fusion]}
"""


@pytest.fixture
def smoke(tmp_path):
    def call(text: str, preset: str = "smoke", **flags):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        return assemble(Path(file), preset, **{**NO_FLAGS, **flags})

    return call


def test_a_study_of_probes_keeps_all_but_its_budget_and_seeds(smoke):
    text = "methods: [mema]\ntasks: [digits]\nseeds: 7\nbudget: {steps: 500}\n"
    small, whole = smoke(text), smoke(text, "")
    assert small.budget == SMOKE.budget != whole.budget
    assert (small.seeds, whole.seeds) == (1, 7)
    kept = ("name", "track", "encoder", "methods", "tasks", "settings", "baseline", "margins")
    assert all(getattr(small, name) == getattr(whole, name) for name in kept)


def test_every_stage_of_a_model_is_cut_and_keeps_the_rest(smoke):
    small, whole = smoke(STAGES), smoke(STAGES, "")
    assert small.budget == VLM_SMOKE.budget and small.seeds == 1
    first, second = small.training["stages"]
    assert first == {"name": "one", "steps": 2, "batch": 8, "lr": 1e-3, "warmup": 0.03}
    assert second == {"name": "two", "trained": ["fusion"], "steps": 2, "batch": 8}
    assert small.training["query"] == "prompt" and small.mixture == whole.mixture
    # The file's own study is as it was.
    assert (
        whole.training["stages"][0]["steps"] == 700 and "steps" not in whole.training["stages"][1]
    )


def test_flags_come_after_the_preset(smoke):
    assert smoke("seeds: 4\n", seeds=3).seeds == 3
    assert smoke(STAGES, tasks=["digits"]).tasks == ("digits",)


@pytest.mark.parametrize("name", sorted({name for track in PRESETS.values() for name in track}))
def test_another_preset_and_a_file_exclude_each_other(name, smoke):
    if name != "smoke":
        with pytest.raises(UserError, match="exclude each other, but for --preset smoke"):
            smoke("seeds: 1\n", name)
