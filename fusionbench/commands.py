"""What the commands do. Each imports what it needs when it runs, and no torch before there is work.

`fusionbench.cli` holds the flags; exit codes are given back here.
"""

import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fusionbench.catalog import Catalog, read_catalog
from fusionbench.errors import Problem, UserError, disk_error
from fusionbench.records import RunOptions
from fusionbench.study import QUICK, Study
from fusionbench.studyfile import load_study, preset, with_overrides

if TYPE_CHECKING:
    from fusionbench.encoders.card import EncoderCard
    from fusionbench.store import Store

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
    check_encoder(study.encoder, study.budget.image_size)
    from fusionbench import closing
    from fusionbench.selection import select_methods, select_tasks

    # Names and settings are checked before a folder is made.
    select_methods(catalog, study.methods, study.settings)
    select_tasks(catalog, study.tasks)
    from fusionbench.progress import make_progress
    from fusionbench.store import Store
    from fusionbench.sweep import run_study

    result = run_study(study, options, catalog, make_progress(quiet=options.quiet))
    closing.note_run(study, options, catalog)
    _say(_found(Store.open(options.out)))
    closing.close(Path(options.out), result, stream)
    if result.interrupted:
        stream.write("interrupted: the same command goes on where this one stopped\n")
        return INTERRUPTED
    return FAILED if result.failed else OK


def dry_run(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Say what `run` would do; no result is written."""
    catalog = read(options.plugins)
    check_encoder(study.encoder, study.budget.image_size)
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
    from fusionbench.closing import report_writer
    from fusionbench.store import Store

    _say(_found(Store.open(folder)))
    stream.write(f"{report_writer()(folder, out).page}\n")
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


def pack(  # noqa: PLR0913  (one argument for each flag)
    out: Path,
    *,
    tasks: Sequence[str],
    encoder: str,
    size: int,
    plugins: Sequence[str],
    stream: TextIO,
) -> int:
    """Pack tasks and weights into a folder and say how large it is."""
    catalog = read(plugins)
    pixels = size or check_encoder(encoder, 0).size
    from fusionbench.packing import pack as write_pack
    from fusionbench.selection import select_tasks
    from fusionbench.settings import split_names

    names = [name for text in tasks for name in split_names(text)]
    chosen, left_out = select_tasks(catalog, names)
    for one in left_out:
        stream.write(f"left out: {one.card.name}: {one.reason}\n")
    try:
        count, written = write_pack(chosen, encoder, size=pixels, out=out)
    except OSError as error:
        raise disk_error(error, out) from error
    stream.write(f"{out}: data of {count} tasks, {written / 2**20:.1f} MiB\n")
    return OK


def read(plugins: Sequence[str]) -> Catalog:
    """The catalog; what could not be used is said and stops nothing."""
    packed: Collection[str] = ()
    if os.environ.get("FUSIONBENCH_DATA"):
        from fusionbench.packed import packed_tasks

        packed = packed_tasks()
    catalog = read_catalog(plugins, packed=packed)
    _say(catalog.problems)
    return catalog


def check_encoder(name: str, image_size: int) -> "EncoderCard":
    """What is known of an encoder. Raises UserError for a name or size that cannot be."""
    from fusionbench.encoders.catalog import describe

    try:
        return describe(name, image_size=image_size)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), "`fusionbench list encoders` shows all") from error


def _found(store: "Store") -> Iterable[Problem]:
    store.finished()
    return store.problems


def _say(problems: Iterable[Problem]) -> None:
    for problem in problems:
        sys.stderr.write(f"note: {problem}\n")
