"""Claims of papers: holds, fails or undecided, and every slip of the pen in one line."""

import csv
import html
import io
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from toy_records import record, spec
from toy_suite import (
    CONTROLS,
    correlated,
    put_task,
    quick_disk,
    read,
    rows,
    section,
    study,
    write_suite,
)

from fusionbench.api.errors import UserError
from fusionbench.cli import summary
from fusionbench.cli.reports import check
from fusionbench.cli.summary import SHOWN, shortened
from fusionbench.launchers.sweep import SweepResult
from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods
from fusionbench.report.answer import (
    _below_control,
    _certainty,
    _drawn,
    _named,
    _on_new_tasks,
    leaders,
)
from fusionbench.report.build import ReportOptions, collect, write_report
from fusionbench.report.claims import (
    PUBLISHED,
    answers,
    checked,
    load_claims,
    long_rows,
    page,
    parse_claims,
)
from fusionbench.report.contrasts import NewTasks
from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.verdicts import Verdict

GAINS = {
    "penultimate": 0.0,
    "mema": 0.12,
    "mmfuser": 0.0,
    "last": {"digits": 0.15, "textile": 0.15},
}
CATALOG = read_catalog()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "results", GAINS)


def claim(**changes):
    start = {"id": "one", "sentence": "A sentence.", "method": "mema", "relation": "better",
             "than": "penultimate", "tasks": "suite"}  # fmt: skip
    lines = [f"    {key}: {value!r}" for key, value in (start | changes).items()]
    return "  -\n" + "\n".join(lines) + "\n"


def asked(folder, *texts):
    claims = parse_claims("claims:\n" + "".join(texts), "test")
    return answers(claims, Results.open(folder), CATALOG)


def verdict(folder, **changes):
    (answer,) = asked(folder, claim(**changes))
    return answer.verdict


def test_a_planted_gain_holds_and_its_opposite_fails(folder):
    assert verdict(folder) is Verdict.HOLDS
    assert verdict(folder, relation="worse") is Verdict.FAILS
    assert verdict(folder, method="penultimate", than="mema") is Verdict.FAILS
    assert verdict(folder, by_at_least=3.0) is Verdict.HOLDS
    assert verdict(folder, by_at_least=60.0) is Verdict.FAILS
    assert verdict(folder, relation="not worse", within=1.0) is Verdict.HOLDS


def test_no_difference_is_equivalence_where_the_margin_allows_and_undecided_else(folder):
    same = {"method": "mmfuser"}
    assert verdict(folder, **same) is Verdict.UNDECIDED
    assert verdict(folder, **same, relation="equivalent", within=15.0) is Verdict.HOLDS
    assert verdict(folder, **same, relation="equivalent", within=0.1) is Verdict.UNDECIDED
    assert verdict(folder, relation="equivalent", within=2.0) is Verdict.FAILS
    assert verdict(folder, **same, relation="not worse", within=15.0) is Verdict.HOLDS


def test_a_gain_on_one_skill_alone_is_more_there_than_on_the_other(folder):
    assert verdict(folder, method="last", tasks="fine", more_than_on="semantic") is Verdict.HOLDS
    assert verdict(folder, method="last", tasks="semantic", more_than_on="fine") is Verdict.FAILS
    nowhere = verdict(folder, method="mmfuser", tasks="fine", more_than_on="semantic")
    assert nowhere is Verdict.UNDECIDED


def test_both_sides_of_more_than_on_are_from_chance_to_perfect(folder):
    """Single tasks too, whose own points have units that differ with chance."""
    (answer,) = asked(folder, claim(method="last", tasks="digits", more_than_on="textile"))
    (table,) = Results.open(folder).tables
    means = np.nanmean(table.values, axis=2)
    gains = means[table.methods.index("last")] - means[table.methods.index("penultimate")]
    names, chances = zip(*((task.name, task.chance) for task in table.tasks), strict=True)
    share = dict(zip(names, gains / (1 - np.array(chances)), strict=True))
    assert len(set(chances)) > 1
    assert answer.value == pytest.approx(100 * (share["digits"] - share["textile"]))


