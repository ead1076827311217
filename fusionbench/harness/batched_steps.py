"""What one run of a pass does, step by step: `Stack` maps these functions over all runs.

Each takes a model and the materials first, then tensors of that run alone.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from fusionbench.api.fusion import InEncoderFusion
from fusionbench.api.types import Fused
from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.model import Model
from fusionbench.harness.stepping import fuse

Said = tuple[Float[Tensor, "batch answer"], dict[str, Tensor]]
"""Logits over the answers, and the method's trace."""


def loss_of(  # noqa: PLR0913
    model: Model,
    materials: Materials,
    rows: Int[Tensor, " batch"],
    questions: Int[Tensor, " batch"],
    answers: Int[Tensor, " batch"],
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Float[Tensor, ""]:
    """The loss of a method whose hidden states all lie ready."""
    batch = Batch(rows=rows, questions=questions, answers=answers)
    fused = fuse(model.fusion, lambda _: hidden, query)
    return model.loss_of(model.read(fused, batch, materials), fused, batch, materials)


def said_of(
    model: Model,
    materials: Materials,
    batch: Batch,
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Said:
    """What a trained model says of a batch whose hidden states lie ready."""
    return _said(model, materials, batch, fuse(model.fusion, lambda _: hidden, query))


def start(model: Model, materials: Materials, tokens: Tensor, query: Tensor) -> Any:
    """A state before the first block."""
    return _stepping(model).start(tokens, query)


def after(block: int) -> Callable[..., tuple[Tensor, Any]]:
    """The step behind a block: tokens and state, as the next block and step get them."""

    def step(model: Model, materials: Materials, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        return _stepping(model).after_block(block, tokens, state)

    return step


def finish(  # noqa: PLR0913
    model: Model,
    materials: Materials,
    rows: Int[Tensor, " batch"],
    questions: Int[Tensor, " batch"],
    answers: Int[Tensor, " batch"],
    tokens: Float[Tensor, "batch token dim"],
    state: Any,
) -> Float[Tensor, ""]:
    """The loss behind the last block."""
    batch = Batch(rows=rows, questions=questions, answers=answers)
    fused = _stepping(model).finish(tokens, state)
    return model.loss_of(model.read(fused, batch, materials), fused, batch, materials)


def said_behind(
    model: Model, materials: Materials, tokens: Tensor, state: Any, batch: Batch
) -> Said:
    """What a trained model says behind the last block."""
    return _said(model, materials, batch, _stepping(model).finish(tokens, state))


def _said(model: Model, materials: Materials, batch: Batch, fused: Fused) -> Said:
    return model.read(fused, batch, materials), dict(fused.trace)


def _stepping(model: Model) -> InEncoderFusion:
    if not isinstance(model.fusion, InEncoderFusion):
        raise TypeError(f"{type(model.fusion).__name__} does not step with the encoder")
    return model.fusion
