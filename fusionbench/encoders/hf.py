"""Vision towers of transformers: CLIP, SigLIP, DINOv2, DINOv3, RADIO, plain ViT.

The tower is stepped block by block through its own modules. Its `output_hidden_states` is never
used: transformers 5 may leave entries out or put the normed output in the last place.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.errors import UserError
from fusionbench.api.types import StackShape
from fusionbench.encoders import snapshots
from fusionbench.encoders.families import FAMILIES, ON_DISK
from fusionbench.encoders.preprocessing import FITS, Preprocessing, side
from fusionbench.encoders.stepped import Stepped, blank

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
