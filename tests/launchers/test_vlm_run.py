"""Runs of the track `vlm`: one training a model, nothing twice, the same after any interruption."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import in_process
import pytest
from in_process import loaded_after
from toy_suite import section

from fusionbench.records.folder import claimed
from fusionbench.records.merge import merge
from fusionbench.records.store import Store
from fusionbench.records.verified import answers_file
from fusionbench.vlm.evaluate import evaluate_local
from fusionbench.vlm.session import train_model

TASKS = ("digits", "scenes_count")
STUDY = (
    "run", "--track", "vlm", "--preset", "smoke", "--tasks", ",".join(TASKS),
    "--mixture", ",".join(TASKS), "--workers", "1",
)  # fmt: skip
METHODS = ("--methods", "penultimate,penultimate-decoder,mema")
RUN = (*STUDY, *METHODS)


def cells(folder):
    """(method, task) -> record."""
    return {(r.label, r.spec.task): r for r in Store.open(folder).records()}


def contents(folder, *parts):
    """Bytes of the report and of these parts of the folder, by path."""
    files = [f for part in ("report", *parts) for f in (folder / part).rglob("*") if f.is_file()]
    kinds = (".md", ".csv", ".html", ".bin", ".gz", ".safetensors")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.suffix in kinds}


def stamps(folder, part):
    return {path.name: path.stat().st_mtime_ns for path in (folder / part).iterdir()}


def run(folder, *more, study=RUN):
    return in_process.fusionbench(*study, "--out", folder, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "results"
    run(folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    return tmp_path / "results"


def test_every_method_is_trained_once_and_recorded_on_every_task(finished):
    found = cells(finished)
    assert set(found) == {(m, t) for m in ("blind", "penultimate", "mema") for t in TASKS}
    models = {label: {found[label, t].model for t in TASKS} for label, _ in found}
    assert all(len(one) == 1 for one in models.values())
    weights = {path.stem for path in (finished / "models").glob("*.safetensors")}
    assert weights == set().union(*models.values()) and len(weights) == 3
    assert not list((finished / "models").glob("*.partial"))
    for record in found.values():
        assert record.status == "done" and record.seed_scope == "suite" and record.distinct
        assert record.spec.model_id == record.model and record.model_weights
        assert record.spec.training.stages[0].sizes == (32, 32)


def test_the_answers_are_there_with_their_hash_and_are_what_was_scored(finished):
    store = Store.open(finished)
    for record in store.records():
        said, items = store.answers(record), store.items(record)
        assert tuple(one.item for one in said) == items.names and len(said) == record.examples
        assert store.outcomes(record).mean() == pytest.approx(record.score)
        assert record.distinct == len({one.text for one in said})


def test_a_second_run_executes_nothing(copied):
    before = {part: stamps(copied, part) for part in ("cells", "models", "answers")}
    assert "0 cells run, 6 were there" in run(copied)
    assert {part: stamps(copied, part) for part in before} == before


@pytest.mark.thorough
@pytest.mark.parametrize(("place", "count"), [("training", 2), ("records", 4)])
def test_killed_in_training_or_between_records_it_ends_as_if_nothing_had_been(
    finished, tmp_path, place, count
):
    from fusionbench.vlm.checkpoint import Checkpoints

    folder = tmp_path / "results"
    writes = Checkpoints if place == "training" else Store
    assert in_process.killed_behind(count, writes, "write", *RUN, "--out", folder) == -9
    trained = {path.name for path in (folder / "models").glob("*.json")}
    assert len(list((folder / "cells").iterdir())) == (0 if place == "training" else count)
    if place == "training":
        assert list((folder / "models").glob("*.partial/*/step-*")) and not trained
    said = run(folder)
    assert f"{6 - (0 if place == 'training' else count)} cells run" in said
    whole, again = cells(finished), cells(folder)
    assert {k: r.id for k, r in again.items()} == {k: r.id for k, r in whole.items()}
    for key, record in again.items():
        assert record.loss == whole[key].loss and record.outcomes == whole[key].outcomes
        assert record.model_weights == whole[key].model_weights
    parts = ("outcomes", "answers", "models")
    assert contents(folder, *parts) == contents(finished, *parts)


@pytest.mark.thorough
def test_a_lost_record_is_scored_again_without_a_training(copied, monkeypatch):
    lost = cells(copied)["mema", "digits"]
    (copied / "cells" / f"{lost.id}.json").unlink()
    before, report = stamps(copied, "models"), contents(copied)
    monkeypatch.setattr("fusionbench.launchers.models.train_model", None)
    assert "1 cells run, 5 were there" in run(copied)
    again = cells(copied)["mema", "digits"]
    assert (again.outcomes, again.answers) == (lost.outcomes, lost.answers)
    assert (again.loss, again.lr, again.tuning) == (lost.loss, lost.lr, lost.tuning)
    assert stamps(copied, "models") == before and contents(copied) == report


def test_damaged_answers_are_named_and_scored_again(copied, monkeypatch):
    record = cells(copied)["penultimate", "digits"]
    file = answers_file(copied, record.id)
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    store = Store.open(copied)
    assert record.id not in store.finished()
    assert "its answers were damaged or edited" in str(store.problems[0])
    assert record.id in store.problems[0].source
    monkeypatch.setattr("fusionbench.launchers.models.train_model", None)
    assert "1 cells run, 5 were there" in run(copied)
    # A file that another run may have left is not overwritten.
    assert Store.open(copied).answer_bytes(record.id, record.answers) == whole
    assert file.read_bytes() == whole[:-7]
    for one in file.parent.glob(f"{record.id}*"):
        one.unlink()
    store = Store.open(copied)
    assert record.id not in store.finished() and "answers are missing" in str(store.problems[0])


@pytest.mark.parametrize("damage", ["cut", "gone", "list", "edited"])
def test_damaged_weights_are_named_and_trained_again_when_they_are_needed(copied, damage):
    record = cells(copied)["penultimate", "digits"]
    file = copied / "models" / f"{record.model}.safetensors"
    whole = file.read_bytes()
    note = file.with_suffix(".json")
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(whole[:-8])
    else:
        edited = json.loads(note.read_text()) | {"lr": 7.0}
        note.write_text("[]" if damage == "list" else json.dumps(edited))
    (copied / "cells" / f"{record.id}.json").unlink()
    code, out, err = in_process.run(*RUN, "--out", copied)
    assert code == 0 and "1 cells run, 5 were there" in out
    assert f"{record.model}.safetensors" in err + out and "trained again" in err + out
    assert file.read_bytes() == whole
    assert cells(copied)["penultimate", "digits"].outcomes == record.outcomes


@pytest.mark.thorough
def test_what_is_evaluated_changes_no_training(finished, tmp_path):
    few = [*RUN]
    few[few.index("--tasks") + 1] = "digits"
    run(tmp_path / "few", study=few)
    some, whole = cells(tmp_path / "few"), cells(finished)
    assert set(some) == {(m, "digits") for m in ("blind", "penultimate", "mema")}
    for key, record in some.items():
        assert record.model == whole[key].model and record.id == whole[key].id
        assert record.model_weights == whole[key].model_weights
    assert "3 cells run, 3 were there" in run(tmp_path / "few")


@pytest.mark.thorough
def test_a_task_outside_of_the_mixture_can_be_asked(copied):
    more = [*RUN]
    more[more.index("--tasks") + 1] = "digits,textile"
    before = stamps(copied, "models")
    assert "3 cells run, 3 were there" in run(copied, study=more)
    assert stamps(copied, "models") == before and ("mema", "textile") in cells(copied)


def test_another_mixture_is_another_model(finished):
    other = [*RUN]
    other[other.index("--mixture") + 1] = "digits"
    assert "6 of 6 cells to run" in run(finished, "--dry-run", study=other)


def test_a_dry_run_says_what_is_trained_on_what_and_which_names_are_one(finished, tmp_path):
    said = run(tmp_path / "none", "--dry-run")
    assert "6 of 6 cells to run" in said
    assert "3 models (0 trained already): 2 steps of 8 on 64 rows of digits, scenes_count" in said
    assert "penultimate-decoder: runs as penultimate" in said and "a rough guess" in said
    assert "0 of 6 cells to run" in run(finished, "--dry-run")
    more = run(finished, "--dry-run", "--seeds", "2")
    assert "3 models (0 trained already)" in more and "from the cells in this folder" in more


@pytest.mark.thorough
def test_a_dry_run_and_a_run_with_nothing_to_do_load_no_torch(finished, tmp_path):
    again = (*RUN, "--out", finished)
    few = [(*again, "--dry-run"), (*again, "--dry-run", "--seeds", "2"), again]
    assert loaded_after({"torch", "transformers"}, few, tmp_path) == {}


def test_the_report_names_the_models_and_the_names_that_are_one(finished):
    page = section(finished / "report", "models")
    assert "digits (32), scenes_count (32)" in page
    assert "`penultimate-decoder` is `penultimate`" in page
    assert "blind" in page and "fusion, projector, language" in page


def test_merged_it_keeps_the_answers_and_gives_the_same_report(finished, tmp_path):
    merge([finished], tmp_path / "merged")
    in_process.fusionbench("report", tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(finished)
    store = Store.open(tmp_path / "merged")
    for record in store.records():
        digest = record.answers
        assert digest and store.answer_bytes(record.id, digest) == (
            answers_file(finished, record.id).read_bytes()
        )
    assert "0 of 6 cells to run" in run(tmp_path / "merged", "--dry-run")


def study_file(folder: Path, text: str) -> Path:
    start = "track: vlm\npreset: smoke\ntasks: [digits]\nmixture: [digits, scenes_count]\n"
    file = folder / "mine.yaml"
    file.write_text(start + text)
    return file


@pytest.mark.thorough
def test_the_best_layer_is_tried_with_trial_steps_on_one_tuning_seed(tmp_path):
    file = study_file(tmp_path, "methods: [best_single]\nbudget: {steps: 3, trial_steps: 1}\n")
    run(tmp_path / "r", study=("run", file, "--workers", "1"))
    record, store = cells(tmp_path / "r")["best_single", "digits"], Store.open(tmp_path / "r")
    tried = [store.find(cell) for cell in store.tuning()]
    by_layer = {}
    for one in tried:
        assert (one.spec.budget.steps, one.spec.seed) == (1, 1000)
        by_layer.setdefault(one.spec.settings["index"], []).append(one.score)
    assert len(by_layer) == 8 and all(len(scores) == 2 for scores in by_layer.values())
    means = {layer: sum(scores) / 2 for layer, scores in by_layer.items()}
    best = max(sorted(means), key=lambda layer: means[layer])
    assert record.taps == ((best,),)
    assert {key: value[0] for key, value in record.tuning.items()} == pytest.approx(
        {f"index={layer}": mean for layer, mean in means.items()}
    )
    # The layer is known without its runs: they are in the note of the model.
    shutil.rmtree(tmp_path / "r" / "tuning")
    (tmp_path / "r" / "cells" / f"{record.id}.json").unlink()
    run(tmp_path / "r", study=("run", file, "--workers", "1"))
    assert cells(tmp_path / "r")["best_single", "digits"].taps == ((best,),)
    assert not list((tmp_path / "r" / "tuning").iterdir())


@pytest.mark.thorough
def test_the_learning_rate_is_chosen_by_the_mean_over_the_mixture(tmp_path):
    file = study_file(
        tmp_path, "methods: [blind]\nbudget: {steps: 6, lrs: [1.0e-5, 3.0e-2], tuning_seeds: 2}\n"
    )
    run(tmp_path / "r", study=("run", file, "--workers", "1"))
    record, store = cells(tmp_path / "r")["blind", "digits"], Store.open(tmp_path / "r")
    runs = [store.find(cell) for cell in store.tuning()]
    # Both tasks of the mixture, though one alone is evaluated: 2 rates x 2 seeds x 2 tasks.
    assert len(runs) == 8 and {one.spec.task for one in runs} == set(TASKS)
    assert {one.spec.seed for one in runs} == {1000, 1001}
    means = {}
    for rate in (1e-5, 3e-2):
        of_seed = [
            sum(one.score for one in runs if one.spec.budget.lrs == (rate,) and one.spec.seed == s)
            / 2
            for s in (1000, 1001)
        ]
        assert record.tuning[f"{rate:g}"] == pytest.approx(of_seed)
        means[rate] = sum(of_seed) / 2
    assert record.lr == max(sorted(means), key=lambda rate: means[rate])


@pytest.mark.thorough
def test_a_rate_whose_model_cannot_be_scored_is_not_chosen(tmp_path, monkeypatch):
    file = study_file(
        tmp_path, "methods: [blind]\nbudget: {steps: 3, lrs: [1.0e-3, 3.0e-2], tuning_seeds: 1}\n"
    )

    def train(session, work):
        built, trained = train_model(session, work)
        if work.lr == 3e-2:
            for parameter in built.model.projector.parameters():
                parameter.data.fill_(float("nan"))
            for parameter in built.model.fusion.parameters():
                parameter.data.fill_(float("nan"))
        return built, trained

    monkeypatch.setattr("fusionbench.launchers.models.train_model", train)
    monkeypatch.setattr("fusionbench.launchers.models.evaluate_local", _refusing_nan)
    run(tmp_path / "r", study=("run", file, "--workers", "1"))
    record = cells(tmp_path / "r")["blind", "digits"]
    assert (record.status, record.lr, record.tuning["0.03"]) == ("done", 1e-3, [0.0])


def _refusing_nan(asking, *others):
    if not all(bool(p.isfinite().all()) for p in asking.model.projector.parameters()):
        raise FloatingPointError("not finite")
    return evaluate_local(asking, *others)


@pytest.mark.thorough
def test_stages_with_a_rate_and_steps_of_their_own(tmp_path):
    text = "methods: [best_single]\nbudget: {steps: 9, trial_steps: 1}\n"
    text += "training: {stages: [{lr: 1.0e-4, steps: 2}, {lr: 1.0e-3, steps: 3}]}\n"
    file = study_file(tmp_path, text)
    run(tmp_path / "r", study=("run", file, "--workers", "1"))
    store = Store.open(tmp_path / "r")
    assert cells(tmp_path / "r")["best_single", "digits"].lr == 1e-3
    tried = [store.find(cell) for cell in store.tuning()]
    assert tried and all([s.steps for s in one.spec.training.stages] == [1, 1] for one in tried)
    assert all(len(one.loss) == 2 for one in tried)


IDLE = """
import torch
from fusionbench.api import Fused, Fusion, method
@method("idle", version=1, idea="a parameter that is never used", control="none: a test", year=2026)
class Idle(Fusion):
    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((shape.layers,),)
        self.never = torch.nn.Parameter(torch.zeros(3))
        self.scale = torch.nn.Parameter(torch.ones(()))
    def forward(self, hidden, query):
        return Fused(tokens=self.scale * hidden[0][:, self.shape.prefix :])
