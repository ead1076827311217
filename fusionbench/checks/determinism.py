"""Equal seeds, equal numbers; and only the seed decides."""

import torch

from fusionbench.checks.compare import expect_equal
from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import SHAPE, Subject, told
from fusionbench.checks.suite import check
from fusionbench.checks.toy import draw
from fusionbench.harness.model import own_settings


@check
def determinism(subject: Subject) -> None:
    """In evaluation a second pass repeats the first, after another batch and other random draws."""
    method = subject.jittered().eval()
    given = draw(SHAPE)
    first = told(method, *given)
    torch.rand(3)
    told(method, *draw(SHAPE, seed=9))
    expect_equal(first, told(method, *given), "two passes over the same states", tolerance=0.0)


@check
def seeds(subject: Subject) -> None:
    """Equal seeds build equal weights, and building leaves no trace in the global seed."""
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
