"""The state of each cell that a folder's requests ask for."""

import errno
import fcntl
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from toy_records import outcomes, put, record, spec

from fusionbench.api.errors import UserError
from fusionbench.cli.folder import status
from fusionbench.records.cell import FRESH, Stage, Training, training_hash
from fusionbench.records.cost import Conditions, CostRecord, Spread, read, write
from fusionbench.records.folder import LOCKS, claimed, claims, exclusive, locked
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results
from fusionbench.records.references import references
from fusionbench.records.scores import score_tables
from fusionbench.records.states import STATES, of_request, states
from fusionbench.records.store import Store
from fusionbench.report.contrasts import scopes
from fusionbench.report.layer_table import reference_page
from fusionbench.stats.power import above_chance, insensitive, saturated
from fusionbench.study.again import studies_of
from fusionbench.study.study import QUICK, VLM_QUICK, as_plain

STAGE = Stage(parts=("digits",), rows="r", count=8, template="llava15", trained=("fusion",))
TRAINING = Training(language="llava:x", language_weights="w", stages=(STAGE,), projector="plain")
ROOT = Path(__file__).resolve().parent.parent.parent
LABELS, TASKS = ("mema", "last"), ("digits", "scenes")


def request(**changes):
    study = replace(QUICK, seeds=2, **changes)
    return Request(study=as_plain(study), labels=LABELS, tasks=TASKS)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "results") as made:
        made.history.add(request())
        yield made


def by_place(store, of=0):
    return {cell.place: cell for cell in states(store)[of].cells}


def test_done_failed_running_lost_and_left_are_told_apart(store):
    put(store, spec("mema", "digits", 0), 0.5)
    failed = replace(record(spec("mema", "digits", 1)), status="failed", reason="a\nValueError: b")
    store.write_failure(failed)
    with claimed(store.folder, "a", cells=[("last", "digits", 0), ("last", "digits", 1)]) as ours:
        assert ours
        # The note of a process that died has no lock that is held.
        note = store.folder / LOCKS / "b.json"
        note.write_text(json.dumps({"cells": [["last", "scenes", 0]], "where": "host:7"}))
        (store.folder / LOCKS / "b.lock").touch()
        found = by_place(store)
    assert len(found) == 8
    assert found["mema", "digits", 0].state == "done" and found["mema", "digits", 0].id
    assert found["mema", "digits", 1].state == "failed"
    assert found["mema", "digits", 1].why == "ValueError: b"
    assert found["last", "digits", 0].state == found["last", "digits", 1].state == "running"
    assert found["last", "scenes", 0].state == "lost"
    assert found["last", "scenes", 0].why == "host:7"
    assert found["last", "scenes", 1].state == found["mema", "scenes", 0].state == "left"
    assert {cell.state for cell in found.values()} == set(STATES)


def test_a_skipped_cell_is_done_and_a_failed_one_that_runs_again_is_running(store):
    store.write(replace(record(spec("mema", "digits", 0)), status="skipped", reason="no"))
    store.write_failure(replace(record(spec("last", "digits", 0)), status="failed", reason="x"))
    with claimed(store.folder, "a", cells=[("last", "digits", 0)]):
        found = by_place(store)
    assert found["mema", "digits", 0].state == "done"
    assert not found["mema", "digits", 0].diverged
    assert found["last", "digits", 0].state == "running"


def test_a_cell_without_a_score_is_done_and_said_to_have_diverged(store):
    put(store, spec("mema", "digits", 0), 0.5)
    store.write(replace(record(spec("last", "digits", 0)), status="diverged", reason="NaN"))
    found = by_place(store)
    assert [found[name, "digits", 0].diverged for name in ("mema", "last")] == [False, True]
    status(store.folder, everything=False, stream=(printed := io.StringIO()))
    assert "2 done" in printed.getvalue()
    assert "1 of the done ones diverged and have no score" in printed.getvalue()


