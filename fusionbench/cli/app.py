"""The application that every command's module adds itself to, and the flags they share."""

from typing import Annotated

import typer

OK, FAILED, INTERRUPTED = 0, 1, 130

app = typer.Typer(
    name="fusionbench",
    help="Which way of fusing the layers of one vision encoder is really better?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Plugins = Annotated[
    list[str],
    typer.Option("--plugin", help="A Python file or folder with methods, tasks or encoders."),
]
Strict = Annotated[
    bool, typer.Option("--strict-plugins", help="A plug-in that cannot be used is an error.")
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a setting.")
]
