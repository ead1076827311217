"""Checkpoints by name: a folder, or what the Hugging Face cache holds. Standard library only."""

import os
from collections.abc import Iterator
from pathlib import Path


def locate(name: str) -> Path | None:
    """The checkpoint's folder, or None if it is not on this machine."""
    library, _, checkpoint = name.partition(":")
    if not checkpoint:
        raise ValueError(f"{name!r} names no checkpoint: write {name}<id or folder>")
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if checkpoint.startswith((".", "/", "~")):
        raise ValueError(f"{name}: there is no folder {checkpoint}")
    repo = checkpoint if library == "hf" else f"timm/{checkpoint}"
    place = _hub_cache() / f"models--{repo.replace('/', '--')}"
    if library == "timm" and not place.is_dir():
        place = _tagged(place, name)
    return _snapshot(place)


def snapshots() -> Iterator[tuple[str, Path]]:
    """Every repository in the Hugging Face cache, as owner/name, and the folder of its files."""
    for repo in sorted(_hub_cache().glob("models--*")):
        if folder := _snapshot(repo):
            yield repo.name.removeprefix("models--").replace("--", "/", 1), folder


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _tagged(place: Path, name: str) -> Path:
    """A timm name without its tag means the one checkpoint here that has any."""
    found = sorted(place.parent.glob(f"{place.name}.*"))
    if len(found) > 1:
        names = ", ".join(f"timm:{path.name.removeprefix('models--timm--')}" for path in found)
        raise ValueError(f"{name} could be any of {names}: give the tag as well")
    return found[0] if found else place


def _snapshot(repo: Path) -> Path | None:
    main = repo / "refs" / "main"
    if not main.is_file():
        return None
    folder = repo / "snapshots" / main.read_text().strip()
    return folder if folder.is_dir() else None
