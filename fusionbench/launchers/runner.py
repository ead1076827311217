"""What a worker keeps between jobs (encoders, the materials of one task) and how it does a job."""

import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from jaxtyping import UInt8

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError
from fusionbench.api.fusion import Tap
from fusionbench.api.types import StackShape, Unsupported
from fusionbench.encoders import features
from fusionbench.encoders.features import FeatureKey
from fusionbench.harness import bundle as data
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.cell import Tuned, choose_layer, choose_lr, run_cell
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import seeded_fusion, shape_of
from fusionbench.harness.passes import Member, Outcome, run_pass
from fusionbench.harness.stepping import taps_of
from fusionbench.launchers.jobs import CellJob, EncodeJob, Event
from fusionbench.records.cell import CellRecord, CellSpec, RunOptions
from fusionbench.records.store import Items, Store
from fusionbench.registry.plugins import load_encoder, load_method, load_task
from fusionbench.registry.provenance import code_state, hardware, plugin_files, software
from fusionbench.study.data import load_data
from fusionbench.study.plan import Cell, layer_cells, tuning_specs

# Which cells are trained in one pass, and which learning rate they get.
#
# The layout of a pass is fixed by the budget, never by what is missing: seeds come in blocks of
# `seeds_per_pass` from 0 on, and the tuning runs of a cell, all learning rates and seeds, are one
# pass. To fill a missing cell its whole pass is trained again and only what is missing is written,
# so that a run which was stopped ends with the numbers of one which was not.


def seeds_of_pass(seed: int, size: int) -> range:
    """The block of seeds that are trained together with this one."""
    first = seed - seed % size
    return range(first, first + size)


