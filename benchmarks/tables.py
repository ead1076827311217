"""Tables and sentences of README.md and docs/, made from the tables of a shipped report."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from fusionbench.harness.pipeline import SHAPES, operations
from fusionbench.stats.estimate import FEWEST_REPLICATES

MOST = 12
"""Rows of a table of methods."""
SIZE = "shape:clip-vit-l-14-336"
"""Encoder of the table of costs; its language model is that of LLaVA-1.5-7B."""
DELTA = ("delta", "low", "high")
CONTROL = ("control_delta", "control_low", "control_high")
SUITE = ("delta", "delta_low", "delta_high")
EFFECT = ("value", "ci_low", "ci_high")
_SHORT = (
    *(r"On the \d+ task", "Worse than ", "Other planned comparisons: ", "How sure: "),
    *("Of the methods that read one layer", r"Of \d+ controls? "),
    *(r"Of the \d+ methods with ", "`[^`]+` has the highest mean of ", "`random_layers`"),
)


def answer(folder: Path) -> str:
    """The sentences of the report."""
    return (folder / "report" / "tables" / "answer.md").read_text(encoding="utf-8").strip()


def short(folder: Path) -> str:
    """Of the report's sentences: what is better or worse, how sure, what a random choice gives."""
    starts = re.compile(f"- ({'|'.join(_SHORT)})")
    return "\n".join(line for line in answer(folder).splitlines() if starts.match(line))


def drawn(folder: Path) -> str:
    """The report's sentence on layers drawn at random."""
    lines = [line for line in answer(folder).splitlines() if line.startswith("- `random_layers`")]
    return lines[0].removeprefix("- ") if lines else "`random_layers` lacks runs here"


def undecided(folder: Path) -> str:
    """How many planned contrasts on the suite are undecided, and how many have no verdict yet."""
    rows = contrasts(folder)
    open_ = [row for row in rows if row["verdict"] == "undecided"]
    absent = [row for row in rows if not row["verdict"]]
    said = f"Of {len(rows)} planned contrasts on the suite {len(open_)} are undecided"
    if absent:
        said += f" and {len(absent)} have no verdict yet, since a method or its control lacks runs"
    named = [
        f"`{row['method']}` - `{row['baseline']}` ({100 * float(row['mde']):.1f})"
        for row in open_
        if row["mde"]
    ]
    effects = "Smallest detectable effects of the harder of their two comparisons, points"
    detectable = f" {effects}: {', '.join(named)}." if named else ""
    return f"{said}.{detectable}"


def planned(folder: Path) -> str:
    """The planned contrasts on the suite, at most twelve rows."""
    added = {row["method"].split(" (")[0]: row["added"] for row in _methods(folder)}
    found = contrasts(folder)
    rows = [
        {
            "method": f"`{row['method']}`",
            "against": f"`{row['baseline']}`",
            "difference, points": interval(row, *DELTA),
            "from its matched control": interval(row, *CONTROL),
            "verdict": f"{row['verdict']}{part(row, found)}" or row["reason"].partition(":")[0],
            "parameters beyond `penultimate`": added.get(row["method"], ""),
        }
        for row in found
    ]
    return markdown(rows)


