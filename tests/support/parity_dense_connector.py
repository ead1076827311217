"""Replay of the Dense Connector's recorded image cases."""

from collections.abc import Mapping
from typing import Any

from parity_cases import Case, as_inputs, gradients, outputs, project, tapped, trainable
from torch import Tensor

from fusionbench.api.fusion import Tap
from fusionbench.api.types import StackShape
from fusionbench.methods.dense_connector import DenseConnector, joined_frames


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
