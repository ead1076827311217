"""Linear probes of every hidden state, task by task, kept beside the records.

`probe.py` finds the scores; here they are bound to what made them and written once: a map that is
there for the same encoder, data and sizes is kept, one of anything else is never overwritten.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionbench.api.encoder import Encoder
from fusionbench.api.errors import UserError
from fusionbench.api.task import Task, TaskData, data_hash
from fusionbench.encoders.build import build
from fusionbench.encoders.catalog import describe
from fusionbench.encoders.probe import Limits, probe_layers
from fusionbench.records.probes import ProbeMap, probe_file, read_probe, write_probe
from fusionbench.registry.catalog import TaskCard
from fusionbench.registry.plugins import load_task
from fusionbench.registry.provenance import code_state, hardware, software


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One task's map, and whether it was there before."""

    map: ProbeMap
    file: Path
    kept: bool


def probe_tasks(
    encoder: str, tasks: Sequence[TaskCard], out: Path, *, image_size: int, limits: Limits
) -> Iterator[Probed]:
    """Probe every layer on every task; a task with an encoder of its own is probed on that one.

    Raises UserError where a map of another encoder, of other data or sizes is in the way.
    """
    built: dict[str, Encoder] = {}
    for card in tasks:
        name = card.encoder or encoder
        size = 0 if card.encoder else image_size
        task = load_task(card)
        data = task.load()
        planned = _empty(card, task, data, name, size, limits)
        file = probe_file(out, card.name)
        if file.exists():
            yield Probed(map=_kept(file, planned), file=file, kept=True)
            continue
        if name not in built:
            built[name] = build(name, image_size=size)
        scores = probe_layers(built[name], task, data, limits=limits)
        found = {"layers": tuple(s.test for s in scores), "val": tuple(s.val for s in scores)}
        made = ProbeMap(**{**vars(planned), **found})
        yield Probed(map=made, file=write_probe(out, made), kept=False)


def _empty(  # noqa: PLR0913  (everything that a map is bound to)
    card: TaskCard, task: Task, data: TaskData, encoder: str, image_size: int, limits: Limits
) -> ProbeMap:
    """The map as it will be, without its scores."""
    about = describe(encoder, image_size=image_size)
    return ProbeMap(
        encoder=encoder,
        weights=about.weights,
        image_size=about.size,
        task=card.name,
        task_version=card.version,
        data=data_hash(data),
        group=card.group,
        metric=task.metric,
        chance=task.chance,
        layers=(),
        val=(),
        n=min(limits.test, len(data.test)),
        n_train=min(limits.train, len(data.train)),
        n_val=min(limits.val, len(data.val)),
        provenance={
            "code": dict(code_state()),
            "software": dict(software()),
            "hardware": dict(hardware("cpu")),
        },
    )


def _kept(file: Path, planned: ProbeMap) -> ProbeMap:
    """The map that is there. Raises UserError if it is not the one that would be made."""
    there = read_probe(file)
    for key, value in planned.identity.items():
        if there.identity[key] != value:
            raise UserError(
                f"{file} was made with another {key}: {there.identity[key]}, now {value}",
                "choose another --out, or remove that file first",
            )
    return there
