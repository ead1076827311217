"""Methods, tasks, benchmarks and encoders: found in files, and read from them without an import.

Nothing is imported, not even the parent packages of a plug-in, so that listing and planning need
neither torch nor data packages. A declaration that is not made of
literals is reported as a problem of its file.
"""

import ast
import importlib.util
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import fusionbench
from fusionbench.api import register as registry
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


ROOTS = {
    "Fusion": "method",
    "InEncoderFusion": "method",
    "Task": "task",
    "FolderTask": "task",
    "Benchmark": "benchmark",
    "Encoder": "encoder",
}
"""Base classes of `fusionbench.api` and the kind of their subclasses."""
METHODS = ("Fusion", "InEncoderFusion")
_KINDS: Mapping[str, registry.Kind]
_KINDS = {"method": "method", "task": "task", "benchmark": "benchmark", "encoder": "encoder"}
_DECORATORS: Mapping[registry.Kind, Callable[..., Any]]
_DECORATORS = {
    "method": registry.method,
    "task": registry.task,
    "benchmark": registry.benchmark,
    "encoder": registry.encoder,
}


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One `@method(...)`, `@task(...)`, `@benchmark(...)` or `@encoder(...)` and its class."""

    kind: registry.Kind
    cls: str
    root: str
    """The name of its base class: a key of `ROOTS`."""
    arguments: Mapping[str, Any]
    """The decorator's arguments by name, defaults filled in."""
    settings: Mapping[str, registry.Setting]
    """Keyword-only arguments of the constructor and their defaults."""
    attributes: Mapping[str, Any]
    """Class attributes with literal values."""
    about: str = ""
    """First line of the class's docstring, or of the file's where that starts with a setting."""
    line: int = 0
    """Of the decorator."""


class Unreadable(ValueError):
    """A declaration that is not made of literals; the message names the line."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def read_source(file: Path) -> tuple[Sequence[Declaration], Sequence[Unreadable]]:
    """All declarations of a file and the problems of the others."""
    try:
        return _read_text(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return (), (Unreadable(f"cannot be read: {error}"),)


@lru_cache(maxsize=512)
def _read_text(text: str) -> tuple[Sequence[Declaration], Sequence[Unreadable]]:
    """The same of a file's text; a text is read once. Raises ValueError for null bytes."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return (), (Unreadable(f"line {error.lineno}: syntax error: {error.msg}"),)
    module = _Module(tree)
    found: list[Declaration] = []
    problems: list[Unreadable] = []
    for node in module.classes.values():
        try:
            found.extend(_declarations(module, node))
        except Unreadable as error:
            problems.append(error)
    return tuple(found), tuple(problems)


