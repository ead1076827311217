"""No way leads from the answer to the method, not even in training."""

from dataclasses import replace

import torch

from fusionbench.checks.compare import ROUNDING, expect_equal
from fusionbench.checks.materials import BUDGET, materials
from fusionbench.checks.subject import Outputs, Subject, outputs
from fusionbench.checks.suite import check
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model

_FEW = 8


@check
def answer_leak(subject: Subject) -> None:
    """In training other answers, in other words, leave all that it gives to the reader the same."""
    budget = replace(BUDGET, steps=1, batch=_FEW)
    told = materials("random", budget=budget)
    other = materials("random", budget=budget, words=("cat", "a blue dog"), flipped=True)
    model = build_model(subject.cls, subject.settings, told, 0).train()
    seen = [_told(model, each) for each in (told, other)]
    expect_equal(seen[0], seen[1], "with other answers", tolerance=ROUNDING)


def _told(model: Model, given: Materials) -> Outputs:
    batch = given.splits["train"].pick(torch.arange(_FEW))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(outputs(model(batch, given)[1]))