def blocks(cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """The cells of one job, pass by pass."""

    def first_seed(cell: Cell) -> int:
        return seeds_of_pass(cell.spec.seed, cell.spec.budget.seeds_per_pass).start

    for _, group in groupby(sorted(cells, key=lambda cell: cell.spec.seed), key=first_seed):
        yield tuple(group)


def members(cells: Sequence[Cell], tuned: Tuned) -> list[Member]:
    """The whole pass of these cells; seeds that nobody asked for complete it."""
    spec = cells[0].spec
    wanted = {cell.spec.seed for cell in cells}
    return [
        Member(spec=replace(spec, seed=seed), tuned=tuned, wanted=seed in wanted)
        for seed in seeds_of_pass(spec.seed, spec.budget.seeds_per_pass)
    ]


def tuning_members(grid: Mapping[float, Sequence[CellSpec]]) -> list[Member]:
    """All runs that choose a learning rate."""
    return [
        Member(spec=spec, tuned=Tuned(lr=lr, scores={}))
        for lr, runs in grid.items()
        for spec in runs
    ]


def tuning_record(member: Member, outcome: Outcome) -> CellRecord:
    """The record of a tuning run; one that diverged scores nothing."""
    if isinstance(outcome, FloatingPointError):
        return CellRecord(spec=member.spec, status="done", score=0.0, notes=(str(outcome),))
    return outcome[0]


_ERROR_LINES = 12


class Desk:
    """One worker's place: it holds at most one task's materials at a time."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.device = choose_device(options.device)
        self.store = Store.open(options.out)
        self._encoders: dict[tuple[str, int], Encoder] = {}
        self._materials: tuple[str, Materials] | None = None

    def prepare(self, job: EncodeJob) -> None:
        """Write the task's bundle and every hidden state that a method of the plan taps."""
        cell = job.cells[0]
        bundle, images = self._bundle(cell)
        encoder = self._encoder(cell)
        key = feature_key(cell.spec, bundle, encoder.size)
        wanted = features.missing_taps(key, _all_taps(job.cells, encoder, cell.spec))
        if not wanted:
            data.drop_images(bundle)
            return
        if images is None and (images := data.kept_images(bundle)) is None:
            _, images = data.cut(cell.spec.task, load_data(cell.task), cell.spec.budget)
        limit = self.options.cache_gib
        features.encode(encoder, images, key, wanted, limit_gib=limit, device=self.device)
        data.drop_images(bundle)

    def run(self, job: CellJob) -> Iterator[Event]:
        """Train and record each cell; a cell that fails does not stop the others."""
        for cells in blocks(job.cells):
            yield from (Event(kind="begun", cell=cell) for cell in cells)
            alone = cells[0].spec.budget.seeds_per_pass == 1
            try:
                yield from self._run_one(cells[0]) if alone else self._run_pass(cells)
            except Unsupported as reason:
                for cell in cells:
                    skipped = CellRecord(spec=cell.spec, status="skipped", reason=str(reason))
                    self._write(cell, skipped)
                    yield Event(kind="skipped", cell=cell, text=str(reason))
            except UserError:
                raise
            except Exception as error:  # a method may raise anything
                for cell in cells:
                    yield self._failed(cell, error)

    def _run_pass(self, cells: Sequence[Cell]) -> Iterator[Event]:
        tries = layer_cells(cells[0]).items()
        if found := {n: self._tuned_together(one, always=True) for n, one in tries}:
            tuned = choose_layer(cells[0].chosen.card.tries, found)
        else:
            tuned = self._tuned_together(cells[0])
        wanted = members(cells, tuned)
        outcomes = self._outcomes(cells[0], wanted)
        for cell in cells:
            outcome = outcomes[cell.spec.id]
            if isinstance(outcome, FloatingPointError):
                yield self._failed(cell, outcome)
                continue
            self._write(cell, *outcome, self._items(cell))
            yield Event(kind="done", cell=cell)

    def _tuned_together(self, cell: Cell, *, always: bool = False) -> Tuned:
        grid = tuning_specs(cell.spec, always=always)
        if not grid:
            return Tuned(lr=cell.spec.budget.lrs[0], scores={})
        runs = tuning_members(grid)
        if not all(self.store.find(run.spec.id) for run in runs):
            outcomes = self._outcomes(cell, runs)
            for run in runs:
                self._write(cell, tuning_record(run, outcomes[run.spec.id]))
        found = {
            lr: [_score(self.store.find(s.id), s) for s in specs] for lr, specs in grid.items()
        }
        return choose_lr(found)

    def _outcomes(self, cell: Cell, members: Sequence[Member]) -> dict[str, Outcome]:
        method, materials = load_method(cell.chosen.card), self._materials_of(cell)
        found = run_pass(method, materials, members, eval_batch=self.options.eval_batch)
        return {
            each.spec.id: one for each, one in zip(members, found, strict=True) if one is not None
        }

    def _failed(self, cell: Cell, error: Exception) -> Event:
        self.store.write_failure(self._signed(cell, _failure(cell.spec, error)))
        return Event(kind="failed", cell=cell, text=f"{type(error).__name__}: {error}")

    def _items(self, cell: Cell) -> Items:
        examples = self._materials_of(cell).bundle.test
        return Items(names=examples.items, groups=examples.groups)

    def _run_one(self, cell: Cell) -> Iterator[Event]:
        method = load_method(cell.chosen.card)
        materials = self._materials_of(cell)
        found = {}
        for layer, candidate in layer_cells(cell).items():
            found[layer] = yield from self._tune(candidate, materials, always=True)
        if found:
            tuned = choose_layer(cell.chosen.card.tries, found)
        else:
            tuned = yield from self._tune(cell, materials)
        record, outcomes = run_cell(
            cell.spec, method, materials, tuned=tuned, eval_batch=self.options.eval_batch
        )
        self._write(cell, record, outcomes, self._items(cell))
        yield Event(kind="done", cell=cell)

    def _tune(
        self, cell: Cell, materials: Materials, *, always: bool = False
    ) -> Generator[Event, None, Tuned]:
        scores: dict[float, list[float]] = {}
        for lr, specs in tuning_specs(cell.spec, always=always).items():
            scores[lr] = [self._tuning_score(cell, spec, materials) for spec in specs]
            yield Event(kind="tuned", cell=cell, text=f"learning rate {lr:g}")
        return choose_lr(scores) if scores else Tuned(lr=cell.spec.budget.lrs[0], scores={})

    def _tuning_score(self, cell: Cell, spec: CellSpec, materials: Materials) -> float:
        known = self.store.find(spec.id)
        if known is None:
            method = load_method(cell.chosen.card)
            tuned = Tuned(lr=spec.budget.lrs[0], scores={})
            try:
                known, _ = run_cell(
                    spec, method, materials, tuned=tuned, eval_batch=self.options.eval_batch
                )
            except FloatingPointError as error:
                known = CellRecord(spec=spec, status="done", score=0.0, notes=(str(error),))
            self._write(cell, known)
        return _score(known, spec)

    def _write(
        self,
        cell: Cell,
        record: CellRecord,
        outcomes: np.ndarray | None = None,
        items: Items | None = None,
    ) -> None:
        self.store.write(self._signed(cell, record), outcomes, items)

    def _signed(self, cell: Cell, record: CellRecord) -> CellRecord:
        provenance = {
            "code": code_state(),
            "software": software(),
            "hardware": hardware(str(self.device)),
            "method": cell.chosen.card.source,
            "task": cell.task.source,
            "encoder": cell.encoder.origin,
            "plugin_files": plugin_files(cell.chosen.card, cell.task, cell.encoder),
        }
        card, task = cell.chosen.card, cell.task
        if record.parameters:
            frozen = sum(p.numel() for p in self._encoder(cell).parameters())
            record = replace(record, parameters={**record.parameters, "encoder": frozen})
        return replace(
            record,
            label=cell.chosen.label,
            family=card.family,
            control=card.control,
            representative=card.representative and cell.chosen.label == card.name,
            reads_answers=card.reads_answers,
            group=task.group,
            task_family=task.family,
            in_suite=task.in_suite,
            provenance=provenance,
        )

    def _bundle(
        self, cell: Cell
    ) -> tuple[Bundle, UInt8[np.ndarray, "image height width 3"] | None]:
        path = data.bundle_path(cell.spec.task, cell.spec.data, cell.spec.budget)
        if path.exists():
            return data.read_bundle(path), None
        bundle, images = data.cut(cell.spec.task, load_data(cell.task), cell.spec.budget)
        data.write_bundle(bundle, path)
        return bundle, images

    def _encoder(self, cell: Cell) -> Encoder:
        key = (cell.encoder.name, cell.spec.budget.image_size)
        if key not in self._encoders:
            built = load_encoder(cell.encoder, image_size=key[1], device=str(self.device))
            wanted = self.options.compile
            if wanted in ("blocks", "steps") or (wanted == "auto" and self.device.type == "cuda"):
                compile_blocks(built)
            self._encoders[key] = Checkpointed(built) if self.options.checkpoint else built
        return self._encoders[key]

    def _materials_of(self, cell: Cell) -> Materials:
        if self._materials is None or self._materials[0] != cell.spec.task:
            encoder = self._encoder(cell)
            bundle, _ = self._bundle(cell)
            budget = cell.spec.budget
            materials = Materials(
                name=cell.spec.task,
                task=load_task(cell.task),
                bundle=bundle,
                budget=budget,
                shape=replace(encoder.shape, query_dim=budget.query_dim),
                key=feature_key(cell.spec, bundle, encoder.size),
                device=self.device,
                encoder=encoder,
                compiled="default" if self.options.compile == "steps" else "",
            )
            self._materials = (cell.spec.task, materials)
        return self._materials[1]


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one; UserError for a device that is not there."""
    here = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if here else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not here:
        raise UserError(
            f"no CUDA device here, but --device {name} asks for one", "use --device cpu"
        )
    return device


def feature_key(spec: CellSpec, bundle: Bundle, size: int) -> FeatureKey:
    """The key of a cell's hidden states."""
    return FeatureKey(
        weights=spec.weights,
        size=size,
        images=bundle.images,
        count=bundle.count,
        precision=spec.budget.precision,
        dtype=spec.budget.feature_dtype,
    )


def _all_taps(cells: Sequence[Cell], encoder: Encoder, spec: CellSpec) -> set[Tap]:
    shape: StackShape = replace(encoder.shape, query_dim=spec.budget.query_dim)
    taps: set[Tap] = set()
    candidates = (one for cell in cells for one in (cell, *layer_cells(cell).values()))
    for cell in candidates:
        runs = [run for runs in tuning_specs(cell.spec).values() for run in runs]
        try:
            method = load_method(cell.chosen.card)
            size = cell.spec.budget.seeds_per_pass
            seeds = {run.seed for run in runs} | {*seeds_of_pass(cell.spec.seed, size)}
            for seed in seeds:
                stream = (spec.task, seed)
                own = shape_of(shape, cell.chosen.settings, spec.budget)
                fusion = seeded_fusion(method, cell.chosen.settings, own, stream=stream)
                taps.update(taps_of(fusion))
        except Exception:  # its cells will fail or be skipped with the reason
            continue
    return taps


def _score(record: CellRecord | None, spec: CellSpec) -> float:
    if record is None or record.score is None:
        raise ValueError(f"tuning record {spec.id} has no score")
    return record.score


def _failure(spec: CellSpec, error: Exception) -> CellRecord:
    text = "".join(traceback.format_exception(error))
    lines = text.strip().splitlines()[-_ERROR_LINES:]
    return CellRecord(spec=spec, status="failed", reason="\n".join(lines))
