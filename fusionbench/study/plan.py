"""A study resolved to methods, tasks and encoders, and its cells that have no record. No torch."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.sources import find_source
from fusionbench.models.encoders.card import EncoderCard
from fusionbench.models.readers.llava.description import own_method
from fusionbench.records.cell import (
    READER,
    RIDGE,
    TUNING_SEED,
    Budget,
    CellSpec,
    Setting,
    Training,
)
from fusionbench.registry.catalog import BenchmarkCard, Catalog, TaskCard, found_encoder
from fusionbench.registry.selection import (
    Chosen,
    Unavailable,
    divide_tasks,
    select_methods,
    select_tasks,
)
from fusionbench.study.contrasts import check_known, read_contrasts
from fusionbench.study.data import benchmark_hash, check_packed, tried_hashes
from fusionbench.study.mixture import Mixed, MixtureCard, describe_mixture, parse_mixture
from fusionbench.study.study import ALL, LOCAL_TASKS, OWN, PRESETS, PROBE, VLM, Study
from fusionbench.study.training import (
    BLIND,
    LanguageCard,
    describe_language,
    evaluated,
    training_of,
    without_readers,
)

AnyTask = TaskCard | BenchmarkCard


@dataclass(frozen=True, kw_only=True)
class ResolvedStudy:
    """A study with its names looked up: the methods, tasks and encoders that it means here."""

    study: Study
    methods: tuple[Chosen, ...]
    tasks: tuple[AnyTask, ...]
    unavailable: tuple[Unavailable, ...]
    """Tasks left out, each with the reason."""
    encoders: Mapping[str, EncoderCard]
    """Task -> its encoder: the study's, or the one that the task brings."""
    catalog: Catalog
    language: LanguageCard | None = None
    """Of the track `vlm`."""
    mixture: tuple[TaskCard, ...] = ()
    """The local tasks on whose training images a model is trained."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Methods that differ from another in the reader alone, which the track `vlm` does not have."""
    data_root: str = ""
    """Folder of the benchmarks' files."""

    def budget_of(self, task: AnyTask) -> Budget:
        """The study's budget; a task with its own encoder has that encoder's image size."""
        budget = self.study.budget
        own = _own_encoder(task) or (self.language and self.language.checkpoint)
        return replace(budget, image_size=0) if own else budget


def resolve(
    study: Study,
    catalog: Catalog,
    *,
    download: bool = False,
    data_root: str = "",
    absent: bool = False,
    hear: Callable[[str], None] = lambda _: None,
) -> ResolvedStudy:
    """Look up every name of a study. Raises UserError for an unknown or impossible one.

    `download`: fetch the weights of encoders and language models that are not here; else their
    absence is an error. `data_root`: folder of the benchmarks' files. `absent`: plan without
    weights where the sizes of the encoder are known; the ids of such cells are not those of a run.
    `hear` gets a sentence before weights are fetched.
    """
    find = partial(found_encoder, catalog, download=download, absent=absent, hear=hear)
    # The study's own encoder first: a wrong name is an error even if no task uses it.
    vlm = study.track == VLM
    language = describe_language(study.language, study.model, download=download) if vlm else None
    if language is not None:
        study = _of_checkpoint(evaluated(study, language), language)
    size = study.budget.image_size
    study_encoder = (language and language.tower) or find(study.encoder, image_size=size)
    added = (BLIND,) if vlm else references(study, study_encoder.layers)
    methods = select_methods(catalog, (*study.methods, *added), study.settings)
    methods, same = without_readers(methods) if vlm else (methods, {})
    tasks, unavailable = _tasks(study, catalog, data_root)
    own = sorted({name for task in tasks if (name := _own_encoder(task))})
    brought = {name: find(name, image_size=0) for name in own}
    encoders = {task.name: brought.get(_own_encoder(task), study_encoder) for task in tasks}
    trained_on = _trained_on(study, catalog) if vlm else ()
    check_packed(dict.fromkeys(trained_on, study_encoder) | encoders)
    return ResolvedStudy(
        study=_with_contrasts(study, methods, catalog),
        methods=methods,
        tasks=tasks,
        unavailable=unavailable,
        encoders=encoders,
        language=language,
        mixture=tuple(catalog.tasks[name] for name in trained_on),
        same=same,
        data_root=data_root,
        catalog=catalog,
    )


