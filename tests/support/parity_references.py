"""Plain functions, straight from the papers and the manifest's words, that know nothing of ours.

Each takes a case's settings, weights and inputs, all under their official names, and gives the
case's outputs. They must reproduce the recorded cases; then they stand in for the official code
at sizes that nobody recorded.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Named = Mapping[str, Tensor]
Config = Mapping[str, Any]


def below(named: Named, start: str) -> dict[str, Tensor]:
    """Tensors whose names start so, without that."""
    return {name[len(start) :]: value for name, value in named.items() if name.startswith(start)}


def linear(w: Named, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def unit(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 over the channels."""
    mean, spread = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (spread + eps).sqrt()


def layer_norm(w: Named, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return unit(x, eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def projected(w: Named, x: Tensor, first: str = "mm_projector.0", last: str = "") -> Tensor:
    last = last or first.replace(".0", ".2")
    return linear(w, last, gelu(linear(w, first, x)))


def squares(x: Tensor) -> Tensor:
    return (x**2).mean()


def dsu(w: Named, y: Tensor, t: Tensor, c: Tensor) -> Tensor:
    s = linear(w, "W1", torch.cat([unit(c), y, t], -1)).relu()
    candidate, write, keep = (linear(w, f"W{k}", s) + w[f"b{k}"] for k in "cif")
    return keep.sigmoid() * c + write.sigmoid() * candidate.tanh()


def mema_dsu(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    c = dsu(w, given["y_l"], given["text_global"], given["c_prev"])
    return {"c_l": c, "loss": squares(c)}


def gate(w: Named, x: Tensor, c: Tensor) -> Tensor:
    h = unit(x + c)
    delta = linear(w, "delta.2", gelu(linear(w, "delta.0", h))).tanh()
    return x + linear(w, "alpha_proj", h).sigmoid() * delta


def mema_gate(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    each, one = gate(w, given["x"], given["c"]), gate(w, given["x"], given["c_vector"])
    loss = squares(each) + squares(one)
    return {"x_refreshed": each, "x_refreshed_vector_memory": one, "loss": loss}


def attention(w: Named, x: Tensor, heads: int) -> Tensor:
    """Bidirectional, one head after the other."""
    q, k, v = (linear(w, f"self_attn.{part}_proj", x) for part in "qkv")
    size = x.shape[-1] // heads
    found = [
        (a @ b.transpose(1, 2) / math.sqrt(size)).softmax(-1) @ c
        for a, b, c in zip(q.split(size, -1), k.split(size, -1), v.split(size, -1), strict=True)
    ]
    return linear(w, "self_attn.out_proj", torch.cat(found, -1))


def clip_block(w: Named, x: Tensor, heads: int) -> Tensor:
    x = x + attention(w, layer_norm(w, "layer_norm1", x), heads)
    h = linear(w, "mlp.fc1", layer_norm(w, "layer_norm2", x))
    return x + linear(w, "mlp.fc2", h * torch.sigmoid(1.702 * h))


def clip_start(w: Named, pixels: Tensor, patch: int) -> Tensor:
    kernel = w["embeddings.patch_embedding.weight"]
    cut = pixels.unfold(2, patch, patch).unfold(3, patch, patch)
    patches = torch.einsum("bcyxij,dcij->byxd", cut, kernel).flatten(1, 2)
    cls = w["embeddings.class_embedding"].expand(len(pixels), 1, -1)
    placed = torch.cat([cls, patches], 1) + w["embeddings.position_embedding.weight"]
    return layer_norm(w, "pre_layrnorm", placed)


def mema_tower(
    config: Config, w: Named, pixels: Tensor, asked: Tensor, each: list[int]
) -> dict[str, Tensor]:
    """The loop; `each`: how many images a sample has."""
    tower = below(w, "vision_tower.vision_model.")
    q = linear(w, "text_global_proj", asked)
    repeated = torch.cat([row.expand(n, -1) for row, n in zip(q, each, strict=True)])
    x = clip_start(tower, pixels, config["patch"])
    c = torch.zeros(len(x), config["dim"])
    states, memories, summaries = [x], [], []
    for block in range(config["layers"]):
        x = clip_block(below(tower, f"encoder.layers.{block}."), x, config["heads"])
        y = linear(w, "y_proj", torch.cat([x.mean(1), x.amax(1), x[:, 0]], -1))
        c = dsu(below(w, "dsu."), y, repeated, c)
        x = gate(below(w, "spatial_gate."), x, c[:, None])
        states, memories, summaries = [*states, x], [*memories, c], [*summaries, y]
    return {
        "hidden_states": torch.stack(states),
        "image_features": states[-2][:, 1:],
        "memory_per_layer": torch.stack(memories),
        "memory_final": c,
        "summary_per_layer": torch.stack(summaries),
        "pooler_output": layer_norm(tower, "post_layernorm", states[-1][:, 0]),
        "text_query": q,
    }


def mema_loop(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    each, pixels = config["images_per_sample"], given["pixel_values"]
    run = mema_tower(config, w, pixels, given["text_global"], each)
    features = run["image_features"]
    told = torch.stack([part.mean(0) for part in projected(w, run["memory_final"]).split(each)])
    found = run | {
        "projected_image_features": projected(w, features),
        "memory_projected": told,
        "loss": squares(features),
        "loss_align": (1 - F.cosine_similarity(told, given["answer_global"])).mean(),
    }
    if config["weights"] == "aswritten":
        tower = below(w, "vision_tower.vision_model.")
        bare = [clip_start(tower, pixels, config["patch"])]
        for block in range(config["layers"]):
            own = below(tower, f"encoder.layers.{block}.")
            bare.append(clip_block(own, bare[-1], config["heads"]))
        found["plain_clip_hidden_states"] = torch.stack(bare)
    return found


def dense_connector(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    clip = config["encoder"] == "clip"
    states = given["hidden_states"][:, :, int(clip) :]
    final = states[-2 if clip else -1]
    if config["type"] == "dci":
        half = 12 if clip else 13
        parts = [final, states[:half].mean(0), states[half : 2 * half].mean(0)]
    else:
        parts = [final, states[7], states[15]]
    if config["type"] == "sti":
        parts[1:] = [F.avg_pool1d(x.transpose(1, 2), 8).transpose(1, 2) for x in parts[1:]]
    fused = torch.cat(parts, 1 if config["type"] == "sti" else 2)
    out = projected(w, fused)
    return {"final_feature": final, "fused": fused, "projected": out, "loss": squares(out)}


def video(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    frames = projected(w, given["frames"])
    pooled = F.max_pool1d(frames.transpose(1, 2), 2).transpose(1, 2).reshape(1, -1, config["llm"])
    whole = frames.reshape(1, -1, config["llm"])
    return {"video_tokens": whole, "video_tokens_pooled": pooled, "loss": squares(pooled)}


def lsf_external_direct(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    s = given["hidden_states"][:, :, 1:]
    former, latter = s[1:13].mean(0), s[13:25].mean(0)
    parts = {
        "18": [s[18]],
        "3-18-23": [s[3], s[18]],
        "former": [former],
        "latter": [latter],
        "all": [former, latter],
    }
    found, loss = {}, torch.zeros(())
    for name in config["strategies"]:
        fused = torch.cat([*parts[name], s[23]], -1)
        out = projected(w, fused, f"{name}.mm_projector_f.0")
        found[f"{name}.projected"], loss = out, loss + squares(out)
    return found | {"loss": loss}


def igva(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    states, agg = given["hidden_states"], below(w, "vision_aggregator.")
    groups = torch.stack([states[list(group)].mean(0) for group in config["groups"]], 1)
    seen = linear(agg, "cls_proj", groups[:, :, 0])
    x = linear(agg, "sentence_proj", given["sentence_embeds"])[:, None]
    for block in range(config["num_transformers"]):
        part = below(agg, f"transformers.{block}.")
        own = below(part, "cross_attention.")
        a, _ = F.multi_head_attention_forward(
            x.transpose(0, 1), seen.transpose(0, 1), seen.transpose(0, 1),
            x.shape[-1], config["agg_heads"], own["in_proj_weight"], own["in_proj_bias"],
            None, None, False, 0.0, own["out_proj.weight"], own["out_proj.bias"],
        )  # fmt: skip
        a = layer_norm(part, "norm1", a.transpose(0, 1) + x)
        x = layer_norm(part, "norm2", linear(part, "ffn.2", linear(part, "ffn.0", a).relu()) + a)
    weights = linear(agg, "linear", x[:, 0]).softmax(-1)
    patches, base = groups[:, :, 1:], states[config["base_layer"], :, 1:]
    fused = torch.cat([base, torch.einsum("bg,bgnd->bnd", weights, patches)], -1)
    average = torch.cat([base, patches.mean(1)], -1)
    out = projected(w, fused)
    return {
        "fused": fused,
        "fused_by_average": average,
        "group_weights": weights,
        "projected": out,
        "projected_by_average": projected(w, average),
        "loss": squares(out),
    }


def tgif_fused(w: Named, features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Layer weights, and the tokens in front of the projector."""
    name = "layer_selector.layer_weights_projection"
    weights = linear(w, f"{name}.2", linear(w, f"{name}.0", text).relu()).softmax(-1)
    mixed = torch.einsum("bl,blnd->bnd", weights, features)
    return weights, layer_norm(w, "layer_selector.norm", features[:, -2] + mixed)


def tgif(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    weights, fused = tgif_fused(w, given["all_layers_features"], given["text_embeddings"])
    out = projected(w, fused, "mlp.0")
    return {"layer_weights": weights, "fused": fused, "projected": out, "loss": squares(out)}


def recurrent(gates: int):
    """DLA's unit with three gates, DIANet's with four."""

    def unit_over_depth(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
        h = c = torch.zeros(config["B"], config["dim"])
        hiddens, cells = [], []
        for seen in given["layer_descriptors"]:
            scores = sum(
                linear(w, f"{part}.0.seq.2", linear(w, f"{part}.0.seq.0", x).relu())
                for part, x in (("w_ih", seen), ("w_hh", h))
            )
            i, f, g, *o = scores.chunk(gates, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = c.sigmoid() * (o[0].sigmoid() if o else 1)
            hiddens, cells = [*hiddens, h], [*cells, c]
        hidden = torch.stack(hiddens)
        return {"hidden": hidden, "cell": torch.stack(cells), "loss": squares(hidden)}

    return unit_over_depth


def light(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    x, own, dim = given["xt"], below(w, "layer_attention."), config["dim"]
    pooled = x.mean((2, 3))[:, None]
    near = own["Wq.weight"].shape[-1] // 2
    q, k = (F.conv1d(pooled, own[f"W{part}.weight"], padding=near)[:, 0] for part in "qk")
    value = F.conv2d(x, own["Wv.weight"], padding=1, groups=dim)
    size = config["dim_perhead"]
    looks = (q * k).unflatten(-1, (-1, size)).sum(-1) / math.sqrt(size)
    wide = looks.sigmoid().repeat_interleave(size, -1)[..., None, None]
    out = value * wide + w["lambda_t"] * given["ot_1"]
    return {"ot": out, "loss": squares(out)}
