"""Simulated outcomes with a known truth: what the statistics must get right, and not too easily.

Probit model: y[m, s, i] = 1(mu_m + a_i + b_mi + u_s + v_ms + c_si + e_msi > 0), e standard normal;
items are shared by all seeds and methods, seeds are paired. The truth is the mean over new seeds
and new items, in closed form: Phi(mu / total SD).

R: repetition, M: method, S: seed, I: item.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import suite_weights

METHODS = 9  # the reference and eight contrasts; the last four are near-clones of each other
CLONES = (5, 6, 7, 8)
WEIGHTS = suite_weights(np.array([0.5, 0.5, 0.25, 0.25, 0.1, 0.1]))


@dataclass(frozen=True)
class NullTask:
    """`pool` names the images; two tasks on one pool share them and their effects."""

    accuracy: float
    images: int
    questions: int
    pool: int


SUITE = (
    NullTask(0.55, 200, 1, 0),
    NullTask(0.65, 100, 4, 1),
    NullTask(0.75, 500, 1, 2),
    NullTask(0.85, 500, 2, 2),
    NullTask(0.95, 400, 1, 3),
    NullTask(0.985, 2000, 1, 4),
)
SMALL_SUITE = tuple(replace(task, images=max(task.images // 4, 60)) for task in SUITE)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """SDs on the probit scale; `alike` is the correlation of the two methods' own noise."""

    accuracy: float = 0.75
    item: float = 1.0
    method_item: float = 0.4
    seed: float = 0.05
    method_seed: float = 0.05
    seed_item: float = 0.2
    alike: float = 0.0
    heavy: bool = False

    @property
    def total(self) -> float:
        sds = (self.item, self.method_item, self.seed, self.method_seed, self.seed_item, 1.0)
        return float(np.linalg.norm(sds))


SCENARIOS = {
    "typ": Scenario(),
    "item": Scenario(method_item=1.5, seed=0.02, method_seed=0.02),
    "unstable": Scenario(method_seed=0.25),
    "ceil": Scenario(accuracy=0.985),
    "clone": Scenario(accuracy=0.985, alike=0.95),
    "heavy": Scenario(method_seed=0.25, heavy=True),
    "no item effect": Scenario(method_item=0.0),
}


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def seed_draw(scenario: Scenario, rng: np.random.Generator, *shape: int) -> np.ndarray:
    if not scenario.heavy:
        return draw(rng, *shape)
    # Student's t with 3 degrees of freedom has variance 3.
    return (rng.standard_t(3, size=shape) / np.sqrt(3)).astype(np.float32)


def two_methods(
    scenario: Scenario,
    rng: np.random.Generator,
    *,
    reps: int,
    seeds: int,
    items: int,
    effect: float = 0.0,
    questions: int = 1,
) -> np.ndarray:
    """Right or wrong, [R, method, S, I]; the second method is better by exactly `effect`.

    `questions` of an image stand together and share all its item effects.
    """
    sc = scenario
    if sc.heavy and effect:
        raise ValueError("the closed form of the truth needs normal seed effects")
    mu = levels(sc, effect)
    own, same = np.sqrt(1 - sc.alike), np.sqrt(sc.alike)
    images = items // questions
    by_item = sc.item * draw(rng, reps, 1, 1, images)
    by_item = by_item + sc.method_item * (
        own * draw(rng, reps, 2, 1, images) + same * draw(rng, reps, 1, 1, images)
    )
    by_seed = sc.seed * seed_draw(sc, rng, reps, 1, seeds, 1)
    by_seed = by_seed + sc.method_seed * (
        own * seed_draw(sc, rng, reps, 2, seeds, 1) + same * seed_draw(sc, rng, reps, 1, seeds, 1)
    )
    rest = own * draw(rng, reps, 2, seeds, items)
    if sc.alike:
        rest += same * draw(rng, reps, 1, seeds, items)
    rest += sc.seed_item * draw(rng, reps, 1, seeds, items)
    rest += np.repeat(by_item, questions, axis=-1)
    rest += by_seed
    return rest > -mu[:, None, None]


def levels(scenario: Scenario, effect: float = 0.0) -> np.ndarray:
    """mu of the two methods."""
    accuracy = np.array([scenario.accuracy, scenario.accuracy + effect])
    return (ndtri(accuracy) * scenario.total).astype(np.float32)


def differences(
    scenario: Scenario, rng: np.random.Generator, *, reps: int, **size: float
) -> np.ndarray:
    """Second method minus first, [R, S, I]; arguments as for `two_methods`."""
    y = two_methods(scenario, rng, reps=reps, **size)  # type: ignore[arg-type]
    return y[:, 1].astype(np.float64) - y[:, 0]


def chunks(reps: int, most: int = 250) -> list[int]:
    """Repetitions in portions that fit into the cache."""
    return [min(most, reps - start) for start in range(0, reps, most)]


def monte_carlo_se(rate: float, reps: int) -> float:
    return float(np.sqrt(rate * (1 - rate) / reps))


def null_suite(
    rng: np.random.Generator,
    *,
    seeds: int,
    shared_runs: bool,
    tasks: tuple[NullTask, ...] = SUITE,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """One suite in which nothing is better than anything: per task, outcomes [M, S, I] and images.

    Methods differ in how unstable they are and in how much they have to do with images; with
    `shared_runs` a run's luck is the same in all tasks.
    """
    run_sd = np.geomspace(0.03, 0.20, METHODS)[rng.permutation(METHODS)].astype(np.float32)
    run_sd[list(CLONES)] = run_sd[CLONES[0]]
    variance = 1 + 0.8**2 + run_sd**2 + 1 + 0.2**2
    luck = cloned(draw(rng, METHODS, seeds, 1)) * run_sd[:, None, None]
    suite, pools = [], {}
    for task in tasks:
        if not shared_runs:
            luck = cloned(draw(rng, METHODS, seeds, 1)) * run_sd[:, None, None]
        if task.pool not in pools:
            own = cloned(draw(rng, METHODS, 1, task.images))
            pools[task.pool] = draw(rng, 1, 1, task.images) + 0.8 * own
        items = task.images * task.questions
        rest = cloned(draw(rng, METHODS, seeds, items)) + 0.2 * draw(rng, 1, seeds, items)
        mu = (ndtri(task.accuracy) * np.sqrt(variance)).astype(np.float32)
        shown = np.repeat(pools[task.pool], task.questions, axis=-1)
        images = np.repeat(np.arange(task.images), task.questions) + 10_000 * task.pool
        suite.append((rest + shown + luck > -mu[:, None, None], images))
    return suite


def cloned(noise: np.ndarray, alike: float = 0.9) -> np.ndarray:
    """The last four methods share most of their noise; every SD stays as it was."""
    first = noise[CLONES[0]]
    for clone in CLONES[1:]:
        noise[clone] = np.sqrt(alike) * first + np.sqrt(1 - alike) * noise[clone]
    return noise


def against(
    suite: list[tuple[np.ndarray, np.ndarray]], reference: int, methods: np.ndarray
) -> list[TaskScores]:
    """Every method's differences from one reference, as the tasks of a suite."""
    return [
        TaskScores(
            values=y[methods].astype(float) - y[reference], groups=images, weight=float(weight)
        )
        for (y, images), weight in zip(suite, WEIGHTS, strict=True)
    ]
