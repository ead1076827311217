"""Trained weights and checkpoints of a training, as safetensors, no pickle.

models/<model>.safetensors   what some stage trained, nothing frozen
models/<model>.json          losses, notes, vocabulary
models/<model>.partial/      checkpoints of a training that goes on

A model appears under its name complete or not at all: the weights first, then the JSON.

A checkpoint continues a training bit for bit. It holds the trained weights, the optimiser's
moments, and in its header as JSON the losses so far, the states of the random generators and the
fingerprint of the run. The order of the data is a function of the step, so nothing else is needed.
"""

import hashlib
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from fusionbench.api.errors import UserError, disk_error
from fusionbench.harness.train import Muon, Optimisers
from fusionbench.records.cell import checksum, json_object
from fusionbench.records.files import sha256_of, write_atomic
from fusionbench.records.folder import MODELS
from fusionbench.vlm.processes import World

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_CHECKSUM = "checksum"
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
    """What is known of a finished training; None if it is not finished, damaged or edited."""
    try:
        values = json_object(_note(store, model).read_text(encoding="utf-8"))
        # Earlier files have no checksum.
        stated = values.pop(_CHECKSUM, None)
        if stated is not None and stated != checksum(values):
            return None
        whole = values.pop("sha256") == sha256_of(model_file(store, model))
        return trained_from(values) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    plain = json.loads(json.dumps(asdict(about)))
    values = plain | {"sha256": sha256_of(model_file(store, model))}
    text = json.dumps(values | {_CHECKSUM: checksum(values)}, sort_keys=True)
    write_atomic(_note(store, model), text.encode())
    shutil.rmtree(partial(store, model), ignore_errors=True)


def save_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors so that the file is complete or absent. Raises OSError."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    write_atomic(file, save(tensors))


def fusion_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What the fusion keeps beside its parameters, as running statistics, by the model's names."""
    fusion = getattr(model, "fusion", None)
    if not isinstance(fusion, nn.Module):
        return {}
    trained = {name for name, _ in fusion.named_parameters()}
    state = {name: value for name, value in fusion.state_dict().items() if name not in trained}
    return {f"fusion.{name}": one for name, one in state.items() if isinstance(one, Tensor)}


def load_weights(file: Path, model: nn.Module) -> None:
    """Put stored weights into a model; these parameters are trainable, all others frozen.

    Buffers of the fusion are stored with them. Raises UserError for a missing or damaged file, and
    for weights that the model does not have.
    """
    try:
        found = load(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing", _AGAIN) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}", _AGAIN) from error
    own, buffers = dict(model.named_parameters()), fusion_buffers(model)
    if strange := sorted(found.keys() - own.keys() - buffers.keys()):
        raise UserError(f"{file} holds weights of another model: {', '.join(strange[:3])}", _AGAIN)
    for name, parameter in own.items():
        parameter.requires_grad_(name in found)
        if name in found:
            parameter.detach().copy_(found[name])
    for name in buffers.keys() & found.keys():
        buffers[name].copy_(found[name])


def _note(store: Path, model: str) -> Path:
    return store / MODELS / f"{model}.json"


FORMAT = 1
KEPT = 2
"""Checkpoints that are kept: if the newest cannot be read, training continues from the other."""
_HEADER = "fusionbench"
_WEIGHT = "weight"
_PATTERN = "step-*.safetensors"
_TEMPORARY = ".step-*.safetensors.tmp"


class _UnusableError(Exception):
    """Why a file is no checkpoint of this run."""


