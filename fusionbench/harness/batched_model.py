"""Several models of one method as one: their weights stacked, their steps under `torch.vmap`.

Any method whose steps are safe under vmap gets this without code of its own. A frozen block has no
weights of a run, so it sees all runs folded into its batch: one large product instead of many
small ones, and fused attention as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionbench.fusion import InEncoderFusion
from fusionbench.harness.frozen import compiled
from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.model import Model
from fusionbench.harness.stepping import fuse, needs_encoder, taps_of

R = TypeVar("R")
Weights = dict[str, Tensor]
"""By name in the model, the runs along the first axis."""


class Stack:
    """Models of one method, settings and task that differ in their weights alone."""

    def __init__(
        self, models: Sequence[Model], materials: Materials, *, fast: bool = False
    ) -> None:
        self.materials = materials
        self.runs = len(models)
        self.taps = taps_of(models[0].fusion)
        if any(taps_of(model.fusion) != self.taps for model in models):
            raise ValueError("the runs read different layers")
        self.parameters, self.buffers = torch.func.stack_module_state(list(models))
        self._call = _Call(models[0])
        self._steps = self._eager if not fast else compiled(self._eager, materials.compiled)

    def losses(
        self, batch: Batch, hidden: Float[Tensor, "tap example token dim"] | None = None
    ) -> Float[Tensor, " run"]:
        """The loss of each run on its own examples; `batch` holds [run example] everywhere.

        `hidden`: the states of all runs' examples, one run after the other; read here if not given.
        """
        if hidden is None:
            hidden = self.materials.states(batch.rows.flatten())(self.taps)
        hidden, query = self._inputs(batch, hidden)
        with _vmappable_attention(self.materials.device):
            return self._steps(batch.rows, batch.questions, batch.answers, hidden, query)

    def _eager(
        self,
        rows: Int[Tensor, "run batch"],
        questions: Int[Tensor, "run batch"],
        answers: Int[Tensor, "run batch"],
        hidden: Float[Tensor, "run tap batch token dim"],
        query: Float[Tensor, "run batch query_dim"],
    ) -> Float[Tensor, " run"]:
        """From hidden states that lie ready: nothing here reads a file or looks at a value."""
        if needs_encoder(self._call.model.fusion):
            return self._stepped((rows, questions, answers), hidden, query)
        return self._over(_loss_of, rows, questions, answers, hidden, query)

    def write_back(self, models: Sequence[Model]) -> None:
        """Give each model the weights of its run."""
        with torch.no_grad():
            for run, model in enumerate(models):
                for name, own in (*model.named_parameters(), *model.named_buffers()):
                    own.copy_(self._weights()[name][run])

    def _stepped(
        self,
        examples: tuple[Tensor, Tensor, Tensor],
        hidden: Float[Tensor, "run tap batch token dim"],
        query: Float[Tensor, "run batch query_dim"],
    ) -> Float[Tensor, " run"]:
        """As `stepping.fuse` does it for one run."""
        encoder, fusion = self.materials.encoder, self._call.model.fusion
        if encoder is None or not isinstance(fusion, InEncoderFusion):
            raise TypeError(f"{type(fusion).__name__} writes into the encoder, but none was given")
        state = self._over(_start, hidden[:, 0], query)
        tokens, state = self._over(_after(1), hidden[:, 1], state)
        for index in range(2, fusion.depth + 1):
            folded = rearrange(tokens, "s b n d -> (s b) n d")
            with _any_attention() if self.materials.device.type == "cpu" else nullcontext():
                folded = encoder.block(index, folded)
            tokens = rearrange(folded, "(s b) n d -> s b n d", s=self.runs)
            tokens, state = self._over(_after(index), tokens, state)
        return self._over(_finish, *examples, tokens, state)

    def _inputs(
        self, batch: Batch, hidden: Float[Tensor, "tap example token dim"]
    ) -> tuple[Float[Tensor, "run tap batch token dim"], Float[Tensor, "run batch query_dim"]]:
        flat = Batch(
            rows=batch.rows.flatten(),
            questions=batch.questions.flatten(),
            answers=batch.answers.flatten(),
        )
        query = self._call.model.query(flat, self.materials)
        return (
            rearrange(hidden, "tap (s b) n d -> s tap b n d", s=self.runs),
            rearrange(query, "(s b) d -> s b d", s=self.runs),
        )

    def _over(self, step: Callable[..., R], *given: Any) -> R:
        """One step of all runs; every tensor has the runs along its first axis."""

        def alone(weights: Weights, *inputs: Any) -> R:
            named = {f"model.{name}": value for name, value in weights.items()}
            return torch.func.functional_call(self._call, named, (step, self.materials, *inputs))

        return torch.vmap(alone)(self._weights(), *given)

    def _weights(self) -> Weights:
        return self.parameters | self.buffers


class _Call(nn.Module):
    """A model whose forward is any function of it: `functional_call` knows no other method."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, step: Callable[..., R], materials: Materials, *inputs: Any) -> R:
        return step(self.model, materials, *inputs)


def _loss_of(  # noqa: PLR0913
    model: Model,
    materials: Materials,
    rows: Int[Tensor, " batch"],
    questions: Int[Tensor, " batch"],
    answers: Int[Tensor, " batch"],
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Float[Tensor, ""]:
    batch = Batch(rows=rows, questions=questions, answers=answers)
    fused = fuse(model.fusion, lambda _: hidden, query)
    return model.loss_of(model.read(fused, batch, materials), fused, batch, materials)


def _start(model: Model, materials: Materials, tokens: Tensor, query: Tensor) -> Any:
    return _stepping(model).start(tokens, query)


def _after(block: int) -> Callable[..., tuple[Tensor, Any]]:
    def step(model: Model, materials: Materials, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return _stepping(model).after_block(block, tokens, state)

    return step


def _finish(  # noqa: PLR0913
    model: Model,
    materials: Materials,
    rows: Int[Tensor, " batch"],
    questions: Int[Tensor, " batch"],
    answers: Int[Tensor, " batch"],
    tokens: Float[Tensor, "batch token dim"],
    state: Any,
) -> Float[Tensor, ""]:
    batch = Batch(rows=rows, questions=questions, answers=answers)
    fused = _stepping(model).finish(tokens, state)
    return model.loss_of(model.read(fused, batch, materials), fused, batch, materials)


def _stepping(model: Model) -> InEncoderFusion:
    if not isinstance(model.fusion, InEncoderFusion):
        raise TypeError(f"{type(model.fusion).__name__} does not step with the encoder")
    return model.fusion


@contextmanager
def _vmappable_attention(device: torch.device) -> Iterator[None]:
    """On the CPU, fused attention has no vmap rule: vmap would take the runs one by one."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield


def _any_attention() -> AbstractContextManager[None]:
    """Frozen blocks run outside vmap: their attention stays fused, and no map is ever stored."""
    kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    return sdpa_kernel([*kinds, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
