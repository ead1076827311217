"""An image's outputs are its own: neither the order nor the size of its batch changes them."""

import torch
from torch import Tensor

from fusionbench.checks.compare import differ, expect_close
from fusionbench.checks.subject import SHAPE, Subject, outputs, run
from fusionbench.checks.suite import check
from fusionbench.checks.toy import draw
from fusionbench.fusion import Method
from fusionbench.types import Fused

_BATCH = 5


@check
def batch_order(subject: Subject) -> str | None:
    """Another order of the batch gives the same outputs in that order."""
    order = torch.tensor([3, 0, 4, 2, 1])

    def reordered(method: Method, tokens: Tensor, query: Tensor) -> dict[str, Tensor]:
        return dict(outputs(run(method, tokens[order], query[order])))

    def expected(values: Tensor) -> Tensor:
        return values[order]

    return _in_both_modes(subject, reordered, expected)


@check
def batch_split(subject: Subject) -> str | None:
    """Images alone, two and two, or all together give the same outputs."""

    def parted(method: Method, tokens: Tensor, query: Tensor) -> dict[str, Tensor]:
        parts = [
            dict(outputs(run(method, tokens[rows], query[rows])))
            for rows in torch.arange(_BATCH).split([1, 2, 2])
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return _in_both_modes(subject, parted, lambda values: values)


def _in_both_modes(subject: Subject, other, expected) -> str | None:  # type: ignore[no-untyped-def]
    tokens, query = draw(SHAPE, batch=_BATCH)
    method = subject.jittered()
    for mode in ("evaluation", "training"):
        method.train(mode == "training")
        if mode == "training" and _draws(method, tokens, query):
            return "in evaluation only: in training it draws at random"
        together = run(method, tokens, query)
        given = other(method, tokens, query)
        for name, values in outputs(together):
            expect_close(expected(values), given[name], f"in {mode}, {name}")
    return None


def _draws(method: Method, tokens: Tensor, query: Tensor) -> bool:
    """Dropout and the like: two passes that differ."""

    def once(seed: int) -> Fused:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return run(method, tokens, query)

    return differ(once(0), once(1))