def _own_encoder(task: AnyTask) -> str:
    return task.encoder if isinstance(task, TaskCard) else ""


def _of_checkpoint(study: Study, language: LanguageCard) -> Study:
    """The study with the checkpoint's own method in place of `own`, which is the baseline then.

    Raises UserError for `own` without a checkpoint and for images of another size than its tower's.
    """
    about = language.checkpoint
    if about is None:
        if OWN in study.methods:
            raise UserError("the method `own` is the layer of a checkpoint", "name one: --model")
        return study
    size = study.budget.image_size
    # A preset's is that of its own encoder.
    presets = {one.budget.image_size for one in PRESETS[VLM].values()}
    if size not in {0, about.encoder.size, *presets}:
        raise UserError(
            f"budget.image_size is {size}, and the tower of {about.name} reads "
            f"{about.encoder.size} pixels",
            "leave image_size out",
        )
    if OWN not in study.methods:
        return study
    own = own_method(about)
    methods = tuple(dict.fromkeys(own if name == OWN else name for name in study.methods))
    return replace(study, methods=methods, baseline=own)


def _tasks(
    study: Study, catalog: Catalog, data_root: str
) -> tuple[tuple[AnyTask, ...], tuple[Unavailable, ...]]:
    """The tasks of a study; in the track `vlm` also benchmarks. Raises UserError."""
    if study.track == PROBE:
        return select_tasks(catalog, study.tasks)
    # A model answers what it was trained on: `all` are the mixture's own tasks.
    local = _trained_on(study, catalog) or _not_trained_on(catalog, data_root)
    wanted = [one for name in study.tasks for one in (local if name == ALL else (name,))]
    names, benchmarks = divide_tasks(catalog, wanted)
    tasks, unavailable = select_tasks(catalog, names) if names else ((), ())
    for task in tasks:
        if task.encoder:
            raise UserError(
                f"task {task.name!r} brings an encoder of its own and belongs to the track {PROBE}",
                "leave it out, or leave --track out",
            )
    return (*tasks, *benchmarks), unavailable


def _not_trained_on(catalog: Catalog, data_root: str) -> tuple[str, ...]:
    """`all` for a mixture without local tasks: those, and the benchmarks below `data_root`."""
    local = [name for name in LOCAL_TASKS if catalog.tasks[name].available]
    return (*local, *(name for name in catalog.benchmarks if _is_there(catalog, name, data_root)))


def _is_there(catalog: Catalog, name: str, data_root: str) -> bool:
    try:
        return bool(data_root and find_source(name, catalog.benchmarks[name].needs, data_root))
    except UserError:
        return False


def _trained_on(study: Study, catalog: Catalog) -> tuple[str, ...]:
    """The local tasks of all mixtures of a study. Raises UserError for an unknown part."""
    given = study.training.get("stages") or [{}]
    found: dict[str, None] = {}
    for stage in given:
        # Stage by stage: only one mixture must not name a part twice.
        if mixture := tuple(stage.get("mixture") or study.mixture):
            found |= {part.name: None for part in parse_mixture(mixture) if part.is_task}
    for name in found:
        if name not in catalog.tasks:
            raise unknown("task or file in the mixture:", name, catalog.tasks)
    return tuple(found)


