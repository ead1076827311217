"""Several models of one method as one: their weights stacked, their steps under `torch.vmap`.

Any method whose steps are safe under vmap gets this without code of its own. A frozen block has no
weights of a run, so it sees all runs folded into its batch: one large product instead of many
small ones, and fused attention as it is.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionbench.api.fusion import InEncoderFusion
from fusionbench.api.modules import composed
from fusionbench.api.types import Fused
from fusionbench.harness.frozen import compiled
from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.model import Model
from fusionbench.harness.stepping import fuse, needs_encoder, taps_of
from fusionbench.harness.train import autocast

# What one run of a pass does, step by step: `Stack` maps these functions over all runs.
#
# Each takes a model and the materials first, then tensors of that run alone.


Output = tuple[Float[Tensor, "batch answer"], dict[str, Tensor]]
"""The reader's output, and the method's trace."""


End = Callable[[Model, Materials, Fused, Batch], Tensor]
"""What is made of fused tokens: a loss, or the reader's output."""


def _loss(model: Model, materials: Materials, fused: Fused, batch: Batch) -> Tensor:
    return model.loss_of(model.read(fused, batch, materials), fused, batch, materials)


def _read(model: Model, materials: Materials, fused: Fused, batch: Batch) -> Tensor:
    return model.read(fused, batch, materials)


