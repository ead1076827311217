"""The judge: corrections, verdicts, and the same answers for the same questions."""

import numpy as np
import pytest

from fusionbench.stats.crossed import (
    compare,
    crossed_t,
    sign_patterns,
    smallest_p,
    step_down_max_t,
    t_over_seeds,
)
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.ranks import (
    average_ranks,
    critical_difference,
    outlying_seeds,
    performance_profile,
    rank_intervals,
    rank_table,
)
from fusionbench.stats.suite import sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.tied import (
    shared_run_suite_pairs,
    suite_pairs,
    task_pairs,
    tied_set,
)
from fusionbench.stats.verdicts import (
    Correction,
    Decision,
    Question,
    Verdict,
    all_differ,
    benjamini_hochberg,
    holm,
    judge,
    judge_groups,
)


def row(values, se=0.01):
    values = np.asarray(values, dtype=float)
    return Estimate(
        value=values,
        variance=np.full(values.shape, se**2),
        nu=np.full(values.shape, 50.0),
        replicates=10,
    )


def asked(*references, margin=0.04, **more):
    """One planned question for each row of the references' tables."""
    return [
        Question(references=tuple(table[i] for table in references), margin=margin, **more)
        for i in range(len(references[0].value))
    ]


def planned(*references, margin=0.04):
    return judge(asked(*references, margin=margin), Correction.HOLM)


def verdicts(answers):
    return tuple(answer.verdict for answer in answers)


def test_adjusted_p_values_keep_the_given_order_and_stay_below_one():
    p = np.array([0.9, 0.01, 0.04, 0.01])
    assert holm(p).tolist() == pytest.approx([0.9, 0.04, 0.08, 0.04])
    assert benjamini_hochberg(p).max() <= 1
    assert holm(np.array([])).size == 0


def test_impossible_p_values_are_refused():
    for bad in ([0.1, np.nan], [0.1, 1.2], [-0.1]):
        for correct in (holm, benjamini_hochberg):
            with pytest.raises(ValueError, match="p-values"):
                correct(np.array(bad))


def test_two_references_need_the_larger_p_and_the_same_direction():
    p = np.array([0.01, 0.03, 0.01, 0.02, 0.2, 0.01])
    values = np.array([1.0, 2.0, 1.0, -1.0, -1.0, -1.0])
    assert all_differ(p, values, np.array([0, 2, 4])).tolist() == [0.03, 1.0, 0.2]


def test_the_four_verdicts():
    assert verdicts(planned(row([0.08, -0.08, 0.0, 0.020]))) == (
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.EQUIVALENT,
        Verdict.UNDECIDED,
    )
    assert str(Verdict.UNDECIDED) == "undecided"


def test_a_real_but_tiny_difference_is_called_so():
    found = verdicts(planned(row([0.010, -0.010], se=0.002)))
    assert found == (Verdict.SLIGHTLY_BETTER, Verdict.SLIGHTLY_WORSE)


def test_better_needs_both_the_baseline_and_the_control_beaten():
    baseline, control = row([0.08, 0.08, 0.08]), row([0.08, 0.0, -0.08])
    found = verdicts(planned(baseline, control))
    assert found == (Verdict.BETTER, Verdict.UNDECIDED, Verdict.UNDECIDED)
    assert verdicts(planned(row([0.0]), row([0.08]))) == (Verdict.UNDECIDED,)


def test_the_detectable_effect_is_at_the_first_holm_step_and_alone_beside_it():
    table = row([0.0, 0.01, 0.02])
    answers = planned(table)
    assert [one.mde for one in answers] == table.mde(0.05 / 3).tolist()
    assert [one.mde_alone for one in answers] == table.mde().tolist()
    noisier = planned(table, row([0.0, 0.0, 0.0], se=0.02))
    assert all(two.mde > one.mde for one, two in zip(answers, noisier, strict=True))


def test_swapping_the_sides_turns_better_into_worse_and_keeps_every_p():
    values = np.array([0.08, 0.002, -0.03])
    there, back = planned(row(values)), planned(row(-values))
    swapped = {"better": "worse", "worse": "better"}
    for one, two in zip(there, back, strict=True):
        assert one.p_adjusted == two.p_adjusted
        assert one.p_equivalent_adjusted == two.p_equivalent_adjusted
        assert swapped.get(one.verdict, one.verdict) == two.verdict


def test_one_more_contrast_changes_adjusted_p_values_only():
    few, more = planned(row([0.03, 0.01])), planned(row([0.03, 0.01, 0.0]))
    for one, two in zip(few, more[:2], strict=True):
        assert (one.p, one.mde_alone) == (two.p, two.mde_alone)
        assert two.p_adjusted >= one.p_adjusted


