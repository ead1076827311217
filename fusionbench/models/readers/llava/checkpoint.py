"""A LLaVA checkpoint of transformers, taken apart: tower, projector, language model.

The tower is stepped block by block like any other encoder. At opening, the features that the
checkpoint's own projector reads are compared with the library's, and the logits of the language
model with those of the whole model, so that a release that computes something else is an error.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, Injection, StackShape, Unsupported
from fusionbench.models.encoders.fetch import require_hub
from fusionbench.models.encoders.snapshots import LOCAL, ON_DISK
from fusionbench.models.encoders.towers import HfEncoder, silent
from fusionbench.models.readers.language import LanguageModel
from fusionbench.models.readers.llava import files
from fusionbench.models.readers.llava.chat import CheckpointTokenizer, template_for
from fusionbench.models.readers.llava.description import Description, Pair, describe
from fusionbench.models.readers.llava.tiles import Tiling
from fusionbench.models.readers.load import without_dropout
from fusionbench.models.readers.splice import LanguageProjector
from fusionbench.records.cell import FRESH

# Files of a checkpoint that are downloaded.
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
# Tensors that older releases stored and that no computation reads.
_DERIVED = ("position_ids", "rotary_emb.inv_freq")
# Largest difference of a feature or logit from the library's, over the largest value.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_PROBE = (5, 6, 7, 8)


class Tower(HfEncoder):
    """The vision tower; its shape is that of the tokens which the checkpoint's selection keeps."""

    def __init__(self, tower: nn.Module, about: Description) -> None:
        super().__init__(tower, family=about.tower, size=about.encoder.size, images=about.images)
        self.shape = StackShape(
            layers=about.encoder.layers,
            dim=about.encoder.dim,
            grid=about.encoder.grid,
            prefix=about.encoder.prefix,
        )

    def pixels(
        self, images: UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pixel values; an image processor's own (floating point) are returned as they are."""
        if not images.is_floating_point():
            return super().pixels(images)
        return images.to(next(self.blocks.parameters()).dtype)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The parts of a checkpoint, all frozen: `readers.load.train_language` chooses what trains."""

    about: Description
    encoder: Tower
    projector: nn.Module
    """LLaVA's `mlp2x_gelu` with trained weights, named as in the checkpoint: no norm in front."""
    language: LanguageModel
    """Around a `*ForCausalLM` of the checkpoint's own tensors."""
    image_processor: Any
    newline: Float[Tensor, " width"] | None = None
    """Ends each row of joined tiles; None for checkpoints without tiles."""

    @property
    def tiling(self) -> Tiling | None:
        """Geometry of the tiles; None for checkpoints without tiles."""
        about = self.about
        if not about.tiled:
            return None
        size, grid = about.encoder.size, about.encoder.grid[0]
        return Tiling(pinpoints=about.pinpoints, side=size, grid=grid, most=about.most_tiles)

    def image_tokens(
        self,
        projected: Float[Tensor, "input token width"],
        pictures: list[tuple[int, Pair]],
        *,
        newline: Float[Tensor, " width"] | None = None,
    ) -> list[Float[Tensor, "position width"]]:
        """Tokens of each picture from the projected tokens of all inputs of the tower, in order.

        `pictures`: (inputs, (height, width) in pixels) of each. `newline` replaces the trained one:
        zeros for values that are injected. Raises Unsupported if tiles cannot be joined.
        """
        parts = torch.split(projected, [inputs for inputs, _ in pictures])
        tiling = self.tiling
        if tiling is None:
            return [part[0] for part in parts]
        end = self.newline if newline is None else newline
        if end is None:
            raise TypeError(f"{self.about.cls} has no image_newline")
        return [
            tiling.join(part, size, end) for part, (_, size) in zip(parts, pictures, strict=True)
        ]

    def by_picture(
        self, fused: Fused, projector: nn.Module, pictures: list[tuple[int, Pair]]
    ) -> Fused:
        """What a fusion does inside the language model, by picture instead of by input.

        Injections are projected where they ask for it and joined like the tokens, with zeros at the
        ends of rows and behind shorter pictures; the summary is that of the whole picture. Without
        tiles the argument is returned. Raises Unsupported for a replaced layer, which sees inputs.
        """
        if self.tiling is None:
            return fused
        if fused.patches:
            raise Unsupported(
                f"replaces a layer of the language model for one image a row, and {self.about.cls} "
                "reads several tiles of each"
            )
        firsts = [sum(count for count, _ in pictures[:number]) for number in range(len(pictures))]
        return replace(
            fused,
            injections=tuple(self._joined(one, projector, pictures) for one in fused.injections),
            summary=None if fused.summary is None else fused.summary[firsts],
        )

    def _joined(
        self, injection: Injection, projector: nn.Module, pictures: list[tuple[int, Pair]]
    ) -> Injection:
        values = injection.values
        projected = projector(values) if injection.through_projector else values
        zeros = projected.new_zeros(projected.shape[-1])
        joined = self.image_tokens(projected, pictures, newline=zeros)
        padded = nn.utils.rnn.pad_sequence(joined, batch_first=True)
        return replace(injection, values=padded, through_projector=False)


def open_checkpoint(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    template: str | None = None,
) -> Checkpoint:
    """Load `llava:<id or folder>`, downloaded if it is not on this machine.

    `template`: by name; None is the checkpoint's chat format, or `llava15` where that has no end
    of an answer.
    Raises UserError for another kind of checkpoint, missing, unexpected or truncated weights, a
    tokenizer without offsets, a missing image processor and a model that computes something else
    than its parts.
    """
    about = describe(name)
    if about is None:
        fetch(name)
        about = describe(name)
    if about is None:
        raise UserError(f"{name} was fetched, but is not in the Hugging Face cache")
    with silent():
        model = _model(about, dtype).to(device)
        tokenizer = CheckpointTokenizer.of_folder(about.folder, name=about.name)
        language = LanguageModel(
            _language(model, about),
            tokenizer,
            template_for(tokenizer, template),
            name=about.name,
            fingerprint=about.weights,
        )
        found = _parts(model, about, language, _image_processor(about))
        _refuse_another_model(found, model)
    return found


def projector_for(
    checkpoint: Checkpoint,
    out_dim: int,
    tokens: Float[Tensor, "*batch out_dim"] | None = None,
) -> tuple[nn.Module, str]:
    """(projector, note) for fused tokens of `out_dim` channels, on the checkpoint's device.

    A copy of the trained projector, still frozen, and an empty note if its input is as wide; else a
    fresh projector, LLaVA's without a norm, with gradients and the note `FRESH` for the record. It
    is drawn from torch's global generator and starts at the scale of the language model's token
    embeddings: for `tokens`, or else for inputs of unit size.
    """
    first, *_, last = (
        module for module in checkpoint.projector.modules() if isinstance(module, nn.Linear)
    )
    if out_dim == first.in_features:
        return copy.deepcopy(checkpoint.projector), ""
    scale = checkpoint.language.scale
    fresh = LanguageProjector(out_dim, last.out_features, kind="plain", scale=scale)
    if tokens is not None:
        fresh.start_at(scale, tokens)
    return fresh.to(device=first.weight.device, dtype=first.weight.dtype), FRESH


def _parts(model: Any, about: Description, language: LanguageModel, processor: Any) -> Checkpoint:
    inner = model.model
    # Older releases keep the tower of CLIP and SigLIP one level down.
    encoder = Tower(getattr(inner.vision_tower, "vision_model", inner.vision_tower), about)
    encoder.freeze()
    newline = getattr(inner, "image_newline", None)
    return Checkpoint(
        about=about,
        encoder=encoder,
        projector=inner.multi_modal_projector.requires_grad_(False),
        language=language,
        image_processor=processor,
        newline=None if newline is None else newline.detach(),
    )


def fetch(name: str) -> None:
    """Download the checkpoint `llava:<id>` into the Hugging Face cache. Raises UserError."""
    repo = name.removeprefix(files.PREFIX)
    try:
        require_hub()
        from huggingface_hub import snapshot_download

        snapshot_download(repo, allow_patterns=list(_FILES))
    # The hub's client raises classes of several libraries: no access, no such id, no network.
    except Exception as error:
        raise UserError(
            f"{name} is not on this machine and could not be fetched: {error}",
            "give a folder with the checkpoint: llava:FOLDER",
        ) from error


def _model(about: Description, dtype: torch.dtype) -> Any:
    import transformers

    cls = getattr(transformers, about.cls, None)
    if cls is None:
        raise UserError(f"transformers {transformers.__version__} has no {about.cls}")
    try:
        config = transformers.AutoConfig.from_pretrained(about.folder, **LOCAL)
        without_dropout(config.vision_config)
        without_dropout(config.text_config)
        model, report = cls.from_pretrained(
            about.folder,
            config=config,
            **ON_DISK,
            output_loading_info=True,
            dtype=dtype,
        )
    # Errors of safetensors, of the configuration, of shapes: of many classes.
    except Exception as error:
        raise _failed(about, f"the weights cannot be loaded as {about.cls}", error) from error
    _refuse_other_weights(report, about)
    return model.eval()


def _failed(about: Description, what: str, error: Exception) -> UserError:
    """The first line of an error of a library."""
    lines = str(error).strip().splitlines() or [""]
    return UserError(f"{about.folder}: {what}: {type(error).__name__}: {lines[0]}")


def _refuse_other_weights(report: dict[str, Any], about: Description) -> None:
    """UserError for weights that are missing (they would be random) or not of this model."""
    unexpected = {key for key in report["unexpected_keys"] if not key.endswith(_DERIVED)}
    for keys, words in (
        (report["missing_keys"], "lacks"),
        (report.get("mismatched_keys", ()), "has other shapes of"),
        (unexpected, "holds unexpected"),
    ):
        if keys:
            named = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in keys)
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            shown = ", ".join(named[:3])
            raise UserError(f"{about.folder} {words} weights of {about.cls}: {shown}{more}")


