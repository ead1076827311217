"""Runs the jobs of the track `vlm`: trains each model once, then scores and records task by task.

A run that is killed between two records trains nothing again, since the weights are on disk; one
that is killed while a model is trained goes on from its last checkpoint.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from fusionbench.api.errors import FatalError, UserError
from fusionbench.api.sources import find_source
from fusionbench.api.types import Unsupported
from fusionbench.harness.cell import Tuned, choose_lr, scored
from fusionbench.harness.stepping import needs_encoder, taps_of
from fusionbench.harness.train import require_finite
from fusionbench.launchers.jobs import Event, company_of
from fusionbench.launchers.keys import feature_key
from fusionbench.launchers.runner import Runner, score_of
from fusionbench.launchers.state import contained
from fusionbench.records.cell import (
    TUNING_SEED,
    CellRecord,
    CellSpec,
    RunOptions,
    Setting,
    Training,
)
from fusionbench.records.files import sha256_of
from fusionbench.records.folder import claimed
from fusionbench.registry.cards import BenchmarkCard
from fusionbench.registry.discovery import BUILT_IN
from fusionbench.registry.plugins import load_benchmark, load_method, load_task
from fusionbench.study.plan import Cell, ModelJob, layer_candidates, tuning_specs
from fusionbench.vlm.checkpoint import Trained, damage, finished, load_weights, model_file
from fusionbench.vlm.evaluate import Evaluated, evaluate_benchmark, evaluate_local
from fusionbench.vlm.model import (
    Built,
    build_model,
    is_words,
    stranger,
    training_of,
)
from fusionbench.vlm.processes import World, lead, start
from fusionbench.vlm.session import Session, Work, asking_of, train_model

_ASKED = 16
"""Questions that a language model of transformers is asked at a time."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A trained model that can be asked."""

    built: Built
    trained: Trained
    tuned: Tuned
    weights: str
    """SHA-256 of the file of weights; empty for a tuning run."""


