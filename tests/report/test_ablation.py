"""The ablation tables, from records on disk: right effects, honest intervals, nothing filled in."""

import ast
import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_records import ITEMS, record, spec
from toy_suite import section, study

import fusionbench
from fusionbench.cli import reports
from fusionbench.records.history import Design, PlannedAblation, Variant, note_design
from fusionbench.records.pairs import Results
from fusionbench.records.scores import INSENSITIVE
from fusionbench.records.states import up_to_date
from fusionbench.records.store import Store
from fusionbench.report.ablation import (
    ablation_page,
    contrasts,
    counted_tasks,
    design_table,
    effects,
)
from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.power import PowerOptions
from fusionbench.stats import verdicts
from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.factorial import fraction

pytestmark = pytest.mark.usefixtures("without_figures")

VARIANTS = (
    Variant(label="mema", on=(True, True)),
    Variant(label="mema-no_query", switch="query", level="false", on=(True, False)),
    Variant(label="mema[reduction=2]", switch="reduction", level="2", on=(False, True)),
    Variant(label="mema[query=false,reduction=2]", on=(False, False)),
)
ONE = Design(kind="one_factor_out", method="mema", variants=VARIANTS[:3])
BOTH = Design(
    kind="factorial", method="mema", variants=VARIANTS, switches=("reduction=2", "query=false")
)
TASKS = {"digits": 0.1, "textile": 0.5}


def scores(variant: int, task: str, seed: int) -> np.ndarray:
    """Shares of 0.8, 0.6, 0.7, 0.4 right on 40 examples, shuffled alike in every variant."""
    share = (0.8, 0.6, 0.7, 0.4)[variant]
    order = np.random.default_rng([len(task), seed]).permutation(len(ITEMS.names))
    right = np.zeros(len(ITEMS.names), dtype=np.float32)
    right[order[: round(share * len(order))]] = 1
    return right


def fill(folder, design, *, seeds=4, without=(), suite=True):
    """Records of every variant on two tasks, and their design."""
    cells: dict[str, dict[str, tuple[str, ...]]] = {
        variant.label: {} for variant in design.variants
    }
    with Store.create(folder) as store:
        for row, variant in enumerate(design.variants):
            for task, chance in TASKS.items():
                ids = []
                for seed in range(seeds):
                    cell = spec(variant.label, task, seed)
                    ids.append(cell.id)
                    if (row, task, seed) in without:
                        continue
                    values = scores(row, task, seed)
                    parameters = {"fusion": 100 - 30 * row, "projector": 1, "reader": 1}
                    done = record(cell, values, chance=chance, in_suite=suite)
                    store.write(replace(done, parameters=parameters), values, ITEMS)
                cells[variant.label][task] = tuple(ids)
        planned = PlannedAblation(
            design=design, encoder="nano", budget="nano, 60 steps", cells=cells
        )
        note_design(folder, planned)
    return Store.open(folder), planned


def page_of(store):
    return ablation_page(Results(store))


def effects_of(store, planned):
    results = Results(store)
    return effects(results, planned, design_table(results, planned))


def rows(store):
    return {row["effect"] + "/" + row["task"]: row for row in page_of(store).rows}


def test_a_changed_part_is_scored_against_the_full_method_on_the_same_seeds_and_images(tmp_path):
    store, _ = fill(tmp_path, ONE)
    found = rows(store)
    assert found["query=false/digits"]["kind"] == "simple effect"
    assert float(found["query=false/digits"]["value"]) == pytest.approx(-0.2)
    assert float(found["reduction=2/textile"]["value"]) == pytest.approx(-0.1)
    # From chance to perfect: -0.2 / 0.9 and -0.2 / 0.5, half of each.
    assert float(found["query=false/overall"]["value"]) == pytest.approx((-0.2 / 0.9 - 0.4) / 2)