class Checkpoints:
    """The checkpoints of one training in `folder`; None: none are written or read.

    Every process calls `resume` and `write` at the same step; rank 0 writes. `trained` are the
    trainable parameters by name, whole or sharded; `kept` gives the tensors beside them that
    training changes, since a module may put new ones in their place.
    """

    def __init__(
        self,
        folder: Path | None,
        fingerprint: str,
        trained: Mapping[str, Tensor],
        optimisers: Optimisers,
        world: World,
        kept: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> None:
        self.folder, self.fingerprint, self.world = folder, fingerprint, world
        self.trained, self.optimisers, self.kept = trained, optimisers, kept
        self.notes: list[str] = []
        """Files that were moved aside, and why."""

    def resume(self) -> tuple[int, list[float]]:
        """Load the newest usable checkpoint in place; return its step and the losses until then.

        A file that is truncated, edited or of another run is renamed to `<name>.unusable` and
        named in `notes` and a warning. Without a usable file: step 0, nothing is changed. With
        another number of processes than before, processes without a state keep their own.
        Raises UserError if a bad file cannot be moved.
        """
        if self.folder is None:
            return 0, []
        found: Path | None = None
        try:
            found = self._newest() if self.world.main else None
        except OSError as error:
            raise disk_error(error, self.folder) from error
        found, self.notes = self.world.broadcast((found, self.notes))
        if found is None:
            return 0, []
        if not found.is_file():
            raise UserError(f"rank {self.world.rank} cannot see {found}", "use a shared folder")
        header = self._load(found)
        states = header["random"]
        if self.world.rank < len(states):
            _restore_random(states[self.world.rank], self.world.device)
        return header["step"], list(header["losses"])

    def write(self, losses: list[float]) -> None:
        """Write the checkpoint after `len(losses)` steps and remove all but the last two.

        Raises UserError if the disk is full or the folder cannot be written.
        """
        if self.folder is None:
            return
        tensors = {name: whole(tensor).cpu() for name, tensor in self._state().items()}
        random = self.world.gathered(_random(self.world.device))
        if not self.world.main:
            return
        header = {
            "format": FORMAT, "step": len(losses), "fingerprint": self.fingerprint,
            "losses": losses, "random": random, "tensors": digest(tensors, tensors.__getitem__),
        }  # fmt: skip
        path = self.folder / f"step-{len(losses):08d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _save(path, tensors, header)
            for old in _sorted(self.folder)[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _state(self) -> dict[str, Tensor]:
        """Weights and moments by the names that they have in a file."""
        weights = {**self.trained, **self.kept()}
        state = {f"{_WEIGHT}/{name}": value.detach() for name, value in weights.items()}
        for name, parameter in self.trained.items():
            for part in self.optimisers.parts:
                # `get`: AdamW's state makes an entry of what is only looked up.
                for key, moment in part.state.get(parameter, {}).items():
                    state[f"{key}/{name}"] = moment
        return state

    def _newest(self) -> Path | None:
        """The newest usable file; moves those before it aside."""
        folder = self.folder
        if folder is None or not folder.is_dir():
            return None
        for left in folder.glob(_TEMPORARY):
            left.unlink(missing_ok=True)
        for path in _sorted(folder):
            try:
                self._check(path)
            except _UnusableError as error:
                aside = _free(path.with_name(f"{path.name}.unusable"))
                path.rename(aside)
                note = f"{path} is no checkpoint of this training: {error}; moved to {aside.name}"
                self.notes.append(note)
                warnings.warn(note, stacklevel=2)
            else:
                return path
        return None

    def _check(self, path: Path) -> None:
        """Raise _UnusableError with the reason why this training cannot continue from a file."""
        try:
            with safe_open(path, "pt") as file:
                header = json_object((file.metadata() or {}).get(_HEADER, ""))
                _check_header(header, self.fingerprint)
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
                own = {**self.trained, **self.kept()}
                expected = {f"{_WEIGHT}/{name}": tuple(p.shape) for name, p in own.items()}
                weights = {n: shape for n, shape in shapes.items() if n.startswith(f"{_WEIGHT}/")}
                if weights != expected:
                    names = sorted(dict(weights.items() ^ expected.items()))
                    raise _UnusableError(f"other names or shapes of weights, e.g. {names[0]!r}")
                if digest(file.keys(), file.get_tensor) != header["tensors"]:
                    raise _UnusableError("its bytes are not those that were written")
        except (SafetensorError, OSError, ValueError) as error:
            raise _UnusableError(str(error).splitlines()[0]) from error

    def _load(self, path: Path) -> dict[str, Any]:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            with torch.no_grad():
                for name, parameter in {**self.trained, **self.kept()}.items():
                    parameter.copy_(_placed(file.get_tensor(f"{_WEIGHT}/{name}"), parameter))
            keys = {name.split("/", 1)[0] for name in names} - {_WEIGHT}
            owners = {p: part for part in self.optimisers.parts for p in _parameters(part)}
            for name, parameter in self.trained.items():
                for key in sorted(key for key in keys if f"{key}/{name}" in names):
                    moment = _placed(file.get_tensor(f"{key}/{name}"), parameter)
                    owners[parameter].state.setdefault(parameter, {})[key] = moment
            return json_object(file.metadata()[_HEADER])


def forget(folder: Path) -> None:
    """Remove the checkpoints of a finished training, and the folder if nothing else is in it."""
    for pattern in (_PATTERN, _TEMPORARY):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is sharded; then all processes call it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> TypeGuard["DTensor"]:
    """True for a tensor of which each process has a part."""
    return hasattr(tensor, "full_tensor")


def digest(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """SHA-256 of tensors on the CPU, names and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(name.encode() + b"\0")
        found.update(tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_header(header: Mapping[str, Any], fingerprint: str) -> None:
    if header.get("format") != FORMAT:
        raise _UnusableError(f"format {header.get('format')!r} instead of {FORMAT}")
    if header.get("fingerprint") != fingerprint:
        raise _UnusableError("it belongs to another run")
    if header.get("checksum") != checksum({k: v for k, v in header.items() if k != "checksum"}):
        raise _UnusableError("its header is not the one that was written")


def _save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a file whole or not at all; its bytes are on disk before its name is."""
    temporary = path.with_name(f".{path.name}.tmp")
    whole_header = {**header, "checksum": checksum(header)}
    try:
        save_file(dict(tensors), temporary, metadata={_HEADER: json.dumps(whole_header)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sorted(folder: Path) -> list[Path]:
    """Checkpoints by step, the newest first."""
    return sorted(folder.glob(_PATTERN), reverse=True)


def _free(path: Path) -> Path:
    """The path, or the first of `<path>.1`, `<path>.2` ... that does not exist."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _parameters(part: torch.optim.AdamW | Muon) -> list[Tensor]:
    return [parameter for group in part.param_groups for parameter in group["params"]]


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of a file on the device of a parameter, sharded as the parameter is.

    A counter of steps has no dimensions and is never sharded.
    """
    moved = tensor.to(like.device)
    if is_sharded(like) and tensor.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(moved, like.device_mesh, like.placements)
    return moved


def _random(device: torch.device) -> dict[str, str]:
    """States of this process's random generators in hexadecimal digits."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {kind: bytes(state.tolist()).hex() for kind, state in states.items()}


def _restore_random(states: Mapping[str, str], device: torch.device) -> None:
    found = {
        kind: torch.tensor(list(bytes.fromhex(digits)), dtype=torch.uint8)
        for kind, digits in states.items()
    }
    torch.set_rng_state(found["cpu"])
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"], device)