def test_records_of_another_budget_or_encoder_of_another_request_do_not_count(store):
    other = replace(QUICK.budget, steps=99)
    store.history.add(request(budget=other, encoder="dinov2-small"))
    put(store, spec("mema", "digits", 0), 0.5)
    put(store, spec("last", "digits", 0, budget=other, encoder="dinov2-small"), 0.5)
    # A task may bring an encoder and an image size of its own.
    own = replace(QUICK.budget, image_size=224)
    put(store, spec("mema", "scenes", 0, encoder="planted", budget=own), 0.5)
    first, second = by_place(store, 0), by_place(store, 1)
    done = [
        {place for place, cell in found.items() if cell.state == "done"}
        for found in (first, second)
    ]
    assert done == [{("mema", "digits", 0), ("mema", "scenes", 0)}, {("last", "digits", 0)}]


WORDS = replace(
    STAGE, parts=("digits",), template="words", trained=("fusion", "projector", "language")
)
TRAINED = Training(language="words", language_weights="w", stages=(WORDS,))
MINE = replace(VLM_QUICK, mixture=("digits",))


@pytest.mark.parametrize(
    "changes",
    [
        {"language": "smollm2-135m"},
        {"language_weights": "x"},
        {"query": "prompt"},
        {"pixels": "pad"},
        {"length": 64},
        {"grouped": True},
        {"stages": (WORDS, WORDS)},
        {"stages": (replace(WORDS, parts=("digits", "scenes_count")),)},
        {"stages": (replace(WORDS, rows="other"),)},
        {"stages": (replace(WORDS, lr=1e-4),)},
        {"stages": (replace(WORDS, trained=("fusion",)),)},
    ],
    ids=str,
)
def test_a_model_of_another_training_is_not_the_one_that_a_request_asks_for(changes):
    own = spec("mema", "digits", 0, track="vlm", budget=MINE.budget, training=TRAINED)

    def asked(training: Training | None) -> bool:
        request = Request(
            study=as_plain(MINE), labels=("mema",), tasks=("digits",),
            training=training_hash(training),
        )  # fmt: skip
        return bool(of_request(request, [record(own)], {"nano"}))

    assert asked(TRAINED) and not asked(replace(TRAINED, **changes))
    # A request of a version that noted no training.
    assert asked(None)


def test_the_study_of_a_model_is_the_request_with_its_training(tmp_path):
    second = replace(MINE, name="second", training={"stages": [{"steps": 50}]})
    with Store.create(tmp_path) as store:
        other = replace(TRAINED, stages=(replace(WORDS, steps=50),))
        for study, training in ((MINE, TRAINED), (second, other)):
            store.history.add(
                Request(
                    study=as_plain(study),
                    labels=LABELS,
                    tasks=TASKS,
                    training=training_hash(training),
                )  # fmt: skip
            )
        own = spec("mema", "digits", 0, track="vlm", budget=MINE.budget, training=TRAINED)
        kept = put(store, own, 0.5)
    asked = [[one.state for one in each.cells] for each in states(store)]
    assert [each.count("done") for each in asked] == [1, 0]
    ((study, _),) = studies_of(store, [kept])
    assert (study.name, study.training) == (MINE.name, {})


def test_a_claim_names_its_cells_while_it_is_held_and_leaves_nothing(tmp_path):
    cells = (("mema", "digits", 3),)
    with claimed(tmp_path, "a", cells=cells):
        (one,) = claims(tmp_path)
        assert one.cells == cells and one.held and ":" in one.where
        # Looking at a claim takes it from nobody.
        with claimed(tmp_path, "a") as second:
            assert not second
        assert claims(tmp_path)[0].cells == cells
    assert not (tmp_path / LOCKS).exists() and claims(tmp_path) == []


@pytest.mark.fault("clusters", "a damaged note of a claim", "passed over")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [["a"]], "where": ""}'])
def test_a_damaged_note_of_a_claim_is_passed_over(tmp_path, text):
    (tmp_path / LOCKS).mkdir()
    (tmp_path / LOCKS / "a.json").write_text(text)
    assert claims(tmp_path) == []


@pytest.mark.parametrize("stands", ["nothing", "folder"])
def test_a_folder_of_locks_that_another_run_removes_meanwhile_is_made_again(
    tmp_path, monkeypatch, stands
):
    mkdir, calls = Path.mkdir, []

    def races(self, **how):
        calls.append(self)
        if len(calls) == 1:
            # As `mkdir` ends if the folder goes away between its two looks.
            if stands == "folder":
                mkdir(self)
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        mkdir(self, **how)

    monkeypatch.setattr(Path, "mkdir", races)
    with claimed(tmp_path, "a") as ours:
        assert ours and len(calls) > 1


