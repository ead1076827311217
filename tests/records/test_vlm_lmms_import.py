"""Records from files of lmms-eval: scores, outcomes, items, and what is refused with a reason.

`lmms_output` is what lmms-eval 0.7.3 wrote for the model in `lmms_cells`, on the test images of the
same local tasks with the same prompts.
"""

import ast
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusionbench
from fusionbench.api.errors import UserError
from fusionbench.cli.models import import_results
from fusionbench.records.imports import evaluated_record, import_folder
from fusionbench.records.lmms_files import read_samples
from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.report.build import write_report

HERE = Path(__file__).parent
OUTPUT = HERE / "lmms_output"
(RAN,) = OUTPUT.glob("*_results.json")
MODEL = json.loads(RAN.read_text())["config"]["model_args"].removeprefix("cell=").split(",")[0]
DATE = "20260102_030405"


@pytest.fixture
def our_cells(tmp_path_factory):
    """A copy, since a folder of results notes in a file which records were checked."""
    return shutil.copytree(HERE / "lmms_cells", tmp_path_factory.mktemp("cells") / "results")


def entry(document, score, **more):
    return {"question_id": str(document), "score": score, **more}


def sample(document, **metrics):
    return {
        "doc_id": document, "target": "yes", "filtered_resps": "yes", "doc_hash": "0",
        "input": f"question {document}?", **metrics,
    }  # fmt: skip