def part(row: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> str:
    """` (4 of 10 runs)` for a verdict where other rows have more runs; else empty."""
    runs, most = (max(int(one["n_seeds"] or 0) for one in some) for some in ([row], rows))
    return f" ({runs} of {most} runs)" if row["verdict"] and runs < most else ""


def anatomy(folder: Path) -> str:
    """The effects of the combined switches of an ablation, over its suite tasks."""
    rows = [row for row in read_rows(folder, "ablation") if row["design"] == "factorial"]
    found = [row for row in rows if row["task"] == "overall"]
    return markdown(
        [
            {
                "effect": f"`{row['effect']}`",
                "kind": row["kind"],
                "difference, points": interval(row, *EFFECT),
                "p (Holm)": f"{float(row['p_holm']):.2g}" if row["p_holm"] else "",
                "runs": row["n_seeds"],
                "settings of the others": row["contexts"],
            }
            for row in found
        ]
    )


def leaders(folder: Path) -> str:
    """The methods with the highest mean on the suite, and the baseline: at most twelve rows."""
    ranked = sorted(suite(folder), key=lambda row: -float(row["score"]))
    baseline = Counter(row["baseline"] for row in contrasts(folder)).most_common(1)[0][0]
    kept = [row for n, row in enumerate(ranked) if n < MOST - 1 or row["method"] == baseline]
    rows = [
        {
            "method": f"`{row['method']}`",
            "role": row["role"],
            "of the way from chance to all right, %": f"{100 * float(row['score']):.1f}",
            "difference from the baseline, points": interval(row, *SUITE),
            "runs": row["n_seeds"],
            "parameters added": row["added"],
        }
        for row in kept
    ]
    return markdown(rows)


def costs(folder: Path) -> str:
    """What the planned methods and their controls add to the baseline at LLaVA-1.5's size.

    Counts are an image's, and cover products and attention. A method that reads the last block
    needs a block more of the encoder than the penultimate layer does, which counts as its own. The
    time is measured beside the encoder with the method's blocks, in the same run.
    """
    named = [[row["baseline"], row["method"], row["control"]] for row in contrasts(folder)]
    wanted = dict.fromkeys(name for names in named for name in names if name)
    found = {row["method"]: row for row in read_rows(folder, "cost") if row["encoder"] == SIZE}
    bare = float(found[named[0][0]]["flops_encoder"])
    model = operations(SHAPES[SIZE].grid ** 2)
    return markdown([_cost(name, found[name], bare, model) for name in wanted if name in found])


def _cost(name: str, row: Mapping[str, str], bare: float, model: float) -> dict[str, str]:
    added = float(row["flops_over_encoder"]) + float(row["flops_encoder"]) - bare
    inside = float(row["flops_language_model_over"])
    return {
        "method": f"`{name}`",
        "parameters added": f"{int(row['added_max']):,}",
        "GFLOP added": f"{added / 1e9:+,.1f} ({100 * added / bare:+.1f} %)",
        "in the language model": f"{inside / 1e9:+,.0f} ({100 * inside / model:+.0f} %)"
        if inside
        else "0",
        "gradients in the encoder": "no" if row["cacheable"] == "true" else "yes",
        "time over the same blocks, %": _slower(row),
    }


def _slower(row: Mapping[str, str]) -> str:
    """`+3 [+1, +5]`: median and quartiles; empty where no time was measured."""
    if not row["latency_ms"]:
        return ""
    ends = ("latency_over_encoder_ms", "latency_over_encoder_q1_ms", "latency_over_encoder_q3_ms")
    over, low, high = (float(row[name]) for name in ends)
    share = 100 / (float(row["latency_ms"]) - over)
    middle, first, third = (round(share * value) for value in (over, low, high))
    return f"{middle:+d} [{first:+d}, {third:+d}]"


def layers(folder: Path) -> str:
    """For each task: chance, the best single layer and the last one that was read."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(folder, "references"):
        found.setdefault(row["task"], []).append(row)
    rows = []
    for task, scores in found.items():
        best = max(scores, key=lambda row: float(row["score"]))
        last = max(scores, key=lambda row: int(row["layer"]))
        rows.append(
            {
                "task": task,
                "chance, %": f"{100 * float(best['chance']):.1f}",
                "best layer, %": f"{100 * float(best['score']):.1f} (hs[{best['layer']}])",
                "deepest layer read, %": f"{100 * float(last['score']):.1f} (hs[{last['layer']}])",
                "mark": best["mark"],
            }
        )
    return markdown(rows)


def contrasts(folder: Path) -> list[dict[str, str]]:
    """The planned contrasts on the suite."""
    return [
        row
        for row in read_rows(folder, "contrasts")
        if row["kind"] == "planned" and row["scope"] == "suite"
    ]


def suite(folder: Path) -> list[dict[str, str]]:
    """The methods with a mean on the suite and enough runs for a test."""
    return [
        row for row in _methods(folder) if row["score"] and int(row["n_seeds"]) >= FEWEST_REPLICATES
    ]


def with_runs(row: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> str:
    """`` `mema` +1.2 [-0.4, +2.8] (4 of 10 runs)``: a method's difference from the baseline."""
    runs, most = int(row["n_seeds"]), max(int(one["n_seeds"]) for one in rows)
    partial = f" ({runs} of {most} runs)" if runs < most else ""
    return f"`{row['method']}` {interval(row, *SUITE)}{partial}"


def _methods(folder: Path) -> list[dict[str, str]]:
    return [row for row in read_rows(folder, "summary") if row["aggregate"] == "suite"]


def interval(row: Mapping[str, str], *names: str) -> str:
    """`+1.2 [-0.4, +2.8]`; empty where nothing was measured."""
    if not row[names[0]]:
        return ""
    value, low, high = (f"{100 * float(row[name]):+.1f}" for name in names)
    return f"{value} [{low}, {high}]"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table in Markdown, cells as they are."""
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of `report/tables/NAME.csv`."""
    path = folder / "report" / "tables" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
