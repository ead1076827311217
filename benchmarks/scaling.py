"""Time against tokens, blocks, seeds, methods and cells.

    python benchmarks/scaling.py --device cuda
    python benchmarks/scaling.py --draw

`tokens`, `blocks`: a training step of Mema and of a mix, over that of the bare encoder. `seeds`: a
loop on cached features against one pass. `methods`: encoding for each method against once for all
of them. `cells`: planning with nothing done against nine in ten done. `--draw` measures nothing and
draws `scaling.png` from what was measured: one panel an axis, with its floor.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from rows import Row, chosen_device, finish, parser_of
from sampled import empty_cache, encode, jobs
from seeds_on_features import compare
from start_and_plan import plan_rows
from targets import measured
from workload import find, small_budget

from fusionbench.harness.measure import interleaved
from fusionbench.harness.pipeline import build_pipeline, training_step
from fusionbench.models.encoders.vit import ViT, ViTConfig
from fusionbench.study.study import QUICK

TOKENS = (64, 144, 256, 576, 1024)
BLOCKS = (6, 12, 24, 48)
SEEDS = (1, 2, 4, 8, 16, 32)
METHODS = (1, 2, 4, 8, 16)
CELLS = (1_000, 10_000, 100_000)
AXES = ("tokens", "blocks", "seeds", "methods", "cells")
_PATCH = 14
HERE = Path(__file__).parent
FIGURE = "scaling.png"


def step(name: str, *, grid: int, layers: int, asked: argparse.Namespace) -> Row:
    """One point: a step of the bare encoder against one with the method."""
    device = chosen_device(asked.device)
    real = device.type == "cuda"
    dim = 384 if real else 96
    config = ViTConfig(layers=layers, dim=dim, heads=dim // 64 or 1, patch=_PATCH, grid=grid,
                       size=_PATCH * grid, mlp=4 * dim)  # fmt: skip
    encoder = ViT(config)
    encoder.freeze()
    encoder.to(device=device, dtype=torch.bfloat16 if real else torch.float32)
    method, settings = find(name)
    batch = asked.batch or (32 if real else 2)
    pipeline = build_pipeline(method, dict(settings), encoder, width=64, batch=batch)
    steps = [
        training_step(pipeline.fused, pipeline.trained()),
        training_step(pipeline.bare, pipeline.trained(bare=True)),
    ]
    times = interleaved(*steps, device=device, blocks=10 if real else 3)
    point = f"tokens={grid * grid} blocks={layers}"
    return Row(
        target=point, plain=times.bare.median, ours=times.method.median, unit="ms", note=name
    )


def tokens_rows(asked: argparse.Namespace) -> list[Row]:
    """At 12 blocks."""
    sides = [round(n**0.5) for n in asked.points or TOKENS]
    return [step(name, grid=n, layers=12, asked=asked) for name in asked.methods for n in sides]


def blocks_rows(asked: argparse.Namespace) -> list[Row]:
    """At 64 tokens."""
    found = asked.points or BLOCKS
    return [step(name, grid=8, layers=n, asked=asked) for name in asked.methods for n in found]


def seeds_rows(asked: argparse.Namespace) -> list[Row]:
    """Of a mix, on cached features."""
    device = chosen_device(asked.device)
    budget = small_budget(device, 20, 3e-3)
    rows = []
    for seeds in asked.points or SEEDS:
        loop, together = compare("scalar_mix", budget, seeds, device)
        rows.append(
            Row(target=f"seeds={seeds}", plain=loop, ours=together, unit="s", note="scalar_mix")
        )
    return rows


def methods_rows(asked: argparse.Namespace) -> list[Row]:
    """Seconds of encoding a task; the encoder is `nano`."""
    rows = []
    found = [cell for job in jobs(replace(QUICK, seeds=1, tasks=("scenes_count",))) for cell in job]
    for count in asked.points or METHODS:
        alone = 0.0
        for cell in found[:count]:
            with empty_cache():
                alone += encode([cell], asked.device)
        with empty_cache():
            once = encode(found[:count], asked.device)
        rows.append(Row(target=f"methods={count}", plain=alone, ours=once, unit="s"))
    return rows


def cells_rows(asked: argparse.Namespace) -> list[Row]:
    """Seconds of planning."""
    return [
        replace(row, target=f"cells={count}")
        for count in asked.points or CELLS
        for row in plan_rows(count, asked.tasks)
    ]


def main() -> None:
    """Print and write the curves, an axis a file."""
    parser = parser_of(__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--points", nargs="+", type=int, help="Of one axis, in place of all.")
    parser.add_argument("--methods", nargs="+", default=["scalar_mix", "mema"])
    parser.add_argument("--tasks", nargs="+", default=QUICK.tasks, help="Of the axis `cells`.")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--draw", action="store_true", help="Draw what was measured.")
    asked = parser.parse_args()
    if asked.draw:
        draw(HERE / "results", HERE / FIGURE)
        return
    device = chosen_device(asked.device)
    asked.device = str(device)
    ways = (tokens_rows, blocks_rows, seeds_rows, methods_rows, cells_rows)
    for axis, rows_of in zip(AXES, ways, strict=True):
        if axis in asked.axes:
            finish(f"scaling-{axis}", rows_of(asked), device)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One axis; the floor is what no way of doing the work can go below."""

    axis: str
    plain: str
    ours: str
    floor: str