class ModelRunner:
    """Trains and scores models with the encoders, bundles and store of a worker."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.options, self.store = runner.options, runner.store

    def run(self, job: ModelJob, cells: Sequence[Cell]) -> Iterator[Event]:
        """Train the job's model, report each cell; a task that fails does not stop the others."""
        if why := damage(self.store.folder, job.id):
            yield Event(kind="note", text=why)
        yield from self._run(job, cells)

    def _run(self, job: ModelJob, cells: Sequence[Cell]) -> Iterator[Event]:
        yield from (Event(kind="begun", cell=cell) for cell in cells)
        try:
            with contained():
                session = self.session(job)
            with self._guarded(job), contained():
                ready = self._ready(job, session)
        except Unsupported as reason:
            yield from (self._skipped(cell, reason) for cell in cells)
        except FloatingPointError as error:
            yield from (self.runner.diverged(cell, error) for cell in cells)
        except FatalError:
            raise
        except Exception as error:  # a method may raise anything
            if isinstance(error, UserError) and not company_of(job):
                raise
            yield from (self.runner.failed(cell, error) for cell in cells)
        else:
            for cell in cells:
                yield self._recorded(session, ready, cell)

    def _guarded(self, job: ModelJob) -> AbstractContextManager[None]:
        """A process for code of plug-ins is compared and set back after a training."""
        strange = bool(company_of(job))
        return self.runner.state.kept("model", job.id) if strange else nullcontext()

    def session(self, job: ModelJob) -> Session:
        """The encoder, bundles and rows of a job."""
        bundles = {cell.spec.task: self.runner.bundle(cell)[0] for cell in job.tasks}
        encoder = self.runner.encoder(job.cells[0])
        keys = {
            cell.spec.task: feature_key(cell, bundles[cell.spec.task], encoder.size)
            for cell in job.tasks
        }
        return Session.open(
            encoder, bundles, keys, job.mixtures, training_of(job.spec), self.options,
            self.runner.device, self.runner.checkpoint(job.spec),
        )  # fmt: skip

    def _ready(self, job: ModelJob, session: Session) -> Ready:
        """The job's model, trained now or read from disk."""
        folder, spec, cell = self.store.folder, job.spec, job.cells[0]
        found = finished(folder, job.id)
        tuned = self._tuned(job, session) if found is None else _known(found, spec)
        work = Work(
            spec=spec, method=cell.chosen.card, settings={**spec.settings, **tuned.settings},
            lr=tuned.lr, folder=folder, keep=True, tuned=_about(tuned),
        )  # fmt: skip
        if found is None:
            self._train(job, session, work)
            found = finished(folder, job.id)
        if found is None:
            raise OSError(f"the weights of model {job.id} are not on disk after its training")
        built = self._built(session, work, found.vocabulary)
        load_weights(model_file(folder, job.id), built.model)
        require_finite(built.model, tuned.lr)
        weights = sha256_of(model_file(folder, job.id))
        return Ready(built=built, trained=found, tuned=tuned, weights=weights)

    def _train(self, job: ModelJob, session: Session, work: Work) -> None:
        """Train here, in new processes, or in those that a launcher outside started."""
        world, options = self.runner.world, self.options
        if world is not None and world.size > 1:
            lead(world, train_in_process, (options, job, work))
        elif options.processes > 1:
            start(options.processes, train_in_process, (options, job, work), device=options.device)
        else:
            train_model(session, work)

    def _built(self, session: Session, work: Work, vocabulary: Sequence[str]) -> Built:
        method = load_method(work.method)
        return build_model(
            method, work.settings, work.spec, session.encoder, vocabulary, session.checkpoint
        )

    def _tuned(self, job: ModelJob, session: Session) -> Tuned:
        """The learning rate of a model, and the layer where its method tries all of them.

        Layers are tried with `trial_steps` of one tuning seed, at the middle learning rate.
        """
        cell = job.cells[0]
        found: Mapping[str, Setting] = {}
        notes: tuple[str, ...] = ()
        scores: dict[str, list[float]] = {}
        if candidates := layer_candidates(cell):
            if not session.mixture_tasks:
                raise Unsupported("tries layers on val questions, and no local task is trained on")
            tried = cell.chosen.card.tries
            trials = [trial_spec(one.spec) for one in candidates.values()]
            by_layer = dict(zip(candidates, self._vals(job, session, trials), strict=True))
            best = max(sorted(by_layer), key=lambda layer: by_layer[layer])
            scores = {f"{tried}={layer}": [score] for layer, score in by_layer.items()}
            found = {tried: best}
            notes = (f"{tried}={best}: the best on val of {len(by_layer)} layers tried once each",)
        spec = replace(cell.spec, settings={**cell.spec.settings, **found})
        runs = [(lr, one) for lr, specs in tuning_specs(spec).items() for one in specs]
        rates: dict[float, list[float]] = {}
        for (lr, _), score in zip(
            runs, self._vals(job, session, [one for _, one in runs]), strict=True
        ):
            rates.setdefault(lr, []).append(score)
        chosen = choose_lr(rates) if rates else Tuned(lr=cell.spec.budget.lrs[0], scores={})
        return replace(chosen, scores={**scores, **chosen.scores}, settings=found, notes=notes)

    def _vals(self, job: ModelJob, session: Session, specs: Sequence[CellSpec]) -> list[float]:
        """Mean val score of each tuning run over the tasks of the mixture.

        Seeds that run at once share the trainings: what another process trains is waited for last.
        """
        runs = [_on_mixture(job, session, spec) for spec in specs]
        for wait in (False, True):
            for run in runs:
                self._tune_if_missing(job, session, run, wait=wait)
        return [
            statistics.fmean(score_of(self.store.find(cell.spec.id), cell.spec) for cell in run)
            for run in runs
        ]

    def _tune_if_missing(
        self, job: ModelJob, session: Session, run: Sequence[Cell], *, wait: bool
    ) -> None:
        def missing() -> bool:
            return not all(self.store.find(cell.spec.id) for cell in run)

        if missing():
            with claimed(self.store.folder, run[0].spec.model_id, wait=wait) as ours:
                if ours and missing():
                    self._tune(job, session, run)

    def _tune(self, job: ModelJob, session: Session, run: Sequence[Cell]) -> None:
        cell, spec = job.cells[0], run[0].spec
        lr = spec.budget.lrs[0]
        work = Work(
            spec=spec, method=cell.chosen.card, settings=spec.settings, lr=lr,
            folder=self.store.folder, keep=False,
        )  # fmt: skip
        try:
            built, trained = train_model(session, work)
            ready = Ready(built=built, trained=trained, tuned=Tuned(lr=lr, scores={}), weights="")
            records = [self._scored(session, ready, one)[0] for one in run]
        except FloatingPointError as error:
            records = [
                CellRecord(spec=one.spec, status="done", score=0.0, notes=(str(error),))
                for one in run
            ]
        for one, record in zip(run, records, strict=True):
            self.runner.write(one, record)

    def _recorded(self, session: Session, ready: Ready, cell: Cell) -> Event:
        """Score one task and write its record."""
        try:
            with contained():
                record, found = self._scored(session, ready, cell)
        except Unsupported as reason:
            return self._skipped(cell, reason)
        except FloatingPointError as error:
            return self.runner.diverged(cell, error)
        except FatalError:
            raise
        except Exception as error:  # a task may raise anything
            if isinstance(error, UserError) and cell.task.source == BUILT_IN:
                raise
            return self.runner.failed(cell, error)
        try:
            self.runner.write(cell, record, found.outcomes, found.items, found.answers)
        except UserError:
            raise
        except ValueError as error:  # values that no record may hold
            return self.runner.failed(cell, error)
        return Event(kind="done", cell=cell)

    def _skipped(self, cell: Cell, reason: Unsupported) -> Event:
        skipped = CellRecord(spec=cell.spec, status="skipped", reason=str(reason))
        self.runner.write(cell, skipped)
        return Event(kind="skipped", cell=cell, text=str(reason))

    def _scored(self, session: Session, ready: Ready, cell: Cell) -> tuple[CellRecord, Evaluated]:
        started = time.perf_counter()
        found, facts = self._evaluated(session, ready, cell)
        model, spec = ready.built.model, cell.spec
        counted = {"unknown words": found.unknown, "questions beyond the context": found.left_out}
        record = CellRecord(
            spec=spec,
            status="done",
            **facts,
            seed_scope="suite",
            lr=last_rate(training_of(spec), ready.tuned.lr),
            tuning=ready.tuned.scores,
            lr_at_edge=ready.tuned.at_edge,
            parameters=model.parameter_counts(),
            taps=taps_of(model.fusion),
            in_encoder=needs_encoder(model.fusion),
            notes=(*ready.tuned.notes, *ready.built.notes, *ready.trained.notes),
            loss=ready.trained.losses,
            trace=found.trace,
            unmoved=ready.trained.unmoved,
            model=spec.model_id,
            model_weights=ready.weights,
            measures=found.measures or {},
            distinct=len({answer.text for answer in found.answers}),
            tokens=found.tokens,
            counts={**ready.trained.counts, **{name: n for name, n in counted.items() if n}},
            seconds=round(time.perf_counter() - started, 3),
        )
        return record, found

    def _questions(self, spec: CellSpec) -> int:
        """Questions that are asked at a time: of a large language model as many as it trains."""
        most = self.options.eval_batch
        return (
            most if is_words(training_of(spec)) else min(most, self.options.micro_batch or _ASKED)
        )

    def _evaluated(
        self, session: Session, ready: Ready, cell: Cell
    ) -> tuple[Evaluated, dict[str, Any]]:
        """The evaluation of a cell and the fields of its record that the task decides."""
        spec = cell.spec
        asking = asking_of(
            session, ready.built, spec, self._questions(spec),
            shuffled=stranger(spec.settings, spec.seed),
        )  # fmt: skip
        if isinstance(cell.task, BenchmarkCard):
            benchmark = load_benchmark(cell.task)
            source = find_source(cell.task.name, cell.task.needs, self.options.data_root)
            found = evaluate_benchmark(asking, benchmark, source)
            score = float(found.outcomes.mean())
            return found, {
                "metric": benchmark.metric,
                "chance": found.chance,
                "score": score,
                "scores": {benchmark.metric: score},
                "examples": len(found.outcomes),
            }
        task, bundle = load_task(cell.task), session.bundles[cell.spec.task]
        found = evaluate_local(asking, cell.spec.task, bundle, cell.spec.split, task)
        return found, scored(cell.spec, task, bundle, found.outcomes)


