"""Which replay belongs to which recorded case."""

from collections.abc import Mapping
from typing import TypeVar

from parity_cases import Case, Replay
from parity_internal import (
    replay_cross_layer,
    replay_internal,
    replay_qwen,
    replay_sampling,
    replay_stack,
)
from parity_layers import (
    replay_connector,
    replay_deformable,
    replay_deformable_start,
    replay_external_direct,
    replay_external_modular,
    replay_igva,
    replay_light,
    replay_mmfuser,
    replay_tgif,
    replay_video,
)
from parity_layers import replay_unit as replay_recurrent_unit
from parity_mema import (
    replay_gate,
    replay_loop,
    replay_mema,
    replay_tgif_in_language_model,
    replay_unit,
)

T = TypeVar("T")

REPLAYS: dict[tuple[str, str], Replay] = {
    ("mema", "LlavaLlamaForCausalLM"): replay_mema,
    ("tgif", "LlavaLlamaForCausalLM"): replay_tgif_in_language_model,
    ("dense_connector", "LlavaMetaForCausalLM.temporal_aggregation"): replay_video,
    ("layer_select_fuse", "I_"): replay_internal,
    ("layer_select_fuse", "LlamaDecoderLayer"): replay_cross_layer,
    ("deepstack", "process_plain_deepstack"): replay_sampling,
    ("deepstack", "CustomLlamaModel"): replay_stack,
    ("qwen3vl_deepstack", ""): replay_qwen,
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


def find(table: Mapping[tuple[str, str], T], case: Case) -> T | None:
    """The entry of the case's kind."""
    for (method, symbol), entry in table.items():
        if case.facts["method"] == method and case.symbol.startswith(symbol):
            return entry
    return None
