"""Replays of cases whose fusion reads states of many layers once, or unit by unit over depth."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from method_sizes import variants
from parity_cases import (
    Case,
    as_inputs,
    gradients,
    outputs,
    project,
    tapped,
    trainable,
)
from torch import Tensor

from fusionbench.api.fusion import Fusion, Tap
from fusionbench.api.types import StackShape
from fusionbench.methods._units import LightLayerAttention, RecurrentUnit
from fusionbench.methods.concat import Concat
from fusionbench.methods.dense_connector import DenseConnector, joined_frames
from fusionbench.methods.igva import IGVA
from fusionbench.methods.mmfuser import MMFuser, MSDeformAttn, centres
from fusionbench.methods.tgif import TGIF


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


# Replay of the Dense Connector's recorded image cases.


def replay_connector(case: Case) -> dict[str, Tensor]:
    config, states = case.config, case.inputs["hidden_states"]
    clip = config["encoder"] == "clip"
    shape = StackShape(
        # The official layer numbers are literals of towers with so many blocks.
        layers=24 if clip else 27,
        dim=config["dim"],
        grid=(1, config["tokens"] - clip),
        prefix=int(clip),
    )
    fusion = DenseConnector(shape, form=config["type"], convention=config["encoder"])
    hidden = tapped(states, (_final(config, fusion.taps[0]), *fusion.taps[1:]))
    tokens = fusion(hidden, states.new_zeros(config["B"], 0)).tokens
    projector = trainable(case.weights, "mm_projector")
    projected = project(tokens, projector)
    loss = (projected**2).mean()
    found = outputs(
        final_feature=hidden[0, :, shape.prefix :], fused=tokens, projected=projected, loss=loss
    )
    return found | gradients(loss, projector | as_inputs(case.inputs))


def _final(config: Mapping[str, Any], tap: Tap) -> Tap:
    """The final feature alone is counted from the end; SigLIP's tower has lost its last block."""
    official, last = (25, -2) if config["encoder"] == "clip" else (27, -1)
    return tap if config["states"] == official else (config["states"] + last,)


def replay_video(case: Case) -> dict[str, Tensor]:
    given, projector = case.inputs, trainable(case.weights, "mm_projector")
    projected = project(given["frames"], projector)
    pooled = joined_frames(projected, pooled=True)
    loss = (pooled**2).mean()
    found = outputs(
        video_tokens=joined_frames(projected, pooled=False)[None],
        video_tokens_pooled=pooled[None],
        loss=loss,
    )
    return found | gradients(loss, projector | as_inputs(given))


# Replays of the methods whose layer weights follow the text: IGVA and TGIF.


def replay_igva(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    shape = clip_shape(case, query_dim=config["sentence_dim"])
    groups = ",".join("+".join(str(index) for index in group) for group in config["groups"])
    # The case's numbers are this encoder's own.
    layers = {"groups": groups, "blocks": shape.layers, "base": config["base_layer"]}
    fusion = IGVA(
        shape,
        width=config["agg_hidden"],
        heads=config["agg_heads"],
        rounds=config["num_transformers"],
        **layers,
    )
    fusion.load_official(case.weights)
    states = given["hidden_states"]
    hidden = tapped(states, fusion.taps)
    fused = fusion(hidden, given["sentence_embeds"]).tokens
    weights = fusion.vision_aggregator(
        given["sentence_embeds"], hidden[: fusion.groups, :, 0].transpose(0, 1)
    )
    average = fused_tokens(IGVA(shape, average=True, **layers), states)
    projector = trainable(case.weights, "mm_projector")
    projected = project(fused, projector)
    loss = (projected**2).mean()
    found = outputs(
        fused=fused,
        fused_by_average=average,
        group_weights=weights,
        projected=projected,
        projected_by_average=project(average, projector),
        loss=loss,
    )
    sources = dict(fusion.named_parameters()) | projector | as_inputs(given)
    return found | gradients(loss, sources)


def replay_tgif(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    shape = StackShape(
        layers=config["layers"],
        dim=config["dim"],
        grid=(1, config["patches"]),
        query_dim=config["llm"],
    )
    hidden_width = case.weights["layer_selector.layer_weights_projection.0.bias"].shape[0]
    fusion = TGIF(shape, width=hidden_width)
    fusion.load_official(case.weights)
    hidden = given["all_layers_features"].transpose(0, 1)
    fused = fusion(hidden, given["text_embeddings"])
    projection = fusion.layer_selector.layer_weights_projection
    projector = trainable(case.weights, "mlp")
    projected = project(fused.tokens, projector)
    loss = (projected**2).mean()
    found = outputs(
        fused=fused.tokens,
        layer_weights=projection(given["text_embeddings"]).softmax(dim=-1),
        projected=projected,
        loss=loss,
    )
    sources = dict(fusion.named_parameters()) | projector | as_inputs(given)
    return found | gradients(loss, sources)


# Replays of the recurrent units over depth, and of MRLA-light as DLA has it.


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
