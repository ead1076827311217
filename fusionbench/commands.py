"""What the commands do. Each imports what it needs when it runs, and no torch before there is work.

`fusionbench.cli` holds the flags; exit codes are given back here.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from fusionbench.catalog import Catalog, read_catalog
from fusionbench.errors import Problem, UserError
from fusionbench.records import RunOptions
from fusionbench.study import QUICK, Study
from fusionbench.studyfile import load_study, preset, with_overrides

OK, FAILED, INTERRUPTED = 0, 1, 130


def assemble(  # noqa: PLR0913  (one argument for each flag)
    file: Path | None,
    preset_name: str,
    *,
    methods: Sequence[str],
    tasks: Sequence[str],
    encoder: str,
    seeds: int | None,
    settings: Sequence[str],
) -> Study:
    """The study meant by a file or a preset and the flags. Raises UserError."""
    if file is not None and preset_name:
        raise UserError("a study file and --preset exclude each other", "write preset: in the file")
    start = load_study(file) if file is not None else preset(preset_name or QUICK.name)
    return with_overrides(
        start, methods=methods, tasks=tasks, encoder=encoder, seeds=seeds, settings=settings
    )


def checked_device(name: str) -> str:
    """The device as written. Raises UserError for anything but auto, cpu, cuda and cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"no device {name!r}", "known: auto, cpu, cuda, cuda:N")
    return name


def run(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Run what is missing, report, and say what was left out."""
    catalog = read(options.plugins)
    _check_encoder(study)
    from fusionbench import closing
    from fusionbench.progress import make_progress
    from fusionbench.sweep import run_study

    result = run_study(study, options, catalog, make_progress(quiet=options.quiet))
    store = closing.note_run(study, options, catalog)
    _say(store.problems)
    done = closing.write(store, result, stream, quiet=options.quiet)
    if result.interrupted:
        stream.write("interrupted: the same command goes on where this one stopped\n")
        return INTERRUPTED
    return FAILED if result.failed else done


def dry_run(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Say what `run` would do; nothing is written."""
    catalog = read(options.plugins)
    _check_encoder(study)
    from fusionbench.forecast import forecast
    from fusionbench.plan import make_plan
    from fusionbench.store import Store

    store = Store.open(options.out) if Path(options.out).exists() else None
    plan = make_plan(study, catalog, store.finished() if store else {})
    _say(store.problems if store else ())
    stream.write(forecast(plan, options, store))
    return OK


def report(folder: Path, out: Path | None, stream: TextIO) -> int:
    """Write the report of a folder of results and name its page."""
    from fusionbench.report.build import write_report
    from fusionbench.store import Store

    store = Store.open(folder)
    paths = write_report(store, out or folder / "report")
    _say(store.problems)
    stream.write(f"{paths.page}\n")
    return OK


def list_(kind: str, *, plugins: Sequence[str], json: bool, stream: TextIO) -> None:
    """Write what there is of a kind."""
    from fusionbench import listing

    catalog = read(plugins)
    texts = {"methods": listing.methods_text, "tasks": listing.tasks_text}
    if json:
        stream.write(listing.as_json(kind, catalog) + "\n")
    elif kind in texts:
        stream.write(texts[kind](catalog) + "\n")
    else:
        stream.write(listing.encoders_text() + "\n")


def pack(
    out: Path, *, tasks: Sequence[str], encoder: str, size: int, plugins: Sequence[str]
) -> None:
    """Pack tasks and weights into a folder and say how large it is."""
    from fusionbench.encoders.catalog import describe
    from fusionbench.packing import pack as write_pack
    from fusionbench.selection import select_tasks

    chosen, left_out = select_tasks(read(plugins), tasks)
    _say(Problem(source=one.card.name, message=f"left out: {one.reason}") for one in left_out)
    card = _described(encoder, size)
    written = write_pack(chosen, encoder, size=size or describe(encoder).size or card.size, out=out)
    sys.stdout.write(f"{out}: {len(chosen)} tasks, {written / 2**20:.1f} MiB\n")
