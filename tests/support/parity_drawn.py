"""Further cases of the recorded kinds: other sizes and seeds, results from the plain references."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import parity_references as plain
import parity_references_maps as maps
import parity_references_whole as whole
import parity_sizes as sizes
import torch
from parity_cases import SHIPPED, Case, as_inputs, cases
from safetensors.torch import save_file
from torch import Tensor

Config = Mapping[str, Any]
Reference = Callable[[Config, Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
# Weights drawn at any size may nearly cancel in a gradient; a wrong layer is off by far more.
LOOSE = {"output": 1e-4, "grad": 1e-3}
GROUPS = {"loss": "grad", "loss_align": "grad_align", "loss_total": "grad_total"}


@dataclass(frozen=True)
class Kind:
    """A plain reference, and the shapes it takes."""

    reference: Reference
    weights: Callable[[Config], sizes.Shapes] = lambda config: {}
    inputs: Callable[[Config], sizes.Shapes] = lambda config: {}
    frozen: str = r"\b\B"
    """What has no recorded gradient, as a pattern its name begins with."""
    fill: Callable[[dict[str, Tensor], Config], None] = lambda tensors, config: None
    """Makes the drawn tensors fit each other."""


def rows(*names: str, shape: str) -> Callable[[Config], sizes.Shapes]:
    """Inputs that are all as large; `shape` names settings."""
    return lambda c: {name: tuple(c[size] for size in shape.split()) for name in names}


def worded(tensors: dict[str, Tensor], config: Config) -> None:
    """Questions with an image and an answer at their end; the last row is the shortest."""
    batch, length = tensors["input.input_ids"].shape
    words = torch.arange(batch * length).reshape(batch, length) * 7
    ids, kept = 1 + words % (config["vocab"] - 1), torch.ones(batch, length, dtype=torch.bool)
    labels = torch.full_like(ids, whole.UNSEEN)
    for row in range(batch):
        end = length - 2 * row
        kept[row, end:] = False
        if row != config.get("no_answer_sample"):
            labels[row, end - 3 - row : end] = ids[row, end - 3 - row : end]
        if row != config.get("text_only_sample"):
            ids[row, 1 + row] = whole.IMAGE
    ids[~kept], labels[~kept] = 0, whole.UNSEEN
    tensors |= {"input.input_ids": ids, "input.labels": labels, "input.attention_mask": kept}


def placed(tensors: dict[str, Tensor], config: Config) -> None:
    """Qwen's image tokens, a quarter of the patches."""
    places = torch.arange(config["T"]) - config["image_start"]
    tensors["input.visual_pos_masks"] = ((places >= 0) & (places < config["patches"] // 4))[None]


KINDS = {
    "mema_dsu": Kind(
        plain.mema_dsu, sizes.dsu, rows("y_l", "text_global", "c_prev", shape="N dim")
    ),
    "mema_gate": Kind(
        plain.mema_gate,
        sizes.gate,
        lambda c: rows("x", "c", shape="T dim")(c) | {"c_vector": (c["dim"],)},
    ),
    "mema_gate_aswritten_adam": Kind(
        whole.gate_training,
        lambda c: sizes.under("init.", sizes.gate(c)),
        rows("x", "c", "target", shape="T dim"),
    ),
    "mema_loop": Kind(
        plain.mema_loop,
        sizes.loop,
        sizes.loop_inputs,
        "vision_tower|mm_projector|input.pixel_values|input.answer_global",
    ),
    "dc_video": Kind(
        plain.video,
        lambda c: sizes.projector("mm_projector.", c["dim"], c["llm"]),
        rows("frames", shape="T tokens dim"),
    ),
    "dc_": Kind(plain.dense_connector, sizes.connector, sizes.states),
    "mmfuser_deformable": Kind(
        maps.deformable_attention,
        lambda c: sizes.deformable(c["dim"], len(c["shapes"]), c["n_heads"], c["n_points"]),
        lambda c: {
            "query": (c["B"], c["query_grid"] ** 2, c["dim"]),
            "value": (c["B"], sum(height * width for height, width in c["shapes"]), c["dim"]),
        },
    ),
    "mmfuser_offsets": Kind(maps.offsets_start),
    "mmfuser": Kind(maps.mmfuser, sizes.mmfuser, sizes.states),
    "lsf_external_direct": Kind(plain.lsf_external_direct, sizes.external_direct, sizes.states),
    "lsf_external_modular": Kind(maps.lsf_external_modular, sizes.external_modular, sizes.states),
    "lsf_internal_modular_layer": Kind(
        maps.modular_layer,
        lambda c: sizes.llama_layer(c) | sizes.cross(c),
        lambda c: {
            "hidden": (c["B"], c["T"], c["llm"]),
            "image_feature": (c["B"], c["n_img"], c["llm"]),
            "attention_mask": (c["B"], c["T"]),
        },
    ),
    "lsf_internal": Kind(
        maps.lsf_internal,
        sizes.internal,
        sizes.internal_inputs,
        r"model(?!.*ucross)|input.hidden_states",
    ),
    "deepstack_llama": Kind(
        maps.deepstack,
        sizes.llama,
        lambda c: {
            "inputs_embeds": (c["B"], c["T"], c["llm"]),
            "attention_mask": (c["B"], c["T"]),
            "stack_features": (c["n_stack"], len(c["image_pos"]), c["n_img"], c["llm"]),
        },
        "layers|norm|embed",
    ),
    "deepstack_sampling": Kind(
        maps.sampling,
        inputs=lambda c: {
            "global_features": (len(c["grids"]), c["side"] ** 2, c["c"]),
            "local_features": (sum(w * h for w, h in c["grids"]), c["side"] ** 2, c["c"]),
        },
    ),
    "igva": Kind(
        plain.igva,
        sizes.igva,
        lambda c: sizes.states(c) | {"sentence_embeds": (c["B"], c["sentence_dim"])},
    ),
    "tgif_selector": Kind(
        plain.tgif,
        sizes.tgif,
        lambda c: {
            "all_layers_features": (c["B"], c["layers"], c["patches"], c["dim"]),
            "text_embeddings": (c["B"], c["llm"]),
        },
    ),
    "dla_dsu": Kind(
        plain.recurrent(3),
        partial(sizes.recurrent, 3),
        rows("layer_descriptors", shape="layers B dim"),
    ),
    "dianet": Kind(
        plain.recurrent(4),
        partial(sizes.recurrent, 4),
        rows("layer_descriptors", shape="layers B dim"),
    ),
    "dla_light": Kind(plain.light, sizes.light, rows("xt", "ot_1", shape="B dim h w")),
    "qwen3vl": Kind(
        whole.qwen,
        sizes.qwen,
        lambda c: {
            "text_embeds": (1, c["T"], c["llm"]),
            "vit_block_outputs": (c["blocks"], c["patches"], c["dim"]),
        },
        "language_model",
        placed,
    ),
    "mema_end_to_end": Kind(
        whole.mema_step,
        sizes.mema_step,
        sizes.step_inputs,
        r"input|lm_head|model\.(?!vision_tower)|model.vision_tower.vision_tower",
        worded,
    ),
    "tgif_end_to_end": Kind(
        whole.tgif_step,
        sizes.tgif_step,
        sizes.step_inputs,
        r"input|lm_head|model\.(?!mm_projector)",
        worded,
    ),
}


def kind_of(name: str) -> Kind | None:
    """The kind whose name the case's id starts with; the longest one."""
    fitting = [start for start in KINDS if name.startswith(start)]
    return KINDS[max(fitting, key=len)] if fitting else None


def recorded(case: Case) -> dict[str, Tensor]:
    """What the plain reference makes of a case's inputs and weights, gradients included."""
    kind = kind_of(case.id)
    if kind is None:
        raise ValueError(f"no plain reference for {case.id}")
    weights = {name: value.requires_grad_() for name, value in case.weights.items()}
    found = kind.reference(case.config, weights, case.inputs)
    sources = weights | as_inputs(case.inputs)
    sources = {k: v for k, v in sources.items() if not re.match(kind.frozen, k)}
    out = {f"output.{name}": value.detach() for name, value in found.items()}
    for loss in found.keys() & GROUPS.keys() if sources else ():
        grads = torch.autograd.grad(
            found[loss], list(sources.values()), retain_graph=True, allow_unused=True
        )
        named = zip(sources, grads, strict=True)
        # What no path leads to has no recorded gradient.
        out |= {f"{GROUPS[loss]}.{name}": grad for name, grad in named if grad is not None}
    return out


def drawn(name: str, shape: tuple[int, ...], config: Config, rng: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=rng)
    if name == "input.attention_mask":
        mask = torch.ones(shape, dtype=torch.long)
        mask[-1, shape[1] - config.get("pad_last", 0) :] = 0
        return mask
    if name.startswith("input.") or "gamma" in name:
        return values
    if "layer_weights_projection" in name:
        return 0.05 * values  # 512 wide inside: the softmax must not saturate
    return 1 + 0.3 * values if "norm" in name and name.endswith("weight") else 0.3 * values


def write(folder: Path, plan: list[tuple[str, Config]], *, seeds: tuple[int, ...]) -> int:
    """A folder of cases like the shipped one; gives how many."""
    like = {case.id: case for case in cases(SHIPPED)}
    entries = [
        _written(folder, like[name], {**like[name].config, **changed}, f"{name}_{at}_{seed}", seed)
        for at, (name, changed) in enumerate(plan)
        for seed in seeds
    ]
    manifest = json.loads((SHIPPED / "manifest.json").read_text()) | {"cases": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return len(entries)


def _written(folder: Path, like: Case, config: Config, name: str, seed: int) -> dict[str, Any]:
    kind, rng = kind_of(like.id), torch.Generator().manual_seed(seed)
    shapes = sizes.under("weight.", kind.weights(config))
    shapes |= sizes.under("input.", kind.inputs(config))
    tensors = {k: drawn(k, shape, config, rng) for k, shape in shapes.items()}
    kind.fill(tensors, config)
    facts = like.facts | {"id": name, "config": config, "seed": seed, "file": f"{name}.safetensors"}
    facts = facts | {"tolerance": like.facts["tolerance"] | LOOSE}
    if "strategy" in config:
        chosen, entering = maps.lsf_targets(config["strategy"], config["llm_layers"])
        own = {"selected_states": [*chosen, 23], "decoder_layers_used": sorted(entering)}
        facts = facts | {"facts": own}
    file = folder / facts["file"]
    save_file(tensors, file)
    found = recorded(Case(facts, folder))
    save_file({k: v.clone().contiguous() for k, v in (tensors | found).items()}, file)
    return facts
