"""Records -> arrays: one table of scores per condition, NaN where a run is missing.

Records of one cell differ in the seed alone. Another version of a method, other settings or other
data have a row or column of their own, with a suffix in its name.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from math import isfinite
from operator import itemgetter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.api.errors import UserError
from fusionbench.records.cell import FRESH, Budget, CellRecord, Training, canonical, plain_training
from fusionbench.records.text import checkpoint_name


def method_suffix(record: CellRecord, version_suffices: bool) -> str:
    """Suffix for methods of one label: the version, with the settings if versions are equal."""
    settings = sha256(canonical(dict(record.spec.settings)).encode()).hexdigest()[:6]
    version = f"version {record.spec.method_version}"
    return version if version_suffices else f"{version}, settings {settings}"


def task_suffix(record: CellRecord, version_suffices: bool) -> str:
    """Suffix for tasks of one name: the version, with the data if versions are equal."""
    version = f"version {record.spec.task_version}"
    return version if version_suffices else f"{version}, data {record.spec.data[:6]}"


def unique_names(
    records: Sequence[CellRecord],
    keys: Sequence[Hashable],
    name: Callable[[CellRecord], str],
    suffix: Callable[[CellRecord, bool], str],
) -> dict[Hashable, str]:
    """A unique name per key: `name`, followed by a suffix in brackets where it is not unique."""
    by_name: dict[str, dict[Hashable, CellRecord]] = {}
    for record, key in zip(records, keys, strict=True):
        by_name.setdefault(name(record), {})[key] = record
    found: dict[Hashable, str] = {}
    for plain, variants in by_name.items():
        versions = {suffix(record, True) for record in variants.values()}
        for one, record in variants.items():
            full = f"{plain} ({suffix(record, len(versions) == len(variants))})"
            found[one] = plain if len(variants) == 1 else full
    return found


INSENSITIVE, SATURATED, BLIND = "insensitive", "saturated", "blind"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What all cells of one table have in common."""

    track: str
    encoder: str
    weights: str
    budget: Budget
    training: Training | None = None
    """Of the track `vlm`."""
    source: str = ""
    """The tool that scored imported cells; empty for cells that FusionBench ran."""
    fresh: bool = False
    """Whether a new projector was trained in place of a checkpoint's."""
    differs: str = field(default="", compare=False)
    """What tells it from conditions of the same results with an equal title otherwise."""
    several: bool = field(default=False, compare=False)
    """Whether conditions of the same results agree in track, encoder, steps and training."""
    label: str = field(default="", compare=False)
    """The encoder, with six digits over the condition where several have it; for LaTeX labels."""

    @property
    def title(self) -> str:
        """`nano, 60 steps of 32, lr 0.003`, for headings; with the language model if any."""
        return ", ".join(filter(None, (self._title, self.differs)))

    @property
    def short(self) -> tuple[Hashable, ...]:
        """What tables name a condition by."""
        return self.track, self.encoder, self.budget.steps, self.training

    @property
    def _title(self) -> str:
        budget = self.budget
        if self.source and self.training is None:
            return f"{self.track}: models of {self.source}"
        rates = "/".join(f"{rate:g}" for rate in budget.lrs)
        encoder, steps = self.encoder, f"{budget.steps} steps of {budget.batch}"
        if self.training is not None:
            encoder = f"{self.track}: {encoder} with {self.training.language}"
            stages = self.training.stages
            steps = " + ".join(
                f"{one.steps or budget.steps} steps of {one.batch or budget.batch}"
                for one in stages
            )
            rates = "/".join(dict.fromkeys(f"{one.lr:g}" if one.lr else rates for one in stages))
        parts = [encoder, steps, f"lr {rates}"]
        parts += [f"{budget.train_items} training examples"] if budget.train_items else []
        parts += [f"{budget.image_size} px"] if budget.image_size else []
        parts += [f"scored by {self.source}"] if self.source else []
        parts += [FRESH] if self.fresh else []
        return ", ".join([*parts, budget.precision])


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Facts on the task of one column, from its records."""

    name: str
    """With a suffix where the results hold several versions or data sets."""
    group: str
    family: str
    in_suite: bool
    metric: str
    chance: float
    examples: int
    mark: str = ""
    """`insensitive` or `saturated`, by the references: `records.references`; `blind` if models
    that see are not above the one that does not: `records.references`."""

    @property
    def counts(self) -> bool:
        """True if the task enters the aggregate: in the suite, neither insensitive nor blind."""
        return self.in_suite and self.mark not in (INSENSITIVE, BLIND)


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """All evaluation cells of one condition."""

    condition: Condition
    methods: tuple[str, ...]
    tasks: tuple[TaskFacts, ...]
    seeds: tuple[int, ...]
    values: Float[np.ndarray, "method task seed"]
    """Mean score over the test examples; NaN where there is none."""
    cells: Mapping[tuple[int, int, int], CellRecord] = field(repr=False)
    """The records, skipped and failed ones included, by position."""

    @property
    def suite(self) -> Bool[np.ndarray, " task"]:
        """Which tasks count in the aggregate."""
        return np.array([task.counts for task in self.tasks], dtype=np.bool_)

    @property
    def planted(self) -> Bool[np.ndarray, " task"]:
        """Which tasks are no part of the suite, whatever the scores."""
        return np.array([not task.in_suite for task in self.tasks], dtype=np.bool_)

    @cached_property
    def leaky(self) -> frozenset[int]:
        """Methods that see the answers in training; left out of every aggregate."""
        return frozenset(m for (m, _, _), record in self.cells.items() if record.reads_answers)

    def pick(self, keep: Bool[np.ndarray, " task"]) -> "ScoreTable":
        """The table of some of the tasks."""
        new = {int(old): row for row, old in enumerate(np.flatnonzero(keep))}
        return ScoreTable(
            condition=self.condition,
            methods=self.methods,
            tasks=tuple(self.tasks[old] for old in new),
            seeds=self.seeds,
            values=self.values[:, keep],
            cells={(m, new[t], s): r for (m, t, s), r in self.cells.items() if t in new},
        )

    @cached_property
    def _runs(self) -> Mapping[tuple[int, int], Sequence[CellRecord]]:
        """Records by (method, task), sorted by seed."""
        found: dict[tuple[int, int], list[CellRecord]] = {}
        for (method, task, _), record in sorted(self.cells.items(), key=itemgetter(0)):
            found.setdefault((method, task), []).append(record)
        return found

    def runs(self, method: int, task: int) -> list[CellRecord]:
        """The records of one method on one task, seed by seed."""
        return list(self._runs.get((method, task), ()))

    def row(self, method: int) -> list[CellRecord]:
        """A method's records, task by task and seed by seed."""
        return list(self._rows.get(method, ()))

    @cached_property
    def _rows(self) -> Mapping[int, Sequence[CellRecord]]:
        """Records by method, sorted by task and seed."""
        found: dict[int, list[CellRecord]] = {}
        for (method, _, _), record in sorted(self.cells.items(), key=itemgetter(0)):
            found.setdefault(method, []).append(record)
        return found

    @cached_property
    def controls(self) -> Sequence[str]:
        """The matched control of each method in its records; empty where they name none."""
        rows = range(len(self.methods))
        return tuple(max((one.control for one in self.row(row)), default="") for row in rows)

    @cached_property
    def identical(self) -> Mapping[int, int]:
        """Methods with equal outcomes in every cell: row -> row of the shortest name."""
        groups: dict[tuple[tuple[str, int, str], ...], list[int]] = {}
        for method in range(len(self.methods)):
            done = tuple(
                (record.spec.task, record.spec.seed, record.outcomes)
                for record in self.row(method)
                if record.status == "done"
            )
            if done and all(outcomes for _, _, outcomes in done):
                groups.setdefault(done, []).append(method)
        found: dict[int, int] = {}
        for rows in groups.values():
            first = min(rows, key=lambda row: (len(self.methods[row]), row))
            found |= {row: first for row in rows if row != first}
        return found


