"""What a LLaVA checkpoint consists of, read from its files without torch: for planning.

The defaults are those of the configuration classes, since `config.json` may leave them out.

`vision_feature_layer` and `vision_feature_select_strategy` are resolved to hidden states `hs[i]`
and to the tokens that remain. transformers counts the input of block 1 as hidden state 0, as this
project does. `default` drops the first token of a hidden state, whatever it is: CLS for CLIP, a
patch for SigLIP; `full` keeps all tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError, one_of
from fusionbench.models.encoders.card import EncoderCard, fingerprint, patches
from fusionbench.models.encoders.preprocessing import Preprocessing, of_processor, side
from fusionbench.models.encoders.snapshots import FAMILIES, labelled
from fusionbench.models.readers.llava import files

Pair = tuple[int, int]
SELECTIONS = ("default", "full")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class and the values of its configuration that a file may leave out."""

    cls: str
    """Name of the class in transformers."""
    layer: int
    """Default of `vision_feature_layer`."""
    select: str
    """Default of `vision_feature_select_strategy`."""
    image_token: int
    """Default of `image_token_index`."""
    tower: Mapping[str, Any]
    """Vision configuration where the file has none."""
    pinpoints: tuple[Pair, ...] = ()
    """Default of `image_grid_pinpoints`, height x width in pixels; empty: no tiles."""
    most_tiles: int = 0
    """Number in the default of `vision_aspect_ratio`; 0: features are never shrunk."""
    tiles_several: bool = True
    """Whether the pictures of a row that has several are tiled."""


_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "image_size": 384,
}
_ONE_TO_SIX = range(1, 7)

KINDS: Mapping[str, Kind] = {
    "llava": Kind(
        cls="LlavaForConditionalGeneration",
        layer=-2,
        select="default",
        image_token=32000,
        tower=_CLIP,
    ),
    "llava_next": Kind(
        cls="LlavaNextForConditionalGeneration",
        layer=-2,
        select="default",
        image_token=32000,
        tower=_CLIP,
        pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    ),
    "llava_onevision": Kind(
        cls="LlavaOnevisionForConditionalGeneration",
        layer=-1,
        select="full",
        image_token=151646,
        tower=_SIGLIP,
        pinpoints=tuple((384 * row, 384 * column) for row in _ONE_TO_SIX for column in _ONE_TO_SIX),
        most_tiles=9,
        tiles_several=False,
    ),
}


# Text in the name of a weight -> the part of the model.
_PARTS = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
    "language_model": "language model",
}
# Fields that change no value of the model.
_NOT_ARCHITECTURE = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Language:
    """Shape of the language model; 0 where its weights have other names than Llama's."""

    kind: str
    """`model_type` of its configuration."""
    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """One checkpoint: shapes, own layers and selection, fingerprints."""

    name: str
    folder: Path
    kind: str
    """Key of `kinds.KINDS`."""
    tower: str
    """Key of `encoders.families.FAMILIES`."""
    encoder: EncoderCard
    """The tower as a fusion sees it: prefix is what the selection drops, patches are the rest."""
    layers: tuple[int, ...]
    """Hidden states that the checkpoint's projector reads, in order, each in 0..L."""
    select: str
    note: str
    """Layers and selection as configured and as resolved."""
    images: Preprocessing
    language: Language
    weights: str
    """Fingerprint of weight files, configuration and normalisation of pixels."""
    tokenizer: str
    """Hash of the tokenizer's files."""
    image_token: str
    image_token_id: int
    pinpoints: tuple[Pair, ...]
    """Sizes of tiled pictures, height x width in pixels; empty: pictures are not tiled."""
    most_tiles: int
    """Tiles above which the features of a picture are shrunk; 0: never."""

    @property
    def cls(self) -> str:
        """Name of the class in transformers."""
        return KINDS[self.kind].cls

    @property
    def tiled(self) -> bool:
        """Whether tiles of a picture are packed behind the projector (LLaVA-NeXT, OneVision)."""
        return bool(self.pinpoints)

    @property
    def square(self) -> bool:
        """Whether the selected tokens are the square grid of patches."""
        return self.encoder.grid[0] == self.encoder.grid[1]


