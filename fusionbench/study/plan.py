"""A study resolved to methods, tasks and encoders, and its cells that have no record. No torch."""

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from fusionbench.api.errors import UserError
from fusionbench.encoders.card import EncoderCard
from fusionbench.records.cell import (
    READER,
    RIDGE,
    TUNING_SEED,
    Budget,
    CellSpec,
    Setting,
    canonical,
)
from fusionbench.registry.catalog import Catalog, TaskCard
from fusionbench.registry.encoder_cards import describe
from fusionbench.registry.selection import Chosen, Unavailable, select_methods, select_tasks
from fusionbench.study.contrasts import check_known, read_contrasts
from fusionbench.study.data import check_packed, task_hashes
from fusionbench.study.study import ALL, PRESETS, Study

SeedScope = Literal["task", "suite"]
SEED_SCOPES: Mapping[str, SeedScope] = {"probe": "task"}
"""Track -> what one training covers: a single task, or all tasks of the study."""
_ENCODERS = "`fusionbench list encoders` shows what is here"


@dataclass(frozen=True, kw_only=True)
class ResolvedStudy:
    """A study with its names looked up: the methods, tasks and encoders that it means here."""

    study: Study
    methods: tuple[Chosen, ...]
    tasks: tuple[TaskCard, ...]
    unavailable: tuple[Unavailable, ...]
    """Tasks left out, each with the reason."""
    encoders: Mapping[str, EncoderCard]
    """Task -> its encoder: the study's, or the one that the task brings."""

    def budget_of(self, task: TaskCard) -> Budget:
        """The study's budget; a task with its own encoder has that encoder's image size."""
        return replace(self.study.budget, image_size=0) if task.encoder else self.study.budget

    @property
    def seed_scope(self) -> SeedScope:
        """`task`: one training per task; `suite`: one training for all tasks."""
        return SEED_SCOPES[self.study.track]


def resolve(study: Study, catalog: Catalog, *, download: bool = False) -> ResolvedStudy:
    """Look up every name of a study. Raises UserError for an unknown or impossible one.

    `download`: fetch the weights of encoders that are not here; else their absence is an error.
    """
    # The study's own encoder first: a wrong name is an error even if no task uses it.
    study_encoder = _encoder(catalog, study.encoder, study.budget.image_size, download=download)
    methods = select_methods(
        catalog, (*study.methods, *references(study, study_encoder.layers)), study.settings
    )
    tasks, unavailable = select_tasks(catalog, study.tasks)
    planned = read_contrasts(study.contrasts, study.baseline)
    labels = {one.label for one in methods}
    check_known(planned, labels | set(catalog.methods))
    if study.name in PRESETS:
        # The flags may have left out some of a preset's methods: what cannot run is not planned.
        kept = [
            value
            for value, one in zip(study.contrasts, planned, strict=True)
            if {one.method, one.baseline} <= labels
        ]
        study = replace(study, contrasts=tuple(kept))
    own = {task.encoder for task in tasks if task.encoder}
    brought = {name: _encoder(catalog, name, 0, download=download) for name in sorted(own)}
    encoders = {task.name: brought.get(task.encoder, study_encoder) for task in tasks}
    check_packed(encoders)
    return ResolvedStudy(
        study=study, methods=methods, tasks=tasks, unavailable=unavailable, encoders=encoders
    )


