"""Replays of the cases that read many layers at once: LSF's external fusions and MMFuser."""

import math

import torch
from parity_cases import (
    Case,
    as_inputs,
    gradients,
    outputs,
    project,
    tapped,
    trainable,
)
from registered_methods import variants
from torch import Tensor

from fusionbench.api.fusion import Fusion
from fusionbench.api.types import StackShape
from fusionbench.methods.concat import Concat
from fusionbench.methods.mmfuser import MMFuser, MSDeformAttn, centres


def clip_shape(case: Case, *, query_dim: int = 0) -> StackShape:
    """A CLIP stack of the recorded sizes: one CLS, a grid as square as can be."""
    patches = case.config["tokens"] - 1
    side = math.isqrt(patches)
    return StackShape(
        layers=case.config["states"] - 1,
        dim=case.config["dim"],
        grid=(side, side) if side * side == patches else (1, patches),
        prefix=1,
        query_dim=query_dim,
    )


def fused_tokens(fusion: Fusion, states: Tensor) -> Tensor:
    return fusion(tapped(states, fusion.taps), states.new_zeros(states.shape[1], 0)).tokens


def _variant(family: str, strategy: str) -> dict[str, str]:
    """The settings of a strategy that the official code calls, say, "3-18-23"."""
    return variants(family)[strategy.replace("-", "_")]


def replay_external_direct(case: Case) -> dict[str, Tensor]:
    states, found, loss = case.inputs["hidden_states"], {}, torch.zeros(())
    weights, shape = trainable(case.weights, ""), clip_shape(case)
    for strategy in case.config["strategies"]:
        fusion = Concat(shape, blocks=shape.layers, **_variant("lsf_external_direct", strategy))
        projector = {k: v for k, v in weights.items() if k.startswith(f"{strategy}.")}
        projected = project(fused_tokens(fusion, states), projector)
        found |= outputs(**{f"{strategy}.projected": projected})
        loss = loss + (projected**2).mean()
    sources = weights | as_inputs(case.inputs)
    return found | outputs(loss=loss) | gradients(loss, sources)


def replay_external_modular(case: Case) -> dict[str, Tensor]:
    states, found, loss = case.inputs["hidden_states"], {}, torch.zeros(())
    sources, shape = as_inputs(case.inputs), clip_shape(case)
    for strategy in case.config["strategies"]:
        start = f"{strategy}.mm_projector_f"
        fusion = MMFuser(shape, blocks=shape.layers, **_variant("lsf_external_modular", strategy))
        fusion.load_official(case.under(f"weight.{start}.0"))
        tokens = fused_tokens(fusion, states)
        projector = _projector(case, f"{start}.")
        projected = project(tokens, projector)
        found |= outputs(**{f"{strategy}.fused": tokens, f"{strategy}.projected": projected})
        loss = loss + (projected**2).mean()
        sources |= projector | {f"{start}.0.{k}": v for k, v in fusion.named_parameters()}
    return found | outputs(loss=loss) | gradients(loss, sources)


def replay_mmfuser(case: Case) -> dict[str, Tensor]:
    config, states = case.config, case.inputs["hidden_states"]
    selected = [index % config["states"] for index in config["select_layer"]]
    fusion = MMFuser(
        clip_shape(case),
        layers=",".join(str(index) for index in selected[: config["n_levels"]]),
        blocks=config["states"] - 1,
        asking=selected[-1],
        heads=config["n_heads"],
        points=config["n_points"],
    )
    fusion.load_official(case.under("weight.0"))
    tokens = fused_tokens(fusion, states)
    projector = _projector(case, "")
    projected = project(tokens, projector)
    loss = (projected**2).mean()
    sources = projector | {f"0.{k}": v for k, v in fusion.named_parameters()}
    found = outputs(
        selected=states[selected, :, 1:],
        fused=tokens,
        projected=projected,
        loss=loss,
    )
    return found | gradients(loss, sources | as_inputs(case.inputs))


def _projector(case: Case, start: str) -> dict[str, Tensor]:
    """The Sequential's entries 1 and 3; entry 0 is the fusion."""
    found = trainable(case.weights, start)
    return {k: v for k, v in found.items() if k.startswith((f"{start}1.", f"{start}3."))}


def replay_deformable(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    attention = MSDeformAttn(
        config["dim"],
        levels=config["n_levels"],
        heads=config["n_heads"],
        points=config["n_points"],
    )
    attention.load_state_dict(case.weights)
    reference = centres((config["query_grid"], config["query_grid"]))
    sizes = tuple((height, width) for height, width in config["shapes"])
    mixed = attention(given["query"], reference, given["value"], sizes)
    loss = (mixed**2).mean()
    found = outputs(y=mixed, reference_points=reference[None, :, None], loss=loss)
    return found | gradients(loss, dict(attention.named_parameters()) | as_inputs(given))


def replay_deformable_start(case: Case) -> dict[str, Tensor]:
    config = case.config
    attention = MSDeformAttn(
        config["dim"],
        levels=config["n_levels"],
        heads=config["n_heads"],
        points=config["n_points"],
    )
    return {"output.sampling_offsets.bias": attention.sampling_offsets.bias.detach()}
