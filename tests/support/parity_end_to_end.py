"""Replays of whole training steps: images, query, fusion, projector, Llama and all losses."""

from collections.abc import Mapping, Sequence

import torch
from parity_cases import Case, gradients, outputs, project, trainable
from parity_language_models import IGNORED, Run, llama, only_recorded, shifted_cross_entropy
from parity_mema import RecordedClip
from torch import Tensor
from torch.nn import functional as F

from fusionbench.api.types import Fused
from fusionbench.methods.mema import Mema
from fusionbench.methods.tgif import TGIF

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
