"""What the layers of the encoder contribute to one answer.

A method reads K hidden states (or means of several), its taps h_1 .. h_K. Leaving tap k out:

    h_k := mean of the other taps,    change_k = log p(answer | without k) - log p(answer)

with the answer's text, and everything else, as they are. log p is the sum over the tokens of the
answer and its end mark, in nats. A negative change: the answer needs what that tap alone has.
The sum of the changes has no meaning, since taps repeat each other.

A method between the blocks of the encoder that writes nothing is treated alike: its taps are all
hidden states. For one that writes, and for a method with one tap, the changes are not defined.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.benchmarks import Picture
from fusionbench.api.fusion import Tap
from fusionbench.harness.stepping import States, needs_encoder, taps_of
from fusionbench.vlm.batch import Batch
from fusionbench.vlm.open import LIMIT, OpenModel, asked


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """An answer, the method's own weights of the layers, and the change without each tap."""

    answer: str
    trace: Mapping[str, tuple[float, ...]]
    """Instrument of the method -> one number for each tap or block; often empty."""
    log_probability: float | None
    """Of the answer with its end mark, in nats; None for an empty answer."""
    taps: tuple[Tap, ...]
    changes: tuple[float, ...]
    """Change of the log-probability without each tap; empty where it is not defined."""
    reason: str = ""
    """Why there are no changes."""


def explain(
    opened: OpenModel, pictures: Sequence[Picture], question: str, *, limit: int = LIMIT
) -> LayerReport:
    """Ask a model and leave out each hidden state in turn. Raises UserError as `ask` does."""
    (text,), fused = opened.answer(asked(pictures, question), limit=limit)
    fusion = opened.built.model.fusion
    taps = taps_of(fusion)
    reason = _undefined(opened, len(pictures), text)
    log_probability: float | None = None
    changes: list[float] = []
    if text.strip():
        (batch,) = opened.told([asked(pictures, question, text)])
        log_probability = -opened.losses_of(batch)[0]
        if not reason:
            whole = log_probability
            changes = [-opened.losses_of(one)[0] - whole for one in left_out(batch, taps)]
    return LayerReport(
        answer=text,
        trace={name: _numbers(value) for name, value in sorted(fused.trace.items())},
        log_probability=log_probability,
        taps=taps,
        changes=tuple(changes),
        reason=reason,
    )


def left_out(batch: Batch, taps: tuple[Tap, ...]) -> Iterator[Batch]:
    """The batch without each tap in turn: the mean of the others stands in its place."""
    with torch.no_grad():
        states = batch.states(taps)
    for place in range(len(taps)):
        yield replace(batch, states=_fixed(without(states, place)))


def without(
    states: Float[Tensor, "tap batch token dim"], place: int
) -> Float[Tensor, "tap batch token dim"]:
    """The states with the mean of the others in one place. Raises ValueError for a single tap."""
    if len(states) < 2:
        raise ValueError("a single tap has no others to take its place")
    kept = [row for row in range(len(states)) if row != place]
    changed = states.clone()
    changed[place] = states[kept].mean(dim=0)
    return changed


def _fixed(states: Float[Tensor, "tap batch token dim"]) -> States:
    def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        return states

    return gather


def _undefined(opened: OpenModel, pictures: int, text: str) -> str:
    """Why the changes are not defined; empty if they are."""
    fusion = opened.built.model.fusion
    name = opened.record.label or opened.spec.method
    if not text.strip():
        return "the answer is empty: it has no log-probability"
    if not pictures:
        return "there is no picture"
    if needs_encoder(fusion):
        return f"{name} writes between the encoder's blocks: later states depend on earlier ones"
    if len(taps_of(fusion)) < 2:
        return f"{name} reads one hidden state: no other can take its place"
    return ""


def _numbers(value: Tensor) -> tuple[float, ...]:
    return tuple(float(one) for one in value.float().flatten())