"""


@pytest.mark.thorough
def test_a_record_counts_what_some_stage_trained_and_names_what_none_moved(tmp_path):
    (tmp_path / "idle.py").write_text(IDLE)
    stages = "[{trained: [fusion], steps: 2}, {trained: [projector], steps: 2}]"
    file = study_file(tmp_path, f"methods: [idle]\ntraining: {{stages: {stages}}}\n")
    more = ("--plugin", tmp_path / "idle.py", "--workers", "1")
    run(tmp_path / "r", study=("run", file, *more))
    record = cells(tmp_path / "r")["idle", "digits"]
    assert record.unmoved == ("never",)
    assert record.parameters["fusion"] == 4 and record.parameters["projector"] > 0
    assert record.parameters["reader"] == 0 < record.parameters["language"]


@pytest.mark.slow
@pytest.mark.thorough
def test_two_stages_on_two_processes_with_sharded_weights_train_as_one_process(tmp_path):
    stages = "[{trained: [fusion, projector], steps: 2, batch: 8}, {steps: 2, batch: 8}]"
    file = study_file(tmp_path, f"methods: [penultimate]\ntraining: {{stages: {stages}}}\n")
    found = []
    for name, more in (("one", ()), ("two", ("--processes", "2", "--shard-weights"))):
        command = [sys.executable, "-m", "fusionbench", "run", file, "--out", tmp_path / name]
        subprocess.run([*map(str, command), *more], check=True, capture_output=True, timeout=300)
        found.append(cells(tmp_path / name)["penultimate", "digits"])
    assert len(found[0].loss) == 4
    assert found[1].loss == pytest.approx(found[0].loss, rel=1e-5)


@pytest.mark.thorough
def test_a_tuning_run_that_another_process_trains_is_waited_for_last(tmp_path, monkeypatch):
    file = study_file(
        tmp_path, "methods: [blind]\nbudget: {steps: 3, lrs: [1.0e-5, 3.0e-2], tuning_seeds: 1}\n"
    )
    folder, other = tmp_path / "r", tmp_path / "other"
    run(folder, study=("run", file, "--workers", "1"))
    before, store = cells(folder)["blind", "digits"], Store.open(folder)
    first = [one for one in map(store.find, store.tuning()) if one.spec.budget.lrs == (1e-5,)]
    for part in ("tuning", "cells", "models"):
        shutil.move(folder / part, other / part)
    (folder / "tuning").mkdir()
    trained, hold = [], ExitStack()
    assert hold.enter_context(claimed(folder, first[0].spec.model_id))

    def train(session, work):
        if not trained:
            for one in first:
                shutil.copy(other / "tuning" / f"{one.id}.json", folder / "tuning")
            hold.close()
        trained.append((work.lr, work.keep))
        return train_model(session, work)

    monkeypatch.setattr("fusionbench.launchers.models.train_model", train)
    run(folder, study=("run", file, "--workers", "1"))
    assert trained == [(3e-2, False), (before.lr, True)]
    again = cells(folder)["blind", "digits"]
    assert (again.id, again.tuning, again.outcomes) == (before.id, before.tuning, before.outcomes)


@pytest.mark.thorough
def test_a_method_that_does_not_fit_is_skipped_with_the_reason(tmp_path):
    plugin = Path(__file__).parent.parent / "support" / "sweep_plugin.py"
    study = (*STUDY, "--methods", "refuses,penultimate", "--plugin", plugin)
    assert "1,000 layers" in run(tmp_path / "r", study=study)
    found = cells(tmp_path / "r")
    assert {found["refuses", task].status for task in TASKS} == {"skipped"}
    assert found["penultimate", "digits"].status == "done"
    assert "0 of 6 cells to run" in run(tmp_path / "r", "--dry-run", study=study)


@pytest.mark.thorough
def test_a_method_that_breaks_stops_no_other(tmp_path):
    plugin = Path(__file__).parent.parent / "support" / "sweep_plugin.py"
    study = (*STUDY, "--methods", "breaks,penultimate", "--plugin", plugin)
    code, _, _ = in_process.run(*study, "--out", tmp_path / "r")
    assert code == 1
    failures = [json.loads(f.read_text()) for f in (tmp_path / "r" / "failures").glob("*.json")]
    assert len(failures) == 2 and all("broken on purpose" in one["reason"] for one in failures)
    assert ("penultimate", "digits") in cells(tmp_path / "r")
    assert "2 of 6 cells to run" in run(tmp_path / "r", "--dry-run", study=study)


@pytest.mark.slow
def test_two_runs_at_once_share_the_models(finished, tmp_path):
    def started(methods):
        arguments = [*STUDY, "--methods", methods, "--out", str(tmp_path)]
        return subprocess.Popen(
            [sys.executable, "-m", "fusionbench", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    runs = [started("penultimate,mema"), started("mema,penultimate")]
    said = [one.communicate(timeout=240) for one in runs]
    assert [one.returncode for one in runs] == [0, 0], said
    counts = [re.search(r"(\d+) cells run, (\d+) were there", out) for out, _ in said]
    assert sum(int(found[1]) for found in counts) == 6
    assert all(int(found[1]) + int(found[2]) == 6 for found in counts)
    whole, found = cells(finished), cells(tmp_path)
    assert {k: (r.id, r.outcomes) for k, r in found.items()} == {
        k: (r.id, r.outcomes) for k, r in whole.items()
    }
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == 3


def test_temporary_files_of_a_killed_run_are_removed(copied):
    for part in ("answers", "models"):
        stale = copied / part / ".half.tmp"
        stale.write_bytes(b"half")
        old = time.time() - 7200
        os.utime(stale, (old, old))
    Store.create(copied)
    assert not list(copied.glob("*/.half.tmp"))
