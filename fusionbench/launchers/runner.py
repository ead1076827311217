"""What a worker keeps between jobs (encoders, the materials of one job) and how it runs a job."""

import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import FatalError, UserError, disk_error
from fusionbench.api.types import Unsupported
from fusionbench.harness import bundle as data
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.cell import Outcome, PassCell, Tuned, choose_layer, choose_lr
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.harness.materials import Materials
from fusionbench.harness.passes import run_pass
from fusionbench.launchers.jobs import EncodeJob, Event, Job, TapsJob, by_task, company_of
from fusionbench.launchers.keys import all_taps, feature_key, seeds_of_pass
from fusionbench.launchers.progress import remaining
from fusionbench.launchers.signing import shortened, signed
from fusionbench.launchers.state import ProcessState, Spoiled, contained
from fusionbench.models.encoders import features
from fusionbench.records.cell import CellRecord, CellSpec, RunOptions
from fusionbench.records.files import cache_dir, sealed, unsealed, write_atomic
from fusionbench.records.folder import claimed, locked
from fusionbench.records.outcomes import Said
from fusionbench.records.pictures import FOLDER as PICTURES
from fusionbench.records.pictures import has_pictures, picture_file
from fusionbench.records.store import Items, Store
from fusionbench.registry.plugins import load_encoder, load_method, load_task
from fusionbench.registry.provenance import hardware
from fusionbench.study.data import planned_data
from fusionbench.study.parts import places
from fusionbench.study.plan import Cell, ModelJob, TrainJob, layer_candidates, tuning_specs
from fusionbench.study.training import LLAVA

if TYPE_CHECKING:
    from fusionbench.launchers.models import ModelRunner
    from fusionbench.models.readers.llava.checkpoint import Checkpoint
    from fusionbench.vlm.processes import World

_ERROR_LINES = 12

# Which trainings form a pass.
#
# The budget fixes the layout, never what is missing: seeds come in blocks of `seeds_per_pass` from
# 0 on, and all tuning runs of a cell are one pass (each its own for `seeds_per_pass` 1). To fill a
# missing cell its whole pass is trained again and only what is missing is written, so that an
# interrupted run ends with the numbers of an uninterrupted one.


