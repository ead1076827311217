"""`fusionbench new-method` and `new-task`: a package with one class, its tests and entry point."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from fusionbench.api.errors import UserError, disk_error
from fusionbench.cli.app import app, read
from fusionbench.registry.catalog import Catalog

Name = Annotated[str, typer.Argument(help="For example depth_gate.")]
Out = Annotated[Path, typer.Option(help="Parent folder of the new package.")]

Kind = Literal["method", "task", "images"]

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@app.command("new-method")
def new_method(name: Name, out: Out = Path()) -> None:
    """Create a package with a method: module, tests, entry point."""
    _new("method", name, out)


@app.command("new-task")
def new_task(
    name: Name,
    images: Annotated[Path | None, typer.Option(help="A folder of your images.")] = None,
    questions: Annotated[Path | None, typer.Option(help="Its questions, CSV or JSONL.")] = None,
    out: Out = Path(),
) -> None:
    """Create a package with a task: module, tests, entry point."""
    if questions is not None and images is None:
        raise UserError("--questions names a table, and --images no folder", "add --images DIR")
    _new("task" if images is None else "images", name, out, _own(images, questions))


def _own(images: Path | None, questions: Path | None) -> dict[str, str]:
    """What the module of a task of one's own images names. Raises UserError for unusable ones."""
    if images is None:
        return {}
    from fusionbench.api.folders import guessed, read_images, read_rows

    table = str(questions.resolve()) if questions else ""
    chance = guessed(read_images(images, read_rows(images, table)))
    return {
        "images": repr(str(images.resolve())),
        "questions": repr(table),
        "chance": str(round(chance, 6)),
    }


def _new(kind: Kind, name: str, out: Path, more: Mapping[str, str] = {}) -> None:  # noqa: B006
    home = new_package(kind, name, out, read([]), more)
    listed = "methods" if kind == "method" else "tasks"
    sys.stdout.write(
        f"{home}\n"
        f"  its tests:   cd {home} && pytest\n"
        f"  try it:      fusionbench list {listed} --plugin {home}/fusionbench_{name}.py\n"
        f"  install it:  pip install -e {home}\n"
    )


def new_package(
    kind: Kind,
    name: str,
    out: Path,
    catalog: Catalog,
    more: Mapping[str, str] = {},  # noqa: B006
) -> Path:
    """Write the package `fusionbench-NAME` into the folder `out`; returns the package's folder.

    `images` is a task of one's own images, whose folder, table and chance are in `more`. Raises
    UserError for an invalid or taken name, an existing folder, or missing permission.
    """
    _check(kind, name, catalog)
    home = out / f"fusionbench-{name.replace('_', '-')}"
    if home.exists():
        raise UserError(f"{home} exists already", "choose another name, or another --out")
    values = _values(name) | dict(more)
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


def _check(kind: Kind, name: str, catalog: Catalog) -> None:
    kind = "method" if kind == "method" else "task"
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
