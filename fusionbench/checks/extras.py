"""What a method gives beside its tokens: injections, a summary, losses, a trace."""

import torch

from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import Subject, run_drawn
from fusionbench.checks.suite import check
from fusionbench.types import Fused

_BATCH = 3


@check
def extras(subject: Subject) -> str:
    """Injections, summary, losses and trace have the shapes of the contract."""
    fused = run_drawn(subject.build(), batch=_BATCH)
    _expect_injections(fused)
    if fused.summary is not None and (fused.summary.ndim != 2 or len(fused.summary) != _BATCH):
        raise CheckFailed(f"the summary is {list(fused.summary.shape)}, not [{_BATCH}, width]")
    for name, loss in fused.losses.items():
        if loss.ndim:
            raise CheckFailed(f"the loss {name!r} is {list(loss.shape)}, not one number")
    for name, values in fused.trace.items():
        # With a gradient it would keep the graph of every batch alive.
        if values.requires_grad:
            raise CheckFailed(f"the trace {name!r} carries a gradient; detach it")
        if not torch.isfinite(values).all():
            raise CheckFailed(f"the trace {name!r} is not finite")
    has = [*(["injections"] if fused.injections else []), *fused.losses, *fused.trace]
    return ", ".join(has) or "tokens alone"


def _expect_injections(fused: Fused) -> None:
    for injection in fused.injections:
        given = list(injection.values.shape)
        if len(given) != 3 or given[0] != _BATCH:
            raise CheckFailed(f"an injection is {given}, not [{_BATCH}, tokens, width]")
        if injection.layer < 0 or injection.when not in ("before", "after"):
            raise CheckFailed(f"no place in the reader is {injection.when} {injection.layer}")