def test_a_question_without_an_answer_stays_in_its_group():
    alone, beside = planned(row([0.03])), judge([*asked(row([0.03])), Question()], Correction.HOLM)
    assert beside[1] == Decision()
    assert beside[0].p_adjusted == 2 * alone[0].p_adjusted
    (larger,) = judge(asked(row([0.03])), Correction.HOLM, tests=2)
    assert larger == beside[0]


def test_an_interim_result_makes_no_other_p_value_smaller():
    first, second = asked(row([0.2])), asked(row([0.024]))
    # Alone 0.020, and 0.040 as the smaller of two: significant only once the first is rejected.
    both = judge([*first, *second], Correction.HOLM)
    interim = judge([*asked(row([0.2]), partial=True), *second], Correction.HOLM)
    assert interim[1].p_adjusted == pytest.approx(2 * both[1].p_adjusted)
    assert interim[0] == both[0] and interim[0].verdict == Verdict.BETTER
    # It is counted, as a question without an answer is.
    absent = judge([Question(), *second], Correction.HOLM)
    assert interim[1] == absent[1]
    same = judge([*asked(row([0.0]), partial=True), *asked(row([0.02]))], Correction.HOLM)
    alone = judge([*asked(row([0.0])), *asked(row([0.02]))], Correction.HOLM)
    assert same[1].p_equivalent_adjusted == pytest.approx(2 * alone[1].p_equivalent_adjusted)


def test_three_seeds_get_an_interval_and_no_verdict():
    few = Estimate(value=np.zeros(2), variance=np.ones(2), nu=np.full(2, 2.0), replicates=3)
    for answer in planned(few):
        assert answer.p is None and answer.verdict == "" and answer.low < 0 < answer.high


def test_without_a_margin_only_the_direction_is_decided():
    questions = asked(row([0.08, -0.08, 0.0]), margin=None)
    answers = judge(questions, Correction.BENJAMINI_HOCHBERG)
    assert verdicts(answers) == (Verdict.HIGHER, Verdict.LOWER, Verdict.OPEN)
    assert all(one.p_equivalent is None and one.mde == one.mde_alone for one in answers)


def test_a_claim_is_decided_by_its_simultaneous_interval():
    table, inf = row([0.08, 0.08, 0.0]), float("inf")
    ranges = [(0.0, inf), (-inf, 0.0), (-0.01, 0.01)]
    questions = [Question(references=(table[i],), claimed=one) for i, one in enumerate(ranges)]
    answers = judge(questions, Correction.BONFERRONI)
    assert verdicts(answers) == (Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED)
    low, high = table.interval(0.05 / 3)
    assert [(one.low, one.high) for one in answers] == list(zip(low, high, strict=True))


def test_an_interval_that_touches_the_end_of_a_claim_decides_nothing():
    table = row([0.08])
    low, high = (float(end[0]) for end in table.interval(0.05))
    ends = [(low, 1.0), (-1.0, high), (-1.0, low), (high, 1.0)]
    for claimed in ends:
        (answer,) = judge(
            [Question(references=(table[0],), claimed=claimed)], Correction.BONFERRONI
        )
        assert (answer.low, answer.high) == (low, high)
        assert answer.verdict == Verdict.UNDECIDED


def test_groups_are_judged_apart():
    questions = asked(row([0.03, 0.02, 0.01]), margin=None)
    found = judge_groups(questions, ["main", "two-way", "main"], Correction.HOLM)
    main = judge([questions[0], questions[2]], Correction.HOLM)
    assert [found[0], found[2]] == main
    assert found[1] == judge(questions[1:2], Correction.HOLM)[0]


# Ranks describe; they decide nothing.


def some_tasks(methods=4, tasks=3):
    rng = np.random.default_rng(0)
    level = np.linspace(0.85, 0.55, methods)[:, None, None]
    return [
        TaskScores(
            values=(rng.random((methods, 5, 80)) < level).astype(float),
            groups=np.arange(80) // 2,
        )
        for _ in range(tasks)
    ]


def test_rank_one_is_the_best_and_ties_share():
    scores = np.array([[0.9, 0.9], [0.8, 0.9], [0.1, 0.2]])
    assert average_ranks(scores).tolist() == [1.25, 1.75, 3.0]


def test_the_critical_difference_eats_up_the_range_of_many_methods():
    assert critical_difference(10, 14) == pytest.approx(3.6, abs=0.05)
    assert critical_difference(45, 14) == pytest.approx(19.6, abs=0.05)
    assert rank_table(np.random.default_rng(1).random((10, 6))).critical_share == pytest.approx(
        0.61, abs=0.01
    )


def test_more_than_ten_representatives_are_refused():
    with pytest.raises(ValueError, match="at most 10 methods"):
        rank_table(np.zeros((11, 5)))


