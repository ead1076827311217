"""`fusionbench.load`: frames that agree with the tables, without torch; its page in the docs."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLauncher
from toy_records import put, spec
from toy_suite import read, study

import fusionbench as fb
from fusionbench.api.errors import UserError
from fusionbench.launchers import local
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.tables import comma_separated, frame
from fusionbench.study.study import QUICK

ROOT = Path(fb.__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results-in-python.md"
GAINS = {"penultimate": 0.0, "mema": 0.08, "repeat": 0.0}
shipped = pytest.mark.skipif(not PAGE.exists(), reason="an installed wheel has no docs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "results", GAINS, seeds=5)


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scores_are_those_of_the_main_table(folder, tmp_path):
    scores = fb.load(folder).scores()
    assert len(scores) == 3 * scores.task.nunique() * 5
    assert scores.score.dtype == float and scores.seed.dtype == int
    write_report(folder, tmp_path, ReportOptions(table="main", formats=("csv",)))
    means = scores.groupby(["label", "task"]).score.mean()
    for row in read(tmp_path, "main"):
        assert means[row["method"], row["task"]] == pytest.approx(float(row["mean"]), abs=1e-6)


def test_contrasts_are_the_rows_of_the_table(folder, tmp_path):
    contrasts = fb.load(folder).contrasts()
    write_report(folder, tmp_path, ReportOptions(table="contrasts", formats=("csv",)))
    written = pd.read_csv(tmp_path / "tables" / "contrasts.csv")
    assert list(contrasts.columns) == list(written.columns)
    np.testing.assert_allclose(contrasts.delta, written.delta, atol=1e-6)
    np.testing.assert_allclose(contrasts.p_adjusted, written.p_adjusted, atol=1e-6)
    assert contrasts.verdict.fillna("").tolist() == written.verdict.fillna("").tolist()


def test_a_frame_belongs_to_its_caller(folder):
    results = fb.load(folder)
    mine = results.cells()
    mine["score"] = 0.0
    assert results.scores().score.max() > 0


def test_a_folder_without_profiles_has_no_costs(folder):
    assert fb.load(folder).costs().empty


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results in"):
        fb.load(tmp_path / "nowhere")


def test_every_docstring_names_the_columns_of_its_frame(folder):
    results = fb.load(folder)
    for method in (results.scores, results.cells):
        text = f"{method.__doc__} {results.scores.__doc__}"
        assert [name for name in method().columns if name not in text] == []


def test_gaps_keep_the_type_of_a_column():
    rows = [{"n": 1, "x": 0.5, "b": True, "e": None, "t": "a"}, dict.fromkeys("nxbe") | {"t": ""}]
    kinds = frame(rows).dtypes.astype(str).to_dict()
    assert kinds == {"n": "Int64", "x": "float64", "b": "boolean", "e": "float64", "t": "str"}
    assert frame([]).empty


def test_values_become_text_when_a_table_is_written():
    rows = [
        {"mean": 0.5, "p": 1.23456789e-9, "n": 3, "best": True, "low": float("nan"), "why": ""},
        {"mean": -1e-9, "p": None, "n": None, "best": None, "low": 1.0, "why": 'a "b", c'},
    ]
    assert comma_separated(rows) == (
        "mean,p,n,best,low,why\n"
        "0.500000,1.2345679e-09,3,true,,\n"
        '0.000000,,,,1.000000,"a ""b"", c"\n'
    )


@pytest.mark.thorough
def test_the_first_line_of_the_page_works_without_torch(folder):
    code = f"import fusionbench as fb; r = fb.load({str(folder)!r}); "
    code += "print(r.scores().groupby('method').score.mean()); r.costs(); "
    code += "import sys; assert 'torch' not in sys.modules"
    assert "mema" in run(code)


def test_importing_the_package_is_light():
    heavy = ("numpy", "pandas", "torch", "seaborn", "matplotlib", "scipy")
    run(f"import sys, fusionbench; assert not [n for n in {heavy} if n in sys.modules]")


@pytest.mark.thorough
@shipped
def test_the_blocks_of_the_page_run_in_order(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(local, "LocalLauncher", InProcessLauncher)
    # Here, where torch and seaborn are loaded.
    exec(compile("\n".join(blocks), str(PAGE), "exec"), made := {})
    assert made["file"].stat().st_size > 1000


def test_the_answer_the_leaderboard_and_examples_are_those_of_the_report(folder, tmp_path):
    results = fb.load(folder)
    write_report(folder, tmp_path, ReportOptions(formats=("csv",)))
    assert results.answer() == [row["sentence"] for row in read(tmp_path, "answer")]
    shown = results.differences()
    assert shown.method.tolist() == [row["method"] for row in read(tmp_path, "summary")]
    scores = results.scores()
    task = scores.task.iloc[0]
    examples = results.examples("mema", task)
    mine = scores[(scores.label == "mema") & (scores.task == task)].set_index("seed").score
    for seed, score in mine.items():
        assert examples[f"seed_{seed}"].mean() == pytest.approx(score)
    with pytest.raises(UserError, match="did you mean 'mema'"):
        results.examples("memo", task)


def test_examples_are_those_of_one_label_in_one_condition(tmp_path):
    shares = {"mema": 0.2, "mema[reduction=2]": 0.8}
    with Store.create(tmp_path) as store:
        for steps in (8, 9):
            budget = replace(QUICK.budget, steps=steps)
            for label, share in shares.items():
                settings = {"reduction": 2 if "[" in label else 4}
                put(store, spec("mema", budget=budget, settings=settings), share, label=label)
    results = fb.load(tmp_path)
    titles = sorted(set(results.scores().condition))
    assert len(titles) == 2
    with pytest.raises(UserError, match="2 conditions have mema on digits") as error:
        results.examples("mema", "digits")
    assert all(title in error.value.hint for title in titles)
    for label, share in shares.items():
        found = results.examples(label, "digits", condition=titles[1])
        assert found.seed_0.mean() == pytest.approx(share)
    with pytest.raises(UserError, match="no condition"):
        results.examples("mema", "digits", condition="nano")


def test_labels_tell_versions_apart(tmp_path):
    with Store.create(tmp_path) as store:
        for version in (1, 2):
            put(store, spec("mema", method_version=version), 0.3 * version)
    scores = fb.load(tmp_path).scores()
    assert scores.label.nunique() == 2 and set(scores.method) == {"mema"}
    for row in scores.itertuples():
        found = fb.load(tmp_path).examples(row.label, "digits")
        assert found.seed_0.mean() == pytest.approx(row.score)
