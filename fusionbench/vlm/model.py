"""Encoder, fusion, projector and language model as one module, built from a specification.

The language model's stream knows the seed, the fusion's also its class; the projector's knows the
seed and its widths. Methods of one seed start from the same language model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.seeding import seed_of
from fusionbench.api.types import Fused, ReaderShape, StackShape, Unsupported
from fusionbench.harness.model import seeded_fusion
from fusionbench.harness.stepping import fuse
from fusionbench.models.readers.injection import Inside, project
from fusionbench.models.readers.labels import EncodedRow, encode
from fusionbench.models.readers.language import LanguageModel, config_shape
from fusionbench.models.readers.llava.checkpoint import Checkpoint
from fusionbench.models.readers.load import WORDS, load_language
from fusionbench.models.readers.splice import LanguageProjector, Spliced, splice
from fusionbench.models.readers.template import build_template
from fusionbench.records.cell import QUESTION, CellSpec, Setting, Stage, Training
from fusionbench.study.training import WORDS_SIZE, checkpoint_folder
from fusionbench.vlm.batch import Encode, RowBatch, encoded
from fusionbench.vlm.llava import how_trained, language_in, projector_in, weight_type
from fusionbench.vlm.rows import TrainingRow


class VisionLanguageModel(nn.Module):
    """A language model that sees the fused tokens of its images.

    Text is spliced with projected tokens; injections and patches act inside the language model's
    layers at the positions of the images.
    """

    def __init__(
        self,
        fusion: Method,
        projector: nn.Module,
        language: LanguageModel,
        encoder: Encoder,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """`checkpoint`: joins the inputs that an image makes, behind the projector."""
        super().__init__()
        self.fusion = fusion
        self.projector = projector
        self.language = language
        # Frozen and no part of the module: neither trained, counted nor stored with it.
        self._encoder = (encoder,)
        self._checkpoint = checkpoint

    def forward(
        self, batch: RowBatch, weights: Float[Tensor, " row"], share: float = 1.0
    ) -> Float[Tensor, ""]:
        """The sum over rows of weight times nll, and `share` times the fusion's own losses.

        `share`: images of the batch, divided by those of the whole step.
        """
        fused = self.fused(batch)
        spliced, inside = self.spliced(batch, fused, side="right")
        nll = self.language.nll(spliced, inside)
        loss = (nll * weights).sum()
        terms = self._terms(batch, fused)
        if not batch.shows:
            # No image: the fusion's gradients are zeros, so that all processes have the same.
            return loss + 0.0 * (terms + fused.tokens.float().sum() + _parts(fused))
        return loss + share * terms

    def fused(self, batch: RowBatch) -> Fused:
        """What the fusion makes of the batch's images.

        Tokens have a row for each input of the encoder, injections and summary for each image.
        """
        asking = torch.tensor(batch.asking or (0,), device=self.device)
        found = fuse(self.fusion, batch.states, self.query(batch)[asking], self._encoder[0])
        if self._checkpoint is None or not batch.shows:
            return found
        return self._checkpoint.by_picture(found, self.projector, batch.parts)

    def image_tokens(self, batch: RowBatch, fused: Fused) -> list[Float[Tensor, "token width"]]:
        """The projected tokens of each image, as the language model gets them.

        Raises Unsupported where the inputs of an image cannot be joined.
        """
        projected = project(fused, self.projector)
        if self._checkpoint is None:
            return list(projected)
        return self._checkpoint.image_tokens(projected, batch.parts)

    def query(self, batch: RowBatch) -> Float[Tensor, "row width"]:
        """The mean of the language model's embeddings of each row's query; no gradient.

        A method that reads answers sees them in training.
        """
        ids = batch.queries
        if self.training and self.fusion.reads_answers:
            ids = tuple((*one, *told) for one, told in zip(ids, batch.answers, strict=True))
        return self.language.query(ids)

    def most_tokens(self, batch: RowBatch, fused: Fused) -> int:
        """Tokens that the language model gets for one image of the batch, for the largest."""
        tiling = None if self._checkpoint is None else self._checkpoint.tiling
        if not batch.shows:
            return 0
        if tiling is None:
            return int(fused.tokens.shape[1])
        # One input alone has one mark behind it.
        return max(
            tiling.tokens(size) if inputs > 1 else fused.tokens.shape[1] + 1
            for inputs, size in batch.parts
        )

    def spliced(
        self, batch: RowBatch, fused: Fused, *, side: Literal["right", "left"]
    ) -> tuple[Spliced, Inside | None]:
        """Text and image tokens in one sequence, and what the fusion does inside the layers."""
        images = self.image_tokens(batch, fused) if batch.shows else []
        spliced = splice(self.language, batch.rows, images, side=side)
        if not batch.shows:
            return spliced, None
        return spliced, self.language.inside(fused, spliced, self.projector)

    @torch.no_grad()
    def answer(self, batch: RowBatch, *, limit: int) -> tuple[list[str], Fused]:
        """The greedy answers, at most `limit` tokens each, and all that the fusion gave."""
        fused = self.fused(batch)
        spliced, inside = self.spliced(batch, fused, side="left")
        return self.language.generate(spliced, inside, limit=limit), fused

    @torch.no_grad()
    def losses(self, batch: RowBatch) -> Float[Tensor, " row"]:
        """The negative log-likelihood of each row's answer, in nats."""
        spliced, inside = self.spliced(batch, self.fused(batch), side="right")
        try:
            return self.language.nll(spliced, inside)
        finally:
            self.language.release()

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.language.device

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters by part; frozen ones of the language model as `language`."""
        trained = {
            "fusion": _count(self.fusion),
            "projector": _count(self.projector),
            "reader": _count(self.language),
        }
        frozen = sum(p.numel() for p in self.language.parameters() if not p.requires_grad)
        return trained | ({"language": frozen} if frozen else {})

    def _terms(self, batch: RowBatch, fused: Fused) -> Float[Tensor, ""]:
        """The fusion's own losses and its alignment with the answer, a mean over images."""
        total = fused.tokens.new_zeros(())
        for term in fused.losses.values():
            total = total + term
        if fused.summary is not None and self.fusion.summary_weight and batch.shows:
            answers = self.language.query(batch.answers)
            wanted = answers[torch.tensor(batch.owners, device=self.device)]
            projected = self.projector(fused.summary)
            alike = F.cosine_similarity(projected.float(), wanted.float())
            total = total + self.fusion.summary_weight * (1 - alike).mean()
        return total


