"""Replays of the methods whose layer weights follow the text: IGVA and TGIF."""

from parity_cases import Case, as_inputs, gradients, outputs, project, tapped, trainable
from parity_layers import clip_shape, fused_tokens
from torch import Tensor

from fusionbench.api.types import StackShape
from fusionbench.methods.igva import IGVA
from fusionbench.methods.tgif import TGIF


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
