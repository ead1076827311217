"""Vision towers of transformers and timm, run block by block through their own modules.

What a library passes to its blocks beside the tokens (rotary position embeddings, masks) depends on
the input size only, never on the image: it is computed once and handed to each block again.

`output_hidden_states` is never used: transformers 5 may leave entries out or put the normed output
in the last place.

Eva is the class of DINOv3, EVA-02, the Perception Encoder and ViTs with rotary positions.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError
from fusionbench.api.types import StackShape
from fusionbench.models.encoders import snapshots
from fusionbench.models.encoders.preprocessing import FITS, Preprocessing, side
from fusionbench.models.encoders.snapshots import FAMILIES, ON_DISK, timm_images, weight_files
from fusionbench.models.encoders.vit import prepare


class Keywords(nn.Module):
    """Keyword arguments of a block; tensors and tuples of tensors move and cast with the encoder.

    They are buffers that no `state_dict` contains.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.plain = {name: value for name, value in values.items() if not _tensors(value)}
        self.parts: dict[str, list[str]] = {}
        for name in values.keys() - self.plain.keys():
            tensors = _tensors(values[name])
            self.parts[name] = [f"{name}_{place}" for place in range(len(tensors))]
            for part, tensor in zip(self.parts[name], tensors, strict=True):
                self.register_buffer(part, tensor.detach(), persistent=False)
        self.single = {name for name, value in values.items() if isinstance(value, Tensor)}

    def forward(self) -> dict[str, Any]:
        """The arguments, with each tensor in the encoder's type and on its device."""
        found = dict(self.plain)
        for name, parts in self.parts.items():
            tensors = tuple(getattr(self, part) for part in parts)
            found[name] = tensors[0] if name in self.single else tensors
        return found


def _tensors(value: object) -> list[Tensor]:
    return [one for one in (value if isinstance(value, tuple) else (value,))
            if isinstance(one, Tensor)]  # fmt: skip


class Stepped(Encoder):
    """Blocks and final norm of a model; a subclass computes `hs[0]`.

    The shape is `rotary` where a block gets tensors beside the tokens: they hold a row per token.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        keywords: Sequence[Mapping[str, Any]],
        *,
        shape: StackShape,
        size: int,
        images: Preprocessing,
    ) -> None:
        super().__init__()
        # First of all lists of modules: whoever compiles blocks takes the first of this length.
        self.blocks = nn.ModuleList(blocks)
        self.final = norm
        rotary = any(_tensors(value) for values in keywords for value in values.values())
        self.shape = replace(shape, rotary=shape.rotary or rotary)
        self.size, self.images = size, images
        self.mean, self.std = images.mean, images.std
        # Blocks that get the same tensors share them.
        kept: dict[tuple[tuple[str, int], ...], Keywords] = {}
        for values in keywords:
            kept.setdefault(_key(values), Keywords(values))
        self.keywords = nn.ModuleList(kept[_key(values)] for values in keywords)

    def pixels(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pixel values in the type of the weights."""
        dtype = next(self.blocks.parameters()).dtype
        return prepare(images, size=self.size, dtype=dtype, **asdict(self.images))

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, counted from 1, without a mask."""
        return self.blocks[index - 1](tokens, **self.keywords[index - 1]())

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The model's final norm; the identity in models that have none or norm after pooling."""
        return self.final(tokens)


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple(
        (name, id(one)) for name, value in values.items() for one in (_tensors(value) or [value])
    )


class Passage(nn.Module):
    """Stands in for a block: returns its tokens and keeps the keyword arguments it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def forward(self, tokens: Tensor, **given: Any) -> Tensor:
        """The tokens, unchanged."""
        self.given = given
        return tokens


@torch.no_grad()
def blank(size: int, like: nn.Module) -> Float[Tensor, "1 3 size size"]:
    """Pixel values of one black image, of the type and on the device of the model's weights."""
    first = next(like.parameters())
    return torch.zeros(1, 3, size, size, dtype=first.dtype, device=first.device)


# Parts of a checkpoint's class that no hidden state depends on.
_UNUSED = ("pooler.", "head.", "mask_token", "embeddings.mask_token", "summary_idxs")


