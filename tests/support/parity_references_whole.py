"""Plain references of whole passes: Qwen3-VL's text model, and LLaVA's training step."""

from collections.abc import Sequence

import torch
from parity_references import (
    Config,
    Named,
    below,
    clip_block,
    clip_start,
    gate,
    gelu,
    layer_norm,
    linear,
    mema_tower,
    projected,
    squares,
    tgif_fused,
)
from parity_references_maps import causal, llama_layer, mlp, rms, rotated
from torch import Tensor
from torch.nn import functional as F

UNSEEN = -100
IMAGE = -200


def gate_training(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    """Adam by hand: betas 0.9 and 0.999, eps 1e-8."""
    now = {name: value.detach().clone() for name, value in below(w, "init.").items()}
    first, second = ({name: torch.zeros_like(v) for name, v in now.items()} for _ in range(2))
    losses = []
    for step in range(1, config["steps"] + 1):
        own = {name: value.requires_grad_() for name, value in now.items()}
        loss = squares(gate(own, given["x"], given["c"]) - given["target"])
        losses.append(loss.detach())
        grads = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
        for name, grad in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            spread = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            now[name] = now[name].detach() - config["lr"] * first[name] / (1 - 0.9**step) / spread
    trained = {f"trained.{name}": value.detach() for name, value in now.items()}
    return trained | {"loss_curve": torch.stack(losses)}


def qwen_layer(w: Named, x: Tensor, config: Config) -> Tensor:
    n, own, length = rms(w, "input_layernorm", x), below(w, "self_attn."), x.shape[1]
    q, k, v = (
        linear(own, f"{part}_proj", n).unflatten(-1, (-1, config["head_dim"])) for part in "qkv"
    )
    q, k = rotated(rms(own, "q_norm", q)), rotated(rms(own, "k_norm", k))
    share = config["llm_heads"] // config["kv_heads"]
    k, v = (part.repeat_interleave(share, 2) for part in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / config["head_dim"] ** 0.5
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = torch.einsum("bhts,bshd->bthd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
    x = x + linear(own, "o_proj", mixed.flatten(2))
    return x + mlp(below(w, "mlp."), rms(w, "post_attention_layernorm", x))


def merged(w: Named, tokens: Tensor) -> Tensor:
    return linear(w, "linear_fc2", gelu(linear(w, "linear_fc1", tokens)))


def qwen(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    blocks, own = given["vit_block_outputs"], below(w, "visual.merger.")
    wide = 4 * blocks.shape[-1]
    main = merged(own, layer_norm(own, "norm", blocks[-1], 1e-6).reshape(-1, wide))
    entering = []
    for j, block in enumerate(config["visual_indexes"]):
        own = below(w, f"visual.deepstack_merger_list.{j}.")
        windows = blocks[block].reshape(-1, wide)
        entering.append(merged(own, layer_norm(own, "norm", windows, 1e-6)))
    places = given["visual_pos_masks"][..., None]
    x = embeds = given["text_embeds"].masked_scatter(places, main)
    inputs, raw, text = [], [], below(w, "language_model.")
    for layer in range(config["llm_layers"]):
        inputs.append(x)
        x = qwen_layer(below(text, f"layers.{layer}."), x, config)
        raw.append(x)
        if layer < len(entering):
            x = x + torch.zeros_like(x).masked_scatter(places, entering[layer])
    last = rms(text, "norm", x)
    return {
        "main_tokens": main,
        "deepstack_tokens": torch.stack(entering),
        "inputs_embeds": embeds,
        "layer_inputs": torch.stack(inputs),
        "raw_layer_outputs": torch.stack(raw),
        "last_hidden_state": last,
        "loss": squares(last),
    }


def mean_word(table: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """Of the chosen tokens; the first token's where there is none."""
    rows = [
        table[row[kept]].mean(0) if kept.any() else table[row[0]]
        for row, kept in zip(ids, chosen, strict=True)
    ]
    return torch.stack(rows)


def spliced(given: Named, table: Tensor, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Embeddings, labels and mask, padded on the right with zeros."""
    rows, labels = [], []
    named = (given[name] for name in ("input_ids", "labels", "attention_mask"))
    for ids, told, kept, image in zip(*named, images, strict=True):
        parts, shown = [], []
        for token, label in zip(ids[kept].tolist(), told[kept].tolist(), strict=True):
            parts.append(image if token == IMAGE else table[token][None])
            shown += [UNSEEN] * len(image) if token == IMAGE else [label]
        rows.append(torch.cat(parts))
        labels.append(torch.tensor(shown))
    longest = max(len(row) for row in rows)
    embeds = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    told = torch.stack([F.pad(row, (0, longest - len(row)), value=UNSEEN) for row in labels])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows])
    return embeds, told, mask


def language(config: Config, w: Named, x: Tensor, mask: Tensor, labels: Tensor) -> tuple:
    """Logits, and the mean cross-entropy of the next token."""
    layers = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("model.layers."))
    for layer in range(layers):
        x = llama_layer(below(w, f"model.layers.{layer}."), x, causal(mask), config["llm_heads"])
    logits = linear(w, "lm_head", rms(w, "model.norm", x))
    told = labels[:, 1:]
    said = logits[:, :-1].log_softmax(-1)[told != UNSEEN]
    return logits, -said.gather(1, told[told != UNSEEN][:, None]).mean()


def mema_step(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    table, ids = w["model.embed_tokens.weight"], given["input_ids"]
    kept, answered = given["attention_mask"], given["labels"] != UNSEEN
    asked = mean_word(table, ids, kept & ~answered & (ids != IMAGE))
    answer, valid = mean_word(table, ids, kept & answered), (kept & answered).any(1)
    images, own = given["images"], below(w, "model.vision_tower.")
    crops = images.shape[1] if images.ndim == 5 else 1
    each = [crops] * len(ids)
    run = mema_tower(config, own, images.reshape(-1, *images.shape[-3:]), asked, each)
    project = below(w, "model.")
    features = projected(project, run["image_features"]).split(each)
    embeds, labels, mask = spliced(given, table, [part.flatten(0, 1) for part in features])
    logits, said = language(config, w, embeds, mask, labels)
    told = torch.stack(
        [part.mean(0) for part in projected(project, run["memory_final"]).split(each)]
    )
    cosine = F.cosine_similarity(told, answer)
    aligned = (1 - cosine)[valid].mean()
    return {
        "text_global": asked,
        "answer_global": answer,
        "answer_valid_mask": valid,
        "attention_mask_out": mask,
        "inputs_embeds": embeds,
        "labels_out": labels,
        "logits": logits,
        "memory_projected": told,
        "per_sample_cosine": cosine,
        "align_loss": aligned,
        "lm_loss": said,
        "loss_total": said + config["align_loss_weight"] * aligned,
    }


def tgif_step(config: Config, w: Named, given: Named) -> dict[str, Tensor]:
    table, ids = w["model.embed_tokens.weight"], given["input_ids"]
    asked = mean_word(table, ids.clamp_min(0), given["attention_mask"])
    tower = below(w, "model.vision_tower.vision_tower.vision_model.")
    x, states = clip_start(tower, given["images"], config["patch"]), []
    for block in range(config["layers"]):
        x = clip_block(below(tower, f"encoder.layers.{block}."), x, config["heads"])
        states.append(x[:, 1:])
    features, own = torch.stack(states, 1), below(w, "model.mm_projector.")
    weights, fused = tgif_fused(own, features, asked)
    embeds, labels, mask = spliced(given, table, list(projected(own, fused, "mlp.0")))
    logits, said = language(config, w, embeds, mask, labels)
    share = weights.mean(0)
    return {
        "all_layers_features": features,
        "text_embedding": asked,
        "layer_weights": weights,
        "inputs_embeds": embeds,
        "labels_out": labels,
        "logits": logits,
        "lm_loss": said,
        "loss_total": said + config["alpha"] * (share * (share + 1e-8).log()).sum(),
    }
