"""Where the files of methods and tasks lie: the package, `--plugin`, the environment, other wheels.

Nothing is imported here, parent packages of a plug-in included.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path

import fusionbench
from fusionbench.api.errors import UserError

GROUP = "fusionbench.plugins"
VARIABLE = "FUSIONBENCH_PLUGINS"
BUILT_IN = "built-in"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file that may declare methods or tasks."""

    file: Path
    module: str
    """Dotted name to import it by, or its absolute path."""
    source: str
    """`built-in`, a distribution with its version, or a path: who vouches for it."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """One way in: a folder, a file or an entry point, with the files found there."""

    source: str
    places: tuple[Place, ...]
    problem: str = ""


def doors(plugins: Sequence[str]) -> Iterator[Door]:
    """All ways in, built-ins first, since the first of two equal names wins.

    Raises UserError if a path in `plugins` does not exist.
    """
    for folder in ("methods", "tasks"):
        yield from _built_in(folder)
    for path in plugins:
        if not Path(path).exists():
            raise UserError(f"no plug-in at {path}", "--plugin takes a Python file or a folder")
        yield _path(path)
    for path in os.environ.get(VARIABLE, "").split(os.pathsep):
        if path:
            yield _path(path)
    for point in entry_points(group=GROUP):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
        yield _installed(point.module, distribution)


def _built_in(folder: str) -> Iterator[Door]:
    for root in fusionbench.__path__:
        # A checkout puts its root on the package path; only a folder of ours has an __init__.
        if (Path(root, folder) / "__init__.py").is_file():
            places = _files(Path(root, folder), f"fusionbench.{folder}", BUILT_IN)
            yield Door(source=BUILT_IN, places=places)
            return


def _path(path: str) -> Door:
    resolved = Path(path).resolve()
    if resolved.is_dir():
        places = tuple(
            Place(file=file, module=str(file), source=str(file)) for file in _modules(resolved)
        )
        return Door(source=path, places=places)
    if resolved.is_file():
        place = Place(file=resolved, module=str(resolved), source=str(resolved))
        return Door(source=path, places=(place,))
    return Door(source=path, places=(), problem=f"does not exist (named in {VARIABLE})")


def _installed(module: str, distribution: str) -> Door:
    spec = locate(module)
    if spec is None or spec.origin is None:
        return Door(source=distribution, places=(), problem=f"module {module} cannot be found")
    file = Path(spec.origin)
    places: tuple[Place, ...] = (Place(file=file, module=module, source=distribution),)
    if spec.submodule_search_locations:
        places += _files(file.parent, module, distribution)
    return Door(source=distribution, places=places)


def _files(folder: Path, package: str, source: str) -> tuple[Place, ...]:
    return tuple(
        Place(file=file, module=f"{package}.{file.stem}", source=source)
        for file in _modules(folder)
    )


def _modules(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.py") if not file.name.startswith("_"))


def locate(module: str) -> ModuleSpec | None:
    """Find a dotted module without importing its parents."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    name = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


@cache
def importable(module: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return locate(module) is not None
