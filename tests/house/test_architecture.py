"""The shape of the package: which folder imports which, how long files and functions are."""

import ast
import copy
import functools
import graphlib
import itertools
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import fusionbench
from fusionbench.records import cell as records
from fusionbench.study import study

PACKAGE = Path(fusionbench.__file__).parent
ROOT = PACKAGE.parent
IN_CHECKOUT = (ROOT / "pyproject.toml").exists() and (ROOT / "methods").is_dir()

# A folder imports only folders in front of it.
ORDER = (
    "api", "metrics", "stats", "records", "models", "registry", "harness", "study", "vlm",
    "launchers", "checks", "report", "cli",
)  # fmt: skip
MOST_ENTRIES = 17
LINES = (60, 500)
LONGEST_FUNCTION = 45
MEDIAN_FUNCTION = 10
LONGEST_METHOD_FILE = 200
SHORT_FILES = {
    "__init__.py": "a docstring, and what the folder exports",
    "__main__.py": "python -m fusionbench",
    "api/seeding.py": "named random streams, used by every folder above",
    "launchers/world.py": "runs started by torchrun or accelerate",
    "models/readers/build.py": "the one way from a name to a reader",
}
ONE_FILE_EACH = ("metrics/",)  # a benchmark

# Modules that planning, reports and the command line need: they must not load torch.
WITHOUT_TORCH = ("metrics", "records", "stats", "registry", "report", "cli")
WITHOUT_TORCH_ALONE = ("study.plan", "study.rescore", "launchers.sweep")
# `--help`, `list`, planning and a rerun with nothing to do start without these.
SLOW_TO_IMPORT = ("torch", "pandas", "seaborn", "scipy", "matplotlib")
# Nodes of the syntax tree without names: three to five statements that do something.
LONGEST_TWIN = 50


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Files of the engine by module name, without the leading `fusionbench.`."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in ("methods", "tasks"):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def plugin_files() -> list[Path]:
    folders = [PACKAGE / kind for kind in ("methods", "tasks")]
    folders = [f if f.is_dir() else ROOT / f.name for f in folders]
    return sorted(path for folder in folders for path in folder.glob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(path)))


@functools.cache
def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, by statement or by string, without `fusionbench.`."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.replace(".", "").isidentifier() else []
        else:
            continue
        found |= {n.removeprefix("fusionbench.") for n in names if n.startswith("fusionbench.")}
    return found


def below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def arrows(package: Path = PACKAGE) -> Iterator[tuple[str, str, str, str]]:
    """Each import between two folders: folder, imported folder, module, imported module."""
    for module, path in modules(package).items():
        folder = module.split(".")[0]
        for name in imports(path):
            target = name.split(".")[0]
            if folder in ORDER and target in ORDER and target != folder:
                yield folder, target, module, name


def upward(package: Path = PACKAGE) -> list[str]:
    """Imports that break the order of the folders."""
    return [
        f"{module} imports {name}"
        for folder, target, module, name in arrows(package)
        if ORDER.index(target) > ORDER.index(folder)
    ]


def functions() -> Iterator[tuple[str, int]]:
    """Name and lines of each function of the engine, methods and tasks."""
    for path in [*modules().values(), *plugin_files()]:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{path.parent.name}/{path.name}:{node.name}", lines


def test_a_folder_imports_only_folders_below_it():
    assert not upward()


def test_encoders_import_no_reader_and_a_cell_imports_no_cost():
    inside = {"models.encoders": "models.readers", "harness.cell": "harness.profile"}
    for name, path in modules().items():
        for lower, upper in inside.items():
            if below(name, lower):
                assert not [each for each in imports(path) if below(each, upper)], name


def test_the_imports_between_folders_have_no_cycle():
    graph: dict[str, set[str]] = {}
    for folder, target, _, _ in arrows():
        graph.setdefault(folder, set()).add(target)
    assert set(graph) >= set(ORDER) - {"api", "metrics", "stats", "records"}
    graphlib.TopologicalSorter(graph).prepare()


PLANTED = {
    "stats/estimate.py": "from fusionbench.report import build",
    "records/cell.py": "import fusionbench.harness.train",
    "api/types.py": "def late():\n    from fusionbench.cli.main import main",
    "models/readers/build.py": "name = 'fusionbench.launchers.local'",
}


@pytest.mark.thorough
def test_planted_upward_imports_are_found(tmp_path):
    package = tmp_path / "fusionbench"
    shutil.copytree(PACKAGE, package)
    for name, line in PLANTED.items():
        file = package / name
        file.write_text(f"{file.read_text()}\n{line}\n")
    found = set(upward(package)) - set(upward())
    assert {text.split()[0] for text in found} == {
        name.removesuffix(".py").replace("/", ".") for name in PLANTED
    }


def _holds_code(folder: Path) -> bool:
    return any("__pycache__" not in path.parts for path in folder.rglob("*") if path.is_file())


def test_the_package_shows_its_folders_and_nothing_else():
    # A folder that moved leaves byte code behind.
    entries = {path.name for path in PACKAGE.iterdir() if path.is_file() or _holds_code(path)}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - {"methods", "tasks"} == set(ORDER)
    assert entries - folders == {"__init__.py", "__main__.py", "py.typed"}
    if IN_CHECKOUT:
        # As `find fusionbench -maxdepth 1` counts: the folder itself is one.
        assert len(entries) + 1 <= MOST_ENTRIES


@pytest.mark.skipif(not IN_CHECKOUT, reason="an installed wheel has no docs")
def test_the_documents_name_the_order_of_the_folders():
    assert " < ".join(ORDER) in " ".join((ROOT / "docs" / "design.md").read_text().split())
    readme = (ROOT / "README.md").read_text()
    assert not [folder for folder in ORDER if f"    {folder}/" not in readme]