def last_rate(training: Training, lr: float) -> float:
    """The learning rate of the last stage that trains anything; `lr`: that of the budget."""
    own = [stage.lr for stage in training.stages if stage.trained]
    return own[-1] or lr if own else lr


def _on_mixture(job: ModelJob, session: Session, spec: CellSpec) -> list[Cell]:
    """A tuning run's cells: one for each task of the mixture."""
    cells = [cell for cell in job.tasks if cell.spec.task in session.mixture_tasks]
    return [
        replace(
            cell,
            spec=replace(
                spec, task=cell.spec.task, task_version=cell.spec.task_version, data=cell.spec.data
            ),
        )
        for cell in cells
    ]


def trial_spec(spec: CellSpec) -> CellSpec:
    """The tuning run that tries one layer."""
    budget, training, most = spec.budget, training_of(spec), spec.budget.trial_steps
    middle = sorted(budget.lrs)[len(budget.lrs) // 2]
    stages = [replace(one, steps=min(one.steps, most or one.steps)) for one in training.stages]
    return replace(
        spec,
        training=replace(training, stages=tuple(stages)),
        stage="tune",
        seed=TUNING_SEED,
        budget=replace(
            budget, lrs=(middle,), tuning_seeds=0, trial_steps=0,
            steps=budget.trial_steps or budget.steps,
        ),
    )  # fmt: skip


def train_in_process(world: World, options: RunOptions, job: ModelJob, work: Work) -> None:
    """Train in one of several processes, each with an encoder of its own."""
    models = ModelRunner(Runner(replace(options, processes=0), world=world))
    train_model(models.session(job), work, world)


def _about(tuned: Tuned) -> Mapping[str, object]:
    return {
        "tuning": {key: list(values) for key, values in tuned.scores.items()},
        "at_edge": tuned.at_edge, "notes": list(tuned.notes), "settings": dict(tuned.settings),
    }  # fmt: skip


def _known(found: Trained, spec: CellSpec) -> Tuned:
    """What a finished training was tuned to."""
    about = found.tuned
    return Tuned(
        lr=found.lr if found.lr is not None else spec.budget.lrs[0],
        scores={key: list(values) for key, values in about["tuning"].items()},
        at_edge=bool(about["at_edge"]),
        notes=tuple(about["notes"]),
        settings={
            key: tuple(value) if isinstance(value, list) else value
            for key, value in about["settings"].items()
        },
    )