def test_the_interval_of_one_task_is_the_crossed_t_of_the_paired_outcomes(folder):
    (answer,) = asked(folder, claim(tasks="digits"))
    store = Store.open(folder)
    rows = {}
    for one in store.records():
        if one.spec.task == "digits" and one.label in ("mema", "penultimate"):
            rows[one.label, one.spec.seed] = store.outcomes(one), store.items(one).groups
    table = np.stack([rows["mema", s][0] - rows["penultimate", s][0] for s in range(6)])
    expected = crossed_t(compare(table.astype(float), np.array(rows["mema", 0][1])))
    low, high = (100 * float(end) for end in expected.interval(0.05))
    assert (answer.value, answer.low, answer.high) == pytest.approx(
        (100 * float(expected.value), low, high), abs=1e-10
    )
    assert answer.mde == pytest.approx(100 * float(expected.mde(0.05)))


def test_swapping_method_and_reference_negates_the_difference_and_keeps_its_width(folder):
    one, two = asked(
        folder, claim(), claim(id="two", method="penultimate", than="mema", relation="worse")
    )
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low))
    assert one.verdict is two.verdict is Verdict.HOLDS


def test_intervals_widen_with_every_claim_so_that_none_changes_when_other_methods_arrive(folder):
    (alone,) = asked(folder, claim())
    with_untested = asked(folder, claim(), claim(id="two", method="tgif"))[0]
    with_tested = asked(folder, claim(), claim(id="two", method="mmfuser"))[0]
    assert with_tested.high - with_tested.low == with_untested.high - with_untested.low
    assert alone.high - alone.low < with_tested.high - with_tested.low
    assert alone.mde < with_tested.mde


def test_with_fewer_than_four_seeds_nothing_is_decided_and_the_reason_says_so(tmp_path):
    few = study(tmp_path / "few", GAINS, seeds=3)
    (answer,) = asked(few, claim(by_at_least=60.0))
    assert answer.verdict is Verdict.UNDECIDED and "3 seeds" in answer.reason
    assert np.isfinite([answer.value, answer.low, answer.high, answer.mde]).all()
    single = study(tmp_path / "single", GAINS, seeds=1)
    (answer,) = asked(single, claim())
    assert "1 common seed" in answer.reason and answer.measured.estimate is None


def test_a_missing_cell_is_named_and_never_averaged_away(tmp_path):
    folder = study(tmp_path / "gap", GAINS)
    for file in (folder / "cells").glob("*.json"):
        one = Store.open(folder).find(file.stem)
        if one and (one.label, one.spec.task) == ("mema", "textile"):
            file.unlink()
    (answer,) = asked(folder, claim())
    assert answer.verdict is Verdict.UNDECIDED
    assert answer.reason == "2 of 3 tasks: mema on textile was not run"
    assert verdict(folder, tasks=["digits", "easy_vqa"]) is Verdict.HOLDS


def test_seeds_that_one_cell_lacks_are_left_out_everywhere_and_said(tmp_path):
    folder = study(tmp_path / "gap", GAINS, seeds=6)
    one = next(r for r in Store.open(folder).records()
               if (r.label, r.spec.task, r.spec.seed) == ("mema", "textile", 5))  # fmt: skip
    (folder / "cells" / f"{one.id}.json").unlink()
    (answer,) = asked(folder, claim())
    assert answer.measured.seeds == (0, 1, 2, 3, 4) and answer.measured.unpaired == (5,)
    assert "some cell lacks them: seeds 5" in page([answer], "results")


def test_a_failed_cell_gives_its_reason_and_a_leak_is_never_part_of_a_claim(tmp_path):
    folder = study(tmp_path / "failed", {"penultimate": 0.0})
    with Store.create(folder) as store:
        failed = record(spec("mema", "digits", 0), status="failed", reason="x\nit diverged")
        store.write_failure(failed)
    (answer,) = asked(folder, claim(tasks="digits"))
    assert answer.reason == "mema on digits failed: it diverged"
    study(folder, {"tgif-leaky": 0.2}, facts={"reads_answers": True})
    (answer,) = asked(folder, claim(method="tgif-leaky"))
    assert answer.reason == "tgif-leaky reads the answers in training"


def test_each_condition_of_a_folder_answers_for_itself(folder, tmp_path):
    both = study(tmp_path / "both", {"penultimate": 0.0, "mema": 0.12})
    study(both, {"penultimate": 0.0, "mema": -0.12}, weights="other", draw=1)
    found = asked(both, claim())
    assert [answer.verdict for answer in found] in (
        [Verdict.HOLDS, Verdict.FAILS], [Verdict.FAILS, Verdict.HOLDS],
    )  # fmt: skip


