"""Cases at sizes that nobody recorded: shapes of inputs and weights under their official names."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from parity_references_maps import lsf_targets

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def lin(name: str, into: int, out: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def projector(name: str, into: int, llm: int, numbers: Iterable[int] = (0, 2)) -> Shapes:
    first, last = numbers
    return lin(f"{name}{first}", into, llm) | lin(f"{name}{last}", llm, llm)


def under(start: str, shapes: Shapes) -> Shapes:
    return {f"{start}{name}": shape for name, shape in shapes.items()}


def dsu(c: Config) -> Shapes:
    dim = c["dim"]
    hidden = max(dim // c["reduction_ratio"], 1)
    out = lin("W1", 3 * dim, hidden)
    for k in "cif":
        out |= lin(f"W{k}", hidden, dim) | {f"b{k}": (dim,)}
    return out


def gate(c: Config) -> Shapes:
    dim = c["dim"]
    return lin("delta.0", dim, dim) | lin("delta.2", dim, dim) | lin("alpha_proj", dim, 1)


def clip_tower(c: Config) -> Shapes:
    dim, patch = c["dim"], c["patch"]
    out = {
        "embeddings.class_embedding": (dim,),
        "embeddings.patch_embedding.weight": (dim, 3, patch, patch),
        "embeddings.position_embedding.weight": (1 + (c["image"] // patch) ** 2, dim),
    }
    out |= norm("pre_layrnorm", dim) | norm("post_layernorm", dim)
    for block in range(c["layers"]):
        own = norm("layer_norm1", dim) | norm("layer_norm2", dim)
        own |= lin("mlp.fc1", dim, c["mlp"]) | lin("mlp.fc2", c["mlp"], dim)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            own |= lin(f"self_attn.{part}", dim, dim)
        out |= under(f"encoder.layers.{block}.", own)
    return out


def loop(c: Config) -> Shapes:
    out = under("vision_tower.vision_model.", clip_tower(c))
    out |= under("dsu.", dsu(c)) | under("spatial_gate.", gate(c))
    out |= lin("text_global_proj", c["llm"], c["dim"]) | lin("y_proj", 3 * c["dim"], c["dim"])
    return out | projector("mm_projector.", c["dim"], c["llm"])


def loop_inputs(c: Config) -> Shapes:
    samples, images = len(c["images_per_sample"]), sum(c["images_per_sample"])
    told = {"text_global": (samples, c["llm"]), "answer_global": (samples, c["llm"])}
    return told | {"pixel_values": (images, 3, c["image"], c["image"])}


def states(c: Config) -> Shapes:
    return {"hidden_states": (c["states"], c["B"], c["tokens"], c["dim"])}


def connector(c: Config) -> Shapes:
    return projector("mm_projector.", c["dim"] * (1 if c["type"] == "sti" else 3), c["llm"])


def external_direct(c: Config) -> Shapes:
    out: Shapes = {}
    for name in c["strategies"]:
        parts = 3 if name in ("3-18-23", "all") else 2
        out |= projector(f"{name}.mm_projector_f.", parts * c["dim"], c["llm"])
    return out


def deformable(dim: int, levels: int, heads: int, points: int) -> Shapes:
    out = lin("sampling_offsets", dim, heads * levels * points * 2)
    out |= lin("attention_weights", dim, heads * levels * points)
    return out | lin("value_proj", dim, dim) | lin("output_proj", dim, dim)


def fuser(dim: int, levels: int, heads: int, points: int) -> Shapes:
    out = under("cross_attn.", deformable(dim, levels, heads, points))
    out |= under("self_attn.", deformable(dim, 1, heads, points))
    for name in ("feat_norm", "query_norm", "norm1"):
        out |= norm(name, dim)
    return out | {"gamma1": (dim,), "gamma2": (dim,)}


def mmfuser(c: Config) -> Shapes:
    own = fuser(c["dim"], c["n_levels"], c["n_heads"], c["n_points"])
    return under("0.", own) | projector("", c["dim"], c["llm"], (1, 3))


def external_modular(c: Config) -> Shapes:
    levels = {"18": 1, "3-18-23": 2, "former": 12, "latter": 12, "all": 24}
    out: Shapes = {}
    for name in c["strategies"]:
        own = under("0.", fuser(c["dim"], levels[name], 16, 4))
        own |= projector("", c["dim"], c["llm"], (1, 3))
        out |= under(f"{name}.mm_projector_f.", own)
    return out


def igva(c: Config) -> Shapes:
    width = c["agg_hidden"]
    out = lin("sentence_proj", c["sentence_dim"], width) | lin("cls_proj", c["dim"], width)
    out |= lin("linear", width, len(c["groups"]))
    for block in range(c["num_transformers"]):
        own = {
            "cross_attention.in_proj_weight": (3 * width, width),
            "cross_attention.in_proj_bias": (3 * width,),
        }
        own |= lin("cross_attention.out_proj", width, width)
        own |= lin("ffn.0", width, width) | lin("ffn.2", width, width)
        out |= under(f"transformers.{block}.", own | norm("norm1", width) | norm("norm2", width))
    return under("vision_aggregator.", out) | projector("mm_projector.", 2 * c["dim"], c["llm"])


def tgif(c: Config) -> Shapes:
    own = lin("layer_weights_projection.0", c["llm"], 512)
    own |= lin("layer_weights_projection.2", 512, c["layers"]) | norm("norm", c["dim"])
    return under("layer_selector.", own) | projector("mlp.", c["dim"], c["llm"])


def recurrent(gates: int, c: Config) -> Shapes:
    dim, out = c["dim"], {}
    for part in ("w_ih", "w_hh"):
        out |= lin(f"{part}.0.seq.0", dim, dim // 4) | lin(f"{part}.0.seq.2", dim // 4, gates * dim)
    return out


def light(c: Config) -> Shapes:
    # The odd one of |(log2 C + 1) / 2|, one more where that is even.
    width = int(abs((math.log2(c["dim"]) + 1) / 2))
    kernel = (1, 1, width + 1 - width % 2)
    own = {"Wq.weight": kernel, "Wk.weight": kernel, "Wv.weight": (c["dim"], 1, 3, 3)}
    return under("layer_attention.", own) | {"lambda_t": (c["dim"], 1, 1)}


def llama_layer(c: Config) -> Shapes:
    width, inner = c["llm"], c["llm_mlp"]
    out: Shapes = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    for part in "qkvo":
        out |= lin(f"self_attn.{part}_proj", width, width, bias=False)
    return out | gated_mlp("mlp", width, inner)


def gated_mlp(name: str, width: int, inner: int) -> Shapes:
    out = lin(f"{name}.gate_proj", width, inner, bias=False)
    out |= lin(f"{name}.up_proj", width, inner, bias=False)
    return out | lin(f"{name}.down_proj", inner, width, bias=False)


def cross(c: Config) -> Shapes:
    out = gated_mlp("ucross_mlp", c["llm"], c["llm_mlp"])
    for part in "qkvo":
        out |= lin(f"ucross_attn.{part}_proj", c["llm"], c["llm"], bias=False)
    return out | {"ucross_xattn.weight": (1,), "ucross_xmlp.weight": (1,)}


def llama(c: Config) -> Shapes:
    out: Shapes = {"embed_tokens.weight": (8, c["llm"]), "norm.weight": (c["llm"],)}
    for layer in range(c["llm_layers"]):
        out |= under(f"layers.{layer}.", llama_layer(c))
    return out


def internal(c: Config) -> Shapes:
    chosen, entering = lsf_targets(c["strategy"], c["llm_layers"])
    out = under("model.", llama(c)) | projector("mm_projector_f.", c["dim"], c["llm"])
    for j in range(len(chosen)):
        out |= projector(f"mm_projectors.{j}.", c["dim"], c["llm"])
    for layer in entering if c["fusing"] == "I_M" else ():
        out |= under(f"model.layers.{layer}.", cross(c))
    return out


def internal_inputs(c: Config) -> Shapes:
    length = c["text_len"] + c["tokens"] - 1
    told = {"text_embeds": (c["B"], c["text_len"], c["llm"]), "attention_mask": (c["B"], length)}
    return told | states(c)


def qwen(c: Config) -> Shapes:
    width, head, dim = c["llm"], c["head_dim"], c["dim"]
    out: Shapes = {"embed_tokens.weight": (8, width), "norm.weight": (width,)}
    for layer in range(c["llm_layers"]):
        own = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
        own |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        for part, heads in (("q", "llm_heads"), ("k", "kv_heads"), ("v", "kv_heads")):
            own |= lin(f"self_attn.{part}_proj", width, c[heads] * head, bias=False)
        own |= lin("self_attn.o_proj", c["llm_heads"] * head, width, bias=False)
        out |= under(f"layers.{layer}.", own | gated_mlp("mlp", width, c["llm_mlp"]))
    out = under("language_model.", out) | under("visual.merger.", merger(dim, dim, width))
    for j in range(len(c["visual_indexes"])):
        out |= under(f"visual.deepstack_merger_list.{j}.", merger(dim, 4 * dim, width))
    return out


def merger(dim: int, normed: int, width: int) -> Shapes:
    out = norm("norm", normed) | lin("linear_fc1", 4 * dim, 4 * dim)
    return out | lin("linear_fc2", 4 * dim, width)


def step(c: Config) -> Shapes:
    """The language model and the tower of a training step; two layers, as recorded."""
    out = under("model.", llama(dict(c) | {"llm_layers": 2}))
    out |= {"model.embed_tokens.weight": (c["vocab"], c["llm"])}
    tower = under("vision_tower.vision_model.", clip_tower(c))
    return out | {"lm_head.weight": (c["vocab"], c["llm"])} | under("model.vision_tower.", tower)


def mema_step(c: Config) -> Shapes:
    own = {name: shape for name, shape in loop(c).items() if not name.startswith("mm_projector")}
    return (
        step(c)
        | under("model.vision_tower.", own)
        | projector("model.mm_projector.", c["dim"], c["llm"])
    )


def tgif_step(c: Config) -> Shapes:
    return step(c) | under("model.mm_projector.", tgif(c))


def step_inputs(c: Config) -> Shapes:
    told = {name: (c["batch"], c["text_len"]) for name in ("input_ids", "labels", "attention_mask")}
    crops = (c["crops"],) if c.get("crops", 1) > 1 else ()
    return told | {"images": (c["batch"], *crops, 3, c["image"], c["image"])}
