"""The track `vlm` in report, claims, power, diff and frames: conditions of its own."""

import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from toy_suite import read, section, the
from toy_suite import study as probe_study
from vlm_records import (
    BLIND_TASK,
    METHODS,
    STAGE,
    TRAINING,
    pope_asked,
    pope_texts,
    write_vlm,
)

from fusionbench.cli.reports import check, diff, power
from fusionbench.records.merge import merge
from fusionbench.records.pairs import Results
from fusionbench.records.references import above_blind
from fusionbench.records.scores import BLIND
from fusionbench.records.verified import answers_file
from fusionbench.report.build import ReportOptions, analyses_of, write_report
from fusionbench.report.models import StoredCounts
from fusionbench.report.power import PowerOptions
from fusionbench.report.results import LoadedResults

OTHER = replace(TRAINING, language="smollm2-135m", language_weights="s" * 32, query="prompt")


def f1_pooled(method, seed):
    """By hand from the texts: 2 tp / (2 tp + fp + fn), "yes" is positive."""
    asked = pope_asked()
    labels = [one.gold["label"] for one in asked]
    pairs = list(zip(pope_texts(method, seed, asked), labels, strict=True))
    tp = pairs.count(("yes", "yes"))
    return 2 * tp / (2 * tp + pairs.count(("yes", "no")) + pairs.count(("no", "yes")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm") / "results")


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write_report(folder, out, ReportOptions(formats=("md", "csv", "html")))
    return out


@pytest.fixture(scope="module")
def page(written):
    return section(written, "models")


def test_the_condition_is_named_with_its_language_model(written):
    title = "### vlm: nano with words, 250 steps of 32, lr 0.001, fp32"
    assert (written / "report.md").read_text().count(title) >= 5
    assert "## Inside a language model" in (written / "report.md").read_text()


def test_the_section_says_what_was_trained_on_what(page, written):
    assert "fusion, projector, language | digits (32), scenes_count[share=2] (64)" in page
    assert "| 96 " in page and "`query: question`" in page and "`mean: token`" in page
    assert "`penultimate-decoder` is `penultimate`" in page
    rows = read(written, "models")
    assert the(rows, kind="rows", name="stage 1: digits")["value"] == "32"


def test_the_title_and_the_stages_have_the_numbers_of_the_stages(tmp_path):
    first = replace(STAGE, steps=7, batch=4, lr=0.5, trained=("projector",), template="plain")
    training = replace(TRAINING, stages=(first, STAGE), length=99)
    write_vlm(tmp_path / "two", pope=False, training=training)
    (table,) = Results.open(tmp_path / "two").tables
    assert "7 steps of 4 + 250 steps of 32, lr 0.5/0.001" in table.condition.title
    write_report(tmp_path / "two", tmp_path / "r", ReportOptions(formats=("md",), table="models"))
    page = (tmp_path / "r" / "tables" / "models.md").read_text()
    assert re.search(r"\| 1 +\| projector +\|.*\| plain +\| 7 +\| 4 +\| 0.5 ", page)
    assert "longest row: 99 tokens" in page


def test_a_task_that_needs_no_image_is_named_with_p_and_both_scores(folder, page, written):
    results = Results.open(folder)
    (table,) = results.tables
    column = [task.name for task in table.tasks].index(BLIND_TASK)
    assert (
        [task.mark for task in table.tasks].count(BLIND) == 1 == (table.tasks[column].mark == BLIND)
    )
    runs = {name: table.runs(row, column)[0] for row, name in enumerate(table.methods)}
    seeing = np.mean([results.outcomes(runs[m]) for m in METHODS if m != "blind"], axis=0)
    blind = results.outcomes(runs["blind"]).astype(float)
    # Four tasks: Holm multiplies the largest p by one.
    p = above_blind(seeing, blind, results.images(runs["blind"]))
    assert p > 0.05
    said = f"`{BLIND_TASK}` (methods {100 * seeing.mean():.1f}, blind {100 * blind.mean():.1f}, p"
    assert f"**Left out of the means over tasks**, since no image is needed there: {said}" in page
    row = the(read(written, "models"), kind="blind", task=BLIND_TASK, name="blind")
    assert float(row["value"]) == pytest.approx(blind.mean(), abs=1e-6)
    assert float(row["p_adjusted"]) == pytest.approx(p)
    assert "suite (3 tasks)" in section(written, "summary")


def test_every_reading_of_a_benchmark_is_shown_for_every_method(page, written):
    rows = read(written, "models")
    for method in METHODS:
        for name in ("f1_mean", "accuracy_mean", "f1/random", "f1/popular", "f1/adversarial"):
            assert the(rows, kind="measure", method=method, name=name, task="pope")["value"]
        found = the(rows, kind="measure", method=method, name="f1_pooled", task="pope")
        assert float(found["value"]) == pytest.approx(f1_pooled(method, 0), abs=1e-6)
    assert the(rows, kind="measure", method="mema", name="questions")["value"] == "120"
    assert "| adversarial |" in page and "| accuracy_mean " in page


def test_measures_that_are_no_mean_are_compared_by_images_for_planned_contrasts_alone(written):
    rows = [row for row in read(written, "models") if row["kind"] == "difference"]
    assert {(row["method"], row["baseline"]) for row in rows} == {("mema", "penultimate")}
    found = the(rows, name="f1_pooled")
    expected = f1_pooled("mema", 0) - f1_pooled("penultimate", 0)
    assert float(found["value"]) == pytest.approx(expected, abs=1e-6)
    low, high = float(found["value_low"]), float(found["value_high"])
    assert low < expected < high and found["images"] == "20"
    # By hand: images drawn with replacement, both methods on the same ones.
    asked = pope_asked()
    groups = np.array([one.group for one in asked])
    texts = {m: np.array(pope_texts(m, 0, asked)) for m in ("mema", "penultimate")}
    labels, draw = np.array([one.gold["label"] for one in asked]), np.random.default_rng(3)
    drawn = []
    for _ in range(600):
        names = draw.choice(np.unique(groups), 20)
        where = np.concatenate([np.flatnonzero(groups == name) for name in names])
        one, two = (_f1(texts[m][where], labels[where]) for m in ("mema", "penultimate"))
        drawn.append(one - two)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], abs=0.03)


