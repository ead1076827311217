"""torch.func: several seeds, their weights stacked, in one pass give what each gives alone."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench.api.fusion import Fusion, InEncoderFusion, Method
from fusionbench.api.types import Fused
from fusionbench.checks.compare import expect_close
from fusionbench.checks.reading import FixedReader
from fusionbench.checks.subject import SHAPE, Subject, outputs, told
from fusionbench.checks.suite import check
from fusionbench.checks.toy import ToyEncoder, draw

_SEEDS = (0, 1)


class Step(nn.Module):
    """One of a method's steps as a module's forward, so that weights can be swapped in."""

    def __init__(self, method: Method, step: str, block: int | None) -> None:
        super().__init__()
        self.method, self.step = method, step
        self.given = () if block is None else (block,)
        self.reader = FixedReader(method.out_dim)

    def forward(self, *tensors: Any) -> Any:
        """What the step gives; of Fused, the outputs by name."""
        found = getattr(self.method, self.step)(*self.given, *tensors)
        return dict(outputs(found, self.reader)) if isinstance(found, Fused) else found


@check
def vmapped(subject: Subject) -> None:
    """Seeds trained in one pass by torch.func.vmap give what each gives alone."""
    methods = [subject.jittered(seed=seed).eval() for seed in _SEEDS]
    drawn = [draw(SHAPE, seed=5 + seed) for seed in _SEEDS]
    tokens, query = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    together = (_fused if isinstance(methods[0], Fusion) else _stepped)(methods, tokens, query)
    for seed, method in enumerate(methods):
        for name, values in told(method, *drawn[seed]).items():
            expect_close(together[name][seed], values, f"seed {seed} of several, {name}")


def _fused(methods: Sequence[Any], tokens: Tensor, query: Tensor) -> dict[str, Tensor]:
    encoder = ToyEncoder(SHAPE)
    states = torch.stack([encoder.states_from(each) for each in tokens])
    hidden = torch.stack([states[:, list(tap)].mean(dim=1) for tap in methods[0].taps], dim=1)
    return _at_once(methods, "forward", None, hidden, query)


def _stepped(methods: Sequence[Any], tokens: Tensor, query: Tensor) -> dict[str, Tensor]:
    """The frozen blocks run on each seed, only the method's own steps are mapped."""
    encoder = ToyEncoder(SHAPE)
    first: InEncoderFusion = methods[0]
    frozen = torch.stack([encoder.states_from(each) for each in tokens], dim=1)
    written, state = tokens, _at_once(methods, "start", None, tokens, query)
    for block in range(1, first.depth + 1):
        entered = torch.stack([encoder.block(block, each) for each in written])
        given = entered if first.writes else frozen[block]
        written, state = _at_once(methods, "after_block", block, given, state)
    return _at_once(methods, "finish", None, written, state)


def _at_once(methods: Sequence[Method], step: str, block: int | None, *given: Any) -> Any:
    """One step of all seeds, as the engine folds them."""
    weights, buffers = torch.func.stack_module_state(list(methods))
    skeleton = Step(copy.deepcopy(methods[0]), step, block)

    def call(own: dict[str, Tensor], fixed: dict[str, Tensor], *rest: Any) -> Any:
        named = {f"method.{name}": values for name, values in (own | fixed).items()}
        return torch.func.functional_call(skeleton, named, rest)

    with warnings.catch_warnings():
        # Right but slow, which is no matter here.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.vmap(call)(weights, buffers, *given)
