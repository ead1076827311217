"""Cards of built-in encoders and of checkpoints on this machine. Standard library only.

`nano` ships with the package, `dinov2-small` is downloaded, `hf:<id or folder>` and
`timm:<name or folder>` are checkpoints of those libraries. Names that start with "planted" are keys
of the literal `ENCODERS` in `planted.py`, which is read without importing it.
"""

import ast
import hashlib
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, did_you_mean
from fusionbench.encoders import builtin, snapshots
from fusionbench.encoders.card import EncoderCard
from fusionbench.encoders.preprocessing import Preprocessing
from fusionbench.records.cell import canonical

PREFIXES = ("hf:", "timm:")
_PLANTED = Path(__file__).parent / "planted.py"


def describe(name: str, *, image_size: int = 0) -> EncoderCard:
    """Card of an encoder, without importing or downloading anything.

    Raises ValueError for an unknown name (with the nearest one), a folder without a
    supported checkpoint, or a size that the encoder cannot take.
    """
    if name in builtin.NAMES:
        return builtin.card(name, image_size=image_size)
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
    other kinds are left out.
    """
    cards = [describe(name) for name in builtin.NAMES]
    names, problems = snapshots.cached_names()
    for name in names:
        try:
            cards.append(describe(name))
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
    hint = did_you_mean(name, builtin.NAMES)
    if Path(name).is_dir():
        hint = f"; for a checkpoint in this folder write 'hf:{name}' or 'timm:{name}'"
    return (
        f"no encoder {name!r}{hint} (known: {', '.join(builtin.NAMES)}, hf:<id or folder>, "
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
