"""Replay of the Dense Connector's recorded image cases."""

from parity_cases import Case, as_inputs, gradients, outputs, project, tapped, trainable
from torch import Tensor

from fusionbench.methods.dense_connector import DenseConnector, joined_frames
from fusionbench.types import StackShape


def replay_connector(case: Case) -> dict[str, Tensor]:
    config, states = case.config, case.inputs["hidden_states"]
    clip = config["encoder"] == "clip"
    shape = StackShape(
        # The official SigLIP tower has lost its last block, which no layer number counts.
        layers=config["states"] - 1 if clip else config["states"],
        dim=config["dim"],
        grid=(1, config["tokens"] - clip),
        prefix=int(clip),
    )
    fusion = DenseConnector(shape, form=config["type"], convention=config["encoder"])
    tokens = fusion(tapped(states, fusion.taps), states.new_zeros(config["B"], 0)).tokens
    projector = trainable(case.weights, "mm_projector")
    projected = project(tokens, projector)
    loss = (projected**2).mean()
    base = states[fusion.taps[0][0], :, shape.prefix :]
    found = outputs(final_feature=base, fused=tokens, projected=projected, loss=loss)
    return found | gradients(loss, projector | as_inputs(case.inputs))


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