def references(study: Study, layers: int) -> tuple[str, ...]:
    """The single layers that `--methods all` adds: what each hidden state holds.

    They are read by the closed-form reader, whatever the study's own.
    """
    if not study.references or ALL not in study.methods:
        return ()
    own = "" if study.budget.reader == RIDGE else f", {READER}={RIDGE}"
    # With the ridge reader the last two layers are methods of their own: `penultimate`, `last`.
    kept = layers - 1 if not own else layers + 1
    return tuple(f"layer[index={index}{own}]" for index in range(kept))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell and the cards of what its specification names."""

    spec: CellSpec
    chosen: Chosen
    task: TaskCard
    encoder: EncoderCard


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Trainings of one method that differ in the seed, each scored on every task of the job."""

    cells: tuple[Cell, ...]
    """The cells without a record."""
    tasks: tuple[Cell, ...]
    """One cell of each task that a training reads; a single one in the track `probe`."""
    wait: bool = False
    """Wait for another run that holds the job, instead of leaving it for later."""

    @property
    def name(self) -> str:
        """The names of the tasks; seeds of the training are drawn from it."""
        return "+".join(cell.spec.task for cell in self.tasks)

    @property
    def id(self) -> str:
        """Equal in all runs that train this method on these tasks, whatever their seeds."""
        return replace(self.tasks[0].spec, seed=0).id


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a study, and those without a record."""

    resolved: ResolvedStudy
    cells: tuple[Cell, ...]
    pending: tuple[Cell, ...]

    @property
    def finished(self) -> int:
        """Number of cells with a record on disk."""
        return len(self.cells) - len(self.pending)

    def jobs(self) -> Iterator[TrainJob]:
        """The pending cells, training by training: by task, then the expensive methods first."""
        order = {task.name: row for row, task in enumerate(self.resolved.tasks)}
        joint = self.resolved.seed_scope == "suite"

        def training(cell: Cell) -> tuple[int, bool, str]:
            row = 0 if joint else order[cell.task.name]
            return row, not cell.chosen.card.in_encoder, cell.chosen.label

        first = {(cell.chosen.label, cell.task.name): cell for cell in reversed(self.cells)}
        ranked = sorted(self.pending, key=lambda cell: (*training(cell), cell.spec.seed))
        for _, group in groupby(ranked, key=training):
            cells = tuple(group)
            label = cells[0].chosen.label
            names = list(order) if joint else [cells[0].task.name]
            yield TrainJob(cells=cells, tasks=tuple(first[label, name] for name in names))


def make_plan(resolved: ResolvedStudy, finished: Container[str], *, keep: bool = False) -> Plan:
    """All cells of a study; `finished` holds the ids of cells with a record.

    `keep`: images that are rendered or read for a hash stay in the cache until they are encoded.
    """
    hashes = task_hashes(resolved.tasks, resolved.study.budget if keep else None)
    if resolved.seed_scope == "suite":
        # The other tasks of a training are part of a cell's identity.
        joint = canonical(sorted(hashes.items()))
        hashes = {
            name: hashlib.sha256(f"{name}\n{joint}".encode()).hexdigest()[:32] for name in hashes
        }
    cells = tuple(
        cell for task in resolved.tasks for cell in _cells(resolved, task, hashes[task.name])
    )
    pending = tuple(cell for cell in cells if cell.spec.id not in finished)
    return Plan(resolved=resolved, cells=cells, pending=pending)


def tuning_specs(spec: CellSpec, *, always: bool = False) -> Mapping[float, tuple[CellSpec, ...]]:
    """The tuning runs of each learning rate; all seeds of a cell share them.

    Empty for a single learning rate, unless `always`: a layer is chosen by the same runs.
    """
    budget = spec.budget
    if len(budget.lrs) == 1 and not always:
        return {}
    return {
        lr: tuple(
            replace(
                spec,
                stage="tune",
                seed=TUNING_SEED + run,
                budget=replace(budget, lrs=(lr,), tuning_seeds=0),
            )
            for run in range(budget.tuning_seeds)
        )
        for lr in budget.lrs
    }


def layer_candidates(cells: Sequence[Cell]) -> Mapping[int, tuple[Cell, ...]]:
    """These cells with each layer in turn, for a method that tries all; empty for any other."""
    tried = cells[0].chosen.card.tries
    if not tried:
        return {}
    layers = range(1, cells[0].encoder.layers + 1)
    return {layer: tuple(_with(cell, {tried: layer}) for cell in cells) for layer in layers}


def _with(cell: Cell, settings: Mapping[str, Setting]) -> Cell:
    complete = {**cell.spec.settings, **settings}
    chosen = replace(cell.chosen, settings=complete)
    return replace(cell, spec=replace(cell.spec, settings=complete), chosen=chosen)


def _cells(resolved: ResolvedStudy, task: TaskCard, data: str) -> Iterator[Cell]:
    study, encoder = resolved.study, resolved.encoders[task.name]
    budget = resolved.budget_of(task)
    for chosen in resolved.methods:
        for seed in range(study.seeds):
            spec = CellSpec(
                track=study.track,
                encoder=encoder.name,
                weights=encoder.weights,
                method=chosen.card.name,
                method_version=chosen.card.version,
                settings=chosen.settings,
                task=task.name,
                task_version=task.version,
                data=data,
                budget=budget,
                seed=seed,
            )
            yield Cell(spec=spec, chosen=chosen, task=task, encoder=encoder)


def _encoder(catalog: Catalog, name: str, image_size: int, *, download: bool) -> EncoderCard:
    """An encoder's card with the fingerprint of its weights. Raises UserError."""
    try:
        card = describe(catalog, name, image_size=image_size)
        if card.available:
            return card
        if download and name not in catalog.encoders:
            # It loads torch, which a study whose weights are here does without.
            from fusionbench.encoders.fetch import fetch

            fetch(name)
            return describe(catalog, name, image_size=image_size)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(str(error), _ENCODERS) from error
    raise UserError(f"the weights of encoder {name!r} are not here", card.get)
