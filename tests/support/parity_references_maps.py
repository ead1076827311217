"""More plain references: deformable attention, and fusions inside a Llama."""

import math

import torch
from parity_references import (
    Config,
    Named,
    below,
    layer_norm,
    linear,
    projected,
    squares,
)
from torch import Tensor
from torch.nn import functional as F

Sizes = list[tuple[int, int]]


def centres(side: int) -> Tensor:
    """Of a square grid's cells, as (x, y), row by row."""
    cells = [((c + 0.5) / side, (r + 0.5) / side) for r in range(side) for c in range(side)]
    return torch.tensor(cells)


def bilinear(plane: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A map [B, H, W, C] at pixels (x, y) [B, ...]; zero outside."""
    height, width = plane.shape[1:3]
    rows = torch.arange(len(plane)).reshape(-1, *[1] * (x.ndim - 1))
    left, top, found = x.floor(), y.floor(), 0
    for u, v in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        share = (1 - (x - u).abs()) * (1 - (y - v).abs())
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        taken = plane[rows, v.clamp(0, height - 1).long(), u.clamp(0, width - 1).long()]
        found = found + (share * inside)[..., None] * taken
    return found


def deformable(w: Named, q: Tensor, places: Tensor, seen: Tensor, sizes: Sizes, heads: int):
    points = len(w["attention_weights.bias"]) // (heads * len(sizes))
    lay = (heads, len(sizes), points)
    offsets = linear(w, "sampling_offsets", q).unflatten(-1, (*lay, 2))
    shares = linear(w, "attention_weights", q).unflatten(-1, (heads, -1)).softmax(-1)
    shares = shares.unflatten(-1, lay[1:])
    values = linear(w, "value_proj", seen).split([h * width for h, width in sizes], 1)
    size, found = q.shape[-1] // heads, []
    for head in range(heads):
        mixed = 0
        for level, (height, width) in enumerate(sizes):
            plane = values[level].unflatten(1, (height, width))[..., head * size :][..., :size]
            moved = offsets[:, :, head, level]
            x = places[:, None, 0] * width + moved[..., 0] - 0.5
            y = places[:, None, 1] * height + moved[..., 1] - 0.5
            mixed = mixed + (shares[:, :, head, level, :, None] * bilinear(plane, x, y)).sum(2)
        found.append(mixed)
    return linear(w, "output_proj", torch.cat(found, -1))


def deformable_attention(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    places = centres(config["query_grid"])
    sizes = [(height, width) for height, width in config["shapes"]]
    y = deformable(w, given["query"], places, given["value"], sizes, config["n_heads"])
    return {"y": y, "reference_points": places[None, :, None], "loss": squares(y)}


def offsets_start(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    heads, levels, points = (config[f"n_{what}"] for what in ("heads", "levels", "points"))
    found = []
    for head in range(heads):
        angle = 2 * math.pi * head / heads
        way = torch.tensor([math.cos(angle), math.sin(angle)])
        way = way / way.abs().max()
        found += [way * (point + 1) for _ in range(levels) for point in range(points)]
    return {"sampling_offsets.bias": torch.cat(found)}


def fuser(w: Named, keys: list[Tensor], asking: Tensor, heads: int) -> Tensor:
    side = math.isqrt(asking.shape[1])
    places, seen = centres(side), torch.cat(keys, 1)
    normed = layer_norm(w, "feat_norm", seen, 1e-6)
    q = layer_norm(w, "query_norm", asking, 1e-6)
    sizes = [(side, side)] * len(keys)
    a = deformable(below(w, "cross_attn."), q, places, normed, sizes, heads)
    b = layer_norm(w, "norm1", a, 1e-6)
    b = deformable(below(w, "self_attn."), b, places, b, sizes[:1], heads)
    return asking + w["gamma1"] * (a + w["gamma2"] * b)


def mmfuser(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    chosen = given["hidden_states"][list(config["select_layer"]), :, 1:]
    keys = list(chosen[: config["n_levels"]])
    fused = fuser(below(w, "0."), keys, chosen[-1], config["n_heads"])
    out = projected(w, fused, "1", "3")
    return {"selected": chosen, "fused": fused, "projected": out, "loss": squares(out)}


def lsf_external_modular(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    s, found, loss = given["hidden_states"][:, :, 1:], {}, torch.zeros(())
    spans = {"former": range(1, 13), "latter": range(13, 25), "all": range(1, 25)}
    spans |= {"18": (18,), "3-18-23": (3, 18)}
    for name in config["strategies"]:
        own = below(w, f"{name}.mm_projector_f.")
        fused = fuser(below(own, "0."), [s[k] for k in spans[name]], s[23], 16)
        out = projected(own, fused, "1", "3")
        found |= {f"{name}.fused": fused, f"{name}.projected": out}
        loss = loss + squares(out)
    return found | {"loss": loss}


def sampling(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    local, found, at = given["local_features"], {}, 0
    stacks: dict[str, list[Tensor]] = {how: [] for how in config["sampling"]}
    side = config["side"]
    for columns, rows in config["grids"]:
        count = columns * rows
        crops = local[at : at + count].reshape(rows, columns, side, side, -1)
        at += count
        image = torch.cat([torch.cat(list(row), 1) for row in crops], 0)
        flat = image.reshape(-1, image.shape[-1])
        sets = {
            "2d": [image[i::rows, j::columns] for i in range(rows) for j in range(columns)],
            "1d": [flat[i::count] for i in range(count)],
            "grid": list(crops.flatten(0, 1)),
        }
        for how in stacks:
            entries = [entry.reshape(side * side, -1) for entry in sets[how]]
            entries += [torch.zeros_like(entries[0])] * (config["num_crops"] - count)
            stacks[how].append(torch.stack(entries))
    for how, samples in stacks.items():
        found |= {
            f"{how}.global": given["global_features"],
            f"{how}.stack": torch.stack(samples, 1),
        }
    return found


def rms(w: Named, name: str, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def rotated(x: Tensor) -> Tensor:
    """Rotary positions of [B, T, head, size], half split."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def looked(w: Named, x: Tensor, seen: Tensor, allowed: Tensor, heads: int, *, rotary: bool):
    """Attention of a Llama's names; `allowed` [B, T, S]."""
    q = linear(w, "q_proj", x).unflatten(-1, (heads, -1))
    k, v = (linear(w, f"{part}_proj", seen).unflatten(-1, (heads, -1)) for part in "kv")
    if rotary:
        q, k = rotated(q), rotated(k)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    # Added, as in the official code: a row of nothing but padding still looks somewhere.
    scores = scores + torch.where(allowed, 0.0, torch.finfo(x.dtype).min)[:, None]
    mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    return linear(w, "o_proj", mixed.flatten(2))


def mlp(w: Named, x: Tensor) -> Tensor:
    return linear(w, "down_proj", F.silu(linear(w, "gate_proj", x)) * linear(w, "up_proj", x))


def causal(mask: Tensor) -> Tensor:
    length = mask.shape[1]
    return mask.bool()[:, None] & torch.ones(length, length, dtype=torch.bool).tril()


def llama_layer(w: Named, x: Tensor, allowed: Tensor, heads: int) -> Tensor:
    n = rms(w, "input_layernorm", x)
    x = x + looked(below(w, "self_attn."), n, n, allowed, heads, rotary=True)
    return x + mlp(below(w, "mlp."), rms(w, "post_attention_layernorm", x))


def cross_layer(w: Named, image: Tensor, x: Tensor, allowed: Tensor, heads: int) -> Tensor:
    n = rms(w, "input_layernorm", x)
    seen = allowed[:, :, : image.shape[1]]
    found = looked(below(w, "ucross_attn."), n, image, seen, heads, rotary=False)
    n = n + w["ucross_xattn.weight"].tanh() * found
    n = n + w["ucross_xmlp.weight"].tanh() * mlp(below(w, "ucross_mlp."), n)
    x = x + looked(below(w, "self_attn."), n, n, allowed, heads, rotary=True)
    x = rms(w, "post_attention_layernorm", x)
    return x + mlp(below(w, "mlp."), x)


def modular_layer(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    allowed = causal(given["attention_mask"])
    image = given["image_feature"]
    out = cross_layer(w, image, given["hidden"], allowed, config["llm_heads"])
    return {"hidden_out": out, "loss": squares(out)}


def deepstack(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    x, inputs, allowed = given["inputs_embeds"], [], causal(given["attention_mask"])
    entering = {config["start"] + k * config["interval"]: k for k in range(config["n_stack"])}
    for layer in range(config["llm_layers"]):
        if layer in entering:
            added = torch.zeros_like(x)
            for image, (row, first) in enumerate(config["image_pos"]):
                values = given["stack_features"][entering[layer], image][: x.shape[1] - first]
                added[row, first : first + len(values)] += values
            x = x + added
        inputs.append(x)
        x = llama_layer(below(w, f"layers.{layer}."), x, allowed, config["llm_heads"])
    last = rms(w, "norm", x)
    return {"last_hidden_state": last, "layer_inputs": torch.stack(inputs), "loss": squares(last)}


def lsf_targets(strategy: str, layers: int) -> tuple[list[int], dict[int, int]]:
    """The states of a strategy, and which of them enters which layer."""
    if strategy == "former":
        return list(range(1, 13)), {m: m for m in range(min(layers, 12))}
    if strategy == "latter":
        return list(range(13, 25)), {m: m + 12 - layers for m in range(layers) if m >= layers - 12}
    states = [int(k) for k in strategy.split("-")]
    found = [int(k * layers / 24 - 1) for k in states]
    return states, {m: found.index(m) for m in found}


def lsf_internal(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    patches, text = given["hidden_states"][:, :, 1:], given["text_embeds"]
    states, entering = lsf_targets(config["strategy"], config["llm_layers"])
    each = [projected(w, patches[k], f"mm_projectors.{j}.0", f"mm_projectors.{j}.2")
            for j, k in enumerate(states)]  # fmt: skip
    main, rows, masks = projected(w, patches[23], "mm_projector_f.0"), [], []
    count = main.shape[1]
    for told, image, at in zip(text, main, config["image_start"], strict=True):
        first = len(told) if at is None else at
        rows.append(torch.cat([told[:first], told[:count] if at is None else image, told[first:]]))
        places = torch.arange(len(told) + count)
        masks.append((places >= first) & (places < first + count) & (at is not None))
    x = embeds = torch.stack(rows)
    mask, allowed, inputs = torch.stack(masks), causal(given["attention_mask"]), []
    for layer in range(config["llm_layers"]):
        own = below(w, f"model.layers.{layer}.")
        if layer in entering and config["fusing"] == "I_D":
            x = x.masked_scatter(
                mask[..., None], x[mask] + each[entering[layer]][mask.any(1)].flatten(0, 1)
            )
        inputs.append(x)
        if layer in entering and config["fusing"] == "I_M":
            x = cross_layer(own, each[entering[layer]], x, allowed, config["llm_heads"])
        else:
            x = llama_layer(own, x, allowed, config["llm_heads"])
    last = rms(w, "model.norm", x)
    return {
        "image_features": torch.stack([*each, main]),
        "image_token_mask": mask.long(),
        "inputs_embeds": embeds,
        "last_hidden_state": last,
        "layer_inputs": torch.stack(inputs),
        "loss": squares(last),
    }
