"""Rules worth having are tests: who imports whom, what is shipped, how long a function may be."""

import ast
import copy
import itertools
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import fusionbench
from fusionbench.records import cell as records
from fusionbench.study import study

PACKAGE = Path(fusionbench.__file__).parent
ROOT = PACKAGE.parent
IN_CHECKOUT = (ROOT / "pyproject.toml").exists() and (ROOT / "methods").is_dir()
LONGEST_FUNCTION = 40
LONGEST_FILE = 300
LONGEST_METHOD_FILE = 200
# Nodes of the syntax tree, names left aside: three to five statements that say something.
LONGEST_TWIN = 50

# What must never be imported by whom (prefixes of modules below fusionbench).
FORBIDDEN = {
    "types": ("",),
    "records": ("",),
    "task": ("harness", "encoders", "store", "report", "cli"),
    "stats": ("cli", "report", "store", "records", "harness", "encoders", "types", "fusion"),
    "encoders": ("harness", "report", "store", "cli", "sweep", "launchers"),
    "harness": ("report", "stats", "store", "cli", "sweep", "launchers", "catalog", "plugins"),
    "checks": ("report", "stats", "store", "cli", "sweep", "launchers"),
    "readers": ("harness", "report", "stats", "store", "cli", "sweep", "launchers"),
    "report": ("harness", "encoders", "fusion", "types", "cli", "sweep", "launchers", "features"),
    "paired": ("harness", "encoders", "cli", "commands", "report"),
    "claims": ("harness", "encoders", "cli", "commands"),
    "power": ("harness", "encoders", "cli", "commands"),
    "diff": ("harness", "encoders", "cli", "commands"),
    "probes": ("harness", "encoders", "cli", "commands", "report"),
    "store": ("harness", "encoders", "fusion", "types", "cli", "report", "stats"),
    "scores": ("harness", "encoders", "fusion", "types", "cli", "report"),
    "sweep": ("report", "cli", "harness"),
    "": ("cli", "methods", "tasks"),
}
MAY_IMPORT_CLI = ("cli", "__main__")


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("methods", "tasks"):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def plugin_files() -> list[Path]:
    folders = [PACKAGE / kind for kind in ("methods", "tasks")]
    folders = [f if f.is_dir() else ROOT / f.name for f in folders]
    return sorted(path for folder in folders for path in folder.glob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, without the leading `fusionbench.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n.removeprefix("fusionbench.") for n in names if n.startswith("fusionbench.")}
    return found


def below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def test_no_module_imports_what_it_must_not_know():
    wrong = []
    for module, path in modules().items():
        for owner, forbidden in FORBIDDEN.items():
            if owner and not below(module, owner):
                continue
            for name in imports(path):
                if below(name, module.split(".")[0]) or below(name, owner or "\0"):
                    continue
                if any(not prefix or below(name, prefix) for prefix in forbidden):
                    if not (below(name, "cli") and module.split(".")[0] in MAY_IMPORT_CLI):
                        wrong.append(f"{module} imports {name}")
    assert not wrong


def test_methods_and_tasks_import_only_the_api():
    wrong = {}
    for path in plugin_files():
        siblings = {f"{path.parent.name}.{other.stem}" for other in path.parent.glob("_*.py")}
        stray = {name for name in imports(path) if not below(name, "api")}
        stray = {n for n in stray if not any(below(n, sibling) for sibling in siblings)}
        if stray:
            wrong[path.name] = stray
    assert not wrong


def test_only_plugins_reaches_methods_and_tasks_and_only_by_string():
    named = [
        name
        for name, path in modules().items()
        if any(below(target, kind) for target in imports(path) for kind in ("methods", "tasks"))
    ]
    assert not named


def test_functions_and_files_stay_readable():
    long = []
    for path in [*modules().values(), *plugin_files()]:
        text = path.read_text()
        if text.count("\n") > LONGEST_FILE:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > LONGEST_FUNCTION:
                    long.append(f"{path.name}:{node.name}: {size} lines")
    assert not long


def blocks(path: Path) -> dict[str, int]:
    """Runs of two and more statements in one body, with other names taken for the same."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef)) or not isinstance(body, list):
            continue
        dumps = [ast.dump(nameless(each)) for each in body]
        for first, last in itertools.combinations(range(len(body) + 1), 2):
            if last - first > 1:
                found["\n".join(dumps[first:last])] = body[first].lineno
    return found


def nameless(node: ast.AST) -> ast.AST:
    """A copy without local names, and without docstrings and what they are replaced by."""
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


@pytest.mark.parametrize(
    "module",
    [
        "records",
        "store",
        "scores",
        "stats",
        "report",
        "plan",
        "sweep",
        "catalog",
        "cli",
        "probes",
        "claims.text",
        "power.text",
        "diff.text",
        "report.paper.pages",
        "report.reported",
    ],
)
def test_planning_and_analysis_are_free_of_torch(module):
    code = f"import sys, fusionbench.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