def put(folder, tasks, *, date=DATE, model="llava", args="pretrained=org/llava-7b", **extra):
    """Files of lmms-eval: of each task its numbers and its samples (None: no file)."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "results": {task: {"alias": task, **numbers} for task, (numbers, _) in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: {"dataset_path": "org/set", "score_key": "score"} for task in tasks},
        "versions": {task: "Yaml" for task in tasks},
        "n-samples": {t: {"effective": len(s or ())} for t, (_, s) in tasks.items()},
        "config": {"model": model, "model_args": args, "offset": 0},
        "lmms_eval_version": "unknown@unknown", "date": date, "model_name": args.split("=")[-1],
    }  # fmt: skip
    file = folder / f"{date}_results.json"
    file.write_text(json.dumps({**values, **extra}, indent=2))
    for task, (_, samples) in tasks.items():
        if samples is not None:
            lines = "".join(f"{json.dumps(one)}\n" for one in samples)
            (folder / f"{date}_samples_{task}.jsonl").write_text(lines)
    return file


def imported(folder, out, **options):
    found, problems = import_folder(folder, out, **options)
    assert not problems
    store = Store.open(out)
    assert {one.record.id for one in found} == set(store.finished())
    return store, {one.record.spec.task: one.record for one in found}


@pytest.mark.parametrize("task", ["digits", "scenes_count"])
def test_scores_outcomes_and_answers_equal_those_of_our_own_task(tmp_path, task, our_cells):
    store, found = imported(OUTPUT, tmp_path, results=our_cells, version="0.7.3")
    record, cells = found[f"lmms:local_{task}"], Store.open(our_cells)
    (own,) = [one for one in cells.records() if (one.model, one.spec.task) == (MODEL, task)]
    assert record.score == own.score
    assert 0 < record.score < 1
    np.testing.assert_array_equal(store.outcomes(record), cells.outcomes(own))
    texts = [answer.text for answer in store.answers(record)]
    assert texts == [answer.text for answer in cells.answers(own)]
    names = [f"lmms:local_{task}/{name}" for name in cells.items(own).names]
    assert list(store.items(record).names) == names
    assert record.source == "lmms-eval 0.7.3"
    assert record.measures["exact"] == pytest.approx(own.score)
    # The model is the cell's; what was asked is not.
    assert record.spec.model_id == own.spec.model_id
    assert record.spec.training == own.spec.training
    assert record.id != own.id


def test_a_model_that_is_not_ours_has_a_name_and_no_training(tmp_path):
    samples = [sample(at, acc=float(at < 3)) for at in range(4)]
    put(tmp_path / "in", {"vqa": ({"acc,none": 0.75, "acc_stderr,none": "N/A"}, samples)})
    _, found = imported(tmp_path / "in", tmp_path / "out")
    record = found["lmms:vqa"]
    assert (record.label, record.spec.encoder) == ("org/llava-7b", "unknown")
    assert record.spec.training is None
    assert record.spec.track == "vlm"
    assert record.spec.settings == {"model": "llava", "pretrained": "org/llava-7b"}
    assert (record.score, record.metric, record.measures) == (0.75, "acc", {"acc": 0.75})
    assert not record.in_suite
    assert record.source == "lmms-eval"


def test_the_metric_whose_mean_is_the_aggregate_gives_the_outcomes(tmp_path):
    # As POPE of lmms-eval: every metric has the same entries, one number is their mean.
    right = [1.0, 1.0, 0.0, 1.0]
    samples = [
        sample(at, pope_f1_score=entry(at, one), pope_accuracy=entry(at, one))
        for at, one in enumerate(right)
    ]
    numbers = {"pope_f1_score,none": 0.8, "pope_accuracy,none": 0.75}
    put(tmp_path / "in", {"pope": (numbers, samples)})
    store, found = imported(tmp_path / "in", tmp_path / "out")
    record = found["lmms:pope"]
    assert (record.metric, record.score) == ("pope_accuracy", 0.75)
    assert record.measures == {"pope_f1_score": 0.8, "pope_accuracy": 0.75}
    np.testing.assert_array_equal(store.outcomes(record), right)
    assert not record.notes


def test_a_number_that_is_no_mean_of_samples_is_a_measure_with_a_note(tmp_path):
    # As MME: two questions of an image share its name; the number is 1000 * (acc + acc+) here.
    samples = [sample(at, mme=entry(at // 2, one)) for at, one in enumerate([1.0, 0.0, 1.0, 1.0])]
    put(tmp_path / "in", {"mme": ({"mme,none": 1250.0}, samples)})
    store, found = imported(tmp_path / "in", tmp_path / "out")
    record = found["lmms:mme"]
    assert (record.score, record.metric) == (0.75, "mme, mean")
    assert record.measures == {"mme": 1250.0}
    assert "no mean" in record.notes[0]
    items = store.items(record)
    assert items.names == tuple(f"lmms:mme/{at}" for at in range(4))
    assert items.groups == ("lmms:mme/0", "lmms:mme/0", "lmms:mme/1", "lmms:mme/1")


def percent(at):
    return sample(at, acc=100.0 * at)


def text(at):
    return sample(at, seed_image={"pred": "A", "answer": "B", "data_type": "image"})


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (None, "--log_samples"),
        ([text(at) for at in range(3)], "metrics: seed_image"),
        ([percent(at) for at in range(3)], "metrics: acc"),
        ([sample(0, acc=1.0), sample(1)], "metrics: acc"),
    ],
)
def test_without_a_number_for_each_sample_the_aggregate_alone_is_imported(
    tmp_path, samples, reason
):
    put(tmp_path / "in", {"seed": ({"seed_image,none": 0.4, "acc,none": 60.0}, samples)})
    _, found = imported(tmp_path / "in", tmp_path / "out")
    record = found["lmms:seed"]
    assert record.measures == {"seed_image": 0.4, "acc": 60.0}
    assert (record.score, record.outcomes, record.items, record.answers) == (0.4, "", "", "")
    assert record.notes[0].startswith("aggregate only: ")
    assert reason in record.notes[0]


def test_an_aggregate_outside_of_0_to_1_is_a_measure_and_no_score(tmp_path):
    put(tmp_path / "in", {"mme": ({"perception,none": 1480.5}, None)})
    _, found = imported(tmp_path / "in", tmp_path / "out")
    assert found["lmms:mme"].score is None
    assert found["lmms:mme"].measures == {"perception": 1480.5}


def test_of_several_filters_the_samples_belong_to_none(tmp_path):
    samples = [sample(at, acc=1.0) for at in (0, 1, 0, 1)]
    put(tmp_path / "in", {"gsm": ({"acc,strict": 1.0, "acc,loose": 1.0}, samples)})
    _, found = imported(tmp_path / "in", tmp_path / "out")
    assert "strict, loose" in found["lmms:gsm"].notes[0]
    assert found["lmms:gsm"].measures == {"acc,strict": 1.0, "acc,loose": 1.0}
    assert not found["lmms:gsm"].outcomes


def test_the_only_filter_of_a_task_may_have_a_name(tmp_path):
    samples = [sample(at, flag=0.0, acc=float(at)) for at in range(2)]
    put(tmp_path / "in", {"gsm": ({"acc,strict": 0.5}, samples)})
    store, found = imported(tmp_path / "in", tmp_path / "out")
    assert (found["lmms:gsm"].metric, found["lmms:gsm"].score) == ("acc", 0.5)
    np.testing.assert_array_equal(store.outcomes(found["lmms:gsm"]), [0, 1])


def test_numbers_in_parts_are_measures_and_groups_of_tasks_are_left_out(tmp_path):
    numbers = {"mmmu,none": 0.5, "parts,none": {"Art": {"acc": 0.25, "name": "Art"}, "n": 4}}
    tasks = {"mmmu": (numbers, None), "all": ({"mmmu,none": 0.5}, None)}
    put(tmp_path / "in", tasks, group_subtasks={"mmmu": [], "all": ["mmmu"]})
    _, found = imported(tmp_path / "in", tmp_path / "out")
    assert set(found) == {"lmms:mmmu"}
    assert found["lmms:mmmu"].measures == {"mmmu": 0.5, "parts/Art/acc": 0.25, "parts/n": 4.0}


def test_samples_are_read_in_the_order_of_their_documents(tmp_path):
    # Several processes of lmms-eval write theirs one after the other.
    samples = [sample(at, acc=float(at == 3)) for at in (0, 2, 1, 3)]
    put(tmp_path / "in", {"vqa": ({"acc,none": 0.25}, samples)})
    store, found = imported(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(store.outcomes(found["lmms:vqa"]), [0, 0, 0, 1])
    assert store.items(found["lmms:vqa"]).names == tuple(f"lmms:vqa/{at}" for at in range(4))


def test_a_version_that_is_no_number_counts_as_none(tmp_path):
    for place, version in enumerate(("3.0", "²", "Yaml")):
        tasks = {"vqa": ({"acc,none": 1.0}, [sample(0, acc=1.0)])}
        put(tmp_path / f"in{place}", tasks, versions={"vqa": version})
        _, found = imported(tmp_path / f"in{place}", tmp_path / f"out{place}")
        assert found["lmms:vqa"].spec.task_version == (0 if place else 3)


def test_an_answer_may_hold_any_character_that_json_leaves_as_it_is(tmp_path):
    file, answer = tmp_path / "s.jsonl", "one\u2028two\x85three"
    line = {"doc_id": 0, "target": "a", "filtered_resps": [answer], "acc": 1.0}
    file.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [one.text for one in read_samples(file)] == [answer]


def test_other_prompts_or_answers_are_another_task(tmp_path):
    ids = set()
    for at, (prompt, target) in enumerate([("a?", "yes"), ("b?", "yes"), ("a?", "no")]):
        one = {**sample(0, acc=1.0), "input": prompt, "target": target}
        put(tmp_path / f"in{at}", {"vqa": ({"acc,none": 1.0}, [one])})
        ids.add(imported(tmp_path / f"in{at}", tmp_path / f"out{at}")[1]["lmms:vqa"].id)
    assert len(ids) == 3


def test_the_newest_run_counts_and_an_import_is_done_once(tmp_path):
    for date, right in (("20260101_000000", 0.0), ("20260201_000000", 1.0)):
        put(tmp_path / "in", {"vqa": ({"acc,none": right}, [sample(0, acc=right)])}, date=date)
    found, problems = import_folder(tmp_path / "in", tmp_path / "out")
    assert [one.fresh for one in found] == [True, False]
    assert {one.record.score for one in found} == {1.0}
    assert "20260101_000000_results.json" in problems[0].source
    assert "other numbers" in problems[0].message
    before = sorted(file.read_bytes() for file in (tmp_path / "out").rglob("*.json"))
    again, _ = import_folder(tmp_path / "in", tmp_path / "out")
    assert not any(one.fresh for one in again)
    assert sorted(file.read_bytes() for file in (tmp_path / "out").rglob("*.json")) == before


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def cut(file):
    file.write_text(file.read_text()[:-40])


RESULTS, SAMPLES = f"{DATE}_results.json", f"{DATE}_samples_vqa.jsonl"


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (RESULTS, cut, r"_results.json: truncated or not JSON \(line \d+\)"),
        (RESULTS, lambda f: f.write_text("[]"), "not an object but list"),
        (RESULTS, lambda f: edit(f, lambda v: v.pop("results")), "'results' is missing"),
        (RESULTS, lambda f: edit(f, lambda v: v["config"].pop("model")), "config.model is no name"),
        (RESULTS, lambda f: edit(f, lambda v: v["config"].update(model_args=3)), "must be text"),
        (RESULTS, lambda f: edit(f, lambda v: v["results"].update(vqa={"alias": "vqa"})),
         "results.vqa holds no number"),
        (RESULTS, lambda f: f.write_bytes(b"{\xe9}"), "_results.json: not UTF-8 text at"),
        (SAMPLES, lambda f: f.write_bytes(b"\xe9"), "_samples_vqa.jsonl: not UTF-8 text at byte 0"),
        (SAMPLES, cut, "line 3: truncated or not JSON"),
        (SAMPLES, lambda f: f.write_text("\n".join(f.read_text().splitlines()[:2])),
         "2 of 3 samples: truncated"),
        (SAMPLES, lambda f: f.write_text(""), "holds no sample"),
        (SAMPLES, lambda f: f.write_text('{"doc_id": "a"}\n'), "line 1: doc_id must be"),
        (SAMPLES, lambda f: f.write_text(f.read_text() * 2), "document 0 2 times"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_and_nothing_is_written(tmp_path, file, spoil, message):
    folder = tmp_path / "in"
    put(folder / "sound", {"vqa": ({"acc,none": 1.0}, [sample(0, acc=1.0)])})
    put(folder, {"vqa": ({"acc,none": 1.0}, [sample(at, acc=1.0) for at in range(3)])})
    spoil(folder / file)
    with pytest.raises(UserError, match=message):
        import_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        import_folder(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="no file .*_results.json"):
        import_folder(tmp_path, tmp_path / "out")


def test_a_cell_of_ours_that_is_not_here_is_refused(tmp_path, our_cells):
    for args, message in (
        ("results=" + str(our_cells), "names no cell"),
        (f"cell={MODEL},results={tmp_path / 'gone'}", "not here"),
        (f"cell=abc,results={our_cells}", "no cell or model 'abc'"),
    ):
        put(tmp_path / "in", {"vqa": ({"acc,none": 1.0}, None)}, model="fusionbench", args=args)
        with pytest.raises(UserError, match=message) as caught:
            import_folder(tmp_path / "in", tmp_path / "out")
        assert "--results" in caught.value.hint


def test_a_cell_is_named_by_its_id_or_by_a_folder_with_one_model(tmp_path, our_cells):
    record, home = evaluated_record(MODEL, our_cells)
    assert (record.model, home) == (MODEL, our_cells)
    own = next(one for one in Store.open(our_cells).records() if one.label == "blind")
    assert evaluated_record(own.id, our_cells)[0].id == own.id
    with pytest.raises(UserError, match="2 models, not one"):
        (tmp_path / "two" / "cells").mkdir(parents=True)
        shutil.copytree(our_cells, tmp_path / "two", dirs_exist_ok=True)
        evaluated_record(str(tmp_path / "two"), our_cells)


@pytest.mark.thorough
def test_imported_numbers_are_a_section_of_the_report_and_in_no_table_of_ours(tmp_path, our_cells):
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder in (both, alone):
        shutil.copytree(our_cells, folder)
    import_folder(OUTPUT, both, results=our_cells, version="0.7.3")
    put(tmp_path / "in", {"mme": ({"perception,none": 1480.5}, None)})
    import_folder(tmp_path / "in", both)
    tables = Results.open(both).tables
    assert {table.condition.source for table in tables} == {"", "lmms-eval", "lmms-eval 0.7.3"}
    assert all(
        {record.source for record in table.cells.values()} == {table.condition.source}
        for table in tables
    )
    write_report(both)
    write_report(alone)
    for name in ("summary.csv", "main.csv", "contrasts.csv"):
        ours = [folder / "report" / "tables" / name for folder in (both, alone)]
        rows = [list(csv.DictReader(file.open(newline=""))) for file in ours]
        # The folder with both says in a column which condition a row is of.
        assert [{k: v for k, v in row.items() if k != "condition"} for row in rows[0]] == rows[1]
    page = (both / "report" / "report.md").read_text()
    assert "## Scored by other tools" in page
    assert "scored by lmms-eval 0.7.3" in page
    assert "perception 1480.5" in page
    assert "Planted" not in page


def test_the_command_prints_a_line_for_each_record(tmp_path, capsys):
    put(tmp_path / "in", {"mme": ({"perception,none": 1480.5}, None)})
    assert import_results(tmp_path / "in", tmp_path / "out", None, "0.7.3", sys.stdout) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("org/llava-7b on lmms:mme: no score of 0 questions; aggregate only")
    assert lines[1] == f"1 records imported, 0 were there: {tmp_path / 'out'}"


def test_an_import_needs_neither_torch_nor_lmms_eval(tmp_path):
    put(tmp_path / "in", {"vqa": ({"acc,none": 1.0}, [sample(0, acc=1.0)])})
    code = (
        "import sys; from pathlib import Path; "
        "from fusionbench.records.imports import import_folder; "
        f"import_folder(Path({str(tmp_path / 'in')!r}), Path({str(tmp_path / 'out')!r})); "
        "print({'torch', 'transformers', 'lmms_eval'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.thorough
def test_the_model_of_lmms_eval_is_imported_by_nothing_else():
    package = Path(fusionbench.__file__).parent
    named = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", "") or "", *(one.name for one in node.names)]
        if name.startswith(("lmms_eval", "fusionbench.vlm.lmms"))
    }
    assert named == {"vlm/lmms.py"}
