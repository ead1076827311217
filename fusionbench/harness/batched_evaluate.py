"""Evaluation of several runs in one pass: each batch of a split is read once and seen by all.

Scores are those of each run alone: by rounding, a prediction may differ at a tie (tests: scores
alike for every kind of method).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.harness.ahead import ahead
from fusionbench.harness.alike import NotAlike
from fusionbench.harness.batched_model import Stack
from fusionbench.harness.batched_steps import Said
from fusionbench.harness.evaluate import Evaluation, Trace, evaluate, mean_trace
from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.model import Model
from fusionbench.harness.train import autocast

_PROBE = 16
"""Examples on which each run is compared with itself alone before anything is scored."""
# Of the logits' norm. Rounding that trained weights enlarge stays far below; a method that does
# something else in a pass when it no longer trains does not.
_TOLERANCE = {"fp32": 1e-2, "bf16": 1e-1}


def evaluate_all(
    models: Sequence[Model], materials: Materials, split: str, batch_size: int
) -> tuple[list[Evaluation], str]:
    """Each model's scores and mean trace; and if they had to be taken one by one, why.

    `batch_size`: the most examples at a time, over all models together.
    """
    try:
        return evaluate_together(models, materials, split, batch_size), ""
    except (NotAlike, torch.OutOfMemoryError) as reason:
        note = f"evaluated alone, not in a pass of {len(models)}: {reason}"
    # Behind the handler: while it runs, the error keeps the memory of what it stopped.
    return [evaluate(model, materials, split, batch_size) for model in models], note


@torch.no_grad()
def evaluate_together(
    models: Sequence[Model], materials: Materials, split: str, batch_size: int
) -> list[Evaluation]:
    """`evaluate` of all models, each batch shared by all.

    A run gets its share of `batch_size`, or a training batch if that is more: it has fitted with
    all that gradients need. Raises NotAlike, before anything is scored, for models that do not do
    together what each does alone.
    """
    for model in models:
        model.eval()
    examples = materials.splits[split]
    size = max(materials.budget.batch, batch_size // len(models))
    index = torch.arange(len(examples), device=materials.device)
    parts = [examples.pick(rows) for rows in torch.split(index, size)]
    predicted, traces = [], []
    for logits, trace in _said(models, materials, parts, size):
        predicted.append(logits.argmax(dim=-1))
        traces.append(trace)
    found = torch.cat(predicted, dim=1).cpu().numpy()
    answers = examples.answers.cpu().numpy()
    counts = [len(part) for part in parts]
    return [
        (materials.task.score(found[run], answers), _trace_of(run, counts, traces))
        for run in range(len(models))
    ]


def _said(
    models: Sequence[Model], materials: Materials, parts: Sequence[Batch], size: int
) -> Iterator[Said]:
    stack = Stack(models, materials)
    # Blocks that are compiled see batches of one size only, whatever a split leaves over.
    room = size if materials.device.type == "cuda" else 0
    states = ahead(materials, stack.taps, [part.rows for part in parts])
    for number, (batch, hidden) in enumerate(zip(parts, states, strict=True)):
        try:
            with autocast(materials):
                said = stack.outputs(batch, hidden, room=room)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise NotAlike(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        if number == 0:
            _require_alike(models, materials, batch, said[0])
        yield said


def _require_alike(
    models: Sequence[Model],
    materials: Materials,
    batch: Batch,
    together: Float[Tensor, "run batch answer"],
) -> None:
    """Compare the logits of the first examples with those of each model alone."""
    few = batch.pick(torch.arange(min(_PROBE, len(batch)), device=materials.device))
    for run, model in enumerate(models):
        with autocast(materials):
            alone, _ = model(few, materials)
        apart = (together[run, : len(few)] - alone).float().norm()
        # A run that diverged says nothing, together or alone.
        if apart > _TOLERANCE[materials.budget.precision] * alone.float().norm():
            raise NotAlike("a trained run says something else in the pass than alone")


def _trace_of(run: int, counts: Sequence[int], traces: Sequence[Mapping[str, Tensor]]) -> Trace:
    own = [{name: values[run] for name, values in trace.items()} for trace in traces]
    return mean_trace(list(zip(counts, own, strict=True)))
