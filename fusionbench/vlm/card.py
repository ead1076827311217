"""The model card of an exported model: measured numbers, training, versions. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fusionbench.records.cell import CellRecord
from fusionbench.records.text import markdown_cell, one_line

_LISTED = 5
"""Parts of a mixture that a line names."""
_USE = (
    "```text",
    'fusionbench ask FOLDER picture.png "How many cubes?"',
    "```",
    "",
    "`FOLDER` is this folder. Encoder and language model are not in it and must have the "
    "fingerprints above.",
)


def model_card(
    config: Mapping[str, Any],
    records: Sequence[CellRecord],
    blind: Sequence[CellRecord],
    *,
    losses: Sequence[float] = (),
) -> str:
    """Markdown from a model's configuration and records.

    `blind`: records of the model without an image with the same training and seed, which the table
    shows beside. Every number is that of a record; without one the table has a dash.
    """
    method, seed = config["method"], config["seed"]
    title = f"{method['label']} between {config['encoder']['name']} and"
    sections: Mapping[str, Iterable[str]] = {
        "Measured": [
            *_numbers(records, blind),
            "",
            f"One run, seed {seed}: differences between runs are not in these numbers. "
            "`blind` is a model that was trained alike with image tokens set to zero.",
        ],
        "Training": _training(config, records[0], losses),
        "Files": _files(config),
        "Use": _USE,
        "Versions": _versions(records[0]),
    }
    lines = [f"# {title} {config['language']['name']}", "", _about(config)]
    for name, body in sections.items():
        lines += ["", f"## {name}", "", *body]
    return "\n".join(lines) + "\n"


def _about(config: Mapping[str, Any]) -> str:
    method, encoder, language = config["method"], config["encoder"], config["language"]
    paper = f" ({method['paper']})" if method["paper"] else ""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(method["settings"].items()))
    return (
        f"Fusion of the layers of a frozen vision encoder by {method['name']}{paper}, version "
        f"{method['version']}, settings: {settings or 'none'}. Encoder {encoder['name']}, "
        f"fingerprint `{encoder['weights'][:16]}`; language model {language['name']}, fingerprint "
        f"`{language['weights'][:16]}`."
    )


def _numbers(records: Sequence[CellRecord], blind: Sequence[CellRecord]) -> Iterator[str]:
    """A row for each task, and below it one for each further measure."""
    without = {(one.spec.task, one.items): one for one in blind}
    yield "| task | measure | value | blind | chance | questions |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        other = without.get((record.spec.task, record.items))
        own = other.score if other else None
        task = markdown_cell(record.spec.task)
        yield (
            f"| {task} | {record.metric} | {_percent(record.score)} | {_percent(own)} "
            f"| {_percent(record.chance)} | {record.examples} |"
        )
        seen = {**record.scores, **record.measures}
        blank = {**other.scores, **other.measures} if other else {}
        for name in sorted(seen.keys() - {record.metric}):
            values = f"{_plain(seen[name])} | {_plain(blank.get(name))}"
            yield f"| {task} | {markdown_cell(name)} | {values} | - | - |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _training(
    config: Mapping[str, Any], record: CellRecord, losses: Sequence[float]
) -> Iterator[str]:
    training, budget = config["training"], record.spec.budget
    for number, stage in enumerate(training["stages"], 1):
        yield (
            f"- Stage {number}: {', '.join(stage['trained'])} trained, template "
            f"{stage['template']}, {stage['steps'] or budget.steps} steps of "
            f"{stage['batch'] or budget.batch} rows, learning rate "
            f"{stage['lr'] or config['lr']:g}; {stage['count']} rows of {_parts(stage['parts'])} "
            f"(hash `{stage['rows'][:16]}`)."
        )
    yield (
        f"- Query of the fusion: {training['query']}; loss: mean over each {training['mean']}; "
        f"pixels: {training['pixels']}; projector: {training['projector']}; optimiser "
        f"{budget.optimiser}, precision {budget.precision}."
    )
    sizes = ", ".join(f"{part} {count:,}" for part, count in sorted(record.parameters.items()))
    yield f"- Parameters: {sizes or 'not recorded'}."
    if losses:
        yield f"- Training loss: {losses[0]:.4g} at the first step, {losses[-1]:.4g} at the last."
    yield from (f"- Note: {one_line(note)}." for note in record.notes)
    yield from (f"- Counted: {what}: {count}." for what, count in sorted(record.counts.items()))


def _parts(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    more = len(names) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _files(config: Mapping[str, Any]) -> Iterator[str]:
    names = config["method"]["names"]
    if names == "official":
        yield (
            "Weights of the fusion have the names that the method's `load_official` reads: those "
            "of its official code where there is one."
        )
    else:
        yield f"Weights of the fusion have {names}."
    yield ""
    yield from ("| file | sha256 |", "|---|---|")
    for name, digest in sorted(config["files"].items()):
        yield f"| {name} | `{digest}` |"


def _versions(record: CellRecord) -> Iterator[str]:
    found = record.provenance
    for part in ("code", "software", "hardware"):
        known = {key: value for key, value in found.get(part, {}).items() if value != ""}
        facts = ", ".join(f"{key} {value}" for key, value in sorted(known.items()))
        yield f"- {part}: {facts or 'not recorded'}"
