"""An image's outputs are its own: neither the order nor the size of its batch changes them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.checks.compare import differ, expect_close
from fusionbench.checks.subject import SHAPE, Outputs, Subject, told
from fusionbench.checks.suite import check
from fusionbench.checks.toy import draw

Runner = Callable[
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
        given = told(method, tokens[order], query[order])
        home = [order.index(row) for row in range(_BATCH)]
        return {name: values[home] for name, values in given.items()}

    return _in_both_modes(subject, back_in_order)


@check
def batch_split(subject: Subject) -> str | None:
    """Images alone, two and two, or all together give the same outputs."""

    def part_by_part(
        method: Method, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch q"]
    ) -> Outputs:
        rows = [list(part) for part in _PARTS]
        parts = [told(method, tokens[each], query[each]) for each in rows]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return _in_both_modes(subject, part_by_part)


def _in_both_modes(subject: Subject, otherwise: Runner) -> str | None:
    tokens, query = draw(SHAPE, batch=_BATCH)
    method = subject.jittered()
    for mode in ("evaluation", "training"):
        method.train(mode == "training")
        if mode == "training" and _draws(method, tokens, query):
            return "in evaluation only: in training it draws at random"
        given = otherwise(method, tokens, query)
        for name, values in told(method, tokens, query).items():
            expect_close(values, given[name], f"in {mode}, {name}")
    return None


def _draws(
    method: Method, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch q"]
) -> bool:
    """Dropout and the like: two passes that differ."""

    def once(seed: int) -> Outputs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return told(method, tokens, query)

    return differ(once(0), once(1))
