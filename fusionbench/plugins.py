"""The only module that imports methods and tasks, and it does so by name.

A plug-in file is loaded under a name made from its path, the same in every process, so that a
worker which has loaded the card can unpickle the plug-in's objects.
"""

import importlib
import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fusionbench.catalog import MethodCard, TaskCard
from fusionbench.errors import UserError
from fusionbench.task import Task

if TYPE_CHECKING:
    from fusionbench.fusion import Method


def load_method(card: MethodCard) -> "type[Method]":
    """The method's class. Raises UserError if its module cannot be imported or is no method."""
    from fusionbench.fusion import Method

    cls = _load(card)
    if not issubclass(cls, Method):
        raise UserError(f"{card.name}: {card.cls} in {card.file} is not a Fusion")
    return cls


def load_task(card: TaskCard) -> Task:
    """The task, not yet loaded. Raises UserError if its module cannot be imported or is no task."""
    cls = _load(card)
    if not issubclass(cls, Task):
        raise UserError(f"{card.name}: {card.cls} in {card.file} is not a Task")
    return cls()


def _load(card: MethodCard | TaskCard) -> type:
    try:
        module = _module(card)
    # A plug-in may raise anything; what it raised goes into the record of its cells.
    except Exception as error:
        raise UserError(
            f"{card.name}: {card.source} cannot be imported: {type(error).__name__}: {error}",
            f"see {card.file}",
        ) from error
    cls = getattr(module, card.cls, None)
    if not isinstance(cls, type):
        raise UserError(f"{card.name}: {card.file} has no class {card.cls} after its import")
    return cls


def _module(card: MethodCard | TaskCard) -> ModuleType:
    if not card.module.endswith(".py"):
        return importlib.import_module(card.module)
    return _from_file(Path(card.module))


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
