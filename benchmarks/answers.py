"""Write measured numbers into README.md and four pages of docs/, between comments.

    python benchmarks/answers.py

`<!-- leaders of results/quick -->` and `<!-- end of leaders -->` enclose one block, of lines of its
own or inside a sentence. Every number comes from a shipped folder: from its report's tables
(`tables.py`), which a test writes anew from the records, or from the records themselves.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tables import (
    CONTROL,
    DELTA,
    SUITE,
    anatomy,
    answer,
    contrasts,
    costs,
    drawn,
    interval,
    layers,
    leaders,
    markdown,
    part,
    planned,
    short,
    suite,
    undecided,
    with_runs,
)

from fusionbench.models.encoders.catalog import describe
from fusionbench.records.cell import CellRecord
from fusionbench.records.pairs import Results, minus, task_weights
from fusionbench.records.scores import ScoreTable
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.report.claims import PUBLISHED, ClaimAnswer, answers, load_claims
from fusionbench.report.tables import interval as estimated
from fusionbench.stats.estimate import Estimate

ROOT = Path(__file__).resolve().parent.parent
_DOCS = ("index", "findings", "gpu-hours", "first-ten-minutes")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in _DOCS))
CLAIMS = (PUBLISHED, str(ROOT / "docs" / "claims.yaml"))
COMPARED = {"paper": "quick", "vlm": "paper"}
"""The folder whose means a folder's are compared with."""
BASELINE = "penultimate"
FEWEST = 8
"""Methods for a correlation."""
DRAWS = 2000
_DEPTH = "layer at "
_DECODER = "penultimate-decoder"
_HOURS = {"probe": "hours in cells", "vlm": "hours of scoring (of training none are recorded)"}
Study = tuple[Results, ScoreTable]
BLOCK = re.compile(r"<!-- (\w+) of (results/\w+) -->(\n?).*?<!-- end of \1 -->", re.DOTALL)


def claims(folder: Path) -> str:
    """Each published claim with its verdict, difference and interval."""
    found = _answered(folder)
    counts = Counter(_verdict(one) for one in found)
    said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    ran = [one for one in found if one.measured.estimate is not None]
    return f"Of {len(found)} claims: {said}.\n\n{markdown([_claim(one) for one in ran])}"


def _answered(folder: Path) -> list[ClaimAnswer]:
    """The claims of all files, as one correction group."""
    found = [one for source in CLAIMS for one in load_claims(source)]
    return answers(found, Results.open(folder), read_catalog())


def says(folder: Path) -> str:
    """What the verdicts say, as a list: contrasts, claims, single layers, controls, gaps."""
    lines = [
        *_decided(folder),
        *_claimed(_answered(folder)),
        *_fixed_layers(folder),
        *_controls_above(folder),
        *_moved_controls(folder),
        *_decoder(folder),
    ]
    absent: dict[str, list[str]] = {}
    for row in contrasts(folder):
        if not row["verdict"]:
            pair = f"`{row['method']}` against `{row['baseline']}`"
            absent.setdefault(row["reason"].partition(":")[0], []).append(pair)
    for reason, pairs in absent.items():
        lines.append(f"**Without a verdict (planned), {reason}:** {', '.join(pairs)}.")
    return "\n".join(f"- {line}" for line in lines)


def _decided(folder: Path) -> Iterator[str]:
    """Planned contrasts on the suite by verdict, the undecided ones last."""
    rows: dict[str, list[str]] = {}
    found = contrasts(folder)
    for row in found:
        if not row["verdict"]:
            continue
        text = f"`{row['method']}` against `{row['baseline']}` {interval(row, *DELTA)}"
        if row["control_delta"] and row["control"] != row["baseline"]:
            text += f" and against its control `{row['control']}` {interval(row, *CONTROL)}"
        if row["verdict"] == "better" and abs(float(row["delta"])) < float(row["margin"]):
            text += f", less than the margin of {100 * float(row['margin']):.1f}"
        text += part(row, found)
        rows.setdefault(row["verdict"], []).append(text)
    for name in sorted(rows, key=lambda one: (one == "undecided", one)):
        yield f"**{name.capitalize()} (planned):** {'; '.join(rows[name])}."