def _with_contrasts(study: Study, methods: Sequence[Chosen], catalog: Catalog) -> Study:
    """The study with those of its planned comparisons that can run. Raises UserError."""
    planned = read_contrasts(study.contrasts, study.baseline)
    labels = {one.label for one in methods}
    known = labels | set(catalog.methods)
    if study.baseline not in known:
        raise unknown("method", study.baseline, known, "baseline: names a method of the study")
    groups = {task.group for task in catalog.tasks.values() if task.group}
    check_known(planned, known, groups)
    if study.name not in PRESETS[study.track]:
        return study
    # The flags may have left out some of a preset's methods: what cannot run is not planned.
    kept = [
        value
        for value, one in zip(study.contrasts, planned, strict=True)
        if {one.method, one.baseline} <= labels
    ]
    return replace(study, contrasts=tuple(kept))


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
    task: AnyTask
    encoder: EncoderCard

    @property
    def local(self) -> TaskCard:
        """The task, whose images are on this machine. Raises TypeError for a benchmark."""
        if isinstance(self.task, BenchmarkCard):
            raise TypeError(f"{self.task.name} is a benchmark: it has no training images")
        return self.task


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Trainings of one method on one task that differ in the seed."""

    cells: tuple[Cell, ...]
    """The cells without a record."""
    first: Cell
    """The cell of the first seed, whether it has a record or not."""
    wait: bool = False
    """Wait for another run that holds the job, instead of leaving it for later."""

    @property
    def tasks(self) -> tuple[Cell, ...]:
        """A cell of the task."""
        return (self.first,)

    @property
    def id(self) -> str:
        """Equal in all runs that train this method on this task, whatever their seeds."""
        return replace(self.first.spec, seed=0).id


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """One training of the track `vlm`, scored and recorded task by task."""

    cells: tuple[Cell, ...]
    """The cells of this training that have no record."""
    tasks: tuple[Cell, ...]
    """One cell of each local task whose images it reads, to train or to be scored."""
    mixtures: tuple[Mixed, ...]
    """The mixture of each stage."""
    wait: bool = False
    """Wait for another run that holds the job, instead of leaving it for later."""

    @property
    def spec(self) -> CellSpec:
        """The specification of one of its cells; all of them have the same training."""
        return self.cells[0].spec

    @property
    def id(self) -> str:
        """The id of the model."""
        return self.spec.model_id


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a study, and those without a record."""

    resolved: ResolvedStudy
    cells: tuple[Cell, ...]
    pending: tuple[Cell, ...]
    hashes: Mapping[str, str]
    """Task -> hash of its data; in the track `vlm` of the mixture's tasks too."""
    mixtures: tuple[Mixed, ...] = ()
    """Of the track `vlm`: the mixture of each stage."""
    lost: tuple[Unavailable, ...] = ()
    """Tasks that were chosen and cannot be loaded; also among those that are left out."""

    @property
    def finished(self) -> int:
        """Number of cells with a record on disk."""
        return len(self.cells) - len(self.pending)

    def jobs(self) -> Iterator[TrainJob | ModelJob]:
        """The pending cells, training by training; the expensive methods come first."""
        return self._models() if self.resolved.language else self._trainings()

    def _models(self) -> Iterator[ModelJob]:
        """Seed by seed; a method that tries all layers is the most expensive."""

        def rank(cell: Cell) -> tuple[int, bool, bool, str]:
            card = cell.chosen.card
            return cell.spec.seed, not card.tries, not card.in_encoder, cell.chosen.label

        cards = {card.name: card for card in (*self.resolved.mixture, *self.resolved.tasks)}
        local = [card for card in cards.values() if isinstance(card, TaskCard)]
        for _, group in groupby(sorted(self.pending, key=rank), key=rank):
            cells = tuple(group)
            read = tuple(self._on(cells[0], card) for card in local)
            yield ModelJob(cells=cells, tasks=read, mixtures=self.mixtures)

    def _on(self, cell: Cell, task: TaskCard) -> Cell:
        """The same training on another local task."""
        spec = replace(
            cell.spec, task=task.name, task_version=task.version, data=self.hashes[task.name]
        )
        return replace(cell, spec=spec, task=task)

    def _trainings(self) -> Iterator[TrainJob]:
        """By task, then the expensive methods first."""
        order = {task.name: row for row, task in enumerate(self.resolved.tasks)}

        def training(cell: Cell) -> tuple[int, bool, str]:
            return order[cell.task.name], not cell.chosen.card.in_encoder, cell.chosen.label

        first = {(cell.chosen.label, cell.task.name): cell for cell in reversed(self.cells)}
        ranked = sorted(self.pending, key=lambda cell: (*training(cell), cell.spec.seed))
        for _, group in groupby(ranked, key=training):
            cells = tuple(group)
            yield TrainJob(cells=cells, first=first[cells[0].chosen.label, cells[0].task.name])