def _image_processor(about: Description) -> Any:
    from transformers import AutoImageProcessor

    # Type checkers do not know what it returns.
    load: Any = AutoImageProcessor.from_pretrained
    try:
        found = load(about.folder, **LOCAL)
    except Exception as error:
        raise _failed(about, "the image processor cannot be loaded", error) from error
    return found


def _language(model: Any, about: Description) -> nn.Module:
    """The language model with its head as a `*ForCausalLM`, made of the same tensors."""
    from transformers import AutoModelForCausalLM

    inner = model.model.language_model
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        whole = make(inner.config)
    # `set_decoder` does nothing for Llama.
    setattr(whole, whole.base_model_prefix, inner)
    whole.set_output_embeddings(model.lm_head)
    empty = [name for name, value in whole.named_parameters() if value.is_meta]
    if empty:
        raise UserError(
            f"{about.folder}: the checkpoint has no {empty[0]} of {type(whole).__name__}"
        )
    found: nn.Module = whole.eval()
    return found.requires_grad_(False)


@torch.no_grad()
def _refuse_another_model(found: Checkpoint, model: Any) -> None:
    """UserError if the parts compute something else than the whole model of the library."""
    device = model.lm_head.weight.device
    ids = torch.tensor([_PROBE], device=device) % model.config.text_config.vocab_size
    embeds = model.get_input_embeddings()(ids)
    mine, theirs = found.language.model(inputs_embeds=embeds).logits, model(input_ids=ids).logits
    _compare(mine, theirs, f"{found.about.folder}: logits")
    size = found.encoder.size
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, size, size, generator=draw).to(device=device, dtype=embeds.dtype)
    states = found.encoder.hidden_states(pixels)
    theirs = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for layer in found.about.layers:
        _compare(states[layer], theirs[layer], f"{found.about.folder}: hs[{layer}]")


def _compare(mine: Tensor, theirs: Tensor, what: str) -> None:
    off = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
    # Written so that nan is refused.
    if not off <= _TOLERANCE.get(mine.dtype, 1e-5):
        import transformers

        raise UserError(
            f"{what} of the parts and of the whole model differ by {off:.1g} of the largest value "
            f"in transformers {transformers.__version__}: this model cannot be taken apart"
        )
