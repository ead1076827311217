"""The parts of a folder of results as files: made, cleaned, moved aside."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from fusionbench.api.errors import UserError, disk_error
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import content, free_name, remove_older
from fusionbench.records.verified import ANSWERS

CONFLICTS = "conflicts"
MODELS = "models"
SUPERSEDED = "superseded"
PARTS = ("cells", "outcomes", "items", "tuning", "failures", "facts")
_STALE_SECONDS = 3600.0
"""Younger temporary files may belong to a worker that is still writing."""


def make(path: Path) -> None:
    """Make a folder of results, or complete it. Raises UserError if that cannot be."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder", "choose a folder with --out")
    try:
        for part in PARTS:
            (path / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def remove_stale(path: Path) -> None:
    """Delete temporary files that a killed run left half-written."""
    for part in ("", "report", "report/tables", "report/figures", CONFLICTS, ANSWERS, MODELS):
        remove_older(path / part, ".*.tmp", _STALE_SECONDS)
    for part in PARTS:
        remove_older(path / part, ".*", _STALE_SECONDS)


def move_aside(file: Path, folder: Path) -> Path | None:
    """Move a damaged file to `damaged/` of the folder of results and return its new path.

    None if it is gone, since another run moves files aside too. Raises OSError.
    """
    home = folder / "damaged"
    home.mkdir(exist_ok=True)
    moved = home / f"{file.stem}.{secrets.token_hex(4)}{file.suffix}"
    try:
        return file.rename(moved)
    except FileNotFoundError:
        return None


def set_aside(record: CellRecord, folder: Path) -> bool:
    """Move a record with its outcomes, answers and trained model to `superseded/`.

    The record goes first: what a kill leaves behind belongs to no record. False if its folder has
    no file for it. Raises UserError if the disk refuses.
    """
    home = folder / SUPERSEDED
    part = "tuning" if record.spec.stage == "tune" else "cells"
    try:
        home.mkdir(exist_ok=True)
        target = free_name(home, record.id)
        number = target.stem.rpartition(".")[2]
        try:
            (folder / part / f"{record.id}.json").rename(target)
        except FileNotFoundError:
            return False
        for place in ("outcomes", ANSWERS, CONFLICTS):
            _follow(folder / place, record.id, home, number)
        if record.model:
            _follow(folder / MODELS, record.model, home, number)
    except OSError as error:
        raise disk_error(error, folder) from error
    return True


def _follow(place: Path, stem: str, home: Path, number: str) -> None:
    """Move the files of a cell or model; those that another process moved first are left."""
    for file in sorted(place.glob(f"{stem}*")):
        with suppress(FileNotFoundError):
            file.rename(home / f"{stem}.{number}.{place.name}{file.name.removeprefix(stem)}")


def conflict_text(record: CellRecord) -> str:
    """What is said of another result of a cell that has a record."""
    spec = record.spec
    what = f"{record.label or spec.method} on {spec.task}, seed {spec.seed}"
    return (
        f"another run of cell {record.id} ({what}) gave another result: {record.status}, score "
        f"{record.score}; the first record counts"
    )


def failure_files(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Source and reader of each failure, earlier ones of a cell first."""
    found = []
    for path in folder.glob("*.json"):
        cell, _, number = path.stem.partition(".")
        if number.isdigit():
            found.append((cell, int(number), path))
    for _, _, path in sorted(found):
        yield str(path), partial(_text, path)


def _text(path: Path) -> str:
    return content(path).decode()
