"""No way leads from the answer to the method, not even in training."""

from dataclasses import replace

import torch

from fusionbench.checks.compare import ROUNDING, expect_equal
from fusionbench.checks.materials import BUDGET, materials
from fusionbench.checks.subject import Subject
from fusionbench.checks.suite import check
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.types import Fused

_FEW = 8


@check
def answer_leak(subject: Subject) -> None:
    """In training other answers, in other words, leave all that it gives to the reader the same."""
    budget = replace(BUDGET, steps=1, batch=_FEW)
    told = materials("random", budget=budget)
    other = materials("random", budget=budget, words=("cat", "a blue dog"), flipped=True)
    model = build_model(subject.cls, subject.settings, told, 0).train()
    fused = [_fused(model, each) for each in (told, other)]
    expect_equal(fused[0], fused[1], "with other answers", tolerance=ROUNDING)


def _fused(model: Model, given: Materials) -> Fused:
    batch = given.splits["train"].pick(torch.arange(_FEW))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(batch, given)[1]