def _parts(fused: Fused) -> Tensor:
    """A sum over everything else that a fusion gave, to reach all of its parameters."""
    values: Sequence[Tensor] = [one.values for one in fused.injections]
    values = [*values, *([] if fused.summary is None else [fused.summary])]
    return sum((one.float().sum() for one in values), fused.tokens.new_zeros(()))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


_STREAM = "vlm"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model and what a record says of it."""

    model: VisionLanguageModel
    notes: tuple[str, ...] = ()
    fresh: bool = False
    """Whether a checkpoint's projector was replaced by a new one, which every stage trains."""


def training_of(spec: CellSpec) -> Training:
    """The training of a specification of this track. Raises TypeError for any other."""
    if spec.training is None:
        raise TypeError(f"a cell of the track {spec.track} has no training")
    return spec.training


def build_model(  # noqa: PLR0913
    method: type[Method],
    settings: Mapping[str, Setting],
    spec: CellSpec,
    encoder: Encoder,
    vocabulary: Sequence[str],
    checkpoint: Checkpoint | None = None,
) -> Built:
    """The model that a training starts from.

    `vocabulary`: the texts whose words are those of the language model `words`. `checkpoint`: the
    parts of a LLaVA checkpoint, where the training names one. Raises Unsupported for a method that
    does not fit encoder or language model, or that would have to be trained where nothing is.
    """
    training = training_of(spec)
    language = language_of(training, spec, vocabulary, device_of(encoder), checkpoint)
    fusion = fusion_of(method, settings, encoder, language.shape, spec.seed)
    fusion = fusion.to(device_of(encoder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(_STREAM, spec.seed, "projector"))
        projector, note = _projector(fusion, language, encoder, spec, checkpoint)
    built = Built(
        model=VisionLanguageModel(fusion, projector, language, encoder, checkpoint),
        notes=(*fusion.notes, *([note] if note else [])),
        fresh=bool(note),
    )
    _refuse_untrained(built, training)
    return built


def _projector(
    fusion: Method,
    language: LanguageModel,
    encoder: Encoder,
    spec: CellSpec,
    checkpoint: Checkpoint | None,
) -> tuple[nn.Module, str]:
    """(projector, note of a checkpoint's that was replaced)."""
    if checkpoint is not None:
        return projector_in(checkpoint, fusion, probed(fusion, language, encoder, spec))
    kind = training_of(spec).projector
    found = LanguageProjector(fusion.out_dim, language.shape.width, kind=kind, scale=language.scale)
    return found.to(device_of(encoder)), ""


@torch.no_grad()
def probed(fusion: Method, language: LanguageModel, encoder: Encoder, spec: CellSpec) -> Fused:
    """What a fusion makes of one fixed image of noise: number and scale of its tokens."""
    draw = torch.Generator().manual_seed(0)
    size, device = encoder.size, device_of(encoder)
    image = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=draw).to(device)
    query = language.scale * torch.randn(1, language.shape.width, generator=draw).to(device)
    bf16 = spec.budget.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = fuse(fusion.eval(), encoded(encoder, [image]), query, encoder)
    fusion.train()
    return found