def test_every_folder_says_in_one_line_what_it_holds():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent.name not in ("methods", "tasks"):
            text = ast.get_docstring(parsed(path)) or ""
            assert text and len(text.splitlines()[0]) < 100, path


def test_files_hold_one_idea():
    wrong = {}
    for path in modules().values():
        name, lines = path.relative_to(PACKAGE).as_posix(), len(path.read_text().splitlines())
        short = {name, path.name} & SHORT_FILES.keys() or name.startswith(ONE_FILE_EACH)
        if lines > LINES[1] or (lines < LINES[0] and not short):
            wrong[name] = lines
    assert not wrong


def test_functions_are_short():
    lines = dict(functions())
    assert not {name: n for name, n in lines.items() if n > LONGEST_FUNCTION}
    assert statistics.median(n for _, n in functions()) < MEDIAN_FUNCTION


def test_methods_import_only_the_api_and_tasks_metrics_as_well():
    wrong = {}
    for path in plugin_files():
        siblings = {f"{path.parent.name}.{other.stem}" for other in path.parent.glob("_*.py")}
        allowed = ("api", "metrics") if path.parent.name == "tasks" else ("api",)
        stray = {n for n in imports(path) if not any(below(n, folder) for folder in allowed)}
        stray = {n for n in stray if not any(below(n, sibling) for sibling in siblings)}
        if stray:
            wrong[path.name] = stray
    assert not wrong


def test_the_engine_names_no_module_of_methods_or_tasks():
    named = [
        name
        for name, path in modules().items()
        if any(below(target, kind) for target in imports(path) for kind in ("methods", "tasks"))
    ]
    assert not named


def blocks(path: Path) -> dict[str, int]:
    """Sequences of two or more statements of one body, local names ignored: dump -> line."""
    found = {}
    for node in nodes(path):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef)) or not isinstance(body, list):
            continue
        dumps = [ast.dump(nameless(each)) for each in body]
        for first, last in itertools.combinations(range(len(body) + 1), 2):
            if last - first > 1:
                found["\n".join(dumps[first:last])] = body[first].lineno
    return found


def nameless(node: ast.AST) -> ast.AST:
    """A copy of the node without local names and strings."""
    copied = copy.deepcopy(node)
    for part in ast.walk(copied):
        if isinstance(part, ast.Name):
            part.id = "_"
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            part.value = ""
    return copied


def size(block: str) -> int:
    """Nodes of a dump."""
    return block.count("(")


def test_no_two_method_files_repeat_a_block_of_code():
    seen: dict[str, str] = {}
    twins = []
    for path in (path for path in plugin_files() if path.parent.name == "methods"):
        found = {block: f"{path.name}:{line}" for block, line in blocks(path).items()}
        twins += [
            f"{seen[block]} and {where}"
            for block, where in found.items()
            if block in seen and size(block) >= LONGEST_TWIN
        ]
        seen |= found
    assert not twins


def test_a_repeated_block_is_found_whatever_its_names(tmp_path):
    body = """
def {f}({a}, {b}):
    {c} = tuple({a} if {b} else k for _, k, _ in {b})
    {a}.taps, {a}.rows = joined(taps_of({b}, ({a},))[0], taps_of({b}, {c}))
    return {c}
"""
    names = [dict(zip("fabc", names, strict=True)) for names in ("fabc", "pqrs")]
    for each in names:
        (tmp_path / f"{each['f']}.py").write_text(body.format(**each))
    found = [blocks(path) for path in sorted(tmp_path.glob("*.py"))]
    assert max(size(block) for block in found[0].keys() & found[1].keys()) >= LONGEST_TWIN


def test_a_method_stays_on_two_hundred_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in plugin_files()}
    assert not {name: n for name, n in lengths.items() if n > LONGEST_METHOD_FILE}


def loaded_by(names: list[str], heavy: tuple[str, ...]) -> str:
    """The first of the modules after whose import one of the heavy packages is loaded."""
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module("fusionbench." + name)
    if found := set({heavy!r}) & sys.modules.keys():
        sys.exit(f"{{name}} loads {{found}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr


def test_planning_records_and_reports_do_not_load_torch():
    names = [name for name in modules() if name.split(".")[0] in WITHOUT_TORCH]
    assert not loaded_by(sorted([*names, *WITHOUT_TORCH_ALONE]), ("torch",))


def test_the_command_line_and_planning_start_without_what_is_slow_to_import():
    assert not loaded_by(["cli.main", "registry.catalog", *WITHOUT_TORCH_ALONE], SLOW_TO_IMPORT)


@pytest.mark.skipif(not IN_CHECKOUT, reason="an installed wheel has no pyproject.toml")
def test_every_package_on_disk_is_shipped():
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        "fusionbench"
        if path.parent == PACKAGE
        else "fusionbench." + ".".join(path.parent.relative_to(PACKAGE).parts)
        for path in PACKAGE.rglob("__init__.py")
    } | {"fusionbench.methods", "fusionbench.tasks"}
    assert set(shipped) == on_disk


def test_every_configuration_field_decides_outcomes_or_does_not_and_says_so():
    known = set()
    for cls in (records.CellSpec, records.Budget, records.RunOptions, study.Study):
        known |= {f"{cls.__name__}.{field.name}" for field in fields(cls)}
    assert not records.IDENTITY & records.NOT_IDENTITY
    assert records.IDENTITY | records.NOT_IDENTITY == known