def score_tables(records: Iterable[CellRecord]) -> list[ScoreTable]:
    """One table per condition, in a fixed order; tuning runs are left out.

    Failed and skipped cells have a place and no score.
    """
    grouped: dict[str, list[CellRecord]] = {}
    keys: dict[Hashable, str] = {}
    for record in records:
        spec = record.spec
        if spec.stage == "evaluate":
            # Records share their budget, and the JSON of it is slow to make 100,000 times.
            same = (
                spec.encoder, spec.track, spec.weights, id(spec.budget), spec.training,
                record.source, FRESH in record.notes,
            )  # fmt: skip
            key = keys.get(same) or keys.setdefault(same, _condition_key(record))
            grouped.setdefault(key, []).append(record)
    return _told_apart([_table(cells) for _, cells in sorted(grouped.items())])


def _told_apart(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """The tables with conditions that name exactly what differs between them."""
    every = [table.condition for table in tables]
    titles = Counter(one.title for one in every)
    shorts = Counter(one.short for one in every)
    encoders = Counter(one.encoder for one in every)
    found = []
    for table in tables:
        one = table.condition
        alike = [_flat(other) for other in every if other.title == one.title]
        several = encoders[one.encoder] > 1
        digits = f"-{sha256(canonical(_flat(one)).encode()).hexdigest()[:6]}" if several else ""
        new = replace(
            one,
            differs=_differences(_flat(one), alike) if titles[one.title] > 1 else "",
            several=max(shorts.values()) > 1,
            label=f"{one.encoder}{digits}",
        )
        found.append(replace(table, condition=new))
    return found


def _flat(condition: Condition) -> dict[str, Any]:
    """Every field of a condition by name, stage by stage."""
    found = {"weights": condition.weights, **vars(condition.budget)}
    found |= {"track": condition.track, "source": condition.source, "fresh": condition.fresh}
    if condition.training is not None:
        values = plain_training(condition.training)
        for number, stage in enumerate(values.pop("stages"), 1):
            found |= {f"stage {number} {name}": value for name, value in stage.items()}
        found |= values
    return found


def _differences(one: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str:
    """`warmup 0.1, clip 1`: the fields in which these conditions differ, with this one's values."""
    names = [name for name in one if len({repr(other.get(name)) for other in alike}) > 1]
    return ", ".join(f"{name.replace('_', ' ')} {_plain(one[name])}" for name in names)


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)[:_DIGITS]


_DIGITS = 12
"""Characters of a hash in a title."""


def _condition_key(record: CellRecord) -> str:
    spec = record.spec
    training = [] if spec.training is None else [plain_training(spec.training)]
    source = [record.source] if record.source else []
    fresh = [FRESH] if FRESH in record.notes else []
    return canonical(
        [spec.encoder, spec.track, vars(spec.budget), spec.weights, *training, *source, *fresh]
    )


def _table(records: list[CellRecord]) -> ScoreTable:
    # Keys are JSON of all settings: made once for each record, there may be 100,000.
    method_keys = [_method_key(record) for record in records]
    task_keys = [_task_key(record) for record in records]
    method_names = unique_names(records, method_keys, _label, method_suffix)
    task_names = unique_names(records, task_keys, lambda r: r.spec.task, task_suffix)
    methods = sorted(method_names, key=lambda key: method_names[key])
    tasks = sorted(task_names, key=lambda key: task_names[key])
    rows = {key: index for index, key in enumerate(methods)}
    columns = {key: index for index, key in enumerate(tasks)}
    of_task: dict[Hashable, list[CellRecord]] = {}
    seeds = sorted({record.spec.seed for record in records})
    values = np.full((len(methods), len(tasks), len(seeds)), np.nan)
    cells: dict[tuple[int, int, int], CellRecord] = {}
    for record, method, task in zip(records, method_keys, task_keys, strict=True):
        of_task.setdefault(task, []).append(record)
        place = (rows[method], columns[task], seeds.index(record.spec.seed))
        if place in cells and cells[place].status == "done":
            continue
        cells[place] = record
        if record.status == "done" and record.score is not None:
            values[place] = _finite(record)
    spec = records[0].spec
    return ScoreTable(
        condition=Condition(
            track=spec.track,
            encoder=checkpoint_name(spec.encoder),
            weights=spec.weights,
            budget=spec.budget,
            training=spec.training,
            source=records[0].source,
            fresh=FRESH in records[0].notes,
        ),
        methods=tuple(method_names[key] for key in methods),
        tasks=tuple(_facts(task_names[key], of_task[key]) for key in tasks),
        seeds=tuple(seeds),
        values=values,
        cells=cells,
    )


def _finite(record: CellRecord) -> float:
    """The score; UserError for NaN, which would pass for a cell that was not run."""
    if record.score is None or not isfinite(record.score):
        spec = record.spec
        raise UserError(
            f"cell {record.id} ({spec.method} on {spec.task}, seed {spec.seed}) is done, but its "
            f"score is {record.score}",
            "remove its file from cells/ and run the study again",
        )
    return record.score


def _label(record: CellRecord) -> str:
    return record.label or record.spec.method


def _method_key(record: CellRecord) -> Hashable:
    spec = record.spec
    return record.label or spec.method, spec.method_version, canonical(dict(spec.settings))


def _task_key(record: CellRecord) -> Hashable:
    return record.spec.task, record.spec.task_version, record.spec.data


def _facts(name: str, here: list[CellRecord]) -> TaskFacts:
    done = [record for record in here if record.status == "done"] or here
    return TaskFacts(
        name=name,
        group=max(record.group for record in here),
        family=max(record.task_family for record in here),
        in_suite=all(record.in_suite for record in done),
        metric=done[0].metric,
        chance=done[0].chance,
        examples=done[0].examples,
    )