def _f1(said, labels):
    tp = ((said == "yes") & (labels == "yes")).sum()
    return 2 * tp / (2 * tp + (said != labels).sum())


def test_one_seed_gives_no_p_no_star_and_no_verdict(folder, written):
    text = (written / "report.md").read_text()
    assert "**mema" not in text and not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert "No test is printed and no verdict is given" in text
    assert not any(row["p"] or row["verdict"] for row in read(written, "contrasts"))
    heard = io.StringIO()
    power(folder, PowerOptions(), out=None, stream=heard)
    assert "1 common seed" in heard.getvalue() and "Traceback" not in heard.getvalue()
    heard = io.StringIO()
    assert check(folder, "published", out=None, plugins=(), stream=heard) == 0
    assert "0 holds, 0 fails" in heard.getvalue() and "vlm: nano with words" in heard.getvalue()
    assert LoadedResults(folder).contrasts()["p"].isna().all()


@pytest.mark.slow
def test_several_seeds_are_one_run_of_the_suite_each(tmp_path):
    write_vlm(tmp_path / "results", seeds=4)
    write_report(tmp_path / "results", tmp_path / "r", ReportOptions(formats=("md", "csv")))
    row = the(read(tmp_path / "r", "contrasts"), scope="suite", method="mema", kind="planned")
    assert float(row["p"]) < 0.05 and row["n_seeds"] == "4"
    rows = read(tmp_path / "r", "models")
    found = the(rows, kind="difference", name="f1_pooled", method="mema")
    means = [np.mean([f1_pooled(m, s) for s in range(4)]) for m in ("mema", "penultimate")]
    assert float(found["value"]) == pytest.approx(means[0] - means[1], abs=1e-6)
    assert found["runs"] == "4"


@pytest.mark.thorough
def test_probe_cells_and_two_language_models_in_one_folder_stay_apart(tmp_path):
    gains = {"penultimate": 0.0, "mema": 0.1}
    folder = probe_study(tmp_path / "results", gains, seeds=1)
    write_vlm(folder, pope=False)
    write_vlm(folder, pope=False, training=OTHER)
    tables = Results.open(folder).tables
    assert len(tables) == 3 and len({table.condition.title for table in tables}) == 3
    assert [len(table.methods) for table in tables if table.condition.training] == [5, 5]
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md", "csv", "html", "tex")))
    page = (tmp_path / "r" / "report.md").read_text()
    assert "vlm: nano with smollm2-135m" in page and "vlm: nano with words" in page
    assert "`query: prompt`" in page
    names = {(row["track"], row["training"].split(" ")[0]) for row in read(tmp_path / "r", "main")}
    assert names == {("probe", ""), ("vlm", "words"), ("vlm", "smollm2-135m")}
    html = (tmp_path / "r" / "report.html").read_text()
    assert "smollm2-135m" in html and "Inside a language model" in html
    scores = LoadedResults(folder).scores()
    assert set(scores["track"]) == {"probe", "vlm"}


@pytest.mark.thorough
def test_a_probe_report_has_no_section_of_models(tmp_path):
    folder = probe_study(tmp_path / "results", {"penultimate": 0.0, "mema": 0.1}, seeds=2)
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md", "csv")))
    assert "Inside a language model" not in (tmp_path / "r" / "report.md").read_text()
    assert not (tmp_path / "r" / "tables" / "models.csv").exists()
    assert "training" not in (tmp_path / "r" / "tables" / "main.csv").read_text().splitlines()[0]


