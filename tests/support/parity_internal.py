"""Replays of the fusions inside a language model: Layer_Select_Fuse, DeepStack, Qwen3-VL."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import torch
from parity_cases import Case, as_inputs, gradients, outputs, project, trainable
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from fusionbench.api.types import Fused, Injection, ReaderShape, StackShape
from fusionbench.methods._cross_layer import CrossLayer
from fusionbench.methods.deepstack import stacked
from fusionbench.methods.lsf_internal import LSFInternal
from fusionbench.methods.qwen3vl_deepstack import Qwen3VLDeepStack
from fusionbench.models.readers.injection import Inside, at_positions, injected

FORMS = {"I_D": "direct", "I_M": "modular"}


def replay_internal(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    model = llama(
        case, case.under("weight.model"), mlp=config["llm_mlp"], heads=config["llm_heads"]
    )
    patches = config["tokens"] - 1
    shape = StackShape(
        layers=config["states"] - 1,
        dim=config["dim"],
        grid=(1, patches),
        prefix=1,
        reader=reader_shape(model),
    )
    fusion = LSFInternal(
        shape,
        form=FORMS[config["fusing"]],
        strategy=config["strategy"].replace("-", "_"),
        as_published=True,
    )
    fusion.load_official(case.weights)
    states = given["hidden_states"]
    hidden = torch.stack([states[tap].mean(dim=0) for tap in map(list, fusion.taps)])
    fused = fusion(hidden, states.new_zeros(config["B"], 0))
    final = trainable(case.weights, "mm_projector_f")
    tokens = project(fused.tokens, final)
    embeds, spots = _spliced(given["text_embeds"], tokens, config["image_start"])
    shown = _rows(fused, config["image_start"])
    run = Run(model, embeds, given["attention_mask"], shown, spots)
    loss = (run.last**2).mean()
    found = outputs(
        image_features=torch.stack([*_features(case, fusion, hidden), tokens]),
        image_token_mask=_places(spots, embeds, count=patches),
        inputs_embeds=embeds,
        last_hidden_state=run.last,
        layer_inputs=run.layer_inputs,
        loss=loss,
    )
    sources = final | as_inputs(given) | dict(fusion.named_parameters(prefix="model"))
    sources |= dict(fusion.named_parameters())
    sources |= {f"model.{name}": value for name, value in model.named_parameters()}
    return found | only_recorded(case, gradients(loss, sources))


def _places(spots: list[tuple[int, int]], embeds: Tensor, *, count: int) -> Tensor:
    """1 where a row has an image token."""
    ones = embeds.new_ones(len(spots), count, embeds.shape[-1])
    return at_positions(ones, spots, embeds)[..., 0].long()


def _rows(fused: Fused, starts: list[int | None]) -> Fused:
    """What the samples with an image are given, in their order."""
    kept = [row for row, start in enumerate(starts) if start is not None]
    injections = tuple(
        Injection(layer=one.layer, when=one.when, values=one.values[kept])
        for one in fused.injections
    )
    return Fused(tokens=fused.tokens[kept], injections=injections, patches=fused.patches)


def _spliced(
    text: Tensor, tokens: Tensor, starts: list[int | None]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Image tokens between the text's; a row without image goes on with its own first tokens."""
    rows = [
        torch.cat([told, told[: len(image)]])
        if start is None
        else torch.cat([told[:start], image, told[start:]])
        for told, image, start in zip(text, tokens, starts, strict=True)
    ]
    return torch.stack(rows), [(row, at) for row, at in enumerate(starts) if at is not None]


def _features(case: Case, fusion: LSFInternal, hidden: Tensor) -> list[Tensor]:
    """Every selected state through its projector, those that arrive nowhere too."""
    arriving = dict(zip((j for j, _ in fusion.targets), fusion.projected(hidden), strict=True))
    *selected, _ = case.facts["facts"]["selected_states"]
    return [
        arriving[str(j)]
        if str(j) in arriving
        else project(
            case.inputs["hidden_states"][state, :, 1:],
            trainable(case.weights, f"mm_projectors.{j}."),
        )
        for j, state in enumerate(selected)
    ]