def test_equal_methods_have_equal_ranks_and_no_evidence():
    table = rank_table(np.full((4, 6), 0.5))
    assert table.average.tolist() == [2.5] * 4
    assert (table.statistic, table.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("scope", ["task", "suite"])
def test_a_rank_interval_depends_on_its_generator_and_on_nothing_else(scope):
    tasks = some_tasks()
    first = rank_intervals(tasks, scope, rng=np.random.default_rng(3), resamples=200)
    np.random.seed(0)  # noqa: NPY002
    again = rank_intervals(tasks, scope, rng=np.random.default_rng(3), resamples=200)
    assert np.array_equal(first, again)
    assert not np.array_equal(
        first, rank_intervals(tasks, scope, rng=np.random.default_rng(4), resamples=200)
    )


def test_rank_intervals_hold_the_average_rank_of_methods_far_apart():
    tasks = some_tasks()
    means = np.stack([task.values.mean(axis=(1, 2)) for task in tasks], axis=1)
    low, high = rank_intervals(tasks, "task", rng=np.random.default_rng(5), resamples=300)
    ranks = average_ranks(means)
    assert ((low <= ranks) & (ranks <= high)).all()
    assert ((low >= 1) & (high <= 4)).all()


def test_identical_methods_share_their_rank_in_every_resample():
    values = np.tile((np.random.default_rng(6).random((1, 5, 40)) < 0.7).astype(float), (3, 1, 1))
    task = TaskScores(values=values, groups=np.arange(40))
    low, high = rank_intervals([task], "task", rng=np.random.default_rng(7), resamples=100)
    assert low.tolist() == high.tolist() == [2.0, 2.0, 2.0]


# Pictures of many scores: no p-value comes from here.


def test_a_profile_falls_from_all_to_none():
    scores = np.array([[0.2, 0.4], [0.6, 0.8]])
    profile = performance_profile(scores, np.array([0.0, 0.4, 0.5, 0.8, 1.0]))
    assert profile.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0]


def test_a_collapsed_run_is_flagged_and_one_answer_is_not():
    scores = np.array([0.80, 0.81, 0.79, 0.80, 0.20])
    assert outlying_seeds(scores).tolist() == [False] * 4 + [True]
    nearly_equal = np.array([0.98, 0.98, 0.98, 0.98, 0.985])
    assert outlying_seeds(nearly_equal, step=1 / 200).any() is np.False_


def test_nan_is_refused_everywhere():
    bad = np.array([[0.1, np.nan]])
    for describe in (outlying_seeds, lambda x: performance_profile(x, np.array([0.5]))):
        with pytest.raises(ValueError, match="NaN"):
            describe(bad)


# The second column: sign flips, their smallest p, and families that flip together.


def test_five_seeds_can_never_reach_five_percent_and_six_can_in_any_family():
    assert smallest_p(5) == 2 / 32
    assert smallest_p(5) > 0.05 > smallest_p(6)
    clear = np.tile(np.linspace(0.9, 1.1, 6), (44, 1))
    assert step_down_max_t(clear).p_value == pytest.approx(np.full(44, 2 / 64))
    alone = step_down_max_t(np.ones((1, 5)))
    assert float(alone.p_value[0]) == alone.smallest_p


def test_up_to_twelve_seeds_all_patterns_are_listed():
    assert len(np.unique(sign_patterns(12), axis=0)) == 2**11
    assert smallest_p(12) == 2 / 2**12
    assert len(sign_patterns(13)) == 10_001
    assert smallest_p(13) == 1 / 10_001


def test_listed_patterns_are_all_distinct_and_drawn_ones_begin_with_the_data():
    assert len(np.unique(sign_patterns(8), axis=0)) == 2**7
    drawn = sign_patterns(15)
    assert (drawn[0] == 1).all()
    assert np.array_equal(drawn, sign_patterns.__wrapped__(15))


def test_adjusted_p_values_are_those_of_the_step_down_definition():
    values = np.random.default_rng(1).normal(0.6, 1, size=(4, 7))
    patterns = 1.0 - 2.0 * (np.arange(128)[:, None] >> np.arange(7) & 1)

    def t(table):
        return np.abs(table.mean(-1) / np.sqrt(table.var(-1, ddof=1) / 7))

    observed, order = t(values), np.argsort(-t(values))
    flipped = np.stack([t(values * signs) for signs in patterns])
    expected, running = np.zeros(4), 0.0
    for position, row in enumerate(order):
        largest = flipped[:, order[position:]].max(axis=1)
        running = max(running, (largest >= observed[row] - 1e-9).mean())
        expected[row] = running
    assert step_down_max_t(values).p_value == pytest.approx(expected)


def test_a_clone_in_the_family_costs_nothing():
    values = np.random.default_rng(2).normal(0.6, 1, size=(3, 8))
    alone, doubled = step_down_max_t(values), step_down_max_t(np.vstack([values, values]))
    assert doubled.p_value[:3] == pytest.approx(alone.p_value)