class HfEncoder(Stepped):
    """One of the supported towers at one input size."""

    def __init__(self, tower: nn.Module, *, family: str, size: int, images: Preprocessing) -> None:
        config: Any = tower.config
        folder = Path(str(config.name_or_path or family))
        blocks = _blocks(tower)
        grid = size // side(config.patch_size, folder)
        super().__init__(
            blocks,
            _final_norm(tower) if FAMILIES[family].final_norm else nn.Identity(),
            [_keywords(tower, blocks[0], size)] * len(blocks),
            shape=StackShape(
                layers=config.num_hidden_layers,
                dim=config.hidden_size,
                grid=(grid, grid),
                prefix=FAMILIES[family].prefix_of(vars(config)),
            ),
            size=size,
            images=images,
        )
        self.tower = tower
        self.entry = FAMILIES[family].entry
        # Some families resample their positions only where asked.
        takes = inspect.signature(tower.get_submodule("embeddings").forward).parameters
        asks = "interpolate_pos_encoding" in takes and size != side(config.image_size, folder)
        self.resample = {"interpolate_pos_encoding": True} if asks else {}

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Embeddings with positions; for CLIP after its norm in front of block 1."""
        tokens = self.pixels(images)
        for name in self.entry:
            asked = self.resample if name == "embeddings" else {}
            tokens = self.tower.get_submodule(name)(tokens, **asked)
        return tokens


def load_hf(folder: Path, *, image_size: int = 0, fit: str = FITS[0]) -> HfEncoder:
    """The vision tower of a folder written by `save_pretrained`; nothing is downloaded.

    Raises UserError for an unsupported family or weights that are missing.
    """
    family = snapshots.vision_config(folder)["model_type"]
    images, native = snapshots.hf_images(folder, fit=fit)
    return HfEncoder(
        _tower(folder, family), family=family, size=image_size or native, images=images
    )


def _keywords(tower: nn.Module, block: nn.Module, size: int) -> dict[str, Any]:
    """What every block gets beside the tokens: no mask, and rotary positions of this size."""
    # Blocks of some families and releases demand a mask, those of others take none.
    takes = inspect.signature(block.forward).parameters
    given: dict[str, Any] = {"attention_mask": None} if "attention_mask" in takes else {}
    rotary = _first(tower, "rope_embeddings")
    if rotary is not None:
        with torch.no_grad():
            given["position_embeddings"] = rotary(blank(size, tower))
    return given


def _tower(folder: Path, family: str) -> nn.Module:
    import transformers

    name = FAMILIES[family].cls
    cls = getattr(transformers, name, None)
    if cls is None:
        raise UserError(f"transformers {transformers.__version__} has no {name}", "install a newer")
    with silent():
        model, report = cls.from_pretrained(
            folder, **ON_DISK, output_loading_info=True, dtype=torch.float32
        )
    missing = [key for key in report["missing_keys"] if not key.startswith(_UNUSED)]
    if missing:
        raise UserError(f"{folder} lacks weights of {name}: {', '.join(missing[:3])}")
    # Older releases keep the tower of CLIP and SigLIP one level down.
    return getattr(model, "vision_model", model)


@contextmanager
def silent() -> Iterator[None]:
    """No progress bar and no table of missing weights: what is missing is an error of ours."""
    from transformers.utils import logging as their_logging

    # Type checkers do not know these functions.
    logging: Any = their_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _blocks(tower: nn.Module) -> nn.ModuleList:
    found = _first(tower, "encoder.layers", "encoder.layer", "model.layer", "layer", "layers")
    if isinstance(found, nn.ModuleList):
        return found
    raise _unknown(tower, "list of blocks")


def _final_norm(tower: nn.Module) -> nn.Module:
    found = _first(tower, "post_layernorm", "layernorm", "norm")
    if found is None:
        raise _unknown(tower, "final norm")
    return found


def _first(tower: nn.Module, *names: str) -> nn.Module | None:
    modules = dict(tower.named_modules())
    return next((modules[name] for name in names if name in modules), None)


def _unknown(tower: nn.Module, part: str) -> UserError:
    return UserError(
        f"{type(tower).__name__} has no {part} where it is looked for: this release of "
        "transformers builds it in a way that is not known here"
    )


if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    Model = VisionTransformer | Eva


class TimmEncoder(Stepped):
    """A VisionTransformer or Eva at one input size.

    The model is taken apart: its blocks and its norm are ours, and what is left of it, with
    passages in place of blocks, maps pixels to `hs[0]`.
    """

    def __init__(self, model: "Model", images: Preprocessing) -> None:
        blocks, norm, size = list(model.blocks), model.norm, int(model.patch_embed.img_size[0])
        passages = [Passage() for _ in blocks]
        chained = isinstance(model.blocks, nn.Sequential)
        model.blocks = nn.Sequential(*passages) if chained else nn.ModuleList(passages)
        model.norm = nn.Identity()
        model.eval()
        with torch.no_grad():
            model.forward_features(blank(size, model))
        super().__init__(
            blocks,
            norm,
            [passage.given for passage in passages],
            shape=StackShape(
                layers=len(blocks),
                dim=model.embed_dim,
                grid=tuple(model.patch_embed.grid_size),
                prefix=model.num_prefix_tokens,
            ),
            size=size,
            images=images,
        )
        self.model = model

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Patches with positions and prefix, after the norm in front of block 1 if there is one."""
        return self.model.forward_features(self.pixels(images))


def load_timm(folder: Path, *, image_size: int = 0, fit: str = FITS[0]) -> TimmEncoder:
    """The model of a folder with config.json and model.safetensors; nothing is downloaded.

    Raises UserError for an architecture that is neither VisionTransformer nor Eva.
    """
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    images, native = timm_images(folder, fit=fit)
    # Without the size in the arguments timm builds the architecture's own, not the checkpoint's.
    size = image_size or native
    asked: dict[str, Any] = {"img_size": size} if size else {}
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **asked)
    except RuntimeError as error:
        # With a classifier as the file has it timm loads strictly, and says what is missing.
        said = f"{' '.join(str(error).split()):.200}"
        raise UserError(f"{folder} holds other weights than its architecture: {said}") from error
    if not isinstance(model, VisionTransformer | Eva):
        raise UserError(
            f"{folder} holds a {type(model).__name__}, not a timm VisionTransformer or Eva"
        )
    _require_weights(model, folder)
    return TimmEncoder(model, images)


def _require_weights(model: "Model", folder: Path) -> None:
    """Raise UserError for weights that the files lack: timm leaves those as they were drawn."""
    from safetensors.torch import load_file
    from timm.models import eva, vision_transformer

    stored = {k: v for file in weight_files(folder) for k, v in load_file(file).items()}
    if isinstance(model, eva.Eva):
        found = eva.checkpoint_filter_fn(stored, model)
    else:
        # DeiT III calls its layer scales otherwise.
        found = vision_transformer.checkpoint_filter_fn(stored, model, adapt_layer_scale=True)
    if missing := sorted(set(model.state_dict()) - set(found)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder} lacks the weights {missing[0]}{more}, which its architecture has",
            "fetch the whole checkpoint again, or correct the architecture in config.json",
        )