def make_plan(
    resolved: ResolvedStudy,
    finished: Container[str],
    *,
    keep: bool = False,
    hear: Callable[[str], None] = lambda _: None,
) -> Plan:
    """All cells of a study; `finished` holds the ids of cells with a record.

    `keep`: images that are rendered or read for a hash stay in the cache until they are encoded.
    `hear` gets a line for each task whose images are read for the first time on this machine.
    """
    cards = {card.name: card for card in (*resolved.tasks, *resolved.mixture)}
    local = [card for card in cards.values() if isinstance(card, TaskCard)]
    known, failed = tried_hashes(local, resolved.study.budget if keep else None, hear)
    resolved, lost = _without(resolved, failed)
    hashes = dict(known)
    for card in cards.values():
        if isinstance(card, BenchmarkCard):
            hashes[card.name] = benchmark_hash(card, resolved.data_root)
    training, mixtures = _training(resolved)
    cells = tuple(
        cell
        for task in resolved.tasks
        for cell in _cells(resolved, task, hashes[task.name], training)
    )
    pending = tuple(cell for cell in cells if cell.spec.id not in finished)
    return Plan(
        resolved=resolved, cells=cells, pending=pending, hashes=hashes, mixtures=mixtures, lost=lost
    )


def _without(
    resolved: ResolvedStudy, failed: Mapping[str, str]
) -> tuple[ResolvedStudy, tuple[Unavailable, ...]]:
    """The study without the tasks that cannot be loaded, and these with their reasons.

    Raises UserError for one that a model is trained on.
    """
    for card in resolved.mixture:
        if card.name in failed:
            raise UserError(f"task {card.name!r} of the mixture {failed[card.name]}")
    lost = tuple(
        Unavailable(card=card, reason=failed[card.name])
        for card in resolved.tasks
        if isinstance(card, TaskCard) and card.name in failed
    )
    tasks = tuple(card for card in resolved.tasks if card.name not in failed)
    return replace(resolved, tasks=tasks, unavailable=(*resolved.unavailable, *lost)), lost


def _training(resolved: ResolvedStudy) -> tuple[Training | None, tuple[Mixed, ...]]:
    """What the models of the study are trained on; None in the track `probe`."""
    if resolved.language is None:
        return None, ()
    study, language = resolved.study, resolved.language
    root = Path(resolved.data_root) if resolved.data_root else None
    found: list[Mixed] = []

    def describe(names: Sequence[str]) -> MixtureCard:
        parts = parse_mixture(names)
        card = describe_mixture(parts, resolved.catalog, study.budget, root)
        found.append(Mixed(card=card, parts=parts))
        return card

    training = training_of(study, language, describe)
    _require_val(study, found)
    return training, tuple(found)


def _require_val(study: Study, mixtures: Sequence[Mixed]) -> None:
    """Raise UserError for several learning rates and no val question to choose with."""
    tasks = [part for mixed in mixtures for part in mixed.parts if part.is_task]
    if len(study.budget.lrs) > 1 and not tasks:
        raise UserError(
            f"budget.lrs has {len(study.budget.lrs)} learning rates, and no local task is trained "
            "on, whose val questions would choose one",
            "name one learning rate, for example lrs: [1.0e-4]",
        )


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


def layer_candidates(cell: Cell) -> Mapping[int, Cell]:
    """The cell with each layer in turn, for a method that tries all; empty for any other."""
    tried = cell.chosen.card.tries
    layers = range(1, cell.encoder.layers + 1) if tried else ()
    return {layer: _with(cell, {tried: layer}) for layer in layers}


def _with(cell: Cell, settings: Mapping[str, Setting]) -> Cell:
    complete = {**cell.spec.settings, **settings}
    chosen = replace(cell.chosen, settings=complete)
    return replace(cell, spec=replace(cell.spec, settings=complete), chosen=chosen)


def _cells(
    resolved: ResolvedStudy, task: AnyTask, data: str, training: Training | None
) -> Iterator[Cell]:
    study, encoder = resolved.study, resolved.encoders[task.name]
    budget = resolved.budget_of(task)
    for chosen in resolved.methods:
        for seed in range(study.seeds):
            spec = CellSpec(
                track=study.track,
                encoder=encoder.recorded,
                weights=encoder.weights,
                method=chosen.card.name,
                method_version=chosen.card.version,
                settings=chosen.settings,
                task=task.name,
                task_version=task.version,
                data=data,
                budget=budget,
                seed=seed,
                training=training,
            )
            yield Cell(spec=spec, chosen=chosen, task=task, encoder=encoder)