def describe(name: str) -> Description | None:
    """The checkpoint `llava:<id or folder>`; None if it is not on this machine.

    Hashes the weight files and imports nothing. Raises UserError for another kind of checkpoint,
    for files that are missing or truncated, and for layers that do not exist.
    """
    folder = files.located(name)
    if folder is None:
        return None
    config = files.configuration(folder, {key: kind.cls for key, kind in KINDS.items()})
    try:
        return _describe(name, folder, config)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        # Somebody's files: any field may be missing or of another type.
        raise UserError(f"{folder}/config.json does not describe a LLaVA model: {error}") from error


def own_method(about: Description) -> str:
    """The method, with its settings, that reads what the checkpoint's projector was trained on.

    Several layers are concatenated in the channels. Raises UserError for a layer that is listed
    twice.
    """
    depth = about.encoder.layers
    if len(about.layers) == 1:
        (layer,) = about.layers
        return {depth: "last", depth - 1: "penultimate"}.get(layer, f"layer[index={layer}]")
    if len(set(about.layers)) < len(about.layers):
        listed = ", ".join(f"hs[{layer}]" for layer in about.layers)
        raise UserError(f"{about.folder} concatenates a layer with itself ({listed})")
    return f"hf_list[blocks={depth},layers={','.join(map(str, about.layers))}]"


def unfit(about: Description, *, tokens: int = 0, needs_grid: bool = False) -> str:
    """Why a method does not fit the checkpoint; empty if it does.

    `tokens`: their number behind the projector for one input image of the tower, 0 if not known;
    `needs_grid`: whether the method reads patches as rows and columns.
    """
    rows, columns = about.encoder.grid
    if needs_grid and not about.square:
        return (
            f"reads patches as rows and columns, and the selection {about.select!r} of this "
            f"checkpoint leaves {columns} tokens that fill no square"
        )
    if about.tiled and tokens not in (0, rows * columns):
        return (
            f"changes the number of tokens ({rows * columns} to {tokens}), and {about.cls} joins "
            "the grids of a picture's tiles"
        )
    return ""


def _describe(name: str, folder: Path, config: Mapping[str, Any]) -> Description:
    kind = KINDS[config["model_type"]]
    weights = files.weight_files(folder)
    tensors = files.shapes(weights)
    files.require(tensors, _PARTS, folder)
    tower = _tower(config, folder)
    images = _images(tower, folder)
    select = one_of(
        "vision_feature_select_strategy",
        config.get("vision_feature_select_strategy", kind.select),
        SELECTIONS,
    )
    digest = fingerprint(
        weights, architecture={"llava": _architecture(config), "images": images.identity()}
    )
    label = labelled(name, config["model_type"], digest, folder)
    encoder = _card(name, folder, tower, select=select, weights=digest, label=label)
    layers = _layers(config, encoder)
    about = Description(
        name=name,
        folder=folder,
        kind=config["model_type"],
        tower=tower["model_type"],
        encoder=encoder,
        layers=layers,
        select=select,
        note=_note(config, encoder, layers, select),
        images=images,
        language=_language(config, tensors),
        weights=digest,
        tokenizer=files.tokenizer_hash(folder),
        image_token=str(files.processor_values(folder).get("image_token", "<image>")),
        image_token_id=int(config.get("image_token_index", kind.image_token)),
        pinpoints=_pinpoints(config),
        most_tiles=_most_tiles(config),
    )
    return _whole_tiles(about)


