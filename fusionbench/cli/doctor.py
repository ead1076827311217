"""`fusionbench doctor`: this machine, what is here, and which plug-ins cannot be used and why."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import OK, Plugins, Strict, app
from fusionbench.cli.shared import packed_here


@app.command("doctor")
def command(
    cache: Annotated[Path | None, typer.Option(help="Look at this cache folder.")] = None,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Show versions, device, cache, data and weights, and import every plug-in to test it."""
    from fusionbench.cli import health
    from fusionbench.registry.catalog import read_catalog
    from fusionbench.registry.plugins import check_plugins

    catalog = read_catalog(plugin, packed=packed_here())
    checked = check_plugins(catalog)
    sys.stdout.write(health.text(catalog, checked, cache))
    broken = [one for one in checked if not one.sound]
    if strict_plugins and broken:
        raise UserError(f"{len(broken)} plug-ins cannot be used", "see PLUG-INS above")
    raise typer.Exit(OK)
