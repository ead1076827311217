"""Which replay belongs to which recorded case."""

from collections.abc import Mapping
from typing import TypeVar

from parity_cases import Case, Replay
from parity_dense_connector import replay_connector
from parity_guided import replay_igva, replay_tgif
from parity_layers import (
    replay_deformable,
    replay_deformable_start,
    replay_external_direct,
    replay_external_modular,
    replay_mmfuser,
)
from parity_mema import replay_gate, replay_loop, replay_unit
from parity_recurrent import replay_light
from parity_recurrent import replay_unit as replay_recurrent_unit

T = TypeVar("T")

REPLAYS: dict[tuple[str, str], Replay] = {
    ("mema", "DynamicSharingUnit"): replay_unit,
    ("mema", "SpatialGate"): replay_gate,
    ("mema", "CLIPVisionTower.forward"): replay_loop,
    ("dense_connector", "dense_connector_"): replay_connector,
    ("dianet", "LSTMCell"): replay_recurrent_unit,
    ("dla", "DSU_block"): replay_recurrent_unit,
    ("dla", "light_layer_attention_module"): replay_light,
    ("igva", "Aggregator"): replay_igva,
    ("tgif", "LayerSelector"): replay_tgif,
    ("layer_select_fuse", "E_D"): replay_external_direct,
    ("layer_select_fuse", "E_M"): replay_external_modular,
    ("mmfuser", "build_vision_projector"): replay_mmfuser,
    ("mmfuser", "MSDeformAttn._reset_parameters"): replay_deformable_start,
    ("mmfuser", "MSDeformAttn"): replay_deformable,
}
"""By method and by how the official symbol starts."""

PENDING = {
    ("mema", "LlavaLlamaForCausalLM"): "needs a language model as the reader",
    ("dense_connector", "LlavaMetaForCausalLM.temporal_aggregation"): "video, not images",
    ("layer_select_fuse", "I_"): "needs a language model as the reader",
    ("layer_select_fuse", "LlamaDecoderLayer"): "needs a language model as the reader",
    ("deepstack", "process_plain_deepstack"): "samples high-resolution crops, not layers",
    ("deepstack", ""): "needs a language model as the reader",
    ("qwen3vl_deepstack", ""): "needs a language model as the reader",
    ("tgif", "LlavaLlamaForCausalLM"): "needs a language model as the reader",
}
"""Kinds without a replay, and why."""


def find(table: Mapping[tuple[str, str], T], case: Case) -> T | None:
    """The entry of the case's kind."""
    for (method, symbol), entry in table.items():
        if case.facts["method"] == method and case.symbol.startswith(symbol):
            return entry
    return None
