"""Replays of the recurrent units over depth, and of MRLA-light as DLA has it."""

import torch
from parity_cases import Case, as_inputs, gradients, outputs
from torch import Tensor

from fusionbench.methods._units import LightLayerAttention, RecurrentUnit


def replay_unit(case: Case) -> dict[str, Tensor]:
    given, dim = case.inputs["layer_descriptors"], case.config["dim"]
    stacked, inner = (case.weights[f"w_ih.0.seq.{part}.weight"].shape[0] for part in (2, 0))
    unit = RecurrentUnit(dim, gates=stacked // dim, reduction=dim // inner)
    unit.load_state_dict(case.weights)
    hidden = cell = torch.zeros_like(given[0])
    hiddens, cells = [], []
    for seen in given:
        hidden, cell = unit(seen, hidden, cell)
        hiddens.append(hidden)
        cells.append(cell)
    loss = (torch.stack(hiddens) ** 2).mean()
    found = outputs(hidden=torch.stack(hiddens), cell=torch.stack(cells), loss=loss)
    return found | gradients(loss, dict(unit.named_parameters()) | as_inputs(case.inputs))


def replay_light(case: Case) -> dict[str, Tensor]:
    given = case.inputs
    attention = LightLayerAttention(
        case.config["dim"], head=case.config.get("dim_perhead", 32), activated=False
    )
    attention.load_state_dict(case.weights)
    seen = attention(given["xt"], given["ot_1"])
    loss = (seen**2).mean()
    found = outputs(ot=seen, loss=loss)
    return found | gradients(loss, dict(attention.named_parameters()) | as_inputs(given))
