"""Write NANO.md, nano's model card, from measurements.

`PYTHONPATH=pretraining python -m nano.card` probes every hidden state of nano, and of a twin with
random weights, on each local task (`probe.py`) and fills the card's text with the tables.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from fusionbench.api.seeding import seed_of
from fusionbench.api.tasks import Task, TaskData
from fusionbench.harness.probes import ProbeLimits, Score, probe_layers
from fusionbench.models.encoders import catalog
from fusionbench.models.encoders.build import load_vit
from fusionbench.models.encoders.card import EncoderCard, read_json
from fusionbench.models.encoders.vit import ViT
from fusionbench.records.files import write_atomic
from fusionbench.registry.plugins import load_task
from fusionbench.stats.verdicts import holm
from nano.pool import local_tasks
from nano.train import initialise

log = logging.getLogger(__name__)
LIMITS = ProbeLimits(train=16384, val=1024, test=4096)
RENDERED = {"train": 16384, "val": 1024, "test": 4096}
LEVEL = 0.05

TEXT = """# nano

The embedded encoder of FusionBench: a vision transformer of {layers} blocks, {dim} wide, for images
of {size} x {size} pixels ({tokens} tokens with CLS). It exists so that the whole suite runs in
minutes on a CPU, without a download. It is no feature extractor for anything else.

- Weights fingerprint: `{weights}`; licence: Apache-2.0, like the rest of the package.
- Teacher: {teacher}, fingerprint `{teacher_weights}`.
- Made by `{command}` ({minutes} minutes of one CPU thread on a busy machine, after the teacher).
- Pictures: {images}. No photographs.
  Rendered scenes are as their painters drew them then; they may have changed since.
- Recipe: {recipe}.

The last hidden state, after the final norm, was trained to give the teacher's final tokens (its
patches averaged onto nano's grid) through a linear head, a middle one the teacher's middle layer
(not averaged), an early one the pixels of its patch. The heads were thrown away. Large encoders
give up local detail on the way to meaning; one this small keeps it unless it is told to, so that
the last state also paid for what it still tells linearly of the gradients in its patch
(`detail.py`, `detail_weight`). Recipe and weight were chosen on validation examples and on rendered
scenes of no task. Train splits of the tasks and rendered scenes from seeds that no task uses were
seen; nothing that a task validates or tests on was (a test compares the hashes).

## What each layer knows

Test accuracy in percent of a logistic regression on CLS and the mean patch of one hidden state
(one regression for each question; L2 penalty chosen on val; at most {limits}).
Rendered tasks are probed with fresh scenes of their painter, which neither the task nor pretraining
uses: their own splits are too small to tell layers apart. The best layer is bold. Mean pooling
hides positions: a low number means "not linearly readable from the mean", not "absent".

{tables}

`last` is `hs[{layers}]`, `middle` the best of `hs[1]` to the one before the last, chosen on val;
`random` is an untrained twin of the same architecture, `random best` its best layer, chosen on test
(too high, if anything). The p-values are one-sided exact McNemar tests on the same n test examples.

Below 0.05 after Holm's correction over the tasks of the group:

- semantic tasks on which the last layer beats the random one: {semantic}.
- fine-detail tasks on which a middle layer beats the last: {fine}.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracy of the probes on one task, by hidden state."""

    task: str
    group: str
    chance: float
    examples: int
    nano: list[Score]
    twin: list[Score]

    @property
    def last(self) -> Score:
        """Nano's last layer."""
        return self.nano[-1]

    @property
    def middle(self) -> Score:
        """Nano's best layer between the first and the last, chosen on val."""
        return max(self.nano[1:-1], key=lambda score: score.val)

    @property
    def beats_random(self) -> float:
        """P-value of the last layer against the twin's last layer."""
        return mcnemar(self.last, self.twin[-1])

    @property
    def middle_ahead(self) -> float:
        """P-value of the best middle layer against the last."""
        return mcnemar(self.middle, self.last)


def mcnemar(ours: Score, other: Score) -> float:
    """Exact McNemar test that `ours` is better on the same examples, one-sided (McNemar, 1947)."""
    from scipy.stats import binomtest

    won = int((ours.tests > other.tests).sum())
    lost = int((ours.tests < other.tests).sum())
    return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


def clear(rows: Sequence[Row], p_values: Sequence[float]) -> list[str]:
    """Tasks whose p-value stays below the level after Holm's correction over all rows."""
    if not rows:
        return []
    adjusted = holm(np.array(p_values))
    return [row.task for row, p in zip(rows, adjusted, strict=True) if p < LEVEL]


