"""Checks that a method uses only its own example: no batch, no answers, no global state."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.checks.kit import ROUNDING, CheckFailed, check, differ, expect_close, expect_equal
from fusionbench.checks.toy import (
    BUDGET,
    SHAPE,
    Outputs,
    Subject,
    ToyEncoder,
    draw,
    materials,
    outputs,
    outputs_of,
    run_on,
)
from fusionbench.checks.training import loss_of
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model, own_settings

RunOnBatch = Callable[
    [Method, Float[Tensor, "batch token dim"], Float[Tensor, "batch query_dim"]],
    Outputs,
]

_BATCH = 5
_ORDER = (3, 0, 4, 2, 1)
_PARTS = ((0,), (1, 2), (3, 4))


@check
def batch_order(subject: Subject) -> str | None:
    """Another order of the batch gives the same outputs in that order."""

    def back_in_order(
        method: Method, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch q"]
    ) -> Outputs:
        order = list(_ORDER)
        given = outputs_of(method, tokens[order], query[order])
        home = [order.index(row) for row in range(_BATCH)]
        return {name: values[home] for name, values in given.items()}

    return _in_both_modes(subject, back_in_order)


@check
def batch_split(subject: Subject) -> str | None:
    """Images one by one, in pairs, or all in one batch give the same outputs."""

    def part_by_part(
        method: Method, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch q"]
    ) -> Outputs:
        rows = [list(part) for part in _PARTS]
        parts = [outputs_of(method, tokens[each], query[each]) for each in rows]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return _in_both_modes(subject, part_by_part)


def _in_both_modes(subject: Subject, otherwise: RunOnBatch) -> str | None:
    tokens, query = draw(SHAPE, batch=_BATCH)
    method = subject.jittered()
    for mode in ("evaluation", "training"):
        method.train(mode == "training")
        if mode == "training" and draws(method, tokens, query):
            return "in evaluation only: training is random"
        given = otherwise(method, tokens, query)
        for name, values in outputs_of(method, tokens, query).items():
            expect_close(values, given[name], f"in {mode}, {name}")
    return None


def draws(
    method: Method, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch q"]
) -> bool:
    """Whether two passes differ, as with dropout."""

    def once(seed: int) -> Outputs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return outputs_of(method, tokens, query)

    return differ(once(0), once(1))


@check
def determinism(subject: Subject) -> None:
    """In evaluation a second pass repeats the first, after another batch and other random draws."""
    method = subject.jittered().eval()
    given = draw(SHAPE)
    first = outputs_of(method, *given)
    torch.rand(3)
    outputs_of(method, *draw(SHAPE, seed=9))
    expect_equal(
        first, outputs_of(method, *given), "two passes over the same states", tolerance=0.0
    )


@check
def seeds(subject: Subject) -> None:
    """Equal seeds build equal weights, and building does not set the global seed."""
    twins = [subject.build(seed=4).state_dict() for _ in range(2)]
    for name, values in twins[0].items():
        if not torch.equal(values, twins[1][name]):
            raise CheckFailed(f"two methods of one seed start with different {name}")
    constructor: type = subject.cls
    with torch.random.fork_rng(devices=[]):
        after = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            constructor(SHAPE, **own_settings(subject.settings))
            after.append(torch.rand(4))
    if torch.equal(*after):
        raise CheckFailed("its constructor sets torch's global seed: all seeds would start alike")


@check
def frozen(subject: Subject) -> None:
    """A training step changes neither the encoder nor the hidden states."""
    encoder = ToyEncoder(SHAPE)
    method = subject.jittered()
    tokens, query = draw(SHAPE)
    states = encoder.states_from(tokens)
    given = states.clone(), query.clone()
    weights = {name: values.clone() for name, values in encoder.state_dict().items()}
    loss = loss_of(run_on(method, states, query, encoder))
    if loss.requires_grad:
        torch.autograd.backward(loss)
    if not (torch.equal(states, given[0]) and torch.equal(query, given[1])):
        raise CheckFailed("writes into the hidden states or the query: others share them")
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad or parameter.grad is not None:
            raise CheckFailed(f"the encoder's {name} gets a gradient")
        if not torch.equal(parameter, weights[name]):
            raise CheckFailed(f"the encoder's {name} has changed")
    if encoder.training:
        raise CheckFailed("the encoder was put into training mode")


_FEW = 8


@check
def answer_leak(subject: Subject) -> None:
    """In training other answers, with other texts, do not change what it gives to the reader."""
    budget = replace(BUDGET, steps=1, batch=_FEW)
    first = materials("random", budget=budget)
    other = materials("random", budget=budget, words=("cat", "a blue dog"), flipped=True)
    model = build_model(subject.cls, subject.settings, first, 0).train()
    seen = [_given(model, each) for each in (first, other)]
    expect_equal(seen[0], seen[1], "with other answers", tolerance=ROUNDING)


def _given(model: Model, given: Materials) -> Outputs:
    batch = given.splits["train"].pick(torch.arange(_FEW))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(outputs(model(batch, given)[1]))
