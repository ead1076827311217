"""One training from its job: stage by stage, resumed where it was killed, weights on disk."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial as bind
from pathlib import Path

import numpy as np
import torch

from fusionbench.api.benchmarks import Picture
from fusionbench.api.encoders import Encoder
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.train import spaced
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.models.readers.injection import decoder_layers
from fusionbench.models.readers.labels import TooLong
from fusionbench.models.readers.llava.checkpoint import Checkpoint
from fusionbench.records.cell import (
    Budget,
    CellSpec,
    RunOptions,
    Setting,
    Stage,
    Training,
    canonical,
)
from fusionbench.registry.cards import MethodCard
from fusionbench.registry.plugins import load_method
from fusionbench.study.mixture import Mixed
from fusionbench.vlm.batch import (
    Batches,
    Encode,
    ImageStates,
    ReadAhead,
    RowBatch,
    Strangers,
    pixels,
)
from fusionbench.vlm.checkpoint import Trained, fusion_buffers, partial, save_model, whole
from fusionbench.vlm.evaluate import Asking
from fusionbench.vlm.llava import Reading, most_positions, positions
from fusionbench.vlm.model import (
    Built,
    VisionLanguageModel,
    build_model,
    encoder_of_rows,
    is_words,
    set_trained,
    stranger,
    training_of,
)
from fusionbench.vlm.processes import World
from fusionbench.vlm.rows import Mixture, TrainingRow, open_mixture, within
from fusionbench.vlm.train import Setup, TrainingHistory, train

_CHECKPOINTS = 10
"""Checkpoints of a stage."""
_FUSION = "fusion."
_TOO_LONG = "rows longer than the limit"
_MARGIN = 512
"""Bytes that a template adds to a row at most, so that short rows need not be encoded twice."""
_NO_MEAN = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the trainings and tests of one job share."""

    encoder: Encoder
    bundles: Mapping[str, Bundle]
    states: ImageStates
    mixtures: tuple[Mixed, ...]
    """One for each stage."""
    options: RunOptions
    mixture_tasks: tuple[str, ...]
    grouped: bool = False
    """Rows of a step all have an image or all have none."""
    checkpoint: Checkpoint | None = None
    """The LLaVA checkpoint that encoder, projector and language model come from."""
    _opened: dict[int, Mixture] = field(default_factory=dict)

    @staticmethod
    def open(  # noqa: PLR0913
        encoder: Encoder,
        bundles: Mapping[str, Bundle],
        keys: Mapping[str, FeatureKey],
        mixtures: Sequence[Mixed],
        training: Training,
        options: RunOptions,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
    ) -> "Session":
        """The encoder with the images of local tasks and of files.

        Images of tasks are resized as the encoder does it, those of files and benchmarks as the
        training's `pixels` says. Raises UserError for pixels that the checkpoint does not have.
        """
        tasks = {part.name for mixed in mixtures for part in mixed.parts if part.is_task}
        if checkpoint is None:
            read = bind(_pixels, fit=training.pixels, mean=getattr(encoder, "mean", _NO_MEAN))
            states = ImageStates(keys=keys, encoder=encoder, device=device, pixels=ReadAhead(read))
        else:
            reading = Reading.of(checkpoint, training.pixels)
            states = ImageStates(
                keys=keys, encoder=encoder, device=device, pixels=reading.alone,
                several=reading.several,
            )  # fmt: skip
        return Session(
            encoder=encoder, bundles=bundles, states=states, mixtures=tuple(mixtures),
            options=options, mixture_tasks=tuple(sorted(tasks)), grouped=training.grouped,
            checkpoint=checkpoint,
        )  # fmt: skip

    def mixture(self, stage: int) -> Mixture:
        """The rows of a stage, opened once."""
        if stage not in self._opened:
            mixed, root = self.mixtures[stage], self.options.data_root
            self._opened[stage] = open_mixture(
                mixed.card, mixed.parts, self.bundles, Path(root) if root else None,
                grouped=self.grouped,
            )  # fmt: skip
        return self._opened[stage]

    def vocabulary(self) -> tuple[str, ...]:
        """Questions and answers of all training rows, each once."""
        found: dict[str, None] = {}
        for stage in range(len(self.mixtures)):
            rows = self.mixture(stage)
            for index in range(len(rows)):
                for turn in rows[index].turns:
                    found.setdefault(turn.question)
                    found.setdefault(turn.answer)
        return tuple(found)


