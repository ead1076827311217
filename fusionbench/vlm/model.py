"""Encoder, fusion, projector and language model as one trainable module."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused
from fusionbench.harness.stepping import fuse
from fusionbench.readers.injection import Inside, project
from fusionbench.readers.language import LanguageModel
from fusionbench.readers.llava.checkpoint import Checkpoint
from fusionbench.readers.splice import IGNORED, Spliced, splice
from fusionbench.vlm.batch import Batch


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

    def forward(self, batch: Batch, weights: Float[Tensor, " row"]) -> Float[Tensor, ""]:
        """The loss: the sum over rows of weight times nll, and the fusion's own terms.

        The terms count as much as the batch's share of all weights.
        """
        fused = self.fused(batch)
        spliced, inside = self.spliced(batch, fused, side="right")
        nll = self.language.nll(spliced, inside)
        labelled = (spliced.labels != IGNORED).sum(dim=1)
        loss = (nll * weights).sum()
        terms = self._terms(batch, fused)
        if not batch.shows:
            # No image: the fusion's gradients are zeros, so that all processes have the same.
            return loss + 0.0 * (terms + fused.tokens.float().sum() + _parts(fused))
        return loss + (weights * labelled).sum() * terms

    def fused(self, batch: Batch) -> Fused:
        """What the fusion makes of the batch's images.

        Tokens have a row for each input of the encoder, injections and summary for each image.
        """
        asking = torch.tensor(batch.asking or (0,), device=self.device)
        found = fuse(self.fusion, batch.states, self.query(batch)[asking], self._encoder[0])
        if self._checkpoint is None or not batch.shows:
            return found
        return self._checkpoint.by_picture(found, self.projector, batch.parts)

    def image_tokens(self, batch: Batch, fused: Fused) -> list[Float[Tensor, "token width"]]:
        """The projected tokens of each image, as the language model gets them.

        Raises Unsupported where the inputs of an image cannot be joined.
        """
        projected = project(fused, self.projector)
        if self._checkpoint is None:
            return list(projected)
        return self._checkpoint.image_tokens(projected, batch.parts)

    def query(self, batch: Batch) -> Float[Tensor, "row width"]:
        """The mean of the language model's embeddings of each row's query; no gradient.

        A method that reads answers sees them in training.
        """
        ids = batch.queries
        if self.training and self.fusion.reads_answers:
            ids = tuple((*one, *told) for one, told in zip(ids, batch.answers, strict=True))
        return self.language.query(ids)

    def most_tokens(self, batch: Batch, fused: Fused) -> int:
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
        self, batch: Batch, fused: Fused, *, side: Literal["right", "left"]
    ) -> tuple[Spliced, Inside | None]:
        """Text and image tokens in one sequence, and what the fusion does inside the layers."""
        images = self.image_tokens(batch, fused) if batch.shows else []
        spliced = splice(self.language, batch.rows, images, side=side)
        if not batch.shows:
            return spliced, None
        return spliced, self.language.inside(fused, spliced, self.projector)

    @torch.no_grad()
    def answer(self, batch: Batch, *, limit: int) -> tuple[list[str], Fused]:
        """The greedy answers, at most `limit` tokens each, and all that the fusion gave."""
        fused = self.fused(batch)
        spliced, inside = self.spliced(batch, fused, side="left")
        return self.language.generate(spliced, inside, limit=limit), fused

    @torch.no_grad()
    def losses(self, batch: Batch) -> Float[Tensor, " row"]:
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

    def _terms(self, batch: Batch, fused: Fused) -> Float[Tensor, ""]:
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
