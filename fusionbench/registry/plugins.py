"""Import methods, tasks, benchmarks, plug-in encoders by name; check plug-ins in a child process.

The module name of a plug-in file is made from its path, the same in every process, so that workers
can unpickle the plug-in's objects.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from fusionbench.api.benchmarks import Benchmark
from fusionbench.api.errors import UserError
from fusionbench.api.tasks import Task
from fusionbench.models.encoders.card import EncoderCard
from fusionbench.records.parallel import LostError, in_child
from fusionbench.registry.cards import Card
from fusionbench.registry.catalog import BenchmarkCard, Catalog, MethodCard, TaskCard
from fusionbench.registry.discovery import BUILT_IN, Location

if TYPE_CHECKING:
    from fusionbench.api.encoders import Encoder
    from fusionbench.api.fusion import Method


def load_method(card: MethodCard) -> "type[Method]":
    """Class of a method. Raises UserError if it cannot be imported or is not a method."""
    cls: type[Method] = _load(card)
    require_kind("method", card.name, cls)
    return cls


def load_task(card: TaskCard) -> Task:
    """A task before `load()`. Raises UserError if it cannot be imported or is not a task."""
    cls: type[Task] = _load(card)
    require_kind("task", card.name, cls)
    return cls()


def load_benchmark(card: BenchmarkCard) -> Benchmark:
    """A benchmark. Raises UserError if it cannot be imported or differs from its declaration."""
    cls: type[Benchmark] = _load(card)
    require_kind("benchmark", card.name, cls)
    built = cls()
    found = replace(built.needs, folder=built.folder or card.name)
    if found != card.needs:
        raise UserError(
            f"benchmark {card.name!r}: folder, files, tsv and hub must be literals of its class",
            f"read without an import: {card.needs}; after it: {found}",
        )
    return built


def require_kind(kind: str, name: str, cls: object) -> None:
    """Raise UserError unless `cls` is a subclass of the base class of `kind`."""
    wanted = _contract(kind)
    if isinstance(cls, type) and issubclass(cls, wanted):
        return
    what = f"class {cls.__name__}" if isinstance(cls, type) else f"{cls!r}"
    names = " or ".join(one.__name__ for one in wanted)
    raise UserError(f"{kind} {name!r} is {what}, which is not a {names}")


def _contract(kind: str) -> tuple[type, ...]:
    # Tasks are loaded in processes without torch.
    if kind == "task":
        return (Task,)
    if kind == "benchmark":
        return (Benchmark,)
    if kind == "encoder":
        from fusionbench.api.encoders import Encoder

        return (Encoder,)
    from fusionbench.api.fusion import Fusion, InEncoderFusion

    return (Fusion, InEncoderFusion)


def load_encoder(card: EncoderCard, *, image_size: int = 0, device: str = "cpu") -> "Encoder":
    """The frozen encoder of a card, downloaded if missing.

    Raises UserError if a plug-in cannot be imported, is not an encoder or differs from its
    declaration; ValueError and OSError as `models.encoders.build` does.
    """
    from fusionbench.models.encoders.build import build

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


def _load(card: MethodCard | TaskCard | BenchmarkCard) -> Any:
    return load_class(card.name, card.module, card.cls, card.source)


def load_class(name: str, module: str, cls: str, source: str) -> Any:
    """A class of a module or file. Raises UserError if the import fails or the class is missing."""
    try:
        imported = import_from(module)
    # A plug-in may raise anything, SystemExit included; it goes into the record of its cells.
    except (Exception, SystemExit) as error:
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


class _FromSource(SourceFileLoader):
    """Compiles the file as it is.

    Python takes compiled code beside it for current after an edit to the same size within a second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The compiled source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _from_file(file: Path) -> ModuleType:
    name = f"fusionbench_plugin_{file.stem}_{sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _FromSource(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    if spec is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        # The next import must not find a half-executed module.
        del sys.modules[name]
        raise
    return module


_TIMEOUT_SECONDS = 120.0
"""Of one import; torch alone may take ten seconds from a cold disk."""
Named = tuple[str, str, str]
"""Kind, name and class of a declaration."""


@dataclass(frozen=True, kw_only=True)
class PluginCheck:
    """Result of checking one file of a plug-in."""

    source: str
    """Its distribution and version, or its path."""
    file: str
    declares: tuple[str, ...]
    """`method blend`, `task toy`: the valid declarations."""
    problems: tuple[str, ...]
    """Problems of its source."""
    traceback: str = ""
    """Of its import."""

    @property
    def sound(self) -> bool:
        """Whether it has no problem."""
        return not self.problems and not self.traceback


def check_plugins(catalog: Catalog) -> list[PluginCheck]:
    """Import every plug-in in a child process, which contains crashes and endless loops."""
    found = []
    for origin in catalog.sources:
        if origin.name == BUILT_IN:
            continue
        if origin.problem or not origin.locations:
            problem = origin.problem or "no Python file in it"
            found.append(PluginCheck(source=origin.name, file="", declares=(), problems=(problem,)))
        found += [_checked(catalog, location, origin.name) for location in origin.locations]
    return found


def require_sound(catalog: Catalog) -> None:
    """Raise UserError for the first plug-in that cannot be used completely."""
    broken = [one for one in check_plugins(catalog) if not one.sound]
    if not broken:
        return
    first = broken[0]
    why = first.problems[0] if first.problems else first.traceback.splitlines()[-1]
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    raise UserError(f"plug-in {_name(first)}: {why}{more}", "`fusionbench doctor` shows all of it")


def _checked(catalog: Catalog, location: Location, source: str) -> PluginCheck:
    named = _declared(catalog, location)
    problems = tuple(
        problem.message
        for problem in catalog.problems
        if problem.source == source or str(location.file) in problem.source
    )
    return PluginCheck(
        source=location.source,
        file=str(location.file),
        declares=tuple(f"{kind} {name}" for kind, name, _ in named),
        problems=problems,
        traceback=_import_in_child(location.module, named),
    )


def _declared(catalog: Catalog, location: Location) -> list[Named]:
    cards: list[tuple[str, Card]] = [("method", card) for card in catalog.methods.values()]
    cards += [("task", card) for card in catalog.tasks.values()]
    cards += [("benchmark", card) for card in catalog.benchmarks.values()]
    cards += [("encoder", card) for card in catalog.encoders.values()]
    file = str(location.file)
    return [(kind, card.name, card.cls) for kind, card in cards if card.file == file]


def _import_in_child(module: str, named: Sequence[Named]) -> str:
    """Traceback of an import in a child process; empty if it succeeds."""
    try:
        # Spawned like a worker, with the same search path.
        return in_child(_import, module, list(named), seconds=_TIMEOUT_SECONDS)
    except LostError as error:
        return f"its import {error}"


def _import(module: str, named: list[Named]) -> str:
    try:
        imported = import_from(module)
        for kind, name, cls in named:
            require_kind(kind, name, getattr(imported, cls, None))
    # Including SystemExit: sys.exit in a plug-in is a failure.
    except BaseException:
        return traceback.format_exc().strip()
    return ""


def _name(checked: PluginCheck) -> str:
    file = checked.file
    return f"{checked.source} ({file})" if file and file != checked.source else checked.source