def _refuse_untrained(built: Built, training: Training) -> None:
    """Unsupported for random weights in a study that trains nothing."""
    if any(stage.trained for stage in training.stages):
        return
    if built.fresh:
        raise Unsupported("needs a projector of another width, and this study trains nothing")
    if any(True for _ in built.model.fusion.parameters()):
        raise Unsupported("has weights of its own, and this study trains nothing")


def fusion_of(
    method: type[Method],
    settings: Mapping[str, Setting],
    encoder: Encoder,
    reader: ReaderShape,
    seed: int,
) -> Method:
    """The fusion that a training of this seed starts from."""
    shape = shape_with(encoder, reader)
    return seeded_fusion(method, settings, shape, stream=(_STREAM, seed))


def shape_with(encoder: Encoder, reader: ReaderShape) -> StackShape:
    """The encoder's stack with the query's width and the language model's layers."""
    return replace(encoder.shape, query_dim=reader.width, mlp=encoder.mlp, reader=reader)


def reader_shape(spec: CellSpec) -> ReaderShape:
    """Size of the language model's layers, from its configuration alone."""
    name = training_of(spec).language
    if name == WORDS:
        layers, width, heads = WORDS_SIZE
        return ReaderShape(layers=layers, width=width, heads=heads, mlp=2 * width)
    from transformers import AutoConfig

    from fusionbench.models.encoders.snapshots import LOCAL

    folder = checkpoint_folder(name)
    return config_shape(AutoConfig.from_pretrained(folder, **LOCAL))


def language_of(
    training: Training,
    spec: CellSpec,
    vocabulary: Sequence[str],
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> LanguageModel:
    """The language model, with gradients where some stage trains it."""
    if checkpoint is not None:
        return language_in(checkpoint, training, spec.seed, device)
    layers, width, heads = WORDS_SIZE
    return load_language(
        training.language,
        texts=vocabulary,
        seed=spec.seed,
        device=device,
        dtype=weight_type(spec, training, device),
        trained=how_trained(training),
        template=training.stages[-1].template,
        layers=layers,
        width=width,
        heads=heads,
    )


def set_trained(model: VisionLanguageModel, stage: Stage, *, fresh: bool = False) -> list[str]:
    """Enable the gradients of what a stage trains; returns the names of these parameters.

    `fresh`: the projector is trained whatever the stage names.
    """
    model.fusion.requires_grad_("fusion" in stage.trained)
    model.projector.requires_grad_(fresh or "projector" in stage.trained)
    for name, parameter in model.language.named_parameters():
        lora = "lora_" in name
        parameter.requires_grad_(("lora" if lora else "language") in stage.trained)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def encoder_of_rows(
    language: LanguageModel, training: Training, template: str, *, answer: bool,
    limit: int | None = None,
) -> Encode:  # fmt: skip
    """Encodes rows with a template; with `answer` the last answer is labelled.

    `limit`: most text tokens of a row, for training; a question is asked whatever its length.
    """
    chosen = build_template(template, language.tokenizer)

    def run(row: TrainingRow) -> EncodedRow:
        return encode(
            language.tokenizer,
            chosen,
            row.turns,
            answer=answer,
            query=training.query,
            limit=limit,
            later=row.later,
        )

    return run


def stranger(settings: Mapping[str, Setting], seed: int) -> int | None:
    """The seed of `Batches`' shuffling for the setting `question=shuffled`, else None."""
    return seed if settings.get(QUESTION) == "shuffled" else None


def device_of(encoder: Encoder) -> torch.device:
    """Where the encoder is."""
    return next(encoder.parameters()).device


def is_words(training: Training) -> bool:
    """Whether the language model is trained from scratch on the words of the rows."""
    return training.language == WORDS
