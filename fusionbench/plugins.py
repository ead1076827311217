"""The only module that imports methods, tasks and plugged-in encoders, and it does so by name.

A plug-in file is loaded under a name made from its path, the same in every process, so that a
worker which has loaded the card can unpickle the plug-in's objects.
"""

import importlib
import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fusionbench.api.errors import UserError
from fusionbench.api.task import Task
from fusionbench.catalog import MethodCard, TaskCard
from fusionbench.encoders.card import EncoderCard

if TYPE_CHECKING:
    from fusionbench.api.encoder import Encoder
    from fusionbench.api.fusion import Method


def load_method(card: MethodCard) -> "type[Method]":
    """The method's class. Raises UserError if its module cannot be imported or is no method."""
    cls: type[Method] = _load(card)
    require_kind("method", card.name, cls)
    return cls


def load_task(card: TaskCard) -> Task:
    """The task, not yet loaded. Raises UserError if its module cannot be imported or is no task."""
    cls: type[Task] = _load(card)
    require_kind("task", card.name, cls)
    return cls()


def require_kind(kind: str, name: str, cls: object) -> None:
    """Raise UserError unless this is a class of the contract that `kind` means."""
    wanted = _contract(kind)
    if isinstance(cls, type) and issubclass(cls, wanted):
        return
    what = f"class {cls.__name__}" if isinstance(cls, type) else f"{cls!r}"
    names = " or ".join(one.__name__ for one in wanted)
    raise UserError(f"{kind} {name!r} is {what}, which is not a {names}")


def _contract(kind: str) -> tuple[type, ...]:
    # A task is loaded in processes that never load torch.
    if kind == "task":
        return (Task,)
    if kind == "encoder":
        from fusionbench.api.encoder import Encoder

        return (Encoder,)
    from fusionbench.api.fusion import Fusion, InEncoderFusion

    return (Fusion, InEncoderFusion)


def load_encoder(card: EncoderCard, *, image_size: int = 0, device: str = "cpu") -> "Encoder":
    """The frozen encoder of a card, of a plug-in or built in, fetched first if it has to be.

    Raises UserError if a plug-in's module cannot be imported, is no encoder, or is not the one
    that it declares; ValueError and OSError as `encoders.build` does.
    """
    from fusionbench.encoders.build import build

    if not card.module:
        return build(card.name, image_size=image_size, device=device)
    cls = load_class(card.name, card.module, card.cls, card.origin)
    require_kind("encoder", card.name, cls)
    built: Encoder = cls(image_size=image_size) if image_size else cls()
    declared = (card.layers, card.dim, tuple(card.grid), card.prefix, card.size)
    shape = built.shape
    found = (shape.layers, shape.dim, tuple(shape.grid), shape.prefix, built.size)
    if found != declared:
        raise UserError(
            f"{card.name}: @encoder declares (layers, dim, grid, prefix, size) = {declared}, "
            f"the encoder has {found}",
            f"see {card.path}",
        )
    built.freeze()
    return built.to(device=device)


def _load(card: MethodCard | TaskCard) -> Any:
    return load_class(card.name, card.module, card.cls, card.source)


def load_class(name: str, module: str, cls: str, source: str) -> Any:
    """A class of a module or file. Raises UserError if it cannot be imported or is not there."""
    try:
        imported = import_from(module)
    # A plug-in may raise anything; what it raised goes into the record of its cells.
    except Exception as error:
        raise UserError(
            f"{name}: {source} cannot be imported: {type(error).__name__}: {error}",
            "`fusionbench doctor` shows where",
        ) from error
    found = getattr(imported, cls, None)
    if not isinstance(found, type):
        raise UserError(f"{name}: {module} has no class {cls} after its import")
    return found


def import_from(module: str) -> ModuleType:
    """Import by dotted name or by the path of a file; raises whatever the module raises."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    return _from_file(Path(module))


def _from_file(file: Path) -> ModuleType:
    name = f"fusionbench_plugin_{file.stem}_{sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        # A half-executed module must not pass for the plug-in the next time.
        del sys.modules[name]
        raise
    return module