def passes(cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """The cells of one job, pass by pass."""

    def first_seed(cell: Cell) -> int:
        return seeds_of_pass(cell.spec.seed, cell.spec.budget.seeds_per_pass).start

    for _, group in groupby(sorted(cells, key=lambda cell: cell.spec.seed), key=first_seed):
        yield tuple(group)


def members_of(cells: Sequence[Cell], tuned: Tuned) -> list[PassCell]:
    """The complete pass of these cells: every seed; those without a cell are not wanted."""
    spec = cells[0].spec
    wanted = {cell.spec.seed for cell in cells}
    return [
        PassCell(spec=replace(spec, seed=seed), tuned=tuned, wanted=seed in wanted)
        for seed in seeds_of_pass(spec.seed, spec.budget.seeds_per_pass)
    ]


def tuning_passes(cell: Cell, *, always: bool) -> list[list[PassCell]]:
    """The runs that choose a learning rate, pass by pass; none where there is nothing to choose."""
    runs = [
        [PassCell(spec=spec, tuned=Tuned(lr=lr, scores={}))]
        for lr, specs in tuning_specs(cell.spec, always=always).items()
        for spec in specs
    ]
    if cell.spec.budget.seeds_per_pass == 1:
        return runs
    return [[member for run in runs for member in run]] if runs else []


class Runner:
    """The state of one worker: encoders, and the materials of at most one job."""

    def __init__(self, options: RunOptions, *, world: "World | None" = None) -> None:
        """`world`: the processes that a launcher outside started; they train models together."""
        self.options = options
        self.world = world
        self.device = world.device if world is not None else choose_device(options.device)
        self.store = Store.open(options.out)
        self.state = ProcessState(self._forget, compiles=self._compiles)
        self._encoders: dict[tuple[str, int], Encoder] = {}
        self._materials: tuple[str, Materials] | None = None
        self._checkpoint: tuple[tuple[str, torch.dtype], Checkpoint] | None = None

    @property
    def _compiles(self) -> bool:
        wanted = self.options.compile
        return wanted in ("blocks", "steps") or (wanted == "auto" and self.device.type == "cuda")

    def _forget(self, *, encoders: bool) -> None:
        """Drop the tensors that trainings share; what was on disk is read again."""
        self._materials = None
        if encoders:
            self._encoders, self._checkpoint = {}, None

    @cached_property
    def models(self) -> "ModelRunner":
        """Runs the jobs of the track `vlm`."""
        # It loads the language models' library.
        from fusionbench.launchers.models import ModelRunner

        return ModelRunner(self)

    def run(self, job: Job) -> Iterator[Event]:
        """Do a job and report each cell; a cell that fails does not stop the others."""
        self.state.enter(stranger=bool(company_of(job)))
        if isinstance(job, EncodeJob):
            yield from self.encoding(job)
        elif isinstance(job, TapsJob):
            yield from self.taps(job)
        else:
            yield from self._missing(job)
        if self.state.spoiled:
            yield Event(kind="spoiled", text=self.state.spoiled)

    def _missing(self, job: TrainJob | ModelJob) -> Iterator[Event]:
        """Train the cells without a record, unless another run does."""
        with claimed(self.store.folder, job.id, wait=job.wait, cells=places(job.cells)) as ours:
            if not ours:
                yield from (Event(kind="claimed", cell=cell) for cell in job.cells)
                return
            # Another run may have recorded some since the plan was made.
            there = {cell.spec.id for cell in job.cells if self.store.find(cell.spec.id)}
            yield from (Event(kind="found", cell=c) for c in job.cells if c.spec.id in there)
            cells = [cell for cell in job.cells if cell.spec.id not in there]
            if isinstance(job, TrainJob):
                yield from self._run_passes(job, cells)
            elif cells:
                yield from self.models.run(job, cells)

    def _run_passes(self, job: TrainJob, cells: Sequence[Cell]) -> Iterator[Event]:
        for group in passes(cells):
            if self.state.spoiled:
                return
            yield from self._run_pass(job, group)

    def taps(self, job: TapsJob) -> Iterator[Event]:
        """The hidden states that methods of a plug-in read, task by task, to be encoded."""
        for task, trainings in by_task(job.trainings).items():
            asked = EncodeJob(task=task, trainings=tuple(trainings))
            with contained():
                taps = all_taps(trainings, self.encoder(asked.cell))
            yield Event(kind="taps", encode=replace(asked, taps=frozenset(taps)))

    def encode(self, job: EncodeJob) -> None:
        """Write the task's bundle and every hidden state that the trainings read."""
        for _ in self.encoding(job):
            pass

    def encoding(self, job: EncodeJob) -> Iterator[Event]:
        """As `encode`; now and then how many images it has encoded."""
        cell = job.cell
        with contained():
            bundle, images = self._read(cell)
            encoder = self.encoder(cell)
        # Whatever the code of a task has changed.
        self.state.restore()
        images = self._show(cell, bundle, images)
        key = feature_key(cell, bundle, encoder.size)
        taps = all_taps(job.trainings, encoder) if job.taps is None else job.taps
        if not features.missing_taps(key, taps):
            # Before any lock: a complete cache may be read-only.
            data.drop_images(bundle)
            return
        # Other runs that need the same hidden states wait for these.
        with locked(cache_dir("locks", f"{bundle.images[:24]}.lock")):
            wanted = features.missing_taps(key, taps)
            if wanted:
                if images is None and (images := data.kept_images(bundle)) is None:
                    images = self._cut(cell)[1]
                limit = self.options.cache_gib
                steps = features.encoding(
                    encoder, images, key, wanted, limit_gib=limit, device=self.device
                )
                yield from told(job.task, steps, len(images))
        data.drop_images(bundle)

    def _show(
        self, cell: Cell, bundle: Bundle, images: UInt8[np.ndarray, "image height width 3"] | None
    ) -> UInt8[np.ndarray, "image height width 3"] | None:
        """Write questions, answers and small pictures of the test examples, once in a folder.

        Returns the images if they were read.
        """
        examples, spec = bundle.test, cell.spec
        items = Items(names=examples.items, groups=examples.groups).hash
        file = picture_file(self.store.folder, spec.task, spec.data, items)
        if cell.local.encoder or has_pictures(file):
            # Images for a synthetic encoder are random bytes.
            return images
        kept = cache_dir(PICTURES, file.name)
        try:
            text = unsealed(kept)
        except (OSError, ValueError):
            if images is None and (images := data.kept_images(bundle)) is None:
                images = self._cut(cell)[1]
            text = data.shown(bundle, images, spec.task, spec.data, items).to_json().encode()
            # Without a writable cache folder it is drawn each time.
            with suppress(OSError):
                write_atomic(kept, sealed(kept, text))
        try:
            write_atomic(file, text, replace=False)
        except OSError as error:
            raise disk_error(error, self.store.folder) from error
        return images

    def _read(self, cell: Cell) -> tuple[Bundle, UInt8[np.ndarray, "image height width 3"] | None]:
        """As `bundle`; a task that cannot be loaded ends its own cells only."""
        try:
            return self.bundle(cell)
        except FatalError:
            raise
        except UserError as error:
            raise RuntimeError(error.message) from error

    def _run_pass(self, job: TrainJob, cells: Sequence[Cell]) -> Iterator[Event]:
        yield from (Event(kind="begun", cell=cell) for cell in cells)
        try:
            members = members_of(cells, self._tuned(job))
            outcomes = self._outcomes(job, members)
        except Unsupported as reason:
            for cell in cells:
                self.write(cell, CellRecord(spec=cell.spec, status="skipped", reason=str(reason)))
                yield Event(kind="skipped", cell=cell, text=str(reason))
        except Spoiled:
            return
        except FatalError:
            raise
        except Exception as error:  # a method may raise anything
            if isinstance(error, UserError) and not company_of(job):
                raise
            yield from (self.failed(cell, error) for cell in cells)
        else:
            yield from (self._recorded(cell, outcomes[cell.spec.id]) for cell in cells)

    def _tuned(self, job: TrainJob) -> Tuned:
        """The learning rate of a job, and the layer where its method tries all of them."""
        found = {
            layer: self._tuned_lr(job, candidate, always=True)
            for layer, candidate in layer_candidates(job.first).items()
        }
        if found:
            return choose_layer(job.first.chosen.card.tries, found)
        return self._tuned_lr(job, job.first)

    def _tuned_lr(self, job: TrainJob, cell: Cell, *, always: bool = False) -> Tuned:
        scores: dict[float, list[float]] = {}
        for together in tuning_passes(cell, always=always):
            if not all(self.store.find(member.spec.id) for member in together):
                outcomes = self._outcomes(job, together)
                for one in together:
                    self.write(cell, tuning_record(one, outcomes[one.spec.id]))
            for one in together:
                score = score_of(self.store.find(one.spec.id), one.spec)
                scores.setdefault(one.tuned.lr, []).append(score)
        if not scores:
            return Tuned(lr=cell.spec.budget.lrs[0], scores={})
        return choose_lr(scores)

    def _outcomes(self, job: TrainJob, members: Sequence[PassCell]) -> dict[str, Outcome]:
        with contained():
            method, materials = load_method(job.first.chosen.card), self._materials_of(job)
        spec = members[0].spec
        with self.state.kept(spec.method, spec.task, spec.seed), contained():
            found = run_pass(method, materials, members, eval_batch=self.options.eval_batch)
        return {
            each.spec.id: one for each, one in zip(members, found, strict=True) if one is not None
        }

    def _recorded(self, cell: Cell, outcome: Outcome) -> Event:
        if isinstance(outcome, FloatingPointError):
            return self.diverged(cell, outcome)
        record, scores = outcome
        examples = self._bundle.test
        items = Items(names=examples.items, groups=examples.groups)
        try:
            self.write(cell, record, scores, items)
        except UserError:
            raise
        except ValueError as error:  # values that no record may hold
            return self.failed(cell, error)
        return Event(kind="done", cell=cell)

    def failed(self, cell: Cell, error: Exception) -> Event:
        """Record a failure with the end of its traceback; its event."""
        lines = "".join(traceback.format_exception(error)).strip().splitlines()[-_ERROR_LINES:]
        reason = shortened("\n".join([*lines, *self.state.notes()]))
        record = CellRecord(spec=cell.spec, status="failed", reason=reason)
        self.store.write_failure(self.signed(cell, record))
        text = error.message if isinstance(error, UserError) else lines[-1] if lines else ""
        return Event(kind="failed", cell=cell, text=shortened(text))

    def diverged(self, cell: Cell, error: FloatingPointError) -> Event:
        """Record a training that diverged: the same seeds would diverge again."""
        self.write(cell, CellRecord(spec=cell.spec, status="diverged", reason=str(error)))
        return Event(kind="failed", cell=cell, text=f"diverged: {error}")

    def write(
        self,
        cell: Cell,
        record: CellRecord,
        outcomes: np.ndarray | None = None,
        items: Items | None = None,
        answers: Sequence[Said] = (),
    ) -> None:
        """Store the record of a cell, signed, with its outcomes and answers."""
        if notes := self.state.notes():
            record = replace(record, notes=(*record.notes, *notes))
        self.store.write(self.signed(cell, record), outcomes, items, answers)

    def signed(self, cell: Cell, record: CellRecord) -> CellRecord:
        """The record with the facts of its cards, and with what it was made by."""
        if record.parameters:
            frozen = sum(p.numel() for p in self.encoder(cell).parameters())
            record = replace(record, parameters={**record.parameters, "encoder": frozen})
        return signed(cell, record, hardware(str(self.device)))

    def bundle(self, cell: Cell) -> tuple[Bundle, UInt8[np.ndarray, "image height width 3"] | None]:
        path = data.bundle_path(cell.spec.task, cell.spec.data, cell.spec.budget)
        if (known := data.cached_bundle(path)) is not None:
            return known, None
        bundle, images = self._cut(cell)
        data.write_bundle(bundle, path)
        return bundle, images

    def _cut(self, cell: Cell) -> tuple[Bundle, UInt8[np.ndarray, "image height width 3"]]:
        """The task's data as it is now; ValueError if it is not what the cell is named after."""
        now = planned_data(cell.local, cell.spec.data)
        return data.cut(cell.spec.task, now, cell.spec.budget)

    def encoder(self, cell: Cell) -> Encoder:
        key = (cell.encoder.name, cell.spec.budget.image_size)
        if key not in self._encoders:
            checkpoint = self.checkpoint(cell.spec)
            built: Encoder = (
                load_encoder(cell.encoder, image_size=key[1], device=str(self.device))
                if checkpoint is None
                else checkpoint.encoder
            )
            if self._compiles:
                compile_blocks(built)
            self._encoders[key] = Checkpointed(built) if self.options.checkpoint else built
            self.state.seal(self._encoders[key])
        return self._encoders[key]

    def checkpoint(self, spec: CellSpec) -> "Checkpoint | None":
        """The LLaVA checkpoint of a specification, opened once; None where it names none."""
        if spec.training is None or not spec.training.language.startswith(LLAVA):
            return None
        from fusionbench.vlm.llava import open_for, weight_type

        key = (spec.training.language, weight_type(spec, spec.training, self.device))
        if self._checkpoint is None or self._checkpoint[0] != key:
            self._checkpoint = (key, open_for(spec, spec.training, self.device))
        return self._checkpoint[1]

    def _materials_of(self, job: TrainJob) -> Materials:
        cell, name = job.first, job.first.spec.task
        if self._materials is None or self._materials[0] != name:
            encoder, budget, bundle = self.encoder(cell), cell.spec.budget, self.bundle(cell)[0]
            self._bundle = bundle
            materials = Materials(
                name=name,
                task=load_task(cell.local),
                bundle=bundle,
                budget=budget,
                shape=replace(encoder.shape, query_dim=budget.query_dim, mlp=encoder.mlp),
                key=feature_key(cell, bundle, encoder.size),
                device=self.device,
                encoder=encoder,
                compiled="default" if self.options.compile == "steps" else "",
            )
            self._materials = (name, materials)
            self.state.share(materials)
        return self._materials[1]


_TOLD_EVERY = 2.0
"""Seconds between two reports of an encoding."""


def told(task: str, steps: Iterable[int], total: int) -> Iterator[Event]:
    """Reports of an encoding that counts its images: how many of all, and the time left."""
    began = said = time.monotonic()
    yield Event(kind="stage", text=f"encoding {task}: {total:,} images")
    for done in steps:
        if (now := time.monotonic()) - said >= _TOLD_EVERY:
            said = now
            left = remaining(done, total, now - began)
            text = f"encoding {task}: {done:,} of {total:,} images, {left} left"
            yield Event(kind="stage", text=text)


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises UserError for a device that is not there."""
    here = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if here else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not here:
        raise FatalError(
            f"no CUDA device here, but --device {name} asks for one", "use --device cpu"
        )
    if device.index is not None:
        if device.index >= (count := torch.cuda.device_count()):
            raise FatalError(f"no device {name} here", f"known: cuda:0 to cuda:{count - 1}")
        # Else some calls would use the memory of the first GPU.
        torch.cuda.set_device(device)
    return device


def tuning_record(member: PassCell, outcome: Outcome) -> CellRecord:
    """The record of a tuning run; one that diverged has score 0."""
    if isinstance(outcome, FloatingPointError):
        return CellRecord(spec=member.spec, status="done", score=0.0, notes=(str(outcome),))
    return outcome[0]


def score_of(record: CellRecord | None, spec: CellSpec) -> float:
    """The score of a tuning run. Raises ValueError without one."""
    if record is None or record.score is None:
        raise ValueError(f"tuning record {spec.id} has no score")
    return record.score