def replay_cross_layer(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    own = {f"layers.0.{name}": value for name, value in case.weights.items()}
    beside = {
        "embed_tokens.weight": torch.zeros(1, config["llm"]),
        "norm.weight": torch.ones(config["llm"]),
    }
    model = llama(case, own | beside, mlp=config["llm_mlp"], heads=config["llm_heads"])
    layer, hidden = model.layers[0], given["hidden"]
    cross = CrossLayer(
        config["llm"], heads=config["llm_heads"], mlp=config["llm_mlp"], as_published=True
    )
    cross.load_state_dict({name: case.weights[name] for name in cross.state_dict()})
    places = torch.arange(config["T"])[None]
    kept = given["attention_mask"].bool()[:, None, None]
    seen = kept & torch.ones(config["T"], config["T"], dtype=torch.bool).tril()
    out = cross(
        layer,
        given["image_feature"],
        hidden,
        attention_mask=torch.where(seen, 0.0, torch.finfo(hidden.dtype).min),
        position_embeddings=model.rotary_emb(hidden, places),
    )
    loss = (out**2).mean()
    sources = dict(layer.named_parameters()) | dict(cross.named_parameters()) | as_inputs(given)
    return outputs(hidden_out=out, loss=loss) | only_recorded(case, gradients(loss, sources))


def replay_stack(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    model = llama(case, case.weights, mlp=config["llm_mlp"], heads=config["llm_heads"])
    layers = (config["start"] + k * config["interval"] for k in range(config["n_stack"]))
    injections = tuple(
        Injection(layer=layer, when="before", values=given["stack_features"][k])
        for k, layer in enumerate(layers)
        if layer < len(model.layers)
    )
    embeds = given["inputs_embeds"]
    spots = [(row, first) for row, first in config["image_pos"]]
    fused = Fused(tokens=embeds, injections=injections)
    run = Run(model, embeds, given["attention_mask"], fused, spots)
    loss = (run.last**2).mean()
    found = outputs(last_hidden_state=run.last, layer_inputs=run.layer_inputs, loss=loss)
    sources = as_inputs(given) | dict(model.named_parameters())
    return found | only_recorded(case, gradients(loss, sources))


def replay_sampling(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    counts = [columns * rows for columns, rows in config["grids"]]
    crops = given["local_features"].split(counts)
    found = {}
    for sampling in config["sampling"]:
        samples = [
            _padded(stacked(part, rows=rows, columns=columns, sampling=sampling), config)
            for part, (columns, rows) in zip(crops, config["grids"], strict=True)
        ]
        found |= outputs(
            **{
                f"{sampling}.global": given["global_features"],
                f"{sampling}.stack": torch.stack(samples, dim=1),
            }
        )
    return found


def _padded(entries: Tensor, config: dict) -> Tensor:
    return F.pad(entries, (0, 0, 0, 0, 0, config["num_crops"] - len(entries)))


def replay_qwen(case: Case) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    model = _qwen(case)
    side = 2
    shape = StackShape(
        layers=config["blocks"],
        dim=config["dim"],
        # Any grid will do: the rows come window by window, as they do for one of this height.
        grid=(side, config["patches"] // side),
        reader=reader_shape(model),
    )
    fusion = Qwen3VLDeepStack(
        shape,
        layers=tuple(index + 1 for index in config["visual_indexes"]),
        blocks=config["blocks"],
        base=-1,
        merge=side,
    )
    fusion.load_official(case.weights)
    blocks = given["vit_block_outputs"]
    raster = blocks.unflatten(1, (-1, side, side)).transpose(1, 2).flatten(1, 3)
    fused = fusion(torch.stack([raster[tap[0] - 1][None] for tap in fusion.taps]), blocks[:0])
    main = trainable(case.weights, "visual.merger")
    tokens = _main_tokens(blocks[-1], main, side)
    embeds = given["text_embeds"].masked_scatter(given["visual_pos_masks"][..., None], tokens)
    run = Run(model, embeds, None, fused, [(0, config["image_start"])])
    loss = (run.last**2).mean()
    before = [each.values[0] for each in fused.injections]
    added = [at_positions(v[None], [(0, config["image_start"])], embeds) for v in before]
    raw = [out - added[j] if j < len(added) else out for j, out in enumerate(run.layer_outputs)]
    found = outputs(
        main_tokens=tokens,
        deepstack_tokens=torch.stack(before),
        inputs_embeds=embeds,
        layer_inputs=run.layer_inputs,
        raw_layer_outputs=torch.stack(raw),
        last_hidden_state=run.last,
        loss=loss,
    )
    sources = main | as_inputs(given)
    sources |= {f"visual.{name}": value for name, value in fusion.named_parameters()}
    sources |= {f"language_model.{name}": value for name, value in model.named_parameters()}
    return found | only_recorded(case, gradients(loss, sources))


def _qwen(case: Case) -> Qwen3VLTextModel:
    config = case.config
    weights = case.under("weight.language_model")
    text = Qwen3VLTextConfig(
        hidden_size=config["llm"],
        intermediate_size=config["llm_mlp"],
        num_hidden_layers=config["llm_layers"],
        num_attention_heads=config["llm_heads"],
        num_key_value_heads=config["kv_heads"],
        head_dim=config["head_dim"],
        vocab_size=len(weights["embed_tokens.weight"]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": config["mrope"],
            "mrope_interleaved": True,
        },
        attn_implementation="eager",
    )
    return loaded(Qwen3VLTextModel(text), weights)


def _main_tokens(block: Tensor, merger: dict[str, Tensor], side: int) -> Tensor:
    named = {name.removeprefix("visual.merger."): value for name, value in merger.items()}
    normed = F.layer_norm(
        block, block.shape[-1:], named["norm.weight"], named["norm.bias"], eps=1e-6
    )
    merged = normed.reshape(-1, side * side * block.shape[-1])
    inner = F.gelu(F.linear(merged, named["linear_fc1.weight"], named["linear_fc1.bias"]))
    return F.linear(inner, named["linear_fc2.weight"], named["linear_fc2.bias"])


# Tiny language models of transformers with recorded weights, which fusions reach into.

IGNORED = -100


def llama(case: Case, weights: Mapping[str, Tensor], *, mlp: int, heads: int) -> LlamaModel:
    """A Llama with these weights, named from `embed_tokens` on; its weights can be trained."""
    count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    vocabulary, width = weights["embed_tokens.weight"].shape
    model = LlamaModel(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=count,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=vocabulary,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attn_implementation="eager",
        )
    )
    return loaded(model, weights)


def loaded(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights and no others; what is no weight of its own is left alone."""
    own = {name: weights[name] for name in model.state_dict()}
    model.load_state_dict(own)
    return model.eval()


def reader_shape(model: nn.Module) -> ReaderShape:
    config = model.config
    return ReaderShape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
    )


class Run:
    """One pass through a language model that a fusion reaches into."""

    def __init__(
        self,
        model: nn.Module,
        embeds: Tensor,
        mask: Tensor | None,
        fused: Fused,
        spots: Sequence[tuple[int, int]],
    ) -> None:
        inside = Inside(
            fused=fused,
            layers=len(model.layers),
            place=lambda values: at_positions(values, spots, embeds),
            projector=nn.Identity(),
        )
        with injected(model, inside), _entering(model) as self._inputs:
            found = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        self.last: Tensor = found.last_hidden_state

    @property
    def layer_outputs(self) -> Tensor:
        """What left each layer, after what was added behind it."""
        return torch.stack(self._inputs[1:])

    @property
    def layer_inputs(self) -> Tensor:
        """What entered each layer, after what was added in front of it."""
        return torch.stack(self._inputs[:-1])


@contextmanager
def _entering(model: nn.Module):
    seen: list[Tensor] = []
    hooks = [
        layer.input_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for layer in model.layers
    ]
    hooks.append(model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])))
    yield seen
    for hook in hooks:
        hook.remove()


def only_recorded(case: Case, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the case has; weights that it kept frozen have no recorded gradient."""
    return {name: value for name, value in found.items() if name in case.tensors}


def shifted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The next token's, over all labelled tokens of the batch."""
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
