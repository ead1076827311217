"""`fusionbench.run` in Python: the command `run` with names or classes, returning data frames."""

import inspect
from collections.abc import Iterable, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import UserError
from fusionbench.cli.app import note, read
from fusionbench.cli.run import assemble, checked_device, execute, explain
from fusionbench.cli.summary import report_writer
from fusionbench.records.cell import RunOptions
from fusionbench.registry.cards import MethodCard
from fusionbench.report.results import LoadedResults
from fusionbench.study.folders import with_folders
from fusionbench.study.plan import resolve

if TYPE_CHECKING:
    from fusionbench.api.fusion import Fusion
    from fusionbench.launchers.sweep import SweepResult
    from fusionbench.study.plan import Plan


def run_study(  # noqa: PLR0913  (the flags of the command, as keywords)
    methods: "Sequence[str | type[Fusion]]",
    tasks: Sequence[str],
    *,
    out: str | Path,
    preset: str,
    encoder: str,
    seeds: int | None,
    plugins: Sequence[str | Path],
    device: str,
    workers: int,
    quiet: bool,
    again: bool,
) -> LoadedResults:
    """Run the missing cells, write the report, and return the folder's results.

    Raises UserError for what the command refuses, for a class without a file, and where every cell
    failed; KeyboardInterrupt where the run was interrupted.
    """
    wanted = [methods] if isinstance(methods, str | type) else list(methods)
    _require_use(wanted, tasks)
    files = [_file(one) for one in wanted if not isinstance(one, str)]
    given = [str(path) for path in plugins]
    catalog = read(given)
    known = {card.file for card in catalog.methods.values()}
    given += [file for file in dict.fromkeys(files) if file not in known]
    catalog = read(given)
    cards = catalog.methods.values()
    names = [one if isinstance(one, str) else _name(one, cards) for one in wanted]
    study = assemble(
        None, preset, methods=names, tasks=[tasks] if isinstance(tasks, str) else list(tasks),
        encoder=encoder, seeds=seeds, settings=(),
    )  # fmt: skip
    study, plugged = with_folders(study, given, hear=note)
    catalog = read(plugged) if len(plugged) > len(given) else catalog
    options = RunOptions(
        out=str(out), device=checked_device(device), workers=workers, plugins=plugged,
        quiet=quiet,
    )  # fmt: skip
    plan, result = execute(resolve(study, catalog, download=True, hear=note), options, again=again)
    return _results(plan, result, options)


def _results(plan: "Plan", result: "SweepResult", options: RunOptions) -> LoadedResults:
    """The folder's results with a new report. Raises as `run_study` does after its run."""
    if result.interrupted:
        raise KeyboardInterrupt("the same call resumes the run")
    report_writer()(options.out)
    if result.failed:
        _tell_failed(plan, result, options)
    return LoadedResults(options.out)


def _tell_failed(plan: "Plan", result: "SweepResult", options: RunOptions) -> None:
    """Say how many cells failed and why. Raises UserError where none was finished."""
    explain(plan)
    text = f"{result.failed} of {len(plan.cells)} cells failed"
    where = f"fusionbench.load({options.out!r}).cells() has their reasons"
    if result.failed == len(plan.cells):
        raise UserError(text, where)
    note(f"{text}; {where}")


def _require_use(methods: Sequence[object], tasks: Sequence[str]) -> None:
    """Raise UserError for empty lists, and in a worker that imports a method from a script."""
    if parent_process() is not None:
        raise UserError(
            "fusionbench.run was called by the import of a script in a worker process",
            'call it below a line `if __name__ == "__main__":`, or put the method into a file of '
            "its own",
        )
    for what, names in (("methods", methods), ("tasks", tasks)):
        if not names:
            raise UserError(f"{what} is empty", 'name at least one, or "all"')


def _file(method: "type[Fusion]") -> str:
    """The file of a class. Raises UserError if it has none."""
    try:
        file = inspect.getsourcefile(method)
    except TypeError:
        file = None
    if not file or not Path(file).is_file():
        raise UserError(
            f"the class {method.__qualname__} is in no file, so no worker can import it",
            f"write the cell with %%writefile {method.__name__.lower()}.py and name that file in "
            "plugins=[...]",
        )
    return str(Path(file).resolve())


def _name(method: "type[Fusion]", cards: Iterable[MethodCard]) -> str:
    """The registered name of a class, without variants. Raises UserError if there is none."""
    file = _file(method)
    found = [card.name for card in cards if card.file == file and card.cls == method.__qualname__]
    if not found:
        raise UserError(
            f"{method.__qualname__} in {file} is not registered as a method",
            'decorate it: @method("name", version=1)',
        )
    return found[0]