PANELS = (
    Panel(axis="tokens", plain="", ours="step of {}", floor="the bare encoder"),
    Panel(axis="blocks", plain="", ours="step of {}", floor="the bare encoder"),
    Panel(axis="seeds", plain="a loop", ours="one pass", floor="one seed"),
    Panel(axis="methods", plain="for each method", ours="once for all", floor="one encoding"),
    Panel(axis="cells", plain="nothing done", ours="nine in ten done", floor="1,000 cells"),
)
Line = tuple[list[float], list[float]]


def lines(rows: Sequence[dict], panel: Panel) -> dict[str, Line]:
    """The curves of a panel: points along its axis and what was measured, by label."""
    found: dict[str, Line] = {}

    def add(label: str, at: float, value: float) -> None:
        points, values = found.setdefault(label, ([], []))
        points.append(at)
        values.append(value)

    for row in rows:
        at = float(re.search(rf"\b{panel.axis}=(\d+)", row["target"])[1])
        add(panel.ours.format(row["note"]), at, row["ours"])
        if panel.plain:
            add(panel.plain, at, row["plain"])
        elif row["note"] == rows[0]["note"]:
            add(panel.floor, at, row["plain"])
    if panel.plain:
        least = min(rows[0]["plain"], rows[0]["ours"])
        found[panel.floor] = (found[panel.plain][0], [least] * len(found[panel.plain][0]))
    return found


def draw(results: Path, figure: Path) -> None:
    """Write the figure of one folder of results; nothing where an axis was not measured."""
    drawn = {
        panel: values
        for panel in PANELS
        for values in reversed(measured(results))
        if values["script"] == f"scaling-{panel.axis}"
    }
    if not drawn:
        return
    shape, axes = plt.subplots(1, len(drawn), figsize=(3.1 * len(drawn), 3.2))
    for place, (panel, values) in zip([axes] if len(drawn) == 1 else axes, drawn.items(),
                                      strict=True):  # fmt: skip
        _panel(place, panel, values)
    shape.tight_layout()
    shape.savefig(figure, dpi=110)
    plt.close(shape)


def _panel(place: Axes, panel: Panel, values: dict) -> None:
    rows = values["rows"]
    for label, (points, heights) in lines(rows, panel).items():
        style = {"linestyle": ":", "color": "0.45"} if label == panel.floor else {"marker": "o"}
        place.plot(points, heights, label=label, markersize=3, **style)
    place.set(xscale="log", yscale="log", xlabel=panel.axis, ylabel=rows[0]["unit"])
    place.set_xticks(points, [f"{at:,.0f}" for at in points])
    # Labels between powers of ten only where there is room for no more than one of these.
    low, high = place.get_ylim()
    place.yaxis.set_major_formatter("{x:g}")
    place.yaxis.set_minor_formatter("{x:g}" if high < 5 * low else "")
    place.tick_params(which="both", labelsize=7)
    place.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    place.set_title(f"{panel.axis}, {values['device']}", fontsize=9)
    place.legend(fontsize=7, frameon=False)


if __name__ == "__main__":
    main()
