"""The typer application, the options that several commands share, and the catalog they read."""

import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from fusionbench import __version__
from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.registry.catalog import Catalog, read_catalog, require_usable
from fusionbench.registry.discovery import BUILT_IN

if TYPE_CHECKING:
    from fusionbench.models.encoders.card import EncoderCard
    from fusionbench.registry.cards import TaskCard

OK, FAILED, INTERRUPTED = 0, 1, 130
_SELDOM_SECONDS = 3.0

GROUPS: Mapping[str, Sequence[str]] = {
    "Run": ("run", "status", "resume", "ablate", "fetch", "pack"),
    "Look": ("list", "show", "report", "ask", "power", "check-claims", "diff", "paper", "doctor"),
    "Extend": ("new-method", "new-task", "check", "profile", "probe-layers"),
    "Ship": (
        "merge",
        "verify",
        "command",
        "reproduce",
        "export",
        "rescore",
        "import-lmms",
    ),
}
"""Commands as `--help` groups them; one that is in no group stands under the last."""
_EXAMPLES = """\
Examples:
  fusionbench run --methods all --tasks all
  fusionbench show mema
  fusionbench new-method my_mix
  fusionbench merge results/local -o results/compact"""


class Grouped(TyperGroup):
    """Help with the commands in groups, each with the first sentence of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section a group, and the examples."""
        known = {name for names in GROUPS.values() for name in names}
        found = self.list_commands(ctx)
        for title, names in GROUPS.items():
            last = title == list(GROUPS)[-1]
            here = [name for name in names if name in found]
            here += [name for name in found if last and name not in known]
            rows = [(name, self._sentence(ctx, name)) for name in here]
            with formatter.section(title):
                formatter.write_dl(rows)
        formatter.write(f"\n{_EXAMPLES}\n")

    def _sentence(self, ctx: Any, name: str) -> str:
        command = self.get_command(ctx, name)
        text = " ".join((command.help or "").split()) if command else ""
        return re.split(r"(?<=[.;]) ", text)[0].rstrip(";")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"fusionbench {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="fusionbench",
    cls=Grouped,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Which way of fusing the layers of one vision encoder is really better?"""


Plugins = Annotated[
    list[str],
    typer.Option("--plugin", help="A Python file or folder with methods, tasks or encoders."),
]
Strict = Annotated[
    bool, typer.Option("--strict-plugins", help="Fail if a plug-in cannot be imported and used.")
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a setting.")
]


def read(plugins: Sequence[str], *, strict: bool = False, imports: bool = True) -> Catalog:
    """The catalog; its problems are printed on stderr.

    If the command imports plug-ins, those that it does not name itself (of the environment or
    installed) are named first, and UserError is raised for a declaration of the others that cannot
    be used. With `strict` every plug-in is also imported in a child process, and UserError is
    raised for any that cannot be used.
    """
    catalog = read_catalog(plugins, packed=packed_here())
    if imports or strict:
        name_plugins(catalog, besides=plugins)
    if strict:
        from fusionbench.registry.plugins import require_sound

        require_sound(catalog)
    if imports:
        require_usable(catalog, plugins)
    say(catalog.problems)
    return catalog


def name_plugins(catalog: Catalog, *, besides: Collection[str] = ()) -> None:
    """Print the files of plug-ins on stderr: they may be imported from now on."""
    for source in catalog.sources:
        if source.name != BUILT_IN and source.name not in besides:
            files = ", ".join(str(location.file) for location in source.locations)
            sys.stderr.write(f"plug-in: {source.name}: {files or 'no file'}\n")


def packed_here() -> Collection[str]:
    """Names of the tasks in the packed folder FUSIONBENCH_DATA; they need no data packages."""
    if not os.environ.get("FUSIONBENCH_DATA"):
        return ()
    from fusionbench.study.data import packed_tasks

    return packed_tasks()


def check_encoder(catalog: Catalog, name: str, image_size: int) -> "EncoderCard":
    """The card of an encoder. Raises UserError for an unknown name or an impossible size."""
    from fusionbench.registry.catalog import describe

    try:
        return describe(catalog, name, image_size=image_size)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), "`fusionbench list encoders` shows all") from error


def refuse_plugged(catalog: Catalog, encoder: str, command: str) -> None:
    """Raise UserError for an encoder of a plug-in, which this command cannot use."""
    if encoder in catalog.encoders:
        raise UserError(
            f"{command} does not take encoders of plug-ins, such as {encoder!r}",
            "`fusionbench run` does",
        )


def usable_tasks(catalog: Catalog, texts: Sequence[str], stream: TextIO) -> "Sequence[TaskCard]":
    """The tasks that names and globs select; those that cannot be used here are printed."""
    from fusionbench.registry.selection import select_tasks, split_names

    chosen, left_out = select_tasks(catalog, [name for text in texts for name in split_names(text)])
    for one in left_out:
        stream.write(f"left out: {one.card.name}: {one.reason}\n")
    return chosen


def say(problems: Iterable[Problem]) -> None:
    """Print one line per problem on stderr."""
    for problem in problems:
        sys.stderr.write(f"note: {problem}\n")


def note(text: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"note: {text}\n")


def seldom(*, quiet: bool = False) -> Callable[[str], None]:
    """`note` for work of unknown length: a line every few seconds, none if the work is short."""
    said = time.monotonic()

    def hear(text: str) -> None:
        nonlocal said
        if not quiet and time.monotonic() - said >= _SELDOM_SECONDS:
            said = time.monotonic()
            note(text)

    return hear


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as CSV, atomically. Raises UserError if the file cannot be written."""
    from fusionbench.records.files import write_atomic
    from fusionbench.report.tables import comma_separated

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, comma_separated([dict(row) for row in rows]).encode())
    except OSError as error:
        raise disk_error(error, file) from error