def _claimed(found: Sequence[ClaimAnswer]) -> Iterator[str]:
    """The claims that hold and those that fail, in their own words; the number of the others."""
    for name in ("holds", "fails"):
        of = [one.claim for one in found if _verdict(one) == name]
        if of:
            text = "; ".join(f"{one.sentence.rstrip('.')} (`{one.method}`)" for one in of)
            yield f"**Claims of papers, {name}:** {text}."
    counts = Counter(_verdict(one) for one in found)
    yield f"**Claims of papers, undecided:** {counts['undecided']}; not run: {counts['not run']}."


def _fixed_layers(folder: Path) -> Iterator[str]:
    """Single layers whose whole interval is above the baseline."""
    rows = [row for row in suite(folder) if row["method"].startswith("layer[") and row["delta"]]
    better = [row["method"] for row in rows if float(row["delta_low"]) > 0]
    if rows:
        yield (
            f"**The baseline:** of {len(rows)} fixed layers {len(better)} are above it with "
            f"their whole interval{f' ({_listed(better)})' if better else ''}; a gain over it need "
            "not come from fusing anything."
        )


def _controls_above(folder: Path) -> Iterator[str]:
    """Controls whose whole interval is above the baseline, those that repeat a layer aside."""
    rows = [row for row in suite(folder) if row["role"] == "control" and row["delta"]]
    above = [r for r in rows if float(r["delta_low"]) > 0 and not r["method"].startswith("repeat")]
    if above:
        named = ", ".join(with_runs(row, rows) for row in above)
        yield (
            f"**Controls above the baseline (exploratory):** {named}. What a control gains is not "
            "the work of the part that it lacks."
        )


def _moved_controls(folder: Path) -> Iterator[str]:
    """Controls that repeat one layer and whose interval of the difference leaves zero out."""
    rows = [row for row in suite(folder) if row["method"].split("_")[0] == "repeat"]
    rows = [row for row in rows if row["delta"]]
    moved = [row for row in rows if float(row["delta_low"]) > 0 or float(row["delta_high"]) < 0]
    if moved:
        named = [with_runs(row, rows) for row in moved]
        yield (
            f"**One layer repeated differs from the baseline (exploratory):** {', '.join(named)}. "
            "The reader is not neutral to that form, so a method of that form is judged by its "
            "control."
        )


