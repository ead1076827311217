"""`fusionbench new-method` and `new-task`: a small complete package to start from."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusionbench.cli.app import app
from fusionbench.cli.shared import read

Name = Annotated[str, typer.Argument(help="Such as depth_gate.")]
Out = Annotated[Path, typer.Option(help="The folder to put it in.")]


@app.command("new-method")
def new_method(name: Name, out: Out = Path()) -> None:
    """Write a package with a method of your own: module, tests, entry point."""
    _new("method", name, out)


@app.command("new-task")
def new_task(name: Name, out: Out = Path()) -> None:
    """Write a package with a task of your own: module, tests, entry point."""
    _new("task", name, out)


def _new(kind: Literal["method", "task"], name: str, out: Path) -> None:
    from fusionbench.cli.scaffold import new_package

    home = new_package(kind, name, out, read([]))
    sys.stdout.write(
        f"{home}\n"
        f"  its tests:   cd {home} && pytest\n"
        f"  try it:      fusionbench list {kind}s --plugin {home}/fusionbench_{name}.py\n"
        f"  install it:  pip install -e {home}\n"
    )
