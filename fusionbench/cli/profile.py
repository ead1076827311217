"""`fusionbench profile` and `probe-layers`: cost of methods, and linear probes of the layers."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.errors import UserError, disk_error
from fusionbench.cli.app import (
    FAILED,
    OK,
    Plugins,
    Settings,
    app,
    check_encoder,
    read,
    refuse_plugged,
    usable_tasks,
)
from fusionbench.cli.run import checked_device
from fusionbench.records.cost import ProfileOptions

if TYPE_CHECKING:
    from fusionbench.records.cost import CostRecord
    from fusionbench.registry.selection import Chosen

DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}


class TimedMode(StrEnum):
    """What is timed."""

    INFERENCE = "inference"
    TRAIN = "train"


@app.command("profile")
def profile_command(
    methods: Annotated[list[str], typer.Argument(help="all, names, globs.")] = ["all"],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="A name, or shape:clip-vit-l-14-336.")] = "nano",
    out: Annotated[Path, typer.Option(help="A folder of results.")] = Path("results/local"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or meta: count only.")] = "auto",
    mode: Annotated[TimedMode, typer.Option()] = TimedMode.INFERENCE,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 32,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    width: Annotated[
        int, typer.Option(min=1, help="Width of the projector; 4096 for a 7B model.")
    ] = 4096,
    size: Annotated[int, typer.Option(min=0, help="Pixels; 0: the encoder's default.")] = 0,
    compile: Annotated[str, typer.Option(help="off, default, reduce-overhead.")] = "off",
    language_model: Annotated[
        bool,
        typer.Option("--language-model", help="Include a 7B language model with random weights."),
    ] = False,
    missing: Annotated[bool, typer.Option(help="Skip profiles that exist in --out.")] = False,
    blocks: Annotated[int, typer.Option(min=2, help="Timed blocks.")] = 30,
    settings: Settings = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Measure parameters, operations, time and memory over the bare encoder."""
    asked = ProfileOptions(
        encoder=encoder,
        image_size=size,
        width=width,
        batch=batch,
        dtype=_one_of("dtype", dtype, tuple(DTYPES)),
        device=device if device == "meta" else checked_device(device),
        mode="train" if mode is TimedMode.TRAIN else "inference",
        compile=_one_of("compile", compile, ("off", "default", "reduce-overhead")),
        language_model=language_model,
        blocks=blocks,
    )
    chosen = _choose(methods, settings, plugin)
    raise typer.Exit(profile(chosen, asked, out, sys.stdout, missing=missing))


def profile(
    chosen: "tuple[Chosen, ...]",
    asked: ProfileOptions,
    out: Path,
    stream: TextIO,
    *,
    missing: bool = False,
) -> int:
    """Profile each method, write its record and print a line. Returns the exit code.

    With `missing`, methods that have a profile under these conditions are skipped.
    """
    from fusionbench.api.types import Unsupported
    from fusionbench.harness.profile import Bench
    from fusionbench.records.cost import read, write

    bench = Bench(asked)
    failed = False
    known = {record.id for record in read(out)} if missing else set()
    for one in chosen:
        if known and bench.conditions(one).id in known:
            continue
        try:
            record = bench.profile(one)
        except Unsupported as reason:
            stream.write(f"{one.label}: skipped: {reason}\n")
            continue
        except (RuntimeError, ValueError, TypeError) as error:
            failed = True
            stream.write(f"{one.label}: failed: {type(error).__name__}: {error}\n")
            continue
        write(out, record)
        stream.write(f"{line(record)}\n")
    stream.write(f"profiles: {out / 'profiles'}\n")
    return FAILED if failed else OK


def line(record: "CostRecord") -> str:
    """The profile in one line, without what was not measured."""
    parts = [f"{record.parameters['over_projector']:+,} parameters"]
    if record.flops_over_encoder is not None:
        parts.append(f"{record.flops_over_encoder / 1e9:+.3g} GFLOP")
    if record.latency_over_encoder_ms is not None:
        over = record.latency_over_encoder_ms
        parts.append(f"{over.median:+.2f} ms per batch ({over.q1:+.2f} to {over.q3:+.2f})")
    if record.throughput is not None:
        parts.append(f"{record.throughput:.4g} images/s")
    if record.peak_memory_over_encoder_bytes is not None:
        parts.append(f"{record.peak_memory_over_encoder_bytes / 2**20:+.3g} MiB")
    return f"{record.label}: {', '.join(parts)}"


def _choose(methods: list[str], settings: list[str], plugins: list[str]) -> "tuple[Chosen, ...]":
    from fusionbench.registry.selection import select_methods, split_names
    from fusionbench.study.reading import with_overrides
    from fusionbench.study.study import QUICK

    catalog = read(plugins)
    names = [name for text in methods for name in split_names(text)]
    study = with_overrides(QUICK, methods=names, settings=settings)
    return select_methods(catalog, study.methods, study.settings)


def _one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UserError(f"no {what} {value!r}", f"known: {', '.join(known)}")
    return value


@app.command("probe-layers")
def probe_layers_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Maps go to DIR/probes.")],
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "nano",
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = ["all"],  # noqa: B006
    size: Annotated[int, typer.Option(min=0, help="Pixels; 0: the encoder's default.")] = 0,
    train: Annotated[int, typer.Option(min=1, help="Training examples.")] = 1000,
    val: Annotated[
        int, typer.Option(min=1, help="Validation examples, which choose the penalty.")
    ] = 300,
    test: Annotated[int, typer.Option(min=1, help="Test examples.")] = 500,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Fit a linear probe on every layer of an encoder, task by task; existing maps are kept."""
    limits = (train, val, test)
    raise typer.Exit(
        probe(
            out,
            encoder=encoder,
            tasks=tasks,
            size=size,
            limits=limits,
            plugins=plugin,
            stream=sys.stdout,
        )
    )


def probe(
    out: Path,
    *,
    encoder: str,
    tasks: Sequence[str],
    size: int,
    limits: tuple[int, int, int],
    plugins: Sequence[str],
    stream: TextIO,
) -> int:
    """Probe each task and print its best layer. Returns the exit code."""
    catalog = read(plugins)
    refuse_plugged(catalog, encoder, "probe-layers")
    check_encoder(catalog, encoder, size)
    chosen = usable_tasks(catalog, tasks, stream)
    from fusionbench.harness.probes import ProbeLimits, probe_tasks

    train, val, test = limits
    sizes = ProbeLimits(train=train, val=val, test=test)
    try:
        for done in probe_tasks(encoder, chosen, out, image_size=size, limits=sizes):
            best = max(range(len(done.map.val)), key=lambda layer: done.map.val[layer])
            score = f"hs[{best}] {100 * done.map.layers[best]:.1f} %, chosen on val"
            there = "kept, " if done.kept else ""
            stream.write(f"{done.map.task}: {there}best layer {score}: {done.file}\n")
    except OSError as error:
        raise disk_error(error, out) from error
    return OK