@pytest.mark.parametrize("stands", ["file", "link to nothing"])
def test_what_is_no_folder_of_locks_is_named(tmp_path, stands):
    if stands == "file":
        (tmp_path / LOCKS).write_text("mine")
    else:
        (tmp_path / LOCKS).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="claims is not a folder"), claimed(tmp_path, "a"):
        pass


@pytest.mark.fault("clusters", "a file system without locks", "no run waits without end")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_file_system_without_locks_nobody_waits_for_ever(tmp_path, monkeypatch, number):
    def refused(handle, operation):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", refused)
    # Two processes may train one cell then; a lock file that a dead host left would stop both.
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a", wait=True) as second:
        assert first and second
    with exclusive(tmp_path), exclusive(tmp_path):
        pass


@pytest.mark.fault("clusters", "a lock file that a dead host left", "no run waits without end")
def test_nothing_that_is_locked_waits_for_a_host_that_died(tmp_path, monkeypatch):
    def refused(handle, operation):
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", refused)
    left = tmp_path / "locks" / "images.lock"
    left.parent.mkdir()
    left.write_text("5016\nnode17\n")
    entered = []
    with locked(left), locked(left):
        entered.append(left.read_text())
    assert entered == ["5016\nnode17\n"]


def test_every_lock_of_the_package_is_of_that_kind():
    for file in (ROOT / "fusionbench").rglob("*.py"):
        if file.name != "folder.py":
            assert "filelock" not in file.read_text(encoding="utf-8"), file


# References of single layers, and the tasks that they mark.

BUDGET = replace(QUICK.budget, reader="attentive")
RIDGE = replace(BUDGET, reader="ridge")


def _layers(store, task, shares, budget=RIDGE, **settings):
    for layer, share in enumerate(shares):
        for seed in (0, 1):
            cell = spec("layer", task, seed, settings={"index": layer, **settings}, budget=budget)
            put(
                store, cell, share, label=f"layer[index={layer}]", taps=((layer,),), in_suite=True,
                chance=0.25, group="fine", parameters={"fusion": 0},
            )  # fmt: skip


def test_a_layer_whose_first_run_failed_is_a_reference_by_its_others(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.6, 0.7, 0.8, 0.9])
    for one in list(store.records()):
        if one.spec.settings["index"] == 3 and one.spec.seed == 0:
            (store.folder / "cells" / f"{one.id}.json").unlink()
            store.write_failure(replace(one, status="failed", taps=(), score=None))
    (table,) = Results(Store.open(tmp_path)).tables
    (reference,) = references(table).values()
    assert reference.layers[3] == pytest.approx(0.9)


def test_a_task_at_chance_leaves_the_aggregate_and_a_perfect_one_is_marked(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.6, 0.9, 0.8])
    _layers(store, "scenes_text", [0.25, 0.24, 0.26])
    _layers(store, "easy_vqa", [1.0, 1.0, 1.0])
    (table,) = Results(store).tables
    marks = {task.name: task.mark for task in table.tasks}
    assert marks == {"digits": "", "scenes_text": "insensitive", "easy_vqa": "saturated"}
    suite = scopes(table)[0]
    assert {table.tasks[column].name for column in suite.tasks} == {"digits", "easy_vqa"}
    page = reference_page([table]).markdown
    assert "Insensitive: `scenes_text`" in page and "Saturated: `easy_vqa`" in page
    assert "90.0 (hs[1])" in page


def test_the_reader_of_the_study_is_measured_against_the_closed_form(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.6, 0.9, 0.8], budget=BUDGET, reader="ridge")
    for seed in (0, 1):
        cell = spec("penultimate", "digits", seed, settings={"index": -2}, budget=BUDGET)
        put(store, cell, 0.5, taps=((1,),), in_suite=True, chance=0.25)
    (table,) = Results(store).tables
    row = reference_page([table]).rows[1]
    assert (row["layer"], row["own_score"]) == (1, pytest.approx(0.5, abs=0.02))
    assert "| 40.0" in reference_page([table]).markdown


def test_without_references_nothing_is_marked(tmp_path):
    store = Store.open(tmp_path)
    for seed in (0, 1):
        cell = spec("penultimate", "digits", seed, settings={"index": -2}, budget=RIDGE)
        put(store, cell, 0.25, taps=((1,),), in_suite=True, chance=0.25)
    (table,) = Results(store).tables
    assert [task.mark for task in table.tasks] == [""]
    assert reference_page([table]).markdown == ""


