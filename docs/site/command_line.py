"""The reference of the command line, as Markdown, from the typer application."""

from collections.abc import Iterator
from typing import Any

import typer
from catalogue import code, escaped, table

from fusionbench.cli import main
from fusionbench.cli.app import GROUPS


def page() -> str:
    """Every command with its arguments and options, in the groups of `--help`."""
    group = typer.main.get_command(main.app)
    context = typer.Context(group, info_name="fusionbench")
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    grouped = {name for names in GROUPS.values() for name in names}
    last = list(GROUPS)[-1]
    parts = ["# Command line", _INTRODUCTION]
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        extra = [name for name in commands if name not in grouped] if title == last else []
        for name in [*names, *extra]:
            if name in commands:
                parts += _command(name, commands[name])
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "`fusionbench COMMAND --help` prints the same text. An option that takes several values is "
    "repeated or separated by commas. Exit codes: 0 success, 1 a cell, check or claim failed, 2 a "
    "mistake in the command or a file, 130 Ctrl-C."
)


def _command(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=f"fusionbench {name}")
    usage = " ".join([f"fusionbench {name}", *command.collect_usage_pieces(context)])
    yield f"### {name}"
    yield from (escaped(" ".join(part.split())) for part in (command.help or "").split("\n\n"))
    yield f"```text\n{usage}\n```"
    shown = (one.get_help_record(context) for one in command.params if one.name != "help")
    records = [record for record in shown if record]
    rows = [
        (code(name.strip()), escaped(" ".join(text.split())))
        for name, text in filter(None, records)
    ]
    if rows:
        yield table(("argument or option", "meaning"), rows)
