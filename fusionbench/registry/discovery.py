"""Find the files of methods, tasks and encoders: package, `--plugin`, environment, entry points.

Nothing is imported, not even the parent packages of a plug-in.
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
class Location:
    """A file that may declare methods, tasks or encoders."""

    file: Path
    module: str
    """Dotted name to import it by, or its absolute path."""
    source: str
    """`built-in`, a distribution with its version, or a path."""


@dataclass(frozen=True, kw_only=True)
class CodeSource:
    """A folder, a file or an entry point, with the files found there."""

    name: str
    locations: tuple[Location, ...]
    problem: str = ""


def sources(plugins: Sequence[str]) -> Iterator[CodeSource]:
    """All sources, built-ins first: the first of two equal names is kept.

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


def _built_in(folder: str) -> Iterator[CodeSource]:
    for root in fusionbench.__path__:
        # In a checkout the root is on the package path; only our folders have an __init__.
        if (Path(root, folder) / "__init__.py").is_file():
            locations = _files(Path(root, folder), f"fusionbench.{folder}", BUILT_IN)
            yield CodeSource(name=BUILT_IN, locations=locations)
            return


def _path(path: str) -> CodeSource:
    resolved = Path(path).resolve()
    if resolved.is_dir():
        locations = tuple(
            Location(file=file, module=str(file), source=str(file)) for file in _modules(resolved)
        )
        return CodeSource(name=path, locations=locations)
    if resolved.is_file():
        location = Location(file=resolved, module=str(resolved), source=str(resolved))
        return CodeSource(name=path, locations=(location,))
    return CodeSource(name=path, locations=(), problem=f"does not exist (named in {VARIABLE})")


def _installed(module: str, distribution: str) -> CodeSource:
    spec = locate(module)
    if spec is None or spec.origin is None:
        return CodeSource(
            name=distribution, locations=(), problem=f"module {module} cannot be found"
        )
    file = Path(spec.origin)
    locations: tuple[Location, ...] = (Location(file=file, module=module, source=distribution),)
    if spec.submodule_search_locations:
        locations += _files(file.parent, module, distribution)
    return CodeSource(name=distribution, locations=locations)


def _files(folder: Path, package: str, source: str) -> tuple[Location, ...]:
    return tuple(
        Location(file=file, module=f"{package}.{file.stem}", source=source)
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
