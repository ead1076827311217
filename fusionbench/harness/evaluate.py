"""Scores per example, and the method's instruments averaged over the examples."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model
from fusionbench.harness.train import autocast

Trace = Mapping[str, list[float]]
Evaluation = tuple[Float[np.ndarray, " example"], Trace]
"""Score of each example of a split, in its order, and the mean trace."""


@torch.no_grad()
def evaluate(model: Model, materials: Materials, split: str, batch_size: int) -> Evaluation:
    """Score one model on a split, in batches of at most `batch_size` examples."""
    model.eval()
    examples = materials.splits[split]
    scores: list[Float[np.ndarray, " part"]] = []
    traces: list[tuple[int, Mapping[str, Tensor]]] = []
    everything = torch.arange(len(examples), device=materials.device)
    for rows in torch.split(everything, batch_size):
        batch = examples.pick(rows)
        with autocast(materials):
            logits, fused = model(batch, materials)
        predicted = logits.argmax(dim=-1).cpu().numpy()
        scores.append(materials.task.score(predicted, batch.answers.cpu().numpy()))
        traces.append((len(batch), fused.trace))
    return np.concatenate(scores), mean_trace(traces)


def mean_trace(traces: Sequence[tuple[int, Mapping[str, Tensor]]]) -> Trace:
    """The mean over all examples from each batch's size and its means."""
    total = sum(count for count, _ in traces)
    means: dict[str, list[float]] = {}
    for name in sorted(traces[0][1]):
        summed = sum(count * trace[name].float().cpu() for count, trace in traces)
        values = torch.as_tensor(summed).flatten() / total
        means[name] = [round(float(value), 6) for value in values]
    return means