def test_an_interval_is_the_crossed_t_of_the_differences_and_nothing_else(tmp_path):
    store, _ = fill(tmp_path, ONE)
    table = np.array([scores(1, "digits", seed) - scores(0, "digits", seed) for seed in range(4)])
    low, high = crossed_t(compare(table, np.array(ITEMS.groups))).interval()
    found = rows(store)["query=false/digits"]
    assert float(found["ci_low"]) == pytest.approx(float(low), abs=1e-6)
    assert float(found["ci_high"]) == pytest.approx(float(high), abs=1e-6)


def test_main_effects_and_the_interaction_are_those_of_the_four_cells(tmp_path):
    store, _ = fill(tmp_path, BOTH)
    found = rows(store)
    main = {name: found[f"{name}/digits"] for name in ("query", "reduction")}
    # 0.8, 0.6, 0.7, 0.4: on minus off, averaged over the other switch.
    assert float(main["query"]["value"]) == pytest.approx((0.2 + 0.3) / 2)
    assert float(main["reduction"]["value"]) == pytest.approx((0.1 + 0.2) / 2)
    assert main["query"]["kind"] == "main effect" and int(main["query"]["contexts"]) == 2
    both = found["reduction x query/digits"]
    assert both["kind"] == "two-way interaction"
    assert float(both["value"]) == pytest.approx((0.2 - 0.3) / 2)


def test_holm_is_taken_among_main_effects_and_apart_among_interactions(tmp_path):
    store, planned = fill(tmp_path, BOTH)
    found = effects_of(store, planned)
    main = sorted(
        (one.answer.p, one.answer.p_adjusted) for one in found if one.contrast.kind == "main effect"
    )
    assert main[0][1] == pytest.approx(min(1, 2 * main[0][0]))
    two_way = [one for one in found if one.contrast.kind == "two-way interaction"]
    assert two_way[0].answer.p_adjusted == two_way[0].answer.p


def test_the_order_of_the_arms_changes_no_number(tmp_path):
    _, planned = fill(tmp_path / "a", BOTH)
    turned = replace(BOTH, variants=(VARIANTS[0], VARIANTS[3], VARIANTS[2], VARIANTS[1]))
    note_design(tmp_path / "a", replace(planned, design=turned))
    again = rows(Store.open(tmp_path / "a"))
    fresh, _ = fill(tmp_path / "b", BOTH)
    before = rows(fresh)
    for name, row in before.items():
        assert {k: v for k, v in again[name].items() if k != "budget"} == {
            k: v for k, v in row.items() if k != "budget"
        }


def test_with_three_seeds_there_are_intervals_and_no_p(tmp_path):
    store, _ = fill(tmp_path, ONE, seeds=3)
    found = rows(store)["query=false/overall"]
    assert found["ci_low"] and not found["p"] and not found["p_holm"]
    store, _ = fill(tmp_path / "one", ONE, seeds=1)
    found = rows(store)["query=false/digits"]
    assert found["value"] and not found["ci_low"]
    assert "(1 run)" in page_of(store).markdown


def test_a_missing_run_drops_its_pair_and_is_said(tmp_path):
    store, _ = fill(tmp_path, ONE, seeds=5, without={(1, "digits", 2)})
    page = page_of(store)
    found = rows(store)
    assert int(found["query=false/digits"]["n_seeds"]) == 4
    assert int(found["query=false/overall"]["n_seeds"]) == 4
    assert int(found["reduction=2/digits"]["n_seeds"]) == 5
    assert "(4 of 5 runs)" in page.markdown and "1 of 30 cells are missing" in page.markdown


def test_a_task_that_did_not_run_is_never_left_out_of_a_mean(tmp_path):
    gone = {(row, "textile", seed) for row in range(3) for seed in range(4)}
    store, _ = fill(tmp_path, ONE, without=gone)
    found = rows(store)
    assert found["query=false/digits"]["value"]
    assert not found["query=false/overall"]["value"]
    assert "| not run" in page_of(store).markdown


