"""Arrays in, numbers out: intervals, paired tests, corrections, power, ranks, ablations.

Needs numpy and scipy only. Scores are shares in [0, 1]; tables are (..., seed, item); a difference
is method minus reference on the same seed and the same item. NaN raises ValueError everywhere, and
nothing here reads or moves the global random state.

`crossed` is the heart: one variance and one nu that the verdicts, the equivalence tests, the
minimum detectable effects and the tied sets all share.
"""

from fusionbench.stats.ablation import (
    Effect,
    adjust_within_order,
    effect_differences,
    factorial_effects,
    simple_effect,
)
from fusionbench.stats.cells import CellInterval, mean_score, share_correct
from fusionbench.stats.crossed import Components, compare, crossed_t, one_run, two_way
from fusionbench.stats.describe import (
    iqm,
    outlying_seeds,
    performance_profile,
    probability_of_improvement,
)
from fusionbench.stats.estimate import Estimate, stack
from fusionbench.stats.families import MOST_PLANNED, benjamini_hochberg, both_differ, holm
from fusionbench.stats.fractional import AliasedEffect, fraction, fractional_effects
from fusionbench.stats.groups import TaskScores, by_group
from fusionbench.stats.power import (
    VarianceParts,
    pilot_parts,
    seeds_needed,
    shared_suite_at,
    suite_at,
    variance_parts,
)
from fusionbench.stats.ranks import RankTable, average_ranks, rank_intervals, rank_table
from fusionbench.stats.refusals import distinct_ids, identical_runs
from fusionbench.stats.suite import (
    block_components,
    over_families,
    seed_sums,
    shared_image_blocks,
    suite_weights,
    sum_over_shared_runs,
    sum_over_tasks,
)
from fusionbench.stats.testset import (
    FlipTest,
    mde_reachable,
    sign_flip,
    smallest_p,
    step_down_max_t,
    t_over_seeds,
)
from fusionbench.stats.tied import shared_run_suite_pairs, suite_pairs, task_pairs, tied_set
from fusionbench.stats.verdicts import SUITE_MARGIN, TASK_MARGIN, Judged, Verdict, judge

__all__ = [
    "MOST_PLANNED",
    "SUITE_MARGIN",
    "TASK_MARGIN",
    "AliasedEffect",
    "CellInterval",
    "Components",
    "Effect",
    "Estimate",
    "FlipTest",
    "Judged",
    "RankTable",
    "TaskScores",
    "VarianceParts",
    "Verdict",
    "adjust_within_order",
    "average_ranks",
    "benjamini_hochberg",
    "block_components",
    "both_differ",
    "by_group",
    "compare",
    "crossed_t",
    "distinct_ids",
    "effect_differences",
    "factorial_effects",
    "fraction",
    "fractional_effects",
    "holm",
    "identical_runs",
    "iqm",
    "judge",
    "mde_reachable",
    "mean_score",
    "one_run",
    "outlying_seeds",
    "over_families",
    "performance_profile",
    "pilot_parts",
    "probability_of_improvement",
    "rank_intervals",
    "rank_table",
    "seed_sums",
    "seeds_needed",
    "share_correct",
    "shared_image_blocks",
    "shared_run_suite_pairs",
    "shared_suite_at",
    "sign_flip",
    "simple_effect",
    "smallest_p",
    "stack",
    "step_down_max_t",
    "suite_at",
    "suite_pairs",
    "suite_weights",
    "sum_over_shared_runs",
    "sum_over_tasks",
    "t_over_seeds",
    "task_pairs",
    "tied_set",
    "two_way",
    "variance_parts",
]
