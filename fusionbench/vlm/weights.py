"""The trained weights of a model on disk: safetensors, and what is known of the training as JSON.

models/<model>.safetensors   what some stage trained, nothing frozen
models/<model>.json          losses, notes, vocabulary
models/<model>.partial/      checkpoints of a training that goes on

A model appears under its name complete or not at all: the weights first, then the JSON.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fusionbench.api.errors import UserError
from fusionbench.records.files import sha256_of, write_atomic
from fusionbench.records.folder import MODELS

_AGAIN = "remove it and run the study again: the model is trained once more"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is known of a finished training besides its weights."""

    losses: tuple[float, ...] = ()
    """At evenly spaced steps, first and last included."""
    unmoved: tuple[str, ...] = ()
    """Parameters of the fusion that no gradient ever reached."""
    lr: float | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen on val: scores of the runs, settings such as the layer of `best_single`."""
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    """Texts whose words are those of the language model `words`."""
    seconds: float = 0.0


def model_file(store: Path, model: str) -> Path:
    """The file of a model's weights."""
    return store / MODELS / f"{model}.safetensors"


def partial(store: Path, model: str) -> Path:
    """The folder of the checkpoints of a model that is in training."""
    return store / MODELS / f"{model}.partial"


def finished(store: Path, model: str) -> Trained | None:
    """What is known of a finished training; None if it is not finished or its JSON is damaged."""
    try:
        values = json.loads(_note(store, model).read_text(encoding="utf-8"))
        whole = values.pop("sha256") == sha256_of(model_file(store, model))
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        return None
    return trained_from(values)


def trained_from(values: Mapping[str, Any]) -> Trained:
    """A training from its JSON values. Raises KeyError or TypeError for other fields."""
    lists = {name: tuple(values[name]) for name in ("losses", "unmoved", "notes", "vocabulary")}
    return Trained(**{**values, **lists})


def damage(store: Path, model: str) -> str:
    """Why a training that was finished is done again; empty without a reason."""
    if not _note(store, model).exists() or finished(store, model) is not None:
        return ""
    file = model_file(store, model)
    what = "is damaged" if file.exists() else "is missing"
    return f"{file}, or the JSON beside it, {what}: the model is trained again"


def save_model(store: Path, model: str, weights: Mapping[str, Tensor], about: Trained) -> None:
    """Write a finished training and remove its checkpoints. Raises OSError."""
    save_weights(model_file(store, model), weights)
    values = asdict(about) | {"sha256": sha256_of(model_file(store, model))}
    write_atomic(_note(store, model), json.dumps(values, sort_keys=True).encode())
    shutil.rmtree(partial(store, model), ignore_errors=True)


def save_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors so that the file is complete or absent. Raises OSError."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    write_atomic(file, save(tensors))


def load_weights(file: Path, model: nn.Module) -> None:
    """Put stored weights into a model.

    Raises UserError for a missing or damaged file, and for weights that the model does not have.
    """
    try:
        found = load(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing", _AGAIN) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}", _AGAIN) from error
    own = dict(model.named_parameters())
    if strange := sorted(found.keys() - own.keys()):
        raise UserError(f"{file} holds weights of another model: {', '.join(strange[:3])}", _AGAIN)
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)


def _note(store: Path, model: str) -> Path:
    return store / MODELS / f"{model}.json"