def test_examples_that_are_not_the_same_are_not_paired(tmp_path):
    store, planned = fill(tmp_path, ONE, without={(2, "digits", seed) for seed in range(4)})
    other = replace(ITEMS, names=tuple(reversed(ITEMS.names)))
    with Store.create(tmp_path) as again:
        for seed in range(4):
            values = scores(2, "digits", seed)
            again.write(record(spec("mema[reduction=2]", "digits", seed), values), values, other)
    query, reduction = effects_of(Store.open(tmp_path), planned)
    assert query.tasks["digits"].estimate is not None
    assert reduction.tasks["digits"].gap == "scored on different examples of digits"
    assert reduction.overall.gap.startswith("1 of 2 tasks")


def test_a_task_that_leaves_the_suite_leaves_the_mean_of_an_ablation(tmp_path):
    store, planned = fill(tmp_path, ONE)
    results = Results(store)
    (table,) = results.tables
    assert counted_tasks(planned, design_table(results, planned)) == list(TASKS)
    tasks = [replace(t, mark=INSENSITIVE if t.name == "digits" else "") for t in table.tasks]
    results.tables = [replace(table, tasks=tuple(tasks))]
    assert counted_tasks(planned, design_table(results, planned)) == ["textile"]


def test_a_part_that_changes_no_example_is_said_to_and_has_no_empty_interval(tmp_path):
    same = replace(ONE, variants=(VARIANTS[0], replace(VARIANTS[1], label="mema-twin")))
    cells = {}
    with Store.create(tmp_path) as store:
        for variant in same.variants:
            ids = []
            for seed in range(4):
                values = scores(0, "digits", seed)
                ids.append(store.write(record(spec(variant.label, "digits", seed), values), values,
                                       ITEMS).id)  # fmt: skip
            cells[variant.label] = {"digits": tuple(ids)}
        note_design(tmp_path, PlannedAblation(design=same, encoder="nano", budget="b", cells=cells))
    page = page_of(Store.open(tmp_path))
    assert "no example differs" in page.markdown
    on_task = next(row for row in page.rows if row["task"] == "digits")
    assert float(on_task["ci_high"]) > 0 > float(on_task["ci_low"])


def test_tasks_with_planted_truth_alone_are_averaged_and_beside_others_are_not(tmp_path):
    store, _ = fill(tmp_path, ONE, suite=False)
    assert rows(store)["query=false/overall"]["value"]


def test_a_large_change_of_the_parameters_is_shown_with_the_change(tmp_path):
    store, _ = fill(tmp_path, ONE)
    text = page_of(store).markdown
    assert "70 (-30 %)" in text and "40 (-60 %)" in text


def test_five_switches_give_five_main_effects_and_ten_interactions():
    variants = tuple(Variant(label=str(row), on=on) for row, on in enumerate(fraction(5)))
    design = Design(
        kind="factorial", method="m", variants=variants, switches=tuple(f"{n}=0" for n in "abcde")
    )
    kinds = [one.kind for one in contrasts(design)]
    assert (kinds.count("main effect"), kinds.count("two-way interaction")) == (5, 10)
    variants = tuple(Variant(label=str(row), on=on) for row, on in enumerate(fraction(6)))
    design = replace(design, variants=variants, switches=tuple(f"{n}=0" for n in "abcdef"))
    assert any(" + " in one.name for one in contrasts(design))


def test_the_report_has_the_section_and_both_files_and_the_same_bytes_twice(tmp_path):
    store, _ = fill(tmp_path, ONE)
    paths = write_report(tmp_path)
    assert "mema: one change at a time" in paths.page.read_text()
    files = {s: (paths.tables / f"ablation.{s}").read_bytes() for s in ("csv", "tex")}
    assert (
        "simple effects" in section(tmp_path / "report", "ablation")
        and rb"\toprule" in files["tex"]
    )
    table = list(csv.DictReader(files["csv"].decode().splitlines()))
    assert len(table) == 2 * (1 + len(TASKS))
    write_report(tmp_path)
    assert all((paths.tables / f"ablation.{s}").read_bytes() == b for s, b in files.items())