def test_two_versions_of_a_method_are_told_apart(tmp_path):
    folder = study(tmp_path / "two", {"penultimate": 0.0, "mema": 0.1})
    study(folder, {"mema": 0.1}, method_version=2)
    (answer,) = asked(folder, claim())
    assert "mema (version 1) and mema (version 2)" in answer.reason
    (answer,) = asked(folder, claim(method="mema (version 2)"))
    assert answer.verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claims: [", "is not YAML"),
        ("a list", "holds no claims"),
        ("claims: []", "holds no claims"),
        ("claim:\n" + claim(), "unknown key 'claim'; did you mean 'claims'?"),
        ("notes: x\nclaims:\n" + claim(), "unknown key 'notes'; did you mean 'note'?"),
        ("claims:\n" + claim(sentense="x"), "unknown key 'sentense'; did you mean 'sentence'?"),
        ("claims:\n  - id: one\n", "sentence is missing"),
        ("claims: [3]", "must hold keys, got 3"),
        ("claims:\n" + claim(relation="beter"), "no relation 'beter'; did you mean 'better'?"),
        ("claims:\n" + claim(within=1), "within does not go with better"),
        ("claims:\n" + claim(relation="equivalent", within=0), "within must be positive"),
        ("claims:\n" + claim(by_at_least=-1), "by_at_least must be positive"),
        ("claims:\n" + claim(by_at_least="much"), "by_at_least must be a number"),
        ("claims:\n" + claim(tasks=3), "tasks must name tasks, got 3"),
        ("claims:\n" + claim(method=3), "method must be text, got 3"),
        ("claims:\n" + claim(than="mema"), "mema is compared with itself"),
        ("claims:\n" + claim(more_than_on=["suite"]), "tasks and more_than_on are the same"),
        ("claims:\n" + claim() + claim(), "the id 'one' comes twice"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(text, said):
    with pytest.raises(UserError) as caught:
        parse_claims(text, "mine.yaml")
    assert said in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "memma"}, "claim one: no method 'memma'; did you mean 'mema'?"),
        ({"than": "penultimat"}, "no method 'penultimat'; did you mean 'penultimate'?"),
        ({"method": "mema[reductoin=2]"}, "'mema.reductoin'; did you mean 'mema.reduction'?"),
        ({"tasks": "digit"}, "claim one: no task or skill 'digit'; did you mean 'digits'?"),
        ({"tasks": "fien"}, "no task or skill 'fien'; did you mean 'fine'?"),
        ({"more_than_on": "scene_*"}, "no task or skill 'scene_*'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(folder, changes, said):
    with pytest.raises(UserError) as caught:
        asked(folder, claim(**changes))
    assert said in caught.value.message and caught.value.hint


def test_a_known_method_that_was_not_run_is_undecided_and_no_mistake(folder):
    (answer,) = asked(folder, claim(method="mema[reduction=2]"))
    assert answer.reason == "mema[reduction=2] was not run"
    (answer,) = asked(folder, claim(tasks="digits", than="scalar_mix"))
    assert answer.reason == "scalar_mix was not run"
    (answer,) = asked(folder, claim(tasks="scenes_text"))
    assert answer.reason == "none of its tasks was run: scenes_text"


def test_the_command_fails_on_a_failed_claim_and_only_then(folder, tmp_path):
    file = tmp_path / "claims.yaml"
    for relation, code in (("better", 0), ("worse", 1)):
        file.write_text("claims:\n" + claim(relation=relation))
        out, stream = tmp_path / f"{relation}.csv", io.StringIO()
        assert check(folder, str(file), out=out, plugins=[], stream=stream) == code
        (row,) = csv.DictReader(out.read_text().splitlines())
        assert row["verdict"] == ("fails" if code else "holds")
        assert float(row["low"]) < float(row["difference"]) < float(row["high"])
        assert '"A sentence."' in stream.getvalue()


@pytest.mark.thorough
def test_the_command_needs_no_torch(folder, tmp_path):
    file = tmp_path / "claims.yaml"
    file.write_text("claims:\n" + claim(relation="worse"))
    code = (
        "import sys\nfrom fusionbench.cli.main import main\n"
        f"sys.argv = ['fusionbench', 'check-claims', {str(folder)!r}, {str(file)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    sys.exit(7 if 'torch' in sys.modules else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1, done.stderr.decode()


def test_the_shipped_claims_name_what_exists_and_where_they_were_read():
    claims = load_claims(PUBLISHED)
    papers = ("arXiv:2405.13800", "arXiv:2503.06063", "arXiv:2410.11829", "arXiv:2603.00655")
    assert all(any(one.source.startswith(paper) for one in claims) for paper in papers)
    assert all(one.evidence for one in claims) and len(claims) >= 20
    assert all(one.reported for one in claims if one.evidence == "first-hand")
    for one in claims:
        # As the tables spell them: a setting that is the default would never be found there.
        assert checked(one, CATALOG, []) == one
        for name in (one.method, one.than):
            assert select_methods(CATALOG, [name])[0].label == name


def test_the_table_for_programs_has_all_claims_also_without_a_number(folder):
    rows = long_rows(answers(load_claims(PUBLISHED), Results.open(folder), CATALOG))
    assert len(rows) == len(load_claims(PUBLISHED))
    empty = [row for row in rows if not row["difference"]]
    assert empty and all(row["reason"] and row["verdict"] == "undecided" for row in empty)


# The answer names planted truths, names no winner where there is none, and says nothing else.

TASKS = ("digits", "textile", "scenes")
NAMES = ("penultimate", "repeat", "better", "other")


def answer_study(folder, rng, shares, *, seeds=6, contrasts=None, **facts):
    """A folder whose methods are right with these shares in the long run, on every task."""
    tables = {task: correlated(rng, shares, seeds=seeds, items=150) for task in TASKS}
    suite = {name: {task: tables[task][name] for task in TASKS} for name in shares}
    planned = [{"method": name} for name in shares if name not in CONTROLS]
    return write_suite(
        folder, suite, study={"contrasts": planned if contrasts is None else contrasts}, **facts
    )


def sentences(folder):
    return [row["sentence"] for row in rows(folder, folder / "out", table="answer")]


def many(short, long):
    return pytest.mark.parametrize(
        "reps", [short, pytest.param(long, marks=pytest.mark.slow)], ids=["few", "many"]
    )


def test_the_terminal_shows_this_run_and_counts_the_other_cells_of_its_folder(
    tmp_path, without_figures
):
    rng = np.random.default_rng(5)
    folder = answer_study(tmp_path / "r", rng, {"penultimate": 0.5, "better": 0.8, "other": 0.5})
    store = Store.open(folder)
    records = list(store.records())
    mine = {one.id for one in records if one.spec.task == "digits" and one.label != "other"}
    run = SimpleNamespace(study=SimpleNamespace(baseline="penultimate"), methods=(), unavailable=())
    result = SweepResult(finished=len(mine))

    def shown(cells):
        stream = io.StringIO()
        summary.write(folder, run, result, stream, cells=cells)
        return stream.getvalue()

    said = shown(mine)
    assert "| better" in said and "other" not in said.split("more cells")[0].split("###")[1]
    assert "suite (1 task)" in said and "suite (3 tasks)" not in said
    others = len(records) - len(mine)
    assert f"{others} more cells of other runs are in the folder's report" in said
    # A run that is all of its folder shows the report's own tables.
    whole = shown({one.id for one in records})
    assert "more cells" not in whole and "suite (3 tasks)" in whole
    assert (folder / "report" / "tables" / "answer.md").read_text().replace("`", "") in whole


def test_planned_methods_without_a_verdict_are_counted_apart():
    from fusionbench.report.answer import _judged

    rows = [SimpleNamespace(question=SimpleNamespace(silent=why)) for why in ("", "x", "y", "")]
    assert _judged(rows[:3]) == ["1 planned method", "2 more have no verdict yet"]
    assert _judged(rows[2:]) == ["1 planned method", "1 more has no verdict yet"]
    assert _judged(rows[:1] * 3) == ["3 planned methods"]


@pytest.mark.thorough
@many(3, 40)
def test_a_planted_winner_is_named_and_nobody_else(reps, tmp_path, record_property):
    rng, right = np.random.default_rng(5), 0
    for rep in range(reps):
        shares = dict.fromkeys(NAMES, 0.6) | {"better": 0.72}
        first = sentences(answer_study(tmp_path / str(rep), rng, shares))[0]
        right += "better (+" in first and "other" not in first and "1 of 2 planned" in first
    record_property("named", right / reps)
    assert right >= 0.95 * reps


@pytest.mark.thorough
@many(3, 40)
def test_a_study_without_a_winner_names_none(reps, tmp_path, record_property):
    rng, right = np.random.default_rng(6), 0
    for rep in range(reps):
        said = sentences(answer_study(tmp_path / str(rep), rng, dict.fromkeys(NAMES, 0.6)))
        none = "none of 2 planned methods is shown to be better than penultimate" in said[0]
        right += none and not any(line.startswith(("Worse", "Added")) for line in said)
    record_property("silent", right / reps)
    assert right >= 0.95 * reps


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Sentences of a study with a winner, a loser, a clone and a contrast of its own."""
    shares = {"penultimate": 0.6, "repeat": 0.6, "good": 0.75, "bad": 0.45, "clone": 0.6}
    shares |= {"layer[index=2]": 0.7, "random_layers": 0.65}
    contrasts = [
        {"method": "good"}, {"method": "bad"}, {"method": "clone"}, {"method": "mema"},
        {"method": "good", "baseline": "bad", "control": "bad"},
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("said") / "r"

    def size(method):
        return {"fusion": 50 if method == "good" else 10, "projector": 20, "reader": 30}

    answer_study(folder, np.random.default_rng(1), shares, contrasts=contrasts, parameters=size)
    return folder, sentences(folder)


def one(lines, start):
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_each_sentence_follows_its_verdict(said):
    folder, lines = said
    table = read(folder / "out", "answer")
    assert [int(row["number"]) for row in table] == list(range(1, len(lines) + 1))
    contrasts = rows(folder, folder / "c")
    verdict = {
        (row["method"], row["baseline"]): row["verdict"]
        for row in contrasts
        if row["kind"] == "planned"
    }
    assert verdict["good", "penultimate"] == "better" and verdict["bad", "penultimate"] == "worse"
    assert lines[0].startswith("On the 3 tasks of the suite good (+")
    assert "(1 of 3 planned methods; 1 more has no verdict yet)" in lines[0]
    assert "bad" not in lines[0] and "less than the margin" not in lines[0]
    assert one(lines, "Worse than penultimate: ").startswith("Worse than penultimate: bad (-")
    assert "good is better than bad (+" in one(lines, "Other planned comparisons: ")
    assert "good 40 parameters, time not measured" in one(lines, "Added to the whole model")
    undecided = [line for line in lines if line.startswith("Undecided")]
    assert bool(undecided) == (verdict["clone", "penultimate"] == "undecided")
    assert all("clone against penultimate (" in line for line in undecided)
    assert all("; from its control repeat " in line for line in undecided)
    certain = one(lines, "How sure: ")
    assert "5 planned contrasts of 6 runs and 450 test examples" in certain
    # What a run of one point takes is said of the undecided contrast only.
    assert all("any of them" in line or "takes" in line for line in undecided)


def test_what_one_layer_gives_is_a_mean_and_says_so(said):
    line = one(said[1], "Of the methods that read one layer, ")
    assert "layer[index=2] has the highest mean" in line and line.endswith("(means, no test).")
    # `good` alone is above it; `repeat` is a control.
    assert "1 of 4 others, controls aside, has a higher mean" in line
    best = next(
        row for row in rows(said[0], said[0] / "s", table="summary")
        if row["method"] == "layer[index=2]" and row["aggregate"] == "suite"
    )  # fmt: skip
    assert f"{100 * float(best['score']):.1f} % of the way" in line


def test_what_reads_one_layer_in_another_way_or_lacks_runs_is_no_method_that_fuses(tmp_path):
    shares = {"penultimate": 0.5, "good": 0.7, "penultimate-decoder": 0.9, "adapter": 0.8}

    def taps(method):
        return ((2,), (7,)) if method == "good" else ((7,),)

    def inside(method):
        return method == "adapter"

    folder = answer_study(
        tmp_path / "r", np.random.default_rng(3), shares, taps=taps, in_encoder=inside
    )
    with Store.create(folder) as store:
        for task in TASKS:
            put_task(store, "few", task, np.ones((2, 150)), taps=((2,), (7,)))
    line = one(sentences(folder), "Of the methods that read one layer, ")
    said = "2 of 2 others, controls aside (1 with fewer runs left out), have a higher mean"
    assert said in line


def test_the_best_control_is_named_with_the_methods_above_it(tmp_path):
    # No record names `tuned` as its control: its own card says that it is one.
    shares = {"penultimate": 0.5, "repeat": 0.5, "good": 0.9, "weak": 0.6}

    def control(method):
        return "none: it is a control itself" if method in ("repeat", "tuned") else "repeat"

    folder = answer_study(tmp_path / "r", np.random.default_rng(3), shares, control=control)
    with Store.create(folder) as store:
        for task in TASKS:
            scores = (np.arange(600).reshape(4, 150) % 10 < 8).astype(float)
            put_task(store, "tuned", task, scores, control=control("tuned"))
    line = one(sentences(folder), "Of 2 controls tuned has the highest mean, 73.3 % of the way ")
    assert "from penultimate, exploratory, 4 of 6 runs)" in line
    assert line.endswith("; 1 of 2 other methods has a higher mean (means, no test).")
    table = rows(folder, folder / "s", table="summary")
    assert {row["role"] for row in table if row["method"] == "tuned"} == {"control"}


def test_a_contrast_with_another_baseline_says_what_the_first_baseline_gives(tmp_path):
    shares = {"penultimate": 0.8, "repeat": 0.8, "weak": 0.4, "inside": 0.8, "good": 0.95}
    contrasts = [
        {"method": "inside", "baseline": "weak", "control": "weak"},
        {"method": "good"}, {"method": "good", "baseline": "weak", "control": "weak"},
    ]  # fmt: skip
    folder = answer_study(
        tmp_path / "r", np.random.default_rng(4), shares, contrasts=contrasts, seeds=6
    )
    others = one(sentences(folder), "Other planned comparisons: ")
    (first, second) = others.split("; good is better than weak ")
    assert re.search(r"inside is better than weak \(\+\S+ \[.*\]; against penultimate [+-]", first)
    assert first.endswith("], exploratory)") and "penultimate" not in second


def test_runs_that_differ_between_planned_methods_are_a_range(tmp_path):
    shares = {"penultimate": 0.5, "repeat": 0.5, "good": 0.8}
    planned = [{"method": "good"}, {"method": "few"}]
    folder = answer_study(tmp_path / "r", np.random.default_rng(3), shares, contrasts=planned)
    with Store.create(folder) as store:
        for task in TASKS:
            put_task(store, "few", task, np.ones((4, 150)))
    lines = sentences(folder)
    assert "of 4 to 6 runs and" in one(lines, "How sure: ")
    leading = one(lines, "On the 3 tasks of the suite few (+")
    assert "], 4 of 6 runs) and good (+" in leading and leading.count(" of 6 runs") == 1


def test_layers_drawn_at_random_are_named_with_the_planned_methods_below_them(said):
    line = one(said[1], "random_layers, a join of layers drawn at random, ")
    assert "2 of 3 planned methods have a lower mean" in line and "penultimate by +" in line


def test_the_layers_of_one_draw_are_named():
    def analysis(*taps):
        row = [SimpleNamespace(status="done", taps=one) for one in taps]
        table = SimpleNamespace(methods=("other", "random_layers"), row=lambda at: row[at - 1 :])
        return SimpleNamespace(table=table)

    one = ((1,), (3,), (9,))
    assert _drawn(analysis(one, one)) == " (one draw for all runs: hs[1], hs[3], hs[9])"
    assert _drawn(analysis(one, ((2,),))) == _drawn(analysis((), ())) == ""


def test_a_gain_below_the_margin_and_what_holds_on_new_tasks_are_said(said):
    report = collect(Store.open(said[0]))
    (analysis,) = report.analyses
    (winner,) = leaders(analysis)
    assert "less than the margin" not in _named([winner], 6, 0.01)
    assert _named([winner], 6, 0.9).endswith("], less than the margin)")
    planned = [row for row in analysis.of("planned") if row.answer.p is not None]
    assert _on_new_tasks(planned) == ""
    known = [
        replace(row, new_tasks=NewTasks(p_adjusted=p))
        for row, p in zip(planned[:2], (0.2, 0.9), strict=True)
    ]
    assert "none of 2 planned contrasts is significant." in _on_new_tasks(known)
    known[0] = replace(known[0], new_tasks=NewTasks(p_adjusted=0.01))
    assert "1 of 2 planned contrasts is significant (`good` against `" in _on_new_tasks(known)


def test_an_undecided_method_below_its_control_is_named(said):
    report = collect(Store.open(said[0]))
    (analysis,) = report.analyses
    (row,) = [r for r in analysis.of("planned") if r.scope.level == "suite" and
              r.contrast.method == "clone" and r.contrast.baseline == "penultimate"]  # fmt: skip
    low, high = row.measured, row.to_control
    assert high is not None and high.estimate is not None and not _below_control(row)
    shifted = replace(high.estimate, value=high.estimate.value - 0.5)
    beaten = replace(row, question=replace(
        row.question, references=(low, replace(high, estimate=shifted))
    ), answer=replace(row.answer, verdict="undecided"))  # fmt: skip
    assert _below_control(beaten)
    others = [one for one in analysis.rows if one is not row]
    lines = list(_certainty(replace(analysis, rows=(beaten, *others)), ()))
    assert "Undecided, but below the matched control" in lines[1]
    assert "`clone`; from its control `repeat` -" in lines[1]
    # A control that is the baseline itself is no second comparison.
    same = replace(beaten, contrast=replace(row.contrast, control="penultimate"))
    assert not _below_control(same)


def test_the_best_is_named_with_those_that_cannot_be_told_apart(said):
    line = said[1][-1]
    assert "good has the highest mean" in line


@pytest.mark.thorough
def test_page_markdown_and_terminal_say_the_same(said, tmp_path):
    folder, lines = said
    with quick_disk():
        write_report(folder, tmp_path, ReportOptions(formats=("md", "html", "csv")))
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    answer = section(tmp_path, "answer")
    assert text.index("## Answer") < text.index("## Leaderboard")
    box = page.split('<section id="answer"')[1].split("</section>")[0]
    for line in lines:
        assert f"- {line}" in answer.replace("`", "")
        assert line in html.unescape(re.sub(r"<[^>]+>", "", box))
    assert answer in text


def test_the_leaderboard_is_sorted_and_marks_baseline_and_controls(said):
    folder, _ = said
    report = collect(Store.open(folder))
    (analysis,) = report.analyses
    table = [row for row in rows(folder, folder / "b", table="summary")
             if row["aggregate"] == "suite"]  # fmt: skip
    scores = [float(row["score"]) for row in table]
    assert scores == sorted(scores, reverse=True) and table[0]["method"] == "good"
    roles = {row["method"]: row["role"] for row in table}
    assert roles["penultimate"] == "baseline" and roles["repeat"] == "control"
    assert roles["good"] == "" and len(roles) == len(analysis.labels)
    good = table[0]
    assert good["added"] == "40" and good["verdict"] == "better"


def test_with_few_runs_nobody_wins(tmp_path):
    shares = dict.fromkeys(NAMES, 0.6) | {"better": 0.9}
    lines = sentences(answer_study(tmp_path / "r", np.random.default_rng(2), shares, seeds=3))
    assert lines[0] == (
        "No method is shown to be better than penultimate on the 3 tasks of the suite: a test "
        "needs 4 runs of each method."
    )
    assert not any("better (+" in line for line in lines)


def test_without_the_baseline_nothing_is_compared(tmp_path):
    shares = {"better": 0.9, "other": 0.5}
    lines = sentences(answer_study(tmp_path / "r", np.random.default_rng(2), shares))
    assert lines[0].startswith("The baseline penultimate was not run")


def test_the_terminal_shows_the_first_ten_and_the_users_own():
    head = ["### nano", "", "| method | suite |", "|---|---|"]
    body = [f"| m{i} | {i} |" for i in range(20)] + ["| penultimate (baseline) | 3 |"]
    text = [*head, *body, "", "a note"]
    shown = list(shortened(text, {"penultimate", "m17"}))
    assert shown[: 4 + SHOWN] == text[: 4 + SHOWN]
    assert shown[4 + SHOWN :] == [
        "| m17 | 17 |", "| penultimate (baseline) | 3 |", "9 more: --full", "", "a note",
    ]  # fmt: skip
    assert list(shortened(text, None)) == text
