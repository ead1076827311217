"""`fusionbench doctor`: environment, device, cache, data, weights and plug-ins. No torch here."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import OK, Plugins, Strict, app, name_plugins, packed_here
from fusionbench.registry.catalog import Catalog, read_catalog

if TYPE_CHECKING:
    from fusionbench.registry.plugins import PluginCheck

_VARIABLES = ("FUSIONBENCH_CACHE", "FUSIONBENCH_DATA", "FUSIONBENCH_PLUGINS", "HF_HOME",
              "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # fmt: skip
_TIMEOUT_SECONDS = 120
_DEVICE = (
    "import torch\n"
    "n = torch.cuda.device_count()\n"
    "print('\\n'.join(torch.cuda.get_device_name(i) for i in range(n)) or 'no CUDA device')\n"
)
_MIB = 2**20


@app.command("doctor")
def command(
    cache: Annotated[Path | None, typer.Option(help="Cache folder to look at.")] = None,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Show versions, device, cache, data and weights, and use every plug-in once to check it."""
    from fusionbench.registry.plugins import check_plugins

    catalog = read_catalog(plugin, packed=packed_here())
    name_plugins(catalog)
    checked = [_used_once(one) for one in check_plugins(catalog)]
    sys.stdout.write(text(catalog, checked, cache))
    broken = [one for one in checked if not one.sound]
    if strict_plugins and broken:
        raise UserError(f"{len(broken)} plug-ins cannot be used", "see PLUG-INS above")
    raise typer.Exit(OK)


def _used_once(checked: "PluginCheck") -> "PluginCheck":
    """The check with what fails when each method is built and run, each task and encoder read."""
    if not checked.sound or not checked.file:
        return checked
    return replace(checked, problems=tuple(first_faults(checked.file)))


def first_faults(file: str) -> list[str]:
    """`first_uses` of a plug-in file in a process of its own, which contains what it does."""
    from fusionbench.checks.first_build import first_uses
    from fusionbench.records.parallel import LostError, in_child

    try:
        return in_child(first_uses, file, seconds=_TIMEOUT_SECONDS)
    except LostError as error:
        return [f"its first use {error}"]
    except RuntimeError as error:
        return [f"its first use: {error}"]


def text(catalog: Catalog, checked: "Sequence[PluginCheck]", cache: Path | None = None) -> str:
    """All sections with their titles."""
    from fusionbench.records.files import cache_dir

    sections = {
        "ENVIRONMENT": _environment(),
        "DEVICE": _device(),
        "CACHE": _cache(cache or cache_dir()),
        "TASKS": _tasks(catalog),
        "ENCODERS": _encoders(catalog),
        "PLUG-INS": _plugins(catalog, checked),
    }
    parts = [f"{title}\n" + "\n".join(f"  {line}" for line in lines)
             for title, lines in sections.items()]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _environment() -> list[str]:
    from fusionbench.registry.provenance import code_state, software

    state = dict(code_state())
    commit = f", commit {state['commit']}" if state["commit"] else ""
    changed = " with uncommitted changes" if state.get("dirty") else ""
    lines = [f"layer-fusionbench {state['fusionbench']}{commit}{changed}"]
    lines += [f"{platform.platform()}, {sys.executable}"]
    lines += [f"{name} {version}" for name, version in software().items() if name != "platform"]
    return lines + [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]


def _device() -> list[str]:
    """CPU cores and the GPUs that torch finds, asked in a child process."""
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    try:
        done = subprocess.run([sys.executable, "-c", _DEVICE], capture_output=True, text=True,
                              timeout=_TIMEOUT_SECONDS, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return [cores, f"torch does not start: {error}"]
    if done.returncode:
        return [cores, f"torch cannot be imported: {done.stderr.strip().splitlines()[-1]}"]
    return [cores, *done.stdout.strip().splitlines()]


def _cache(folder: Path) -> list[str]:
    if not folder.exists():
        return [f"{folder}: does not exist yet"]
    parts = {
        part.name: sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        for part in sorted(folder.iterdir())
        if part.is_dir()
    }
    used = ", ".join(f"{name} {size / _MIB:.1f} MiB" for name, size in parts.items()) or "empty"
    free = shutil.disk_usage(folder).free / 2**30
    wrong = "" if os.access(folder, os.W_OK) else "; not writable"
    return [f"{folder}: {used}; {free:.1f} GiB free{wrong}"]


def _tasks(catalog: Catalog) -> list[str]:
    here = [card.name for card in catalog.tasks.values() if card.available]
    lines = [f"{len(here)} of {len(catalog.tasks)} have their data on this machine"]
    lines += [
        f"{card.name}: needs {', '.join(card.missing)}" + (f"; {card.get}" if card.get else "")
        for card in catalog.tasks.values()
        if not card.available
    ]
    return lines


def _encoders(catalog: Catalog) -> list[str]:
    from fusionbench.models.encoders.catalog import available
    from fusionbench.registry.catalog import plugged

    cards, problems = available()
    lines = [
        f"{card.name}: {card.path if card.available else f'missing; {card.get}'}"
        for card in [*cards, *plugged(catalog)]
    ]
    return [*lines, *(f"not readable: {problem}" for problem in problems)]


def _plugins(catalog: Catalog, checked: "Sequence[PluginCheck]") -> list[str]:
    built_in = f"{len(catalog.methods)} methods, {len(catalog.tasks)} tasks in all"
    if not checked:
        return [f"none; {built_in}"]
    from fusionbench.cli.listing import columns

    rows = [("plug-in", "declares", "state")]
    rows += [
        (one.source, ", ".join(one.declares) or "nothing", "sound" if one.sound else "BROKEN")
        for one in checked
    ]
    return [*columns(rows).splitlines(), *(line for one in checked for line in _details(one))]


def _details(checked: "PluginCheck") -> Iterator[str]:
    if checked.sound:
        return
    yield ""
    yield f"{checked.source}" + (f", {checked.file}" if checked.file != checked.source else "")
    yield from (f"  {problem}" for problem in checked.problems)
    yield from (f"  {line}" for line in checked.traceback.splitlines())