@pytest.mark.thorough
def test_single_layers_make_no_reference_table(tmp_path):
    folder = write_vlm(tmp_path / "results", pope=False)
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md",)))
    assert "What single layers hold" not in (tmp_path / "r" / "report.md").read_text()


def test_if_no_task_is_above_blind_none_leaves_and_the_page_says_so(tmp_path):
    folder = write_vlm(tmp_path / "results", pope=False, tasks=(BLIND_TASK,))
    (table,) = Results.open(folder).tables
    assert not any(task.mark for task in table.tasks)
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md",), table="models"))
    assert (
        "On no task are the methods above `blind`"
        in (tmp_path / "r" / "tables" / "models.md").read_text()
    )


def test_without_the_method_blind_nothing_is_marked_and_the_page_says_so(tmp_path):
    folder = write_vlm(tmp_path / "results", pope=False, methods=("penultimate", "mema"))
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md",), table="models"))
    page = (tmp_path / "r" / "tables" / "models.md").read_text()
    assert "No cell of the method `blind` here" in page


@pytest.mark.thorough
def test_imported_records_are_marked_and_named(tmp_path):
    folder = write_vlm(tmp_path / "results", pope=False, source="lmms-eval 0.7.3")
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md",)))
    page = (tmp_path / "r" / "report.md").read_text()
    assert "| mema ¶ " in page and "¶: imported from lmms-eval 0.7.3." in page
    assert "- mema: imported from lmms-eval 0.7.3 (3 cells)" in page


def test_a_measure_without_a_value_is_a_dash(tmp_path):
    folder = write_vlm(tmp_path / "results", measures={"f1": None, "points": 1510.66, "n": 3})
    write_report(folder, tmp_path / "r", ReportOptions(formats=("md",), table="models"))
    page = (tmp_path / "r" / "tables" / "models.md").read_text()
    assert re.search(r"\| mema +\| - +\| 3 +\| 1510\.7 +\|", page)


@pytest.mark.slow
def test_damaged_answers_are_named_in_the_report_and_stop_nothing(tmp_path):
    folder = write_vlm(tmp_path / "results")
    merge([folder], tmp_path / "merged")
    (cell,) = [
        r for r in Results.open(folder).records if (r.label, r.spec.task) == ("mema", "pope")
    ]
    for place in (folder, tmp_path / "merged"):
        file = answers_file(place, cell.id)
        file.write_bytes(file.read_bytes()[:-9])
        write_report(place, tmp_path / "r", ReportOptions(formats=("md",)))
        page = (tmp_path / "r" / "report.md").read_text()
        assert "its answers were damaged or edited" in page and str(tmp_path) not in page


def test_questions_without_true_answers_and_other_versions_are_named(tmp_path):
    folder = write_vlm(tmp_path / "results")
    results = Results.open(folder)
    (analysis,) = analyses_of(results)
    record = next(r for r in results.records if (r.label, r.spec.task) == ("mema", "pope"))
    stored = StoredCounts(results, analysis.table)
    other = replace(record, spec=replace(record.spec, task_version=99))
    assert stored.tally(other) is None
    assert "version 99 of the benchmark pope is not installed" in next(iter(stored.problems))
    local = next(r for r in results.records if r.spec.task == "digits")
    assert stored.tally(local) is None and len(stored.problems) == 1


@pytest.mark.thorough
def test_a_merged_folder_gives_the_same_report(folder, written, tmp_path):
    merge([folder], tmp_path / "merged")
    write_report(tmp_path / "merged", tmp_path / "r", ReportOptions(formats=("md", "csv", "html")))
    for file in written.rglob("*"):
        if file.suffix in (".md", ".csv", ".html"):
            assert (tmp_path / "r" / file.relative_to(written)).read_bytes() == file.read_bytes()


def test_diff_names_what_differs_in_the_training(folder, tmp_path):
    other = write_vlm(tmp_path / "other", training=OTHER)
    heard = io.StringIO()
    diff(folder, other, out=None, stream=heard)
    assert "training.language" in heard.getvalue() and "training.query" in heard.getvalue()
    heard = io.StringIO()
    diff(folder, folder, out=None, stream=heard)
    assert "training." not in heard.getvalue()


@pytest.mark.thorough
def test_the_report_of_the_track_loads_no_torch(folder, tmp_path):
    code = (
        "import sys\nfrom fusionbench.report.build import ReportOptions, write_report\n"
        "write_report(sys.argv[1], sys.argv[2], ReportOptions(formats=('md',), table='models'))\n"
        "found = {'torch', 'transformers'} & set(sys.modules)\nassert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "r")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
