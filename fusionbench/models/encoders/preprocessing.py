"""From images to pixel values, as the files of a checkpoint say. Standard library only.

transformers 5 writes the settings of an image processor into `processor_config.json` (under
`image_processor`), older releases into `preprocessor_config.json`; timm keeps them in
`pretrained_cfg`. How a picture becomes square is the user's choice: `squash` resizes both sides and
keeps the whole image, `crop` resizes the short side and takes the centre.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.models.encoders.card import read_json

Triple = tuple[float, float, float]
FITS = ("squash", "crop")
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI: tuple[Triple, Triple] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
HALF: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NONE: tuple[Triple, Triple] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

# `PIL.Image.Resampling` by number, which is how transformers stores it.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_GREY_LEVELS = 255.0


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Pixel values are `(resized image / divisor - mean) / std`, per channel."""

    mean: Triple = IMAGENET[0]
    std: Triple = IMAGENET[1]
    divisor: float = _GREY_LEVELS
    """255 scales to 0..1, 1 keeps grey levels (`do_rescale` false)."""
    interpolation: str = "bilinear"
    """`nearest`, `bilinear` or `bicubic`; the last two with antialiasing."""
    fit: str = "squash"
    """`squash` or `crop`."""
    crop: float = 1.0
    """Side of the centre crop over the short side of the resized image; 1.0 for `squash`."""
    rounds: bool = False
    """Whether half a pixel before the centre is rounded to even, as timm does, or cut off."""

    def identity(self) -> dict[str, object]:
        """All fields, for the fingerprint of an encoder; the last one where it counts."""
        return {name: value for name, value in asdict(self).items() if name != "rounds" or value}

    def fitted(self, fit: str, crop: float) -> "Preprocessing":
        """The same with a named fit; `crop` and `rounds` count for the fit `crop` only."""
        cut = fit == "crop"
        return replace(self, fit=fit, crop=crop if cut else 1.0, rounds=self.rounds and cut)


def split_fit(name: str) -> tuple[str, str]:
    """`hf:x[fit=crop]` -> (`hf:x`, `crop`); the fit is `squash` where none is named.

    Raises UserError for another setting or another fit.
    """
    if not name.endswith("]") or "[" not in name:
        return name, FITS[0]
    bare, _, settings = name[:-1].rpartition("[")
    key, _, fit = settings.partition("=")
    if key.strip() != "fit" or fit.strip() not in FITS:
        near = did_you_mean(fit.strip(), FITS) if key.strip() == "fit" else ""
        raise UserError(
            f"{name}: encoders have one setting, fit, got [{settings}]{near}",
            f"allowed: {' and '.join(f'{bare}[fit={one}]' for one in FITS)}",
        )
    return bare, fit.strip()


def of_processor(
    folder: Path, default: Preprocessing, *, fit: str = FITS[0]
) -> tuple[Preprocessing, int]:
    """(preprocessing, side of the input or 0) from the processor files of a folder.

    `default` holds what the family's own image processor does where a file says nothing. A nested
    `processor_config.json` comes before `preprocessor_config.json`, as in transformers. Raises
    UserError for an interpolation or a shape that is not supported.
    """
    values = _processor_values(folder)
    normalise = values.get("do_normalize", True) is not False
    mean, std = (default.mean, default.std) if normalise else NONE
    if normalise:
        mean = _triple(values.get("image_mean"), mean)
        std = _triple(values.get("image_std"), std)
    how = replace(
        default,
        mean=mean,
        std=std,
        divisor=_divisor(values, default.divisor),
        interpolation=_interpolation(values.get("resample"), default.interpolation, folder),
    )
    resized, cropped = side(values.get("size"), folder), 0
    if values.get("do_center_crop"):
        cropped = side(values.get("crop_size"), folder)
    share = cropped / resized if 0 < cropped <= resized else 1.0
    return how.fitted(fit, share), cropped or resized


def _processor_values(folder: Path) -> Mapping[str, Any]:
    nested = folder / "processor_config.json"
    if nested.is_file():
        values = read_json(nested).get("image_processor")
        if isinstance(values, dict):
            return values
    flat = folder / "preprocessor_config.json"
    return read_json(flat) if flat.is_file() else {}


def of_timm(
    config: Mapping[str, Any], folder: Path, *, fit: str = FITS[0]
) -> tuple[Preprocessing, int]:
    """(preprocessing, side of the input) from timm's `pretrained_cfg`, with timm's defaults.

    The side is 0 for an input that is not square. Raises UserError as `of_processor` does.
    """
    how = Preprocessing(
        mean=_triple(config.get("mean"), IMAGENET[0]),
        std=_triple(config.get("std"), IMAGENET[1]),
        interpolation=_interpolation(config.get("interpolation"), "bicubic", folder),
        rounds=True,
    )
    height, width = config.get("input_size", (3, 224, 224))[-2:]
    share = 1.0 if config.get("crop_mode") == "squash" else float(config.get("crop_pct") or 0.875)
    return how.fitted(fit, share), int(height) if height == width else 0


def side(size: Any, folder: Path) -> int:
    """Side of a square given as a number, a pair or an object; 0 where nothing is given.

    Raises UserError for a rectangle.
    """
    if isinstance(size, Mapping):
        size = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key)]
    sides = {int(one) for one in (size if isinstance(size, list | tuple) else [size or 0])}
    if len(sides) > 1:
        shown = " x ".join(str(one) for one in size)
        raise UserError(f"{folder}: images and patches must be square, got {shown}")
    return next(iter(sides), 0)


def _triple(values: Any, default: Triple) -> Triple:
    if values is None:
        return default
    red, green, blue = values if isinstance(values, list | tuple) else [values] * 3
    return float(red), float(green), float(blue)


def _divisor(values: Mapping[str, Any], default: float) -> float:
    if values.get("do_rescale", True) is False:
        return 1.0
    factor = values.get("rescale_factor")
    divisor = 1 / factor if factor else default
    # 1/255 as a decimal gives 255 up to rounding.
    return _GREY_LEVELS if abs(divisor - _GREY_LEVELS) < 1e-6 else divisor


def _interpolation(value: Any, default: str, folder: Path) -> str:
    if value is None:
        return default
    known = isinstance(value, int) and 0 <= value < len(_RESAMPLE)
    name = _RESAMPLE[value] if known else str(value).lower()
    if name not in _INTERPOLATIONS:
        raise UserError(
            f"{folder}: images are resized with {value!r} ({name}); supported: "
            f"{', '.join(_INTERPOLATIONS)}"
        )
    return name
