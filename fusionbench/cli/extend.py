"""`fusionbench new-method`, `new-task` and `check`: write and check a method or a task."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from fusionbench.api.errors import UserError, disk_error
from fusionbench.cli.app import FAILED, OK, Plugins, app, read
from fusionbench.registry.catalog import Catalog

if TYPE_CHECKING:
    from fusionbench.registry.cards import TaskCard

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
            own = _TEMPLATES / kind / f"{template}.txt"
            # A task of a folder of images is packaged like any other task.
            shared = _TEMPLATES / "task" / f"{template}.txt"
            _write_file(own if own.is_file() else shared, home / target, values)
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


def _write_file(template: Path, target: Path, values: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = Template(template.read_text(encoding="utf-8")).substitute(values)
    target.write_text(text.rstrip() + "\n", encoding="utf-8")


@app.command("check")
def check_command(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET...", help="Names, globs, files, folder:DIR, or all."),
    ],
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page.")] = None,
    only: Annotated[list[str], typer.Option(help="This check only; may be repeated.")] = [],  # noqa: B006
    compiler: Annotated[str, typer.Option(help="Backend of torch.compile.")] = "aot_eager",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Run the conformance checks on methods and load tasks; exit code 1 on a fault."""
    code = check(targets, out=out, only=only, compiler=compiler, plugins=plugin, stream=sys.stdout)
    raise typer.Exit(code)


def check(
    targets: Sequence[str],
    *,
    out: Path | None,
    only: Sequence[str],
    compiler: str,
    plugins: Sequence[str],
    stream: TextIO,
) -> int:
    """Print the counts of outcomes per method; write details to `out`. Returns the exit code."""
    import torch

    from fusionbench.checks.first_build import first_fault, tasks_of
    from fusionbench.checks.kit import counts_text, total
    from fusionbench.checks.run import find, page, run_checks

    # One thread: sums in the same order on every machine.
    torch.set_num_threads(1)
    tasks = {target: tasks_of(target, plugins) for target in targets}
    found = {
        subject.name: replace(subject, compiler=compiler)
        for target in targets
        if not tasks[target] or Path(target).exists()
        for subject in find(target, plugins=plugins, required=not tasks[target])
    }
    cards = {card.name: card for some in tasks.values() for card in some}
    reports, faults = [], _check_tasks(cards.values(), stream)
    for subject in found.values():
        if not only and (fault := first_fault(subject)):
            faults += 1
            stream.write(f"{subject.name}: cannot be used\n  {fault}\n")
            continue
        reports.append(run_checks(subject, only=only))
        stream.write(f"{reports[-1]}\n")
        stream.flush()
    seconds = sum(record.seconds for report in reports for record in report.records)
    if reports:
        counts = counts_text(total(reports))
        stream.write(f"{len(reports)} methods, {seconds:.0f} s of CPU: {counts}\n")
    if out is not None:
        _write_report(out, page(reports))
        stream.write(f"{out}\n")
    return FAILED if faults or any(report.unexpected for report in reports) else OK


def _check_tasks(cards: "Iterable[TaskCard]", stream: TextIO) -> int:
    """Load each task and print what it holds; how many have a fault."""
    from fusionbench.checks.first_build import check_task

    faults = 0
    for card in cards:
        seen = check_task(card)
        faults += bool(seen.faults)
        stream.write(f"{seen}\n")
    return faults


def _write_report(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, out) from error