def test_a_new_design_makes_the_report_old(tmp_path):
    store, planned = fill(tmp_path, ONE)
    write_report(tmp_path)
    assert up_to_date(store, tmp_path / "report")
    note_design(tmp_path, replace(planned, budget="another"))
    assert not up_to_date(Store.open(tmp_path), tmp_path / "report")


def test_a_folder_without_an_ablation_has_no_section_and_no_files(tmp_path):
    with Store.create(tmp_path / "r") as store:
        values = scores(0, "digits", 0)
        store.write(record(spec(), values), values, ITEMS)
    paths = write_report(tmp_path / "r")
    assert "Ablations" not in paths.page.read_text()
    assert not list(paths.tables.glob("ablation.*"))


# Every p-value, verdict and MDE that is printed comes from `stats.verdicts.judge`.

GAINS = {"penultimate": 0.0, "repeat": 0.0, "mema": 0.1, "concat": 0.0}
CLAIM = """\
claims:
  - {id: one, sentence: A., method: mema, relation: better, than: penultimate, tasks: suite}
"""
CSV = ReportOptions(formats=("csv",))
TESTS = {"holm", "benjamini_hochberg", "p_value", "p_equivalent", "mde", "decide"}
"""What only the judge may turn into an answer; a raw p of one reference is shown as it is."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("judge")
    facts = {"control": "none: nothing to match"}
    paths = [
        study(place / name, GAINS, seeds=5, draw=draw, count=80, facts=facts)
        for draw, name in enumerate("ab")
    ]
    fill(place / "ablation", BOTH, seeds=5)
    (place / "claims.yaml").write_text(CLAIM)
    return place, *paths


def printed(place, a, b, out):
    """The text of each kind of answer."""
    streams = {name: io.StringIO() for name in ("claims", "power", "diff")}
    reports.check(a, str(place / "claims.yaml"), out=None, plugins=[], stream=streams["claims"])
    reports.power(a, PowerOptions(), out=None, stream=streams["power"])
    reports.diff(a, b, out=None, stream=streams["diff"])
    tables = write_report(a, out / "report", CSV).tables
    ablations = write_report(place / "ablation", out / "ablation", CSV).tables
    return {name: stream.getvalue() for name, stream in streams.items()} | {
        "contrasts": (tables / "contrasts.csv").read_text(),
        "main": (tables / "main.csv").read_text(),
        "ablation": (ablations / "ablation.csv").read_text(),
    }


@pytest.mark.thorough
def test_another_judge_changes_every_table(folders, tmp_path, monkeypatch):
    before = printed(*folders, tmp_path / "before")
    judge = verdicts.judge

    def other(questions, correction, **options):
        """Answers whose numbers are moved a little."""
        changes = {"p": 0.123, "p_adjusted": 0.321, "mde": 0.0456, "low": -0.5, "high": 0.5}
        return [
            replace(answer, **{name: new for name, new in changes.items()
                               if getattr(answer, name) is not None})
            for answer in judge(questions, correction, **options)
        ]  # fmt: skip

    monkeypatch.setattr(verdicts, "judge", other)
    after = printed(*folders, tmp_path / "after")
    assert [name for name in before if before[name] == after[name]] == []
    for name in ("contrasts", "main", "ablation"):
        assert "0.321" in after[name] and "0.321" not in before[name]
    assert "4.6 (4.6)" in after["power"]
    assert "[-50.0, +50.0]" in after["claims"]
    assert "(q 0.321)" in after["diff"]


def test_no_file_of_the_report_corrects_or_decides_by_itself():
    """Corrections are called in `stats.verdicts` alone; a raw p-value has one more place."""
    found = set()
    for folder in ("report", "records", "cli"):
        for path in (Path(fusionbench.__file__).parent / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    found |= {(path.name, name)} if name in TESTS else set()
    # `p_baseline` and `p_control` in contrasts.csv; `Goal.mde` calls the judge.
    assert found == {("contrast_table.py", "p_value"), ("power.py", "mde")}