class _Module:
    """Classes of one file and the original names of its imports."""

    def __init__(self, tree: ast.Module) -> None:
        self.about = _first_line(tree)
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.original = {
            alias.asname or alias.name: alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def name(self, node: ast.expr) -> str:
        """`Fusion` for `Fusion`, for `api.Fusion` and for a name that was imported `as`."""
        if isinstance(node, ast.Attribute):
            return node.attr
        if isinstance(node, ast.Subscript):
            return self.name(node.value)
        return self.original.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def lineage(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        """The class and its ancestors in this file, nearest first."""
        found, waiting = [], [node]
        while waiting:
            cls = waiting.pop(0)
            if cls not in found:
                found.append(cls)
                parents = (self.classes.get(self.name(base)) for base in cls.bases)
                waiting.extend(parent for parent in parents if parent is not None)
        return found

    def root(self, node: ast.ClassDef) -> str:
        """The base class of `ROOTS`; Unreadable if there is none in this file."""
        bases = [self.name(base) for cls in self.lineage(node) for base in cls.bases]
        for base in bases:
            if base in ROOTS:
                return base
        parents = ", ".join(bases) or "nothing"
        raise Unreadable(
            f"line {node.lineno}: class {node.name} descends from {parents}; it must "
            f"descend from {', '.join(ROOTS)} within its file"
        )


def _declarations(module: _Module, node: ast.ClassDef) -> Iterator[Declaration]:
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call):
            continue
        kind = _KINDS.get(module.name(decorator.func))
        if kind is None:
            continue
        arguments = _arguments(kind, decorator)
        if kind == "method":
            _require_settings(arguments, decorator.lineno)
        root = module.root(node)
        if ROOTS[root] != kind:
            raise Unreadable(f"line {node.lineno}: class {node.name} is a {root}, not a {kind}")
        yield Declaration(
            kind=kind,
            cls=node.name,
            root=root,
            arguments=arguments,
            settings=_settings(module, node),
            attributes=_attributes(module, node),
            about=_about(module, node),
            line=decorator.lineno,
        )


def _about(module: _Module, node: ast.ClassDef) -> str:
    own = _first_line(node)
    return module.about if not own or own.startswith("`") else own


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    """The first line of its docstring, as far as it goes."""
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()


def _arguments(kind: registry.Kind, call: ast.Call) -> dict[str, Any]:
    """Bind the literal arguments to the real decorator's signature."""
    values = [_literal(node, f"an argument of @{kind}") for node in call.args]
    named = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise Unreadable(f"line {call.lineno}: @{kind} takes no **arguments, only literals")
        named[keyword.arg] = _literal(keyword.value, f"{keyword.arg} of @{kind}")
    signature = inspect.signature(_DECORATORS[kind])
    try:
        bound = signature.bind(*values, **named)
    except TypeError as error:
        raise Unreadable(f"line {call.lineno}: @{kind}: {error}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _settings(module: _Module, node: ast.ClassDef) -> dict[str, registry.Setting]:
    """Keyword-only arguments of the nearest constructor in this file."""
    constructors = (
        part
        for cls in module.lineage(node)
        for part in cls.body
        if isinstance(part, ast.FunctionDef) and part.name == "__init__"
    )
    constructor = next(constructors, None)
    if constructor is None:
        return {}
    settings: dict[str, registry.Setting] = {}
    given = constructor.args
    if module.root(node) in METHODS:
        _require_keyword_only(node.name, given)
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if default is None:
            raise Unreadable(f"line {argument.lineno}: setting {argument.arg!r} has no default")
        value = _literal(default, f"the default of {argument.arg!r}")
        _require_setting(value, f"line {default.lineno}: the default of {argument.arg!r}")
        settings[argument.arg] = value
    return settings


def _require_keyword_only(cls: str, given: ast.arguments) -> None:
    """Raise Unreadable for a setting that a constructor `(self, shape)` takes by position."""
    taken = [*given.posonlyargs, *given.args]
    if len(taken) > 2:
        shape, early = taken[1:3]
        raise Unreadable(
            f"line {early.lineno}: {early.arg!r} of {cls} stands before `*`, and settings are "
            "keyword-only",
            f"write `def __init__(self, {shape.arg}, *, {early.arg}=...)`",
        )


def _require_setting(value: object, what: str) -> None:
    """Raise Unreadable unless a setting may have this value.

    A list or a dict would be shared by all cells, and one cell could change the others' settings.
    """
    if isinstance(value, tuple):
        fits = all(type(item) is int for item in value)
    elif isinstance(value, float):
        fits = math.isfinite(value)
    else:
        fits = isinstance(value, bool | int | str)
    if not fits:
        raise Unreadable(
            f"{what} is {value!r}; a setting is true or false, a finite number, a word or a tuple "
            "of integers such as (1, 2)"
        )


def _require_settings(arguments: Mapping[str, Any], line: int) -> None:
    """The same of the settings that variants change and that switches try."""
    variants, switches = arguments["variants"] or {}, arguments["switches"] or {}
    for key, given, wanted, example in (
        ("variants", variants, dict, '{"small": {"width": 8}}'),
        ("switches", switches, tuple | list, '{"gate": (False,)}'),
    ):
        if not isinstance(given, dict) or not all(
            isinstance(one, wanted) for one in given.values()
        ):
            raise Unreadable(f"line {line}: {key} is {given!r}", f"for example {key}={example}")
    for kind, name, values in (
        *(("variant", name, changes.items()) for name, changes in variants.items()),
        *(("switch", name, [(name, one) for one in levels]) for name, levels in switches.items()),
    ):
        for key, value in values:
            _require_setting(value, f"line {line}: {key!r} of {kind} {name!r}")


def _attributes(module: _Module, node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cls in reversed(module.lineage(node)):
        for part in cls.body:
            if isinstance(part, ast.Assign):
                targets = part.targets
            elif isinstance(part, ast.AnnAssign) and part.value is not None:
                targets = [part.target]
            else:
                continue
            for target in targets:
                if isinstance(target, ast.Name) and part.value and _is_literal(part.value):
                    found[target.id] = ast.literal_eval(part.value)
    return found


def _literal(node: ast.expr, what: str) -> Any:
    if not _is_literal(node):
        raise Unreadable(
            f"line {node.lineno}: {what} must be a literal, not `{ast.unparse(node)}`: "
            "names and settings are read without importing the file"
        )
    return ast.literal_eval(node)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True