def measure(nano: ViT, twin: ViT) -> list[Row]:
    """One row per local task."""
    rows = []
    for card in local_tasks(()):
        task = load_task(card)
        data = examples_of(task, card.name)
        row = Row(
            task=card.name,
            group=card.group,
            chance=task.chance,
            examples=min(LIMITS.test, len(data.test)),
            nano=probe_layers(nano, task, data, limits=LIMITS),
            twin=probe_layers(twin, task, data, limits=LIMITS),
        )
        log.info(
            "%s: nano %s, random %s",
            row.task,
            _percent(_tests(row.nano)),
            _percent(_tests(row.twin)),
        )
        rows.append(row)
    return rows


def examples_of(task: Task, name: str) -> TaskData:
    """A task's data; of a rendered one as many as a sharp probe needs, from seeds of no task."""
    extra_examples = getattr(sys.modules[type(task).__module__], "extra_examples", None)
    return task.load() if extra_examples is None else extra_examples(name, RENDERED)


def random_twin(nano: ViT) -> ViT:
    """The same architecture with the weights that training started from, another draw."""
    torch.manual_seed(seed_of("random twin"))
    twin = ViT(nano.config)
    initialise(twin)
    twin.freeze()
    return twin


def tables(rows: list[Row]) -> str:
    """Both tables in Markdown: nano's layers, and nano against its twin."""
    rows = sorted(rows, key=lambda row: (row.group, row.task))
    layers = [f"hs[{index}]" for index in range(len(rows[0].nano))]
    by_layer = [
        [row.task, row.group, *_marked(_tests(row.nano)), f"{100 * row.chance:.1f}"] for row in rows
    ]
    compared = [
        [
            row.task,
            row.group,
            *_percent([row.last.test, row.twin[-1].test, max(_tests(row.twin)), row.middle.test]),
            f"{row.beats_random:.1g}",
            f"{row.middle_ahead:.1g}",
            row.examples,
        ]
        for row in rows
    ]
    head = ["task", "group", "last", "random last", "random best", "middle"]
    head += ["p last > random", "p middle > last", "n"]
    return "\n\n".join(
        tabulate(body, names, tablefmt="github", disable_numparse=True)
        for body, names in (
            (by_layer, ["task", "group", *layers, "chance"]),
            (compared, head),
        )
    )


def text(card: EncoderCard, training: dict[str, Any], rows: list[Row]) -> str:
    """The whole card."""
    images = ", ".join(f"{count} {source}" for source, count in training["images"].items())
    recipe = ", ".join(f"{name} {value}" for name, value in training["recipe"].items())
    skip = f" --skip {' '.join(training['skip'])}" if training["skip"] else ""
    semantic = [row for row in rows if row.group == "semantic"]
    fine = [row for row in rows if row.group == "fine"]
    return TEXT.format(
        weights=card.weights,
        layers=card.layers,
        dim=card.dim,
        size=card.size,
        tokens=card.tokens,
        teacher=training["teacher"],
        teacher_weights=training["teacher_weights"],
        command=f"{_COMMAND} --steps {training['steps']}{skip}",
        minutes=training["minutes"],
        images=images,
        recipe=recipe,
        limits=f"{LIMITS.train} training, {LIMITS.val} validation, {LIMITS.test} test examples",
        tables=tables(rows),
        semantic=_verdict(semantic, [row.beats_random for row in semantic]),
        fine=_verdict(fine, [row.middle_ahead for row in fine]),
    )


_COMMAND = "PYTHONPATH=pretraining python -m nano.train --out FOLDER"


def _verdict(rows: Sequence[Row], p_values: Sequence[float]) -> str:
    names = clear(rows, p_values)
    return f"{len(names)} of {len(rows)}: {', '.join(names) or 'none'}"


def _tests(scores: list[Score]) -> list[float]:
    return [score.test for score in scores]


def _percent(values: list[float]) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def _marked(values: list[float]) -> list[str]:
    best = max(values)
    return [
        f"**{shown}**" if value == best else shown
        for value, shown in zip(values, _percent(values), strict=True)
    ]


def main() -> None:
    """Measure and write the card beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m nano.card")
    parser.add_argument("--folder", type=Path, default=catalog.places(catalog.NANO)[0].parent)
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    nano = load_vit(folder / "nano.safetensors")
    nano.freeze()
    rows = measure(nano, random_twin(nano))
    card = catalog.card_of(catalog.NANO, folder / "nano.safetensors")
    training = read_json(folder / "nano.json")["training"]
    write_atomic(folder / "NANO.md", text(card, training, rows).encode())


if __name__ == "__main__":
    main()
