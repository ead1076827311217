"""Build a frozen encoder by name."""

from pathlib import Path

import torch

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError
from fusionbench.models.encoders import catalog
from fusionbench.models.encoders.card import EncoderCard
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.fetch import fetch
from fusionbench.models.encoders.preprocessing import split_fit
from fusionbench.models.encoders.vit import ViT, ViTConfig


def build(
    name: str,
    *,
    image_size: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """A frozen encoder on a device, downloaded if missing; `image_size` 0: the encoder's default.

    Raises ValueError for an unknown name or an impossible size, OSError if fetching fails.
    """
    card = describe(name, image_size=image_size)
    if not card.available:
        fetch(name)
        card = describe(name, image_size=image_size)
    encoder = _load(name, folder=Path(card.path), image_size=image_size)
    _compare(card, encoder)
    encoder.freeze()
    return encoder.to(device=device, dtype=dtype)


def _load(name: str, *, folder: Path, image_size: int) -> Encoder:
    if name in catalog.NAMES:
        return load_vit(folder, image_size=image_size)
    if name.startswith("planted"):
        from fusionbench.models.encoders import planted

        return planted.planted(name)
    fit = split_fit(name)[1]
    if name.startswith("hf:"):
        from fusionbench.models.encoders.towers import load_hf

        return load_hf(folder, image_size=image_size, fit=fit)
    from fusionbench.models.encoders.towers import load_timm

    return load_timm(folder, image_size=image_size, fit=fit)


def _compare(card: EncoderCard, encoder: Encoder) -> None:
    """UserError if a model is not what its files promised: plans are made from the card."""
    shape = encoder.shape
    built = (shape.layers, shape.dim, tuple(shape.grid), shape.prefix, encoder.size)
    said = (card.layers, card.dim, tuple(card.grid), card.prefix, card.size)
    if built != said:
        raise UserError(
            f"{card.name} is built as (layers, dim, grid, prefix, pixels) {built}, but its files "
            f"describe {said}: this architecture is not supported"
        )


def load_vit(path: Path, *, image_size: int = 0) -> ViT:
    """A built-in ViT in float32, whatever the type of the stored weights."""
    from safetensors.torch import load_file

    encoder = ViT(ViTConfig.from_json(catalog.architecture(path)), image_size=image_size)
    encoder.load(load_file(path))
    return encoder
