"""A study as cells, minus those that are already on disk. No torch here."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from fusionbench.api.errors import UserError
from fusionbench.encoders.card import EncoderCard
from fusionbench.records.cell import TUNING_SEED, CellSpec, Setting
from fusionbench.registry.catalog import Catalog, TaskCard
from fusionbench.registry.encoder_cards import describe
from fusionbench.registry.selection import Chosen, Unavailable, select_methods, select_tasks
from fusionbench.study.data import task_hashes
from fusionbench.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell and the things its specification names."""

    spec: CellSpec
    chosen: Chosen
    task: TaskCard
    encoder: EncoderCard


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study consists of here, and what is left to do."""

    study: Study
    cells: tuple[Cell, ...]
    pending: tuple[Cell, ...]
    unavailable: tuple[Unavailable, ...]
    """Tasks left out, each with the reason."""

    @property
    def finished(self) -> int:
        """Cells with a record on disk."""
        return len(self.cells) - len(self.pending)

    def jobs(self) -> Iterator[tuple[Cell, ...]]:
        """Pending cells that differ in the seed only, task by task, the expensive ones first."""

        def rank(cell: Cell) -> tuple[int, bool, str, int]:
            return (order[cell.task.name], not cell.chosen.card.in_encoder, cell.chosen.label,
                    cell.spec.seed)  # fmt: skip

        order = {name: row for row, name in enumerate(_tasks_by_first_cell(self.cells))}
        for _, group in groupby(sorted(self.pending, key=rank), key=lambda cell: rank(cell)[:3]):
            yield tuple(group)


def make_plan(
    study: Study, catalog: Catalog, finished: Container[str], *, keep: bool = False
) -> Plan:
    """Resolve names, hashes and settings; `finished` holds the ids of cells with a record.

    `keep`: images that are rendered or read for a hash stay in the cache until they are encoded.
    """
    methods = select_methods(catalog, study.methods, study.settings)
    tasks, unavailable = select_tasks(catalog, study.tasks)
    hashes = task_hashes(tasks, study.budget if keep else None)
    cells = tuple(
        cell
        for task in tasks
        for cell in _task_cells(study, task, hashes[task.name], methods, catalog)
    )
    pending = tuple(cell for cell in cells if cell.spec.id not in finished)
    return Plan(study=study, cells=cells, pending=pending, unavailable=unavailable)


def tuning_specs(spec: CellSpec, *, always: bool = False) -> Mapping[float, tuple[CellSpec, ...]]:
    """The runs that choose a cell's learning rate; shared by all seeds of a cell.

    None where there is nothing to choose, unless `always`: a layer is chosen by the same runs.
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


def layer_cells(cell: Cell) -> Mapping[int, Cell]:
    """The candidates of a cell whose method tries every layer, by layer; none for any other."""
    tried = cell.chosen.card.tries
    if not tried:
        return {}
    return {layer: _with(cell, {tried: layer}) for layer in range(1, cell.encoder.layers + 1)}


def _with(cell: Cell, settings: Mapping[str, Setting]) -> Cell:
    complete = {**cell.spec.settings, **settings}
    chosen = replace(cell.chosen, settings=complete)
    return replace(cell, spec=replace(cell.spec, settings=complete), chosen=chosen)


def _task_cells(
    study: Study, task: TaskCard, data: str, methods: tuple[Chosen, ...], catalog: Catalog
) -> Iterator[Cell]:
    own = bool(task.encoder)
    # A task that brings its own encoder brings its own image size.
    budget = replace(study.budget, image_size=0) if own else study.budget
    encoder = _encoder(catalog, task.encoder or study.encoder, budget.image_size)
    for chosen in methods:
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


def _encoder(catalog: Catalog, name: str, image_size: int) -> EncoderCard:
    try:
        card = describe(catalog, name, image_size=image_size)
    except ValueError as error:
        raise UserError(str(error), "`fusionbench list encoders` shows what is here") from error
    if not card.available:
        raise UserError(f"encoder {name!r} is not here yet", card.get)
    return card


def _tasks_by_first_cell(cells: tuple[Cell, ...]) -> list[str]:
    return list(dict.fromkeys(cell.task.name for cell in cells))
