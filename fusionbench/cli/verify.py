"""`fusionbench verify`: whether a folder's files are whole, and whether cells come out again."""

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.cli.app import FAILED, OK, Plugins, app, read
from fusionbench.cli.run import checked_device
from fusionbench.records.cell import CellRecord, RunOptions

if TYPE_CHECKING:
    from fusionbench.records.store import Store
    from fusionbench.study.study import Study


@app.command("verify")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    sample: Annotated[int, typer.Option(min=0, help="Run so many cells again.")] = 0,
    draw: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files and images.")] = "",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Read and hash every stored file, and run a sample of cells again; exit code 1 if one differs.

    Nothing in the folder is changed.
    """
    options = RunOptions(
        device=checked_device(device), workers=workers, data_root=data_root,
        plugins=tuple(plugin), quiet=True,
    )  # fmt: skip
    raise typer.Exit(verify(folder, options, sample=sample, draw=draw, stream=sys.stdout))


def verify(folder: Path, options: RunOptions, *, sample: int, draw: int, stream: TextIO) -> int:
    """Print what is wrong with files and which cells of the sample differ; the exit status."""
    from fusionbench.records.states import audit
    from fusionbench.records.store import Store

    store = Store.open(folder)
    finished = store.finished(reread=True)
    problems = audit(store, finished)
    stream.write("".join(f"{problem}\n" for problem in problems))
    stream.write(f"{len(finished)} cells read and hashed, {len(problems)} problems\n")
    if not sample:
        return FAILED if problems else OK
    done = [one for one in store.records(finished) if one.status == "done" and not one.source]
    chosen = random.Random(draw).sample(done, min(sample, len(done)))
    verdicts = list(_again(store, chosen, options))
    for one in verdicts:
        spec = one.record.spec
        what = f"{one.record.label or spec.method} on {spec.task}, seed {spec.seed}"
        stream.write(f"{one.record.id} {what}: {one.text}\n")
    counts = {word: sum(one.word == word for one in verdicts) for word in WORDS}
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    stream.write(f"{len(chosen)} of {len(done)} cells run again: {said}\n")
    return FAILED if problems or counts[DIFFERS] else OK


EQUAL, WITHIN, DIFFERS, NOT_RUN = "equal bit for bit", "within tolerance", "different", "not run"
WORDS = (EQUAL, WITHIN, DIFFERS, NOT_RUN)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a second run of a cell gave."""

    record: CellRecord
    word: str
    details: str = ""

    @property
    def text(self) -> str:
        """The verdict with its reasons."""
        return f"{self.word}{f': {self.details}' if self.details else ''}"


def _again(store: "Store", records: Sequence[CellRecord], options: RunOptions) -> Iterator[Verdict]:
    """Run cells again in a temporary folder and compare."""
    from fusionbench.study.again import studies_of

    here = [record for record in records if not _needs(record, options)]
    for record in records:
        if record not in here:
            yield Verdict(record=record, word=NOT_RUN, details=_needs(record, options))
    with tempfile.TemporaryDirectory(prefix="fusionbench-verify-") as place:
        for study, group in studies_of(store, here):
            yield from _run(store, study, group, replace(options, out=place))


def _needs(record: CellRecord, options: RunOptions) -> str:
    """What a cell of another kind of device needs; empty for one that can be run here."""
    facts = record.provenance.get("hardware", {})
    on_gpu = str(facts.get("device", "cpu")).startswith("cuda")
    # The parent does not load torch, so it looks for the driver's device instead.
    gpu_here = Path("/dev/nvidiactl").exists() and options.device != "cpu"
    if on_gpu and not gpu_here:
        named = (str(facts[name]) for name in ("gpu", "cuda", "driver") if name in facts)
        return f"it was run on a GPU and needs one: {', '.join(named)}"
    if not on_gpu and options.device.startswith("cuda"):
        return f"it was run on a CPU and needs --device cpu: {facts.get('cpu', '')}"
    return ""


def _run(
    store: "Store", study: "Study", records: Sequence[CellRecord], options: RunOptions
) -> Iterator[Verdict]:
    from fusionbench.cli.run import execute
    from fusionbench.records.store import Store
    from fusionbench.study.parts import only
    from fusionbench.study.plan import resolve

    on_cpu = str(records[0].provenance.get("hardware", {}).get("device", "cpu")) == "cpu"
    options = replace(options, device="cpu") if on_cpu else options
    resolved = resolve(study, read(options.plugins), download=True, data_root=options.data_root)
    ids = {record.id for record in records}
    plan, _ = execute(resolved, options, part=lambda plan: only(plan, ids), note=False)
    planned = {cell.spec.id for cell in plan.cells}
    new = Store.open(options.out)
    reasons = {one.id: one.reason for one in new.failures()}
    for record in records:
        if record.id not in planned:
            code = record.provenance.get("code", {})
            needs = f"{code.get('fusionbench', '?')} {str(code.get('commit', ''))[:12]}".strip()
            details = f"its data, weights, method or plug-in differ here; it was made by {needs}"
            yield Verdict(record=record, word=NOT_RUN, details=details)
        elif (second := new.find(record.id)) is None:
            lines = reasons.get(record.id, "").splitlines() or ["it has no record"]
            yield Verdict(record=record, word=DIFFERS, details=f"it fails now: {lines[-1]}")
        else:
            yield _compared(store, record, new, second)


def _compared(store: "Store", first: CellRecord, new: "Store", second: CellRecord) -> Verdict:
    from fusionbench.study.again import differences, same_machine

    exact = same_machine(first, second)
    outcomes = store.outcomes(first), new.outcomes(second)
    found = differences(first, second, outcomes, exact=exact)
    if found:
        return Verdict(record=first, word=DIFFERS, details=", ".join(found))
    same = not differences(first, second, outcomes, exact=True)
    return Verdict(record=first, word=EQUAL if same else WITHIN)
