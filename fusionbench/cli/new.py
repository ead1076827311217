"""`fusionbench new-method` and `new-task`: a package with one class, its tests and entry point."""

import re
import sys
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from fusionbench.api.errors import UserError, disk_error
from fusionbench.cli.app import app, read
from fusionbench.registry.catalog import Catalog

Name = Annotated[str, typer.Argument(help="For example depth_gate.")]
Out = Annotated[Path, typer.Option(help="Parent folder of the new package.")]

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@app.command("new-method")
def new_method(name: Name, out: Out = Path()) -> None:
    """Create a package with a method: module, tests, entry point."""
    _new("method", name, out)


@app.command("new-task")
def new_task(name: Name, out: Out = Path()) -> None:
    """Create a package with a task: module, tests, entry point."""
    _new("task", name, out)


def _new(kind: Literal["method", "task"], name: str, out: Path) -> None:
    home = new_package(kind, name, out, read([]))
    sys.stdout.write(
        f"{home}\n"
        f"  its tests:   cd {home} && pytest\n"
        f"  try it:      fusionbench list {kind}s --plugin {home}/fusionbench_{name}.py\n"
        f"  install it:  pip install -e {home}\n"
    )


def new_package(kind: Literal["method", "task"], name: str, out: Path, catalog: Catalog) -> Path:
    """Write the package `fusionbench-NAME` into the folder `out`; returns the package's folder.

    Raises UserError for an invalid or taken name, an existing folder, or missing permission.
    """
    _check(kind, name, catalog)
    home = out / f"fusionbench-{name.replace('_', '-')}"
    if home.exists():
        raise UserError(f"{home} exists already", "choose another name, or another --out")
    values = _values(name)
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "module.py": f"{values['module']}.py",
        "test.py": f"tests/test_{name}.py",
    }
    try:
        for template, target in files.items():
            _write(_TEMPLATES / kind / f"{template}.txt", home / target, values)
    except OSError as error:
        raise disk_error(error, home) from error
    return home


def _check(kind: str, name: str, catalog: Catalog) -> None:
    if not _NAME.fullmatch(name) or name == "all":
        raise UserError(
            f"{name!r} is not a valid name for a {kind}",
            "small letters, digits and single underscores, such as depth_gate",
        )
    known = catalog.methods if kind == "method" else catalog.tasks
    families = {card.family for card in catalog.methods.values()} if kind == "method" else set()
    if name in {*known, *families}:
        raise UserError(f"{kind} {name!r} exists already", "choose another name")


def _values(name: str) -> dict[str, str]:
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "cls": "".join(word.capitalize() for word in name.split("_")),
        "module": f"fusionbench_{name}",
        "distribution": f"fusionbench-{name.replace('_', '-')}",
    }


def _write(template: Path, target: Path, values: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = Template(template.read_text(encoding="utf-8")).substitute(values)
    target.write_text(text.rstrip() + "\n", encoding="utf-8")