def _pixels(picture: Picture, *, fit: str, mean: tuple[float, float, float]) -> np.ndarray:
    return pixels(picture, fit, mean)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training: an evaluation's, whose weights are kept, or a tuning run's."""

    spec: CellSpec
    method: MethodCard
    settings: Mapping[str, Setting]
    lr: float
    folder: Path
    """The folder of results."""
    keep: bool
    tuned: Mapping[str, object] = field(default_factory=dict)
    """What was chosen on val, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class StageRows:
    """The rows of a stage as the training loop takes them."""

    mixture: Mixture
    batches: Batches
    steps: int
    batch: int
    seed: int
    world: World = field(default_factory=World)

    def order(self, step: int) -> Sequence[int]:
        """The rows of a step; a function of seed and step alone.

        The images of this process's rows of the next two steps are read ahead.
        """
        for following in range(step + 1, min(step + 3, self.steps)):
            rows = self.mixture.order(following, self.batch, self.seed)
            self.batches.expect(rows[self.world.rank :: self.world.size])
        return [int(row) for row in self.mixture.order(step, self.batch, self.seed)]

    def labelled(self, index: int) -> int:
        """Number of labelled tokens of a row."""
        return self.batches.labelled(index)

    def images(self, index: int) -> int:
        """Number of images of a row."""
        return len(self.mixture[index].images)

    def fetch(self, indices: Sequence[int]) -> RowBatch:
        """These rows as a batch."""
        return self.batches.fetch(indices)


def train_model(session: Session, work: Work, world: World | None = None) -> tuple[Built, Trained]:
    """Train the model of a specification and, if it is kept, write its weights.

    Raises FloatingPointError for a loss that stops being finite, Unsupported for a method that does
    not fit.
    """
    world = world or World(device=session.states.device)
    started = time.perf_counter()
    training = training_of(work.spec)
    vocabulary = session.vocabulary() if is_words(training) else ()
    method = load_method(work.method)
    built = build_model(
        method, work.settings, work.spec, session.encoder, vocabulary, session.checkpoint
    )
    if session.options.checkpoint:
        built.model.language.checkpoint_layers()
    losses: list[float] = []
    moved: set[str] = set()
    names: dict[str, None] = {}
    notes: list[str] = []
    too_long = 0
    for at, stage in enumerate(training.stages):
        trained = set_trained(built.model, stage, fresh=built.fresh)
        names |= dict.fromkeys(trained)
        if not stage.trained:
            continue
        run = _Stage(session=session, work=work, built=built, at=at, stage=stage, world=world)
        history, dropped = run.train()
        losses += history.losses
        moved |= set(trained) - set(history.unmoved)
        notes += history.notes
        too_long += dropped
    about = Trained(
        losses=spaced(torch.tensor(losses), work.lr) if losses else (),
        unmoved=_of_fusion(names.keys() - moved),
        lr=work.lr,
        tuned=work.tuned,
        notes=tuple(notes),
        counts={_TOO_LONG: too_long} if too_long else {},
        vocabulary=vocabulary,
        seconds=round(time.perf_counter() - started, 3),
    )
    if work.keep:
        _keep(work, built, names, about, world)
    return built, about


def _of_fusion(names: Iterable[str]) -> tuple[str, ...]:
    """The parameters of the fusion among these, by the names that its method gave them."""
    return tuple(sorted(name.removeprefix(_FUSION) for name in names if name.startswith(_FUSION)))