def _decoder(folder: Path) -> Iterator[str]:
    """What reading the baseline's layer through the decoder changes, and what then is gained."""
    rows = {row["method"]: row for row in suite(folder) if row["delta"]}
    if _DECODER not in rows:
        return
    inside = [row["method"] for row in contrasts(folder) if row["baseline"] == _DECODER]
    gained = [f"`{name}` {interval(rows[name], *SUITE)}" for name in inside if name in rows]
    yield (
        f"**The decoder (exploratory):** the penultimate layer read through a small decoder, "
        f"`{_DECODER}`, differs from the baseline by {interval(rows[_DECODER], *SUITE)}. What is "
        f"compared with it differs from the baseline itself by: {', '.join(gained) or 'not run'}."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def hours(folder: Path) -> str:
    """Processor hours of its cells, as its records store them, in a phrase of a sentence."""
    seconds = sum(record.seconds or 0.0 for record in Store.open(folder).records())
    return f"{seconds / 3600:.1f} hours"


def source(folder: Path) -> str:
    """Number of cells and the commits that they ran at, in a phrase of a sentence."""
    records = list(Store.open(folder).records())
    return f"{len(records):,} cells, run at {', '.join(_commits(records))}"


def run(folder: Path) -> str:
    """What was run: encoder, tasks, seeds, cells, processor hours, device and commits."""
    records = list(Store.open(folder).records())
    done = Counter(record.status for record in records)
    hours = sum(record.seconds or 0.0 for record in records) / 3600
    words = {
        "encoder": {record.spec.encoder for record in records},
        "methods and settings": {record.label for record in records},
        "tasks": {record.spec.task for record in records},
        "seeds": {str(record.spec.seed) for record in records},
    }
    rows = [
        {
            "what": name,
            "value": ", ".join(sorted(values)) if len(values) < 4 else str(len(values)),
        }
        for name, values in words.items()
    ]
    rows += [
        {"what": "cells", "value": ", ".join(f"{n:,} {status}" for status, n in done.items())},
        {"what": _HOURS[records[0].spec.track], "value": f"{hours:.1f}"},
        *_origin(records),
    ]
    return markdown(rows)


def agreement(folder: Path) -> str:
    """Rank correlation of the methods' means with those of another study, by group of tasks.

    Over the tasks that count in both. Fixed layers are paired by their share of the encoder's
    depth.
    """
    both = [_study(one)[1] for one in (folder, _other(folder))]
    tasks = sorted(_counted(both[0]) & _counted(both[1]))
    here, there = (_means(table, tasks) for table in both)
    rows = []
    for group in here:
        named = sorted(set(here[group]) & set(there.get(group, {})))
        pairs = np.array([[here[group][name], there[group][name]] for name in named])
        if len(named) < FEWEST:
            continue
        others = pairs[[not name.startswith(_DEPTH) for name in named]]
        known = len(others) >= FEWEST
        rows.append(
            {
                "tasks": group,
                "methods in both": str(len(named)),
                "Spearman's correlation": _correlated(pairs),
                "without fixed layers": f"{_correlated(others)}, {len(others)}" if known else "",
            }
        )
    return markdown(rows) if rows else "Fewer than eight methods are in both studies."


def carried(folder: Path) -> str:
    """Each method's difference from the baseline on the tasks of two studies.

    Above the table stands which of those that differ there, their interval without zero, differ
    here in the same direction, in the other one, or not.
    """
    both = _study(folder), _study(_other(folder))
    counted = [_counted(table) for _, table in both]
    tasks = sorted(counted[0] & counted[1])
    here, there = (_differences(one, tasks) for one in both)
    shared = sorted(here.keys() & there.keys(), key=lambda name: -float(there[name].value))
    named: dict[str, list[str]] = {}
    for name in shared:
        if first := _direction(there[name]):
            second = _direction(here[name])
            words = "the same" if second == first else "opposite" if second else "not decided"
            named.setdefault(words, []).append(name)
    said = "; ".join(f"{words}: {_listed(names)}" for words, names in named.items())
    table = markdown(
        [
            {
                "method": f"`{name}`",
                f"`{COMPARED[folder.name]}`, points": estimated(there[name]),
                f"`{folder.name}`, points": estimated(here[name]),
            }
            for name in shared
        ]
    )
    left = sorted(counted[1] - set(tasks))
    without = f" (without {_listed(left)}, which does not count in `{folder.name}`)" if left else ""
    count = sum(map(len, named.values()))
    return (
        f"On the {len(tasks)} tasks that count in both{without}, {count} of the {len(shared)} "
        f"methods in both differ from the baseline in `{COMPARED[folder.name]}` (exploratory, the "
        f"interval without zero). Their direction in `{folder.name}` is {said}.\n\n{table}"
    )


def starts(folder: Path) -> str:
    """The reader's leave-one-out error before and after training: planned methods, all controls.

    The mean over tasks and then over the runs that have all tasks. The baseline trains nothing;
    others that train nothing are left out.
    """
    _, table = _study(folder)
    columns = _columns(table, sorted(_counted(table)))
    named = [[row["baseline"], row["method"], row["control"]] for row in contrasts(folder)]
    named.append([row["method"] for row in suite(folder) if row["role"] == "control"])
    rows = []
    for name in dict.fromkeys(name for names in named for name in names if name in table.methods):
        errors = list(_errors(table, table.methods.index(name), columns))
        first, last = np.array(errors).mean(axis=0) if errors else (np.nan, np.nan)
        if np.isfinite(first) or name == BASELINE:
            rows.append(
                {
                    "method": f"`{name}`",
                    "runs": str(len(errors)),
                    "error at the start": f"{first:.3f}" if np.isfinite(first) else "",
                    "error after training": f"{last:.3f}",
                }
            )
    return markdown(rows)


def _errors(table: ScoreTable, row: int, columns: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Means over tasks of the errors before (NaN if none) and after, for each run with all."""
    for seed in range(len(table.seeds)):
        cells = [table.cells.get((row, column, seed)) for column in columns]
        fits = [cell.fit for cell in cells if cell is not None and cell.fit]
        if len(fits) == len(columns):
            first = np.mean([float(fit.get("error_before", np.nan)) for fit in fits])
            yield float(first), float(np.mean([float(fit["error"]) for fit in fits]))


def _study(folder: Path) -> Study:
    """The records of a study and its table. Raises ValueError for one of several conditions."""
    found = Results.open(folder)
    tables = [table for table in found.tables if table.suite.any()]
    if len(tables) != 1:
        raise ValueError(f"{folder} has {len(tables)} conditions, not one")
    return found, tables[0]


def _counted(table: ScoreTable) -> set[str]:
    return {task.name for task in table.tasks if task.counts}


def _columns(table: ScoreTable, tasks: Iterable[str]) -> list[int]:
    names = [task.name for task in table.tasks]
    return [names.index(task) for task in tasks]


def _differences(study: Study, tasks: Sequence[str]) -> dict[str, Estimate]:
    """Of each method with all runs: its difference from the penultimate layer on these tasks."""
    results, table = study
    columns = _columns(table, tasks)
    baseline, weights = table.methods.index(BASELINE), task_weights(table, columns)
    found = {
        name: results.contrast(table, minus(row, baseline), columns, weights)
        for row, name in enumerate(table.methods)
        if row != baseline and _complete(table, row, columns)
    }
    return {name: one.estimate for name, one in found.items() if one.estimate is not None}


def _complete(table: ScoreTable, row: int, columns: Sequence[int]) -> bool:
    return bool(np.isfinite(table.values[row, columns]).all())


def _means(table: ScoreTable, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """{group of tasks: {method: mean}}; a fixed layer is named by its depth.

    A mean counts every task the same, from chance (0) to all right (1). A method without all runs
    is left out.
    """
    columns = _columns(table, tasks)
    blocks = describe(table.condition.encoder).layers
    chance = np.array([task.chance for task in table.tasks])
    groups = {"suite": columns}
    for column in columns:
        groups.setdefault(table.tasks[column].group, []).append(column)
    found: dict[str, dict[str, float]] = {group: {} for group in groups}
    for row, label in enumerate(table.methods):
        if not _complete(table, row, columns):
            continue
        layer = re.fullmatch(r"layer\[index=(\d+)\]", label)
        name = f"{_DEPTH}{Fraction(int(layer[1]), blocks)}" if layer else label
        scores = (table.values[row].mean(axis=-1) - chance) / (1 - chance)
        for group, inside in groups.items():
            found[group][name] = float(scores[inside].mean())
    return found


def _direction(one: Estimate) -> int:
    """The sign of a difference whose interval is without zero, else 0."""
    low, high = one.interval()
    return int(low > 0) - int(high < 0)


def _other(folder: Path) -> Path:
    return folder.parent / COMPARED[folder.name]


def _correlated(pairs: np.ndarray) -> str:
    low, high = _bootstrapped(pairs)
    return f"{_correlation(pairs):+.2f} [{low:+.2f}, {high:+.2f}]"


def _correlation(pairs: np.ndarray) -> float:
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def _bootstrapped(pairs: np.ndarray) -> tuple[float, float]:
    """95 % interval over draws of the methods."""
    draws = np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs)))
    found = [_correlation(pairs[draw]) for draw in draws]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


BLOCKS: Mapping[str, Callable[[Path], str]] = {
    one.__name__: one
    for one in (
        answer,
        short,
        drawn,
        planned,
        leaders,
        costs,
        layers,
        claims,
        undecided,
        says,
        agreement,
        carried,
        starts,
        anatomy,
        hours,
        source,
        run,
    )
}


def written(page: str, root: Path = ROOT) -> str:
    """The page with each block made anew. Raises KeyError for a block of another name."""

    def block(found: re.Match[str]) -> str:
        name, folder, line = found.groups()
        made = BLOCKS[name](root / folder)
        return f"<!-- {name} of {folder} -->{line}{made}{line}<!-- end of {name} -->"

    return BLOCK.sub(block, page)


def _claim(one: ClaimAnswer) -> dict[str, str]:
    return {
        "claim": one.claim.sentence,
        "tested as": one.claim.tested,
        "verdict": f"**{_verdict(one)}**",
        "difference, points": f"{one.value:+.1f} [{one.low:+.1f}, {one.high:+.1f}]",
        "source": f"{one.claim.source} ({one.claim.evidence})",
    }


def _verdict(one: ClaimAnswer) -> str:
    return "not run" if one.measured.estimate is None else str(one.verdict)


def _origin(records: Sequence[CellRecord]) -> list[dict[str, str]]:
    seen = [record.provenance["hardware"] for record in records if record.provenance]
    devices = {str(one.get("gpu") or one["cpu"]) for one in seen}
    return [
        {"what": "device", "value": ", ".join(sorted(devices))},
        {"what": "commits", "value": ", ".join(_commits(records))},
    ]


def _commits(records: Iterable[CellRecord]) -> list[str]:
    seen = [record.provenance["code"] for record in records if record.provenance]
    return sorted({str(one["commit"])[:8] for one in seen})


if __name__ == "__main__":
    for page in PAGES:
        if page.exists():
            page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
