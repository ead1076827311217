"""What a method gives beside its tokens: injections, a summary, losses, a trace."""

import torch

from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused
from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.reading import READER
from fusionbench.checks.subject import Subject, run_drawn
from fusionbench.checks.suite import check

_BATCH = 3


@check
def extras(subject: Subject) -> str:
    """Injections, summary, losses and trace have the shapes of the contract."""
    method = subject.build()
    fused = run_drawn(method, batch=_BATCH)
    _expect_injections(method, fused)
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
    inside = ["reaches into the reader"] if fused.reaches_inside else []
    has = [*inside, *fused.losses, *fused.trace]
    return ", ".join(has) or "tokens alone"


def _expect_injections(method: Method, fused: Fused) -> None:
    for injection in fused.injections:
        wide = method.out_dim if injection.through_projector else READER.width
        given = list(injection.values.shape)
        if len(given) != 3 or given[0] != _BATCH or given[2] != wide:
            raise CheckFailed(f"an injection is {given}, not [{_BATCH}, tokens, {wide}]")
        if injection.when not in ("before", "after"):
            raise CheckFailed(f"an injection is neither before nor after: {injection.when!r}")
    for layer in [*(i.layer for i in fused.injections), *(p.layer for p in fused.patches)]:
        if not 0 <= layer < READER.layers:
            raise CheckFailed(f"reaches into reader layer {layer} of 0..{READER.layers - 1}")