def _tower(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The vision configuration with the defaults of its class; UserError for another family."""
    # The class of the whole model has other defaults than the tower's class.
    given = config.get("vision_config") or KINDS[config["model_type"]].tower
    default = KINDS[config["model_type"]].tower["model_type"]
    family = str(given.get("model_type", default))
    if family not in FAMILIES:
        raise UserError(
            f"{folder} has a vision tower of model_type {family!r}",
            f"supported: {', '.join(FAMILIES)}",
        )
    return {**FAMILIES[family].defaults, **given, "model_type": family}


def _images(tower: Mapping[str, Any], folder: Path) -> Preprocessing:
    """Normalisation and interpolation; UserError if the processor's size is not the tower's."""
    files.require_image_processor(folder)
    images, size = of_processor(folder, FAMILIES[tower["model_type"]].images)
    native = side(tower["image_size"], folder)
    if size not in (0, native):
        raise UserError(
            f"{folder}: the image processor makes images of {size} pixels, the vision tower reads "
            f"{native}"
        )
    return images


def _card(  # noqa: PLR0913
    name: str, folder: Path, tower: Mapping[str, Any], *, select: str, weights: str, label: str
) -> EncoderCard:
    """The tower with the selection's view of its tokens."""
    size = side(tower["image_size"], folder)
    grid = patches(size, patch=side(tower["patch_size"], folder), name=name, native=size)
    whole = FAMILIES[tower["model_type"]].prefix_of(tower) + grid[0] * grid[1]
    dropped = 1 if select == "default" else 0
    left = whole - dropped
    return EncoderCard(
        name=name,
        source=str(folder),
        available=True,
        path=str(folder),
        weights=weights,
        layers=int(tower["num_hidden_layers"]),
        dim=int(tower["hidden_size"]),
        grid=grid if left == grid[0] * grid[1] else (1, left),
        prefix=dropped,
        size=size,
        label=label,
    )


def _configured(config: Mapping[str, Any]) -> list[int]:
    named = config.get("vision_feature_layer", KINDS[config["model_type"]].layer)
    return [int(one) for one in (named if isinstance(named, list) else [named])]


def _layers(config: Mapping[str, Any], encoder: EncoderCard) -> tuple[int, ...]:
    """Hidden states by index from 0; UserError for one that the tower does not have."""
    depth = encoder.layers
    for index in (named := _configured(config)):
        if not -depth - 1 <= index <= depth:
            raise UserError(
                f"{encoder.path}: vision_feature_layer {index} does not exist: the tower has "
                f"hs[0..{depth}]"
            )
    return tuple(index + depth + 1 if index < 0 else index for index in named)


def _note(
    config: Mapping[str, Any], encoder: EncoderCard, layers: tuple[int, ...], select: str
) -> str:
    named = ", ".join(str(index) for index in _configured(config))
    read = ", ".join(f"hs[{layer}]" for layer in layers)
    kept = "without its first token" if select == "default" else "with all its tokens"
    return f"vision_feature_layer {named} of {encoder.layers} blocks: {read}, {kept} ({select})"


def _language(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Language:
    """From the weights: a configuration leaves out what equals the defaults of its class."""
    vocabulary, width = files.table(tensors)
    default = "qwen2" if config["model_type"] == "llava_onevision" else "llama"
    return Language(
        kind=str((config.get("text_config") or {}).get("model_type", default)),
        layers=files.blocks(tensors),
        width=width,
        vocabulary=vocabulary,
    )


def _pinpoints(config: Mapping[str, Any]) -> tuple[Pair, ...]:
    named = config.get("image_grid_pinpoints") if KINDS[config["model_type"]].pinpoints else None
    if named is None:
        return KINDS[config["model_type"]].pinpoints
    return tuple((int(height), int(width)) for height, width in named)


def _most_tiles(config: Mapping[str, Any]) -> int:
    default = KINDS[config["model_type"]].most_tiles
    named = str(config.get("vision_aspect_ratio") or f"anyres_max_{default}")
    return int(named.removeprefix("anyres_max_")) if default else 0


def _whole_tiles(about: Description) -> Description:
    """The description; UserError if tiles cannot be joined."""
    if about.tiled and not about.square:
        raise UserError(
            f"{about.folder}: {about.cls} joins square tiles, and the selection {about.select!r} "
            f"leaves {about.encoder.grid[1]} tokens of each"
        )
    size = about.encoder.size
    odd = [f"{h} x {w}" for h, w in about.pinpoints if h % size or w % size or not h or not w]
    if odd:
        raise UserError(f"{about.folder}: tiles of {size} pixels do not fill {', '.join(odd)}")
    return about


def _architecture(values: Any) -> Any:
    """A configuration without the fields that change no value, at every level."""
    if isinstance(values, Mapping):
        kept = sorted(values.keys() - _NOT_ARCHITECTURE)
        return {key: _architecture(values[key]) for key in kept}
    return values
