"""The command line: `fusionbench run | report | list | pack`.

Nothing heavy is imported before a command needs it; what a person got wrong ends in one line, a
hint and exit code 2, a failed cell in exit code 1, Ctrl-C in 130.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fusionbench.errors import UserError

app = typer.Typer(
    name="fusionbench",
    help="Which way of fusing the layers of one vision encoder is really better?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Plugins = Annotated[
    list[str], typer.Option("--plugin", help="A Python file or folder with methods or tasks.")
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a setting.")
]


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    ENCODERS = "encoders"


@app.command()
def run(
    study: Annotated[Path | None, typer.Argument(help="A study as a YAML file.")] = None,
    methods: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "",
    seeds: Annotated[int | None, typer.Option(help="How many runs of each cell.")] = None,
    preset: Annotated[str, typer.Option(help="quick, paper or smoke.")] = "",
    settings: Settings = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder of the results.")] = "results/local",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: Annotated[float, typer.Option(min=0.0, help="GiB for hidden states.")] = 20.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Run what is missing of a study; a second run finds nothing to do."""
    from fusionbench import commands
    from fusionbench.records import RunOptions

    chosen = commands.assemble(
        study,
        preset,
        methods=methods,
        tasks=tasks,
        encoder=encoder,
        seeds=seeds,
        settings=settings,
    )
    options = RunOptions(
        out=out,
        device=commands.checked_device(device),
        workers=workers,
        plugins=tuple(plugin),
        cache_gib=limit_cache,
        quiet=quiet,
    )
    command = commands.dry_run if dry_run else commands.run
    raise typer.Exit(command(chosen, options, sys.stdout))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report.")] = None,
) -> None:
    """Write tables, a plot and a page from a folder of results."""
    from fusionbench import commands

    raise typer.Exit(commands.report(folder, out, sys.stdout))


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument()],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Show the methods, tasks or encoders that exist here, and how to get those that do not."""
    from fusionbench import commands

    commands.list_(kind.value, plugins=plugin, json=json, stream=sys.stdout)


@app.command()
def pack(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = ["all"],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="Whose weights to pack.")] = "nano",
    size: Annotated[int, typer.Option(min=0, help="Pixels; 0: the encoder's own.")] = 0,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Write data and weights into one folder for a machine without a package index."""
    from fusionbench import commands

    stream = sys.stdout
    code = commands.pack(
        out, tasks=tasks, encoder=encoder, size=size, plugins=plugin, stream=stream
    )
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; the installed script and `python -m fusionbench` come here."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        sys.exit(2)
