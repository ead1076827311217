"""Records -> arrays: missing is NaN, planted is apart, and nothing different shares a cell."""

from dataclasses import replace

import numpy as np
import pytest
from toy_records import outcomes, record, spec

from fusionbench.records.scores import score_tables
from fusionbench.report.tables import Summary, across, cell, over_seeds, suite_mean


def done(method="mema", task="digits", seed=0, share=0.5, **facts):
    changes = {k: facts.pop(k) for k in list(facts) if k in spec().__dict__}
    scores = outcomes(share, seed)
    hashed = f"{share}-{seed}"
    return record(spec(method, task, seed, **changes), scores, outcomes=hashed, **facts)


def test_a_table_holds_each_score_at_its_place_and_nan_where_a_run_is_missing():
    (table,) = score_tables(
        [done(seed=1, share=0.75), done("last", share=0.25), done(task="textile", share=0.5)]
    )
    assert table.methods == ("last", "mema")
    assert [task.name for task in table.tasks] == ["digits", "textile"]
    assert table.seeds == (0, 1)
    expected = [[[0.25, np.nan], [np.nan, np.nan]], [[np.nan, 0.75], [0.5, np.nan]]]
    np.testing.assert_array_equal(table.values, expected)


def test_the_order_of_the_records_changes_nothing():
    records = [done(m, t, s, share=0.5) for m in "ba" for t in "dc" for s in (1, 0)]
    first, second = score_tables(records)[0], score_tables(records[::-1])[0]
    assert (first.methods, first.tasks, first.seeds) == (second.methods, second.tasks, second.seeds)
    np.testing.assert_array_equal(first.values, second.values)


def test_tuning_runs_are_no_scores():
    assert not score_tables([done(stage="tune", seed=1000)])


@pytest.mark.parametrize(
    ("change", "marks"),
    [
        ({"method_version": 2}, ("mema (version 1)", "mema (version 2)")),
        ({"settings": {"reduction": 8}}, ("mema (version 1, settings ",) * 2),
    ],
)
def test_two_kinds_of_one_method_are_two_marked_rows(change, marks):
    (table,) = score_tables([done(share=0.25), done(share=0.75, **change)])
    assert len(table.methods) == 2
    assert all(name.startswith(mark) for name, mark in zip(table.methods, marks, strict=True))
    assert sorted(table.values.ravel()) == [0.25, 0.75]


def test_two_versions_of_one_task_are_two_marked_columns():
    (table,) = score_tables([done(), done(task_version=2), done("last")])
    assert [task.name for task in table.tasks] == ["digits (version 1)", "digits (version 2)"]
    (table,) = score_tables([done(), done(data="e" * 32)])
    assert {task.name for task in table.tasks} == {
        "digits (version 1, data dddddd)", "digits (version 1, data eeeeee)"
    }  # fmt: skip


def test_other_budgets_encoders_and_weights_are_other_tables():
    budget = replace(spec().budget, steps=61)
    records = [done(), done(budget=budget), done(encoder="other"), done(weights="v")]
    tables = score_tables(records)
    assert len(tables) == 4
    assert all(table.values.shape == (1, 1, 1) for table in tables)


def test_a_failed_or_skipped_cell_has_a_place_and_a_word_and_no_score():
    (table,) = score_tables(
        [
            done(),
            record(spec("last"), status="failed", reason="boom"),
            record(spec("concat"), status="skipped", reason="needs a grid"),
            done(task="textile"),
        ]
    )
    words = {name: cell(table, row, 0).text for row, name in enumerate(table.methods)}
    assert words == {"concat": "skipped", "last": "failed", "mema": "50.0 (1 run)"}
    assert cell(table, 0, 1).text == "not run"


def test_a_finished_cell_wins_over_its_earlier_failure():
    both = [done(), record(spec(), status="failed")]
    for records in (both, both[::-1]):
        (table,) = score_tables(records)
        assert cell(table, 0, 0).runs == 1


def test_a_mean_over_tasks_stands_only_where_all_of_them_ran():
    (table,) = score_tables(
        [
            done("a", "x", share=0.2), done("a", "y", share=0.4), done("b", "x", share=0.9),
            done("a", "planted", share=1.0, in_suite=False),
            done("b", "planted", share=1.0, in_suite=False),
        ]
    )  # fmt: skip
    assert across(table, 0, table.suite).mean == pytest.approx(0.3)
    assert across(table, 1, table.suite).text == "1 of 2 tasks"
    assert [task.name for task in table.pick(table.suite).tasks] == ["x", "y"]
    assert [task.name for task in table.pick(~table.suite).tasks] == ["planted"]


def test_a_mean_over_tasks_is_that_of_the_runs_which_all_of_them_have():
    (table,) = score_tables(
        [
            *(done("a", task, share=0.2, seed=seed) for task in "xy" for seed in range(4)),
            *(done("b", "x", share=0.4, seed=seed) for seed in range(4)),
            *(done("b", "y", share=0.6, seed=seed) for seed in range(1, 3)),
            done("c", "x", share=0.4, seed=0), done("c", "y", share=0.6, seed=1),
        ]
    )  # fmt: skip
    found = [across(table, row, table.suite) for row in range(3)]
    assert [(one.runs, one.seeds) for one in found] == [(4, 4), (2, 4), (0, 4)]
    assert found[1].mean == pytest.approx(0.5) and found[1].columns["n_seeds"] == 2
    assert found[2].text == "no run of all tasks"
    assert suite_mean(table, 1).runs == 2


def test_a_task_enters_the_suite_only_if_its_records_say_so():
    (table,) = score_tables([replace(done(), in_suite=False)])
    assert not table.suite.any()


def test_methods_that_score_alike_on_every_example_are_twins_of_the_shortest_name():
    records = [done(m, t, s) for m in ("ab", "a", "c") for t in ("x", "y") for s in (0, 1)]
    (table,) = score_tables(records)
    assert {table.methods[r]: table.methods[o] for r, o in table.identical.items()} == {
        "ab": "a", "c": "a"
    }  # fmt: skip
    records[0] = replace(records[0], outcomes="other")
    (table,) = score_tables(records)
    assert {table.methods[r] for r in table.identical} == {"c"}
    (table,) = score_tables([replace(one, outcomes="") for one in records])
    assert not table.identical


def test_an_interval_over_seeds_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    summaries = [over_seeds(rng.normal(0.5, 0.1, size=3)) for _ in range(4000)]
    covered = np.mean([one.low <= 0.5 <= one.high for one in summaries])
    # Four standard errors of a share of 4,000.
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_one_run_has_no_interval_and_none_has_no_number():
    one = over_seeds(np.array([0.912]))
    assert one.text == "91.2 (1 run)" and np.isnan(one.low) and np.isnan(one.high)
    assert over_seeds(np.array([np.nan, np.nan])).text == "not run"
    assert over_seeds(np.array([0.5, np.nan, 0.5])).text == "50.0 ± 0.0 (2 of 3 runs)"
    assert over_seeds(np.array([0.5, np.nan])).text == "50.0 (1 of 2 runs)"
    assert Summary().text == "not run"
