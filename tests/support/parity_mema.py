"""Replays of Mema's recorded cases, and of whole training steps in which Mema or TGIF is inside."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange, repeat
from parity_cases import Case, as_inputs, gradients, outputs, project, trainable
from parity_internal import IGNORED, Run, llama, only_recorded, shifted_cross_entropy
from torch import Tensor
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.types import Fused, StackShape
from fusionbench.methods.mema import DynamicSharingUnit, Mema, SpatialGate
from fusionbench.methods.tgif import TGIF


def replay_unit(case: Case) -> dict[str, Tensor]:
    dim = case.config["dim"]
    unit = DynamicSharingUnit(
        dim, reduction=case.config["reduction_ratio"], asked=dim, carried=True
    )
    unit.load_state_dict(case.weights)
    given = case.inputs
    memory = unit(given["y_l"], given["text_global"], given["c_prev"])
    loss = (memory**2).mean()
    sources = dict(unit.named_parameters()) | as_inputs(given)
    return outputs(c_l=memory, loss=loss) | gradients(loss, sources)


def replay_gate(case: Case) -> dict[str, Tensor]:
    if "steps" in case.config:
        return _replay_gate_training(case)
    gate = SpatialGate(case.config["dim"])
    gate.load_state_dict(case.weights)
    given = case.inputs
    # One memory per token: each token is an image of its own.
    each = gate(given["x"][:, None], given["c"])[0][:, 0]
    shared = gate(given["x"][None], given["c_vector"][None])[0][0]
    loss = (each**2).mean() + (shared**2).mean()
    sources = dict(gate.named_parameters()) | as_inputs(given)
    found = outputs(x_refreshed=each, x_refreshed_vector_memory=shared, loss=loss)
    return found | gradients(loss, sources)


def _replay_gate_training(case: Case) -> dict[str, Tensor]:
    gate = SpatialGate(case.config["dim"])
    gate.load_state_dict(case.under("weight.init"))
    given = {name: value.detach() for name, value in case.inputs.items()}
    optimiser = torch.optim.Adam(gate.parameters(), lr=case.config["lr"])
    losses = []
    for _ in range(case.config["steps"]):
        refreshed = gate(given["x"][:, None], given["c"])[0][:, 0]
        loss = ((refreshed - given["target"]) ** 2).mean()
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    trained = {f"output.trained.{name}": p.detach() for name, p in gate.named_parameters()}
    return trained | outputs(loss_curve=torch.stack(losses))


ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}


class RecordedClip(Encoder):
    """A CLIP tower from its official weights; takes the recorded pixel values as they are."""

    def __init__(self, case: Case, query_dim: int) -> None:
        super().__init__()
        config = case.config
        side = config["image"] // config["patch"]
        self.shape = StackShape(
            layers=config["layers"],
            dim=config["dim"],
            grid=(side, side),
            prefix=1,
            query_dim=query_dim,
        )
        self.size, self.patch, self.heads = config["image"], config["patch"], config["heads"]
        # Where the case says nothing, CLIP's own.
        clip = case.facts["facts"].get("clip_config", {})
        self.activation = ACTIVATIONS[clip.get("hidden_act", "quick_gelu")]
        self.eps = clip.get("layer_norm_eps", 1e-5)
        parts = ((k.partition("vision_tower.vision_model.")[2], v) for k, v in case.weights.items())
        self.named = {name: value for name, value in parts if name}

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.named[f"{name}.weight"], self.named[f"{name}.bias"])

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.named[f"{name}.weight"], self.named[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def embed(self, images: Tensor) -> Tensor:
        kernel = self.named["embeddings.patch_embedding.weight"]
        patches = rearrange(F.conv2d(images, kernel, stride=self.patch), "b d h w -> b (h w) d")
        first = repeat(self.named["embeddings.class_embedding"], "d -> b 1 d", b=len(images))
        placed = torch.cat([first, patches], dim=1)
        placed = placed + self.named["embeddings.position_embedding.weight"]
        return self._layer_norm(placed, "pre_layrnorm")

    def block(self, index: int, tokens: Tensor) -> Tensor:
        name = f"encoder.layers.{index - 1}"
        normed = self._layer_norm(tokens, f"{name}.layer_norm1")
        heads = [
            rearrange(
                self._linear(normed, f"{name}.self_attn.{part}_proj"),
                "b n (h d) -> b h n d",
                h=self.heads,
            )
            for part in "qkv"
        ]
        mixed = rearrange(F.scaled_dot_product_attention(*heads), "b h n d -> b n (h d)")
        tokens = tokens + self._linear(mixed, f"{name}.self_attn.out_proj")
        hidden = self._linear(self._layer_norm(tokens, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        return tokens + self._linear(self.activation(hidden), f"{name}.mlp.fc2")

    def norm(self, tokens: Tensor) -> Tensor:
        return self._layer_norm(tokens, "post_layernorm")


def replay_loop(case: Case) -> dict[str, Tensor]:
    given, projector = case.inputs, trainable(case.weights, "mm_projector")
    encoder = RecordedClip(case, query_dim=given["text_global"].shape[1])
    # Any positive weight: the loop must reach block L, whose memory is aligned.
    fusion = Mema(encoder.shape, reduction=case.config["reduction_ratio"], alignment=0.1)
    fusion.load_official(case.weights)
    each = torch.tensor(case.config["images_per_sample"])
    state = fusion.start(
        encoder.embed(given["pixel_values"]), given["text_global"].repeat_interleave(each, dim=0)
    )
    tokens = encoder.embed(given["pixel_values"])
    states, memories, summaries = [tokens], [], []
    for block in range(1, fusion.depth + 1):
        tokens = encoder.block(block, tokens)
        summaries.append(fusion.summarise(tokens))
        tokens, state = fusion.after_block(block, tokens, state)
        states.append(tokens)
        memories.append(state.memory)
    fused = fusion.finish(tokens, state)
    per_image = project(fused.summary, projector)
    told = torch.stack([part.mean(dim=0) for part in per_image.split(each.tolist())])
    loss = (fused.tokens**2).mean()
    aligned = (1 - F.cosine_similarity(told, given["answer_global"])).mean()
    sources = dict(fusion.named_parameters()) | {"input.text_global": given["text_global"]}
    found = outputs(
        hidden_states=torch.stack(states),
        image_features=fused.tokens,
        projected_image_features=project(fused.tokens, projector),
        memory_per_layer=torch.stack(memories),
        memory_final=fused.summary,
        memory_projected=told,
        summary_per_layer=torch.stack(summaries),
        pooler_output=encoder.norm(states[-1][:, 0]),
        text_query=fusion.text_global_proj(given["text_global"]),
        loss=loss,
        loss_align=aligned,
    )
    if "output.plain_clip_hidden_states" in case.tensors:
        found |= outputs(plain_clip_hidden_states=_plain(encoder, given["pixel_values"]))
    found |= gradients(loss, sources)
    return found | gradients(aligned, sources, group="grad_align")


def _plain(encoder: RecordedClip, pixels: Tensor) -> Tensor:
    states = [encoder.embed(pixels)]
    for block in range(1, encoder.shape.layers + 1):
        states.append(encoder.block(block, states[-1]))
    return torch.stack(states)


# Replays of whole training steps: images, query, fusion, projector, Llama and all losses.

IMAGE = -200
"""The token in whose place the image's stand."""