def _from_states(end: End) -> Callable[..., Tensor]:
    """`end` of a run's own batch whose hidden states are loaded."""

    def step(  # noqa: PLR0913
        model: Model,
        materials: Materials,
        rows: Int[Tensor, " batch"],
        questions: Int[Tensor, " batch"],
        answers: Int[Tensor, " batch"],
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Tensor:
        batch = Batch(rows=rows, questions=questions, answers=answers)
        return end(model, materials, fuse(model.fusion, lambda _: hidden, query), batch)

    return step


def _from_blocks(end: End) -> Callable[..., Tensor]:
    """`end` of a run's own batch after the last block."""

    def step(  # noqa: PLR0913
        model: Model,
        materials: Materials,
        rows: Int[Tensor, " batch"],
        questions: Int[Tensor, " batch"],
        answers: Int[Tensor, " batch"],
        tokens: Float[Tensor, "batch token dim"],
        state: Any,
    ) -> Tensor:
        batch = Batch(rows=rows, questions=questions, answers=answers)
        return end(model, materials, _stepping(model).finish(tokens, state), batch)

    return step


loss_of, own_output_of = _from_states(_loss), _from_states(_read)
finish, own_output_after = _from_blocks(_loss), _from_blocks(_read)


def output_of(
    model: Model,
    materials: Materials,
    batch: Batch,
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Output:
    """Logits and trace for a batch whose hidden states are loaded."""
    return _output(model, materials, batch, fuse(model.fusion, lambda _: hidden, query))


def start(model: Model, materials: Materials, tokens: Tensor, query: Tensor) -> Any:
    """The method's state before the first block."""
    return _stepping(model).start(tokens, query)


def after(block: int) -> Callable[..., tuple[Tensor, Any]]:
    """The step behind a block: tokens and state, as the next block and step get them."""

    def step(model: Model, materials: Materials, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        return _stepping(model).after_block(block, tokens, state)

    return step


def delta(block: int, layer: str) -> Callable[..., Tensor]:
    """What the method adds to the output of a block's linear layer."""

    def step(model: Model, materials: Materials, given: Tensor) -> Tensor:
        return _stepping(model).delta(block, layer, given)

    return step


def output_after(
    model: Model, materials: Materials, tokens: Tensor, state: Any, batch: Batch
) -> Output:
    """Logits and trace after the last block."""
    return _output(model, materials, batch, _stepping(model).finish(tokens, state))


def _output(model: Model, materials: Materials, batch: Batch, fused: Fused) -> Output:
    return model.read(fused, batch, materials), dict(fused.trace)


def _stepping(model: Model) -> InEncoderFusion:
    if not isinstance(model.fusion, InEncoderFusion):
        raise TypeError(f"{type(model.fusion).__name__} does not step with the encoder")
    return model.fusion


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
        """The losses from loaded hidden states: no file is read, no branch depends on a value."""
        if needs_encoder(self._call.model.fusion):
            return self._stepped((rows, questions, answers), hidden, query)
        return self._over(loss_of, rows, questions, answers, hidden, query)

    def own_outputs(
        self, batch: Batch, hidden: Float[Tensor, "tap example token dim"]
    ) -> Float[Tensor, "run batch output"]:
        """The reader's output of each run on its own examples; arguments as for `losses`."""
        hidden, query = self._inputs(batch, hidden)
        examples = (batch.rows, batch.questions, batch.answers)
        with _vmappable_attention(self.materials.device):
            if not needs_encoder(self._call.model.fusion):
                return self._over(own_output_of, *examples, hidden, query)
            return self._stepped(examples, hidden, query, own_output_after)

    def write_back(self, models: Sequence[Model]) -> None:
        """Give each model the weights of its run."""
        with torch.no_grad():
            for run, model in enumerate(models):
                for name, own in (*model.named_parameters(), *model.named_buffers()):
                    own.copy_(self._weights()[name][run])

    def outputs(
        self, batch: Batch, hidden: Float[Tensor, "tap batch token dim"], *, room: int = 0
    ) -> Output:
        """Logits [run batch answer] and traces [run ...] of all runs on the same examples.

        The hidden states are there once for all runs. `room`: examples a run that the frozen
        blocks always get, the last batch filled up, so that one compiled graph serves them all.
        """
        query = self._call.model.query(batch, self.materials)
        with _vmappable_attention(self.materials.device):
            if not needs_encoder(self._call.model.fusion):
                return self._over(output_of, batch=batch, hidden=hidden, query=query)
            state = self._over(start, tokens=hidden[0], query=query)
            tokens, state = self._over(after(1), state, tokens=hidden[1])
            tokens, state = self._walked(tokens, state, room)
            return self._over(output_after, tokens, state, batch=batch)

    def _stepped(
        self,
        examples: tuple[Tensor, Tensor, Tensor],
        hidden: Float[Tensor, "run tap batch token dim"],
        query: Float[Tensor, "run batch query_dim"],
        last: Callable[..., Tensor] = finish,
    ) -> Float[Tensor, "run ..."]:
        """As `stepping.fuse` does it for one run; `last` makes the result of each."""
        state = self._over(start, hidden[:, 0], query)
        tokens, state = self._over(after(1), state, hidden[:, 1])
        return self._over(last, *examples, *self._walked(tokens, state))

    def _walked(
        self, tokens: Float[Tensor, "run batch token dim"], state: Any, room: int = 0
    ) -> tuple[Float[Tensor, "run batch token dim"], Any]:
        """Tokens and state after the last block that the method needs, from those after block 1."""
        fusion = self._call.model.fusion
        for index in range(2, getattr(fusion, "depth", 1) + 1):
            tokens = self._frozen(index, tokens, room)
            tokens, state = self._over(after(index), state, tokens)
        return tokens, state

    def _frozen(
        self, index: int, tokens: Float[Tensor, "run batch token dim"], room: int
    ) -> Float[Tensor, "run batch token dim"]:
        """A block of the encoder on all runs at once."""
        encoder, fusion = self.materials.encoder, self._call.model.fusion
        if encoder is None:
            raise TypeError(f"{type(fusion).__name__} writes into the encoder, but none was given")
        folded = rearrange(tokens, "s b n d -> (s b) n d")
        if isinstance(fusion, InEncoderFusion) and fusion.adapts:
            with _any_attention():
                folded = encoder.adapted(index, folded, partial(self._delta, index))
            return rearrange(folded, "(s b) n d -> s b n d", s=self.runs)
        rows = len(folded)
        if (missing := self.runs * room - rows) > 0:
            folded = F.pad(folded, (0, 0, 0, 0, 0, missing))
        with _any_attention():
            folded = encoder.block(index, folded)
        return rearrange(folded[:rows], "(s b) n d -> s b n d", s=self.runs)

    def _delta(
        self, block: int, layer: str, given: Float[Tensor, "example token from"]
    ) -> Float[Tensor, "example token to"]:
        """What each run adds to a linear layer's output for its own examples."""
        own = rearrange(given, "(s b) n d -> s b n d", s=self.runs)
        return rearrange(self._over(delta(block, layer), own), "s b n d -> (s b) n d")

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

    def _over(self, step: Callable[..., R], *given: Any, **shared: Any) -> R:
        """One step of all runs. `given` has the runs along each first axis; `shared` is theirs."""

        def alone(weights: Weights, *inputs: Any) -> R:
            named = {f"model.{name}": value for name, value in weights.items()}
            arguments = (step, self.materials, *inputs)
            return torch.func.functional_call(self._call, named, arguments, shared)

        return torch.vmap(alone)(self._weights(), *given)

    def _weights(self) -> Weights:
        return self.parameters | self.buffers


class _Call(nn.Module):
    """A model whose forward is any function of it: `functional_call` knows no other method."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, step: Callable[..., R], materials: Materials, *inputs: Any, **shared: Any
    ) -> R:
        return step(self.model, materials, *inputs, **shared)


@contextmanager
def _vmappable_attention(device: torch.device) -> Iterator[None]:
    """What a method and the reader attend with. Fused attention has no vmap rule that always holds.

    On the CPU vmap would take the runs one by one; for a GPU see `attention.composed`. The maps
    are those of a question or of few tokens: frozen blocks run outside, see `_any_attention`.
    """
    with sdpa_kernel(SDPBackend.MATH), composed() if device.type == "cuda" else nullcontext():
        yield


def _any_attention() -> AbstractContextManager[None]:
    """Frozen blocks run outside vmap: their attention stays fused, and no map is ever stored."""
    kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    return sdpa_kernel([*kinds, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


# Whether runs do together what each does alone: losses, gradients and buffers of a first step.


# At the start all runs differ from the loop by rounding alone; a method that keeps more than
# tensors from its seed, or mixes the runs, differs by more.
_LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
_GRADIENT_TOLERANCE = {"fp32": 1e-2, "bf16": 2e-1}
# A gradient that is zero on paper is rounding in practice: compared with all others' norm.
_GRADIENT_FLOOR = {"fp32": 1e-5, "bf16": 1e-2}
# Classes of methods, and what passed the comparison: a class that is loaded anew is compared anew.
_PASSED: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()


class NotEquivalent(Exception):
    """The first step or the logits of a pass differ from those of each model alone."""


def check_equivalence(
    models: Sequence[Model], materials: Materials, rows: Int[Tensor, "run batch"], known: str = ""
) -> None:
    """Compare the first step on these examples with that of each model alone.

    `known`: everything but the task and the seeds that decides what is compared; what has passed
    under that name in this process is not compared again. Raises NotEquivalent, and changes no
    model.
    """
    passed = _PASSED.setdefault(type(models[0].fusion), set())
    if known in passed:
        return
    # Copies: the comparison must leave no gradient and no running average behind.
    together, alone = (copy.deepcopy(list(models)) for _ in range(2))
    try:
        stack = Stack(together, materials)
        with autocast(materials):
            found = stack.losses(materials.splits["train"].pick(rows))
        torch.autograd.backward(found.sum())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise NotEquivalent(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    for run, model in enumerate(alone):
        with autocast(materials):
            loss = model.loss(materials.splits["train"].pick(rows[run]), materials)
        torch.autograd.backward(loss)
        if difference := _difference(stack, found[run], model, loss, run, materials):
            raise NotEquivalent(difference)
    passed.update({known} - {""})


def _difference(  # noqa: PLR0913
    stack: Stack, found: Tensor, model: Model, loss: Tensor, run: int, materials: Materials
) -> str:
    """How a run in the pass differs from the run alone; empty if it does not."""
    precision = materials.budget.precision
    if not torch.allclose(found.float(), loss.float(), atol=_LOSS_TOLERANCE[precision]):
        return f"the first loss is {found:.6g} in the pass, {loss:.6g} alone"
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    floor = _GRADIENT_FLOOR[precision] * float(
        torch.stack([g.norm() for g in alone.values()]).norm()
    )
    for name, stacked in stack.parameters.items():
        expected, both = alone.get(name), stacked.grad
        if (expected is None) != (both is None):
            return f"the gradient of {name} is missing in one of the two"
        if expected is None or both is None:
            continue
        apart = float((both[run] - expected).norm())
        if apart > _GRADIENT_TOLERANCE[precision] * float(expected.norm()) + floor:
            return f"the first gradient of {name} is another in the pass than alone"
    for name, own in model.named_buffers():
        both = stack.buffers[name][run] if name in stack.buffers else None
        close = _LOSS_TOLERANCE[precision]
        if both is None or not torch.allclose(both.float(), own.float(), rtol=close, atol=close):
            return f"the buffer {name} is another in the pass than alone after the first step"
    return ""