def test_if_no_task_is_sensitive_all_stay_in_the_aggregate(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.25, 0.24, 0.26])
    (table,) = Results(store).tables
    assert table.suite.all()


def test_the_p_of_the_best_layer_is_the_binomial_one():
    p = above_chance(np.array([0.25, 0.30, 0.28]), 0.25, 448)
    assert p == pytest.approx(3 * binom.sf(134 - 1, 448, 0.25))
    assert above_chance(np.array([0.2]), 0.25, 448) > 0.5


def test_guessing_layers_pass_in_one_of_twenty_suites():
    rng = np.random.default_rng(0)
    suites = 400
    wrong = 0
    for _ in range(suites):
        scores = rng.binomial(448, 0.25, size=(11, 9)) / 448
        wrong += not insensitive(np.array([above_chance(row, 0.25, 448) for row in scores])).all()
    assert wrong / suites <= 0.08


def test_scores_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        above_chance(np.array([41.0]), 0.25, 448)
    with pytest.raises(ValueError, match="without test examples"):
        above_chance(np.array([0.4]), 0.25, 0)


def test_saturation_needs_every_layer():
    assert saturated(np.array([0.99, 1.0]))
    assert not saturated(np.array([0.97, 1.0]))


# Profiles on disk: read back as written, refused when edited, and read without torch.

CONDITIONS = Conditions(
    method="mema", method_version=1, settings={"reduction": 4, "layers": (1, 2)}, encoder="nano",
    weights="w", image_size=32, width=64, mode="train", batch=8, dtype="float32", device="a CPU",
)  # fmt: skip
RECORD = CostRecord(
    conditions=CONDITIONS, label="mema", layers=8, dim=96, tokens=17, in_encoder=True,
    parameters={"fusion": 5, "projector": 7, "over_projector": 5}, tokens_out=16,
    latency_ms=Spread(median=2.0, q1=1.5, q3=2.5, blocks=30), throughput=4000.0,
)  # fmt: skip


def test_a_profile_comes_back_as_it_was_written(tmp_path):
    path = write(tmp_path, RECORD)
    assert path == tmp_path / "profiles" / f"{RECORD.id}.json"
    assert list(read(tmp_path)) == [RECORD]


def test_an_edited_profile_is_named_and_left_out(tmp_path):
    path = write(tmp_path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"throughput": 9000.0}))
    problems = []
    assert not list(read(tmp_path, problems))
    assert "edited" in problems[0].message and str(path) == problems[0].source


def test_a_record_of_a_later_schema_is_refused():
    with pytest.raises(ValueError, match="schema 2"):
        CostRecord.from_json(replace(RECORD, schema=2).to_json())


@pytest.mark.parametrize(
    "change",
    [{"batch": 9}, {"device": "another"}, {"compile": "default"}, {"mode": "inference"},
     {"settings": {"reduction": 2}}, {"width": 4096}, {"threads": 2}],
)  # fmt: skip
def test_other_conditions_are_another_profile(change):
    assert replace(CONDITIONS, **change).id != CONDITIONS.id


def test_profiles_are_read_without_torch():
    code = "import sys, fusionbench.records.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Rows of a new projector have a table of their own, beside those of a checkpoint's projector.


def cell(method: str, *notes: str, status: str = "done"):
    own = replace(spec(method, "digits", 0), track="vlm", training=TRAINING)
    made = record(own, outcomes(0.5, 0), label=method, notes=notes)
    return made if status == "done" else replace(made, status="skipped", score=None)


def test_a_wider_method_is_never_in_the_table_of_the_checkpoints_projector():
    records = [
        cell("penultimate"),
        cell("concat", FRESH, "another note"),
        cell("blind"),
        cell("token_packer", status="skipped"),
    ]
    kept, fresh = sorted(score_tables(records), key=lambda table: table.condition.fresh)
    assert set(kept.methods) == {"penultimate", "blind", "token_packer"}
    assert fresh.methods == ("concat",)
    assert FRESH in fresh.condition.title and FRESH not in kept.condition.title
    assert kept.condition == replace(fresh.condition, fresh=False)