def replay_tgif_in_language_model(case: Case) -> dict[str, Tensor]:
    given, table = case.inputs, case.weights["model.embed_tokens.weight"]
    ids, kept = given["input_ids"], given["attention_mask"]
    # The placeholder counts, as the first word of the vocabulary.
    asked = _mean_of(table, ids.where(ids != IMAGE, 0), kept)
    encoder = RecordedClip(case, query_dim=table.shape[1])
    alpha = case.config["alpha"]
    width = case.weights["model.mm_projector.layer_selector.layer_weights_projection.0.bias"]
    fusion = TGIF(encoder.shape, width=len(width), alpha=alpha)
    fusion.load_official(case.weights)
    hidden = torch.stack(_states(encoder, given["images"])[1:])
    fused = fusion(hidden, asked)
    projector = trainable(case.weights, "model.mm_projector.mlp")
    each = project(fused.tokens, projector).unbind()
    embeds, labels, mask = _spliced(given, table, each)
    logits = _logits(case, embeds, mask)
    told = shifted_cross_entropy(logits, labels)
    total = told + sum(fused.losses.values())
    selector = fusion.layer_selector.layer_weights_projection
    found = outputs(
        all_layers_features=hidden[:, :, 1:].transpose(0, 1),
        text_embedding=asked,
        layer_weights=selector(asked).softmax(dim=-1),
        inputs_embeds=embeds,
        labels_out=labels,
        logits=logits,
        lm_loss=told,
        loss_total=total,
    )
    own = {f"model.mm_projector.{name}": value for name, value in fusion.named_parameters()}
    return only_recorded(case, found | gradients(total, own | projector, group="grad_total"))