def test_sign_flips_are_symmetric_and_zero_is_never_significant():
    values = np.random.default_rng(3).normal(0.3, 1, size=(3, 13))
    values[1] = 0
    assert np.array_equal(step_down_max_t(values).p_value, step_down_max_t(-values).p_value)
    assert float(step_down_max_t(values).p_value[1]) == 1


def test_more_than_twelve_seeds_draw_flips_from_the_stated_key_alone():
    values = np.random.default_rng(4).normal(0.3, 1, size=(2, 16))
    first = step_down_max_t(values).p_value
    sign_patterns.cache_clear()
    assert np.array_equal(step_down_max_t(values).p_value, first)
    assert smallest_p(16) == 1 / 10_001


def test_nan_and_single_seeds_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        step_down_max_t(np.array([[0.1, np.nan, 0.2]]))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        t_over_seeds(np.array([0.1]))


# All pairs by matrix products, and the set that may hold the best method.


def a_task(methods=6, seeds=5, items=60, first=0, seed=0, weight=1.0):
    rng = np.random.default_rng(seed)
    values = (rng.random((methods, seeds, items)) < 0.7).astype(float)
    values[1] = values[0]
    values[2] = values[0]
    values[2, :, 3] = 1 - values[2, :, 3]
    return TaskScores(values=values, groups=np.arange(items) // 2 + first, weight=weight)


def numbers(estimate):
    return [float(getattr(estimate, name)) for name in ("value", "variance", "nu")]


def test_every_pair_is_the_crossed_t_of_its_difference():
    task = a_task()
    pairs = task_pairs(task)
    for m, k in ((0, 3), (3, 0), (0, 1), (0, 2), (4, 5)):
        single = crossed_t(compare(task.values[m] - task.values[k], task.groups))
        assert numbers(pairs[m, k]) == pytest.approx(numbers(single), rel=1e-9)


def test_every_suite_pair_is_the_suite_estimate_of_its_difference():
    tasks = [a_task(seed=s, first=20 * s, weight=0.3) for s in range(2)]
    tasks.append(a_task(seed=7, first=500, weight=0.5))
    for table, single in (
        (suite_pairs(tasks), sum_over_tasks),
        (shared_run_suite_pairs(tasks), sum_over_shared_runs),
    ):
        for m, k in ((0, 3), (5, 2), (0, 1)):
            own = [
                TaskScores(values=t.values[m] - t.values[k], groups=t.groups, weight=t.weight)
                for t in tasks
            ]
            assert numbers(table[m, k]) == pytest.approx(numbers(single(own)), rel=1e-9)


def test_identical_methods_are_zero_apart_and_both_stay():
    pairs = task_pairs(a_task())
    assert float(pairs.value[0, 1]) == 0
    assert float(pairs.p_value()[0, 1]) == 1
    stays = tied_set(pairs)
    assert stays[0] == stays[1]


def test_a_clearly_worse_method_leaves_and_the_winner_always_stays():
    rng = np.random.default_rng(1)
    values = (rng.random((4, 5, 400)) < np.array([0.9, 0.89, 0.5, 0.4])[:, None, None]).astype(
        float
    )
    pairs = task_pairs(TaskScores(values=values, groups=np.arange(400)))
    assert tied_set(pairs).tolist() == [True, True, False, False]


def test_a_method_more_changes_no_pair_of_the_others():
    task = a_task()
    fewer = TaskScores(values=task.values[:4], groups=task.groups)
    for name in ("value", "variance", "nu"):
        more, few = getattr(task_pairs(task), name), getattr(task_pairs(fewer), name)
        assert more[:4, :4] == pytest.approx(few, rel=1e-9)


def test_a_single_method_is_its_own_tied_set():
    alone = TaskScores(values=a_task().values[:1], groups=a_task().groups)
    assert tied_set(task_pairs(alone)).tolist() == [True]


def test_two_methods_without_any_difference_or_noise_both_stay():
    nothing = np.zeros((2, 2))
    alike = Estimate(value=nothing, variance=nothing, nu=np.full((2, 2), 4.0), replicates=5)
    assert tied_set(alike).tolist() == [True, True]


def test_the_limit_is_shared_by_the_pairs_of_one_method():
    """Three methods, two pairs each: t at 0.975 with 4 degrees of freedom is 2.7764."""

    def stays(behind):
        value = np.array([[0.0, behind, 9.0], [-behind, 0.0, 9.0], [-9.0, -9.0, 0.0]])
        table = Estimate(
            value=value, variance=np.ones((3, 3)), nu=np.full((3, 3), 4.0), replicates=5
        )
        return tied_set(table).tolist()

    assert stays(2.776) == [True, True, False]
    assert stays(2.777) == [True, False, False]