def _keep(work: Work, built: Built, names: Iterable[str], about: Trained, world: World) -> None:
    """Write the weights of these names and the fusion's buffers; every process takes part."""
    own = dict(built.model.named_parameters())
    weights = {name: whole(own[name]) for name in names} | fusion_buffers(built.model)
    if world.main:
        save_model(work.folder, work.spec.model_id, weights, about)
    world.barrier()


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One stage of a training."""

    session: Session
    work: Work
    built: Built
    at: int
    stage: Stage
    world: World

    @property
    def last(self) -> bool:
        """Whether no later stage trains anything."""
        stages = training_of(self.work.spec).stages
        return not any(stage.trained for stage in stages[self.at + 1 :])

    def train(self) -> tuple[TrainingHistory, int]:
        """Train the stage; gives what it did and the number of rows that were too long."""
        data = self._rows()
        setup = Setup(
            budget=self._budget(),
            lr=self.stage.lr or self.work.lr,
            mean=training_of(self.work.spec).mean,
            micro_batch=self.session.options.micro_batch,
            # Sharded weights run in training only, and the rows of a stage need the model.
            strategy="shard" if self.session.options.shard and self.last else "ddp",
        )
        folder = self._folder()
        try:
            history = train(
                self.built.model,
                data,
                setup,
                world=self.world,
                folder=folder,
                every=max(1, setup.budget.steps // _CHECKPOINTS) if folder else 0,
                fingerprint=f"{self.work.spec.model_id} {canonical(vars(self.stage))}",
                units=tuple(decoder_layers(self.built.model.language.decoder)),
            )
        finally:
            self.session.states.drop()
        return history, sum(data.mixture.dropped.values())

    def _folder(self) -> Path | None:
        if not self.work.keep:
            return None
        return partial(self.work.folder, self.work.spec.model_id) / f"stage{self.at}"

    def _budget(self) -> Budget:
        """The budget with the stage's own values."""
        budget, stage = self.work.spec.budget, self.stage
        return replace(
            budget,
            steps=stage.steps or budget.steps,
            batch=stage.batch or budget.batch,
            weight_decay=budget.weight_decay if stage.weight_decay < 0 else stage.weight_decay,
            warmup=budget.warmup if stage.warmup < 0 else stage.warmup,
        )

    def _rows(self) -> StageRows:
        spec, language = self.work.spec, self.built.model.language
        training = training_of(spec)
        limit = training.length or None
        encode = encoder_of_rows(language, training, self.stage.template, answer=True, limit=limit)
        most = training.length or language.context
        fits, sure = self._fitting(encode, most)
        mixture = within(self.session.mixture(self.at), fits, sure=sure)
        seed = stranger(self.work.settings, spec.seed)
        batches = Batches(
            mixture,
            encode,
            self.session.states,
            asked=None if seed is None else Strangers(mixture, seed),
            files=any(part.card.kind != "task" for part in mixture.parts),
        )
        budget = self._budget()
        return StageRows(
            mixture=mixture, batches=batches, steps=budget.steps, batch=budget.batch,
            seed=spec.seed, world=self.world,
        )  # fmt: skip

    def _fitting(self, encode: Encode, most: int) -> tuple[Callable[[TrainingRow], bool], int]:
        """(whether a row has at most `most` positions, bytes of text with which it surely has)."""
        checkpoint = self.session.checkpoint
        tokens = image_tokens(self.built.model, self.session.states, self.work.spec)
        largest = most_positions(checkpoint, tokens)

        def fits(row: TrainingRow) -> bool:
            try:
                room = most - len(encode(row).ids)
            except TooLong:
                return False
            # The sizes of images decide only where the largest would not fit.
            if len(row.images) * largest <= room:
                return True
            return checkpoint is not None and positions(checkpoint, row, tokens) <= room

        return fits, most - largest - _MARGIN


def image_tokens(model: VisionLanguageModel, states: ImageStates, spec: CellSpec) -> int:
    """Tokens of one input of the encoder, from the fused tokens of a blank one.

    It is no example of training: nothing in the fusion changes.
    """
    bf16, training = spec.budget.precision == "bf16", model.fusion.training
    model.fusion.eval()
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        batch = RowBatch(rows=(), owners=(), states=states.of(()), queries=((),), answers=((),))
        found = int(model.fused(batch).tokens.shape[1])
    model.fusion.train(training)
    return found


def asking_of(
    session: Session, built: Built, spec: CellSpec, size: int, *, shuffled: int | None = None
) -> Asking:
    """How the model of a specification is asked, `size` questions at a time.

    `shuffled`: a seed, the method reads another row's question; None: the image's own.
    """
    training = training_of(spec)
    language, template = built.model.language, training.stages[-1].template
    tokens = image_tokens(built.model, session.states, spec)
    return Asking(
        model=built.model,
        states=session.states,
        ask=encoder_of_rows(language, training, template, answer=False),
        told=encoder_of_rows(language, training, template, answer=True),
        size=size,
        bf16=spec.budget.precision == "bf16",
        shuffled=shuffled,
        query=training.query,
        context=language.context,
        image=most_positions(session.checkpoint, tokens),
    )
