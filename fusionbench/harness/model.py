"""Fusion and reader as one trainable module, initialised from streams that keep cells paired."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.fusion import Method
from fusionbench.api.seeding import seed_of
from fusionbench.api.types import Fused, StackShape, Unsupported
from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.stepping import fuse
from fusionbench.models.readers.build import Reader, build_reader, reader_shape
from fusionbench.models.readers.injection import project
from fusionbench.models.readers.ridge import RidgeReader
from fusionbench.records.cell import QUESTION, READER, Budget, Setting, reader_of

NO_ANSWER = -1
"""In place of an answer's index where the logits are infinite or NaN."""


class Model(nn.Module):
    """What one cell trains."""

    def __init__(self, fusion: Method, reader: Reader, *, shuffled: bool = False) -> None:
        super().__init__()
        self.shuffled = shuffled
        self.fusion = fusion
        self.reader = reader

    def forward(
        self, batch: Batch, materials: Materials
    ) -> tuple[Float[Tensor, "batch output"], Fused]:
        """The reader's output, and all the fusion gave."""
        query = self.query(batch, materials)
        states = materials.states(batch.rows)
        fused = fuse(self.fusion, states, query, materials.encoder)
        return self.read(fused, batch, materials), fused

    def read(
        self, fused: Fused, batch: Batch, materials: Materials
    ) -> Float[Tensor, "batch output"]:
        """Logits over the answers, or the features of the ridge reader."""
        if isinstance(self.reader, RidgeReader):
            return self.reader(fused)
        questions = materials.questions
        return self.reader(
            fused, questions.tokens[batch.questions], questions.mask[batch.questions]
        )

    def loss(self, batch: Batch, materials: Materials) -> Float[Tensor, ""]:
        """The reader's loss, the fusion's own terms, and its alignment with the answer."""
        output, fused = self(batch, materials)
        return self.loss_of(output, fused, batch, materials)

    def loss_of(
        self,
        output: Float[Tensor, "batch output"],
        fused: Fused,
        batch: Batch,
        materials: Materials,
    ) -> Float[Tensor, ""]:
        """The loss, once fusion and reader have run."""
        total = self._reader_loss(output, batch, materials)
        for term in fused.losses.values():
            total = total + term
        if fused.summary is not None and self.fusion.summary_weight:
            projected = self.reader.projector(fused.summary)
            alike = F.cosine_similarity(projected.float(), materials.answers[batch.answers])
            total = total + self.fusion.summary_weight * (1 - alike).mean()
        return total

    def _reader_loss(
        self, output: Float[Tensor, "batch output"], batch: Batch, materials: Materials
    ) -> Float[Tensor, ""]:
        """Cross-entropy, or the leave-one-out error of the ridge reader."""
        if isinstance(self.reader, RidgeReader):
            return self.reader.loss(
                output, materials.question_kernel, batch.questions, batch.answers, batch.rows,
                len(materials.bundle.answers),
            )  # fmt: skip
        return F.cross_entropy(output.float(), batch.answers)

    def answers(self, output: Float[Tensor, "batch output"], batch: Batch) -> Int[Tensor, " batch"]:
        """The answer that the reader gives to each example, an index into the answer set.

        `NO_ANSWER` for an example whose logits are not all finite.
        """
        if isinstance(self.reader, RidgeReader):
            output = self.reader.scores(output, batch.questions)
        finite = torch.isfinite(output).all(dim=-1)
        # Not compared on the host: the device is at work on the next batch.
        return torch.where(finite, output.argmax(dim=-1), NO_ANSWER)

    def tokens_read(self, fused: Fused) -> int:
        """Tokens of an image that the reader gets, behind the projector."""
        if fused.after_projector is None:
            return fused.tokens.shape[1]
        first = replace(fused, tokens=fused.tokens[:1])
        return project(first, self.reader.projector).shape[1]

    @property
    def trainable(self) -> bool:
        """False if neither fusion nor reader has a parameter to train."""
        return any(p.requires_grad for p in self.parameters())

    def query(self, batch: Batch, materials: Materials) -> Float[Tensor, "batch query_dim"]:
        """What the fusion sees of the question, and in training of the answer if it reads it."""
        if self.training and self.fusion.reads_answers:
            return materials.leaky_queries(batch)
        if self.shuffled:
            return materials.queries[materials.shuffled_questions[batch.rows]]
        return materials.queries[batch.questions]

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters by part; the projector's depend on the fusion's `out_dim`."""
        projector = _count(self.reader.projector)
        return {
            "fusion": _count(self.fusion),
            "projector": projector,
            "reader": _count(self.reader) - projector,
        }


def build_model(
    method: type[Method], settings: Mapping[str, Setting], materials: Materials, seed: int
) -> Model:
    """A freshly initialised model.

    The reader's stream knows task and seed; the fusion's also the method's class, never the name
    it is registered under: two names of one class start alike.
    """
    shape = shape_of(materials.shape, settings, materials.budget)
    fusion = seeded_fusion(method, settings, shape, stream=(materials.name, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(materials.name, seed, "reader"))
        reader = build_reader(
            reader_of(settings, materials.budget),
            fusion.out_dim,
            width=materials.budget.reader_width,
            query_dim=materials.budget.query_dim,
            length=materials.questions.tokens.shape[1],
            answers=len(materials.bundle.answers),
            grid=materials.shape.grid,
            positions=materials.budget.positions == "grid",
            redrawn=materials.budget.random_layer == "seed",
            aligned=bool(fusion.summary_weight),
        )
    shuffled = settings.get(QUESTION) == "shuffled"
    return Model(fusion, reader, shuffled=shuffled).to(materials.device)


def shape_of(shape: StackShape, settings: Mapping[str, Setting], budget: Budget) -> StackShape:
    """The encoder's stack with the layers of the reader that this cell has."""
    reader = reader_of(settings, budget)
    return replace(shape, reader=reader_shape(reader, budget.reader_width))


def seeded_fusion(
    method: type[Method],
    settings: Mapping[str, Setting],
    shape: StackShape,
    *,
    stream: tuple[str, int],
) -> Method:
    """The fusion that a cell of (task, seed) starts from; even its taps may depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*stream, "fusion", method.__qualname__))
        return build_fusion(method, settings, shape)


def build_fusion(
    method: type[Method], settings: Mapping[str, Setting], shape: StackShape
) -> Method:
    """Construct a method for an encoder's shape.

    Raises Unsupported if it needs what is not there, ValueError for taps outside the encoder.
    """
    if method.needs_query and not shape.query_dim:
        raise Unsupported("needs the question, and this reader gives none")
    # The settings were checked against the constructor's own signature when they were chosen.
    constructor: type = method
    made: Method = constructor(shape, **own_settings(settings))
    for tap in getattr(made, "taps", ()):
        if not all(map(shape.has, tap)):
            raise ValueError(
                f"{method.__name__} reads hidden state {tap}, and this encoder has 0 to "
                f"{shape.layers}; shape.layer(-2) counts from the end"
            )
    return made


def own_settings(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """What a method's constructor gets: all but what the engine does around it."""
    return {key: value for key, value in settings.items() if key not in (READER, QUESTION)}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