def replay_mema(case: Case) -> dict[str, Tensor]:
    given, table = case.inputs, case.weights["model.embed_tokens.weight"]
    ids, kept = given["input_ids"], given["attention_mask"]
    labelled = kept & (given["labels"] != IGNORED)
    asked = _mean_of(table, ids, kept & ~labelled & (ids != IMAGE))
    answer, valid = _mean_of(table, ids, labelled), labelled.any(dim=1)
    encoder = RecordedClip(case, query_dim=table.shape[1])
    fusion = Mema(
        encoder.shape,
        reduction=case.config["reduction_ratio"],
        alignment=case.config["align_loss_weight"],
    )
    fusion.load_official(case.weights)
    images = given["images"]
    crops = images.shape[1] if images.ndim == 5 else 1
    fused = _step(encoder, fusion, images.flatten(0, -4), asked.repeat_interleave(crops, dim=0))
    projector = trainable(case.weights, "model.mm_projector")
    tokens = project(fused.tokens, projector).unflatten(0, (-1, crops)).flatten(1, 2)
    embeds, labels, mask = _spliced(given, table, tokens.unbind())
    logits = _logits(case, embeds, mask)
    memory = project(fused.summary, projector).unflatten(0, (-1, crops)).mean(dim=1)
    cosine = F.cosine_similarity(memory, answer)
    aligned = (1 - cosine)[valid].mean()
    told = shifted_cross_entropy(logits, labels)
    total = told + fusion.summary_weight * aligned
    found = outputs(
        text_global=asked,
        answer_global=answer,
        answer_valid_mask=valid,
        attention_mask_out=mask,
        inputs_embeds=embeds,
        labels_out=labels,
        logits=logits,
        memory_projected=memory,
        per_sample_cosine=cosine,
        align_loss=aligned,
        lm_loss=told,
        loss_total=total,
    )
    own = {f"model.vision_tower.{name}": value for name, value in fusion.named_parameters()}
    return found | only_recorded(case, gradients(total, own | projector, group="grad_total"))


def _step(encoder: RecordedClip, fusion: Mema, images: Tensor, asked: Tensor) -> Fused:
    tokens = encoder.embed(images)
    state = fusion.start(tokens, asked)
    for block in range(1, fusion.depth + 1):
        tokens, state = fusion.after_block(block, encoder.block(block, tokens), state)
    return fusion.finish(tokens, state)


def _states(encoder: RecordedClip, images: Tensor) -> list[Tensor]:
    states = [encoder.embed(images)]
    for block in range(1, encoder.shape.layers + 1):
        states.append(encoder.block(block, states[-1]))
    return states


def _mean_of(table: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """The mean embedding of each row's chosen tokens; of its first token if it has none."""
    rows = []
    for row, kept in zip(ids, chosen, strict=True):
        rows.append(table[row[kept] if kept.any() else row[:1]].mean(dim=0))
    return torch.stack(rows)


def _spliced(
    given: Mapping[str, Tensor], table: Tensor, images: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and mask with each row's image in its place, padded on the right."""
    rows, labels = [], []
    for ids, told, kept, image in zip(
        given["input_ids"], given["labels"], given["attention_mask"], images, strict=True
    ):
        ids, told = ids[kept], told[kept]
        at = int((ids == IMAGE).nonzero()) if (ids == IMAGE).any() else None
        words = table[ids.where(ids != IMAGE, 0)]
        if at is None:
            rows.append(words)
            labels.append(told)
            continue
        rows.append(torch.cat([words[:at], image, words[at + 1 :]]))
        unseen = told.new_full((len(image),), IGNORED)
        labels.append(torch.cat([told[:at], unseen, told[at + 1 :]]))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    padded = pad(labels, batch_first=True, padding_value=IGNORED)
    return pad(rows, batch_first=True), padded, mask


def _logits(case: Case, embeds: Tensor, mask: Tensor) -> Tensor:
    weights = {
        name: value
        for name, value in case.under("weight.model").items()
        if name.startswith(("layers.", "norm.", "embed_tokens."))
    }
    config = case.config
    model = llama(case, weights, mlp=config["llm_mlp"], heads=config["llm_heads"])
    run = Run(model, embeds, mask.long(), Fused(tokens=embeds), ())
    return F.linear(run.last, case.weights["lm_head.weight"])
