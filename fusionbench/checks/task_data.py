"""What is wrong, or worth knowing, of a task's data: faults, and notes in words."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusionbench.api.errors import UserError
from fusionbench.api.tasks import SPLITS, Task, TaskData, validate
from fusionbench.registry.cards import TaskCard
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task
from fusionbench.study.folders import PREFIX, about, task_file

_FEW = 100
"""Test examples below which a difference of ten points is inside the interval of one score."""
_TOLERANCE = 0.05
"""Between the declared chance and the share of the commonest answer."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """A task that was loaded once."""

    name: str
    sizes: str
    """Its images, answers and splits in words; empty if it cannot be loaded."""
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A line, and a line for each fault and note."""
        first = f"{self.name}: {self.sizes or 'cannot be used'}"
        rest = [f"  fault: {one}" for one in self.faults]
        return "\n".join([first, *rest, *(f"  note: {one}" for one in self.notes)])


def tasks_of(target: str, plugins: Sequence[str]) -> list[TaskCard]:
    """The tasks of a name, `folder:DIR`, or a file or folder that declares them; none for others.

    Raises UserError for images that cannot be used.
    """
    if target.startswith(PREFIX):
        file = task_file(target)
        return [card for card in read_catalog([str(file)]).tasks.values() if card.file == str(file)]
    here = Path(target).exists()
    catalog = read_catalog([*plugins, target] if here else plugins)
    if not here:
        return [catalog.tasks[target]] if target in catalog.tasks else []
    place = Path(target).resolve()
    cards = catalog.tasks.values()
    return [card for card in cards if Path(card.file).resolve().is_relative_to(place)]


def check_task(card: TaskCard) -> TaskReport:
    """Load a task and look at its data; whatever it raises is a fault."""
    try:
        task = load_task(card)
        data = task.load()
        validate(data)
    except UserError as error:
        return _broken(card, f"{error.message}; {error.hint}" if error.hint else error.message)
    # An author's task may raise anything.
    except (Exception, SystemExit) as error:
        return _broken(card, f"{card.file}: {type(error).__name__}: {error}")
    return TaskReport(
        name=card.name,
        sizes=about(data),
        faults=tuple(_faults(task, data)),
        notes=tuple(_notes(data)),
    )


def _broken(card: TaskCard, fault: str) -> TaskReport:
    return TaskReport(name=card.name, sizes="", faults=(fault,), notes=())


def _faults(task: Task, data: TaskData) -> Iterator[str]:
    chance = getattr(task, "chance", None)
    counts = np.bincount(data.test.answers, minlength=len(data.answers))
    most = float(counts.max() / counts.sum())
    if chance is None:
        yield f"the class has no chance; set chance = {most:.3g}, the share of the commonest answer"
    elif not 0 <= chance < 1:
        yield f"chance is {chance!r}; it must lie from 0 to below 1"
    elif type(task).score is Task.score and most > chance + _TOLERANCE:
        commonest = data.answers[int(counts.argmax())]
        yield (
            f"chance is {chance:.3g}, and the answer {commonest!r} alone scores {most:.3g} on "
            f"test; set chance = {most:.3g}"
        )


def _notes(data: TaskData) -> Iterator[str]:
    if len(data.test) < _FEW:
        points = 196 * (0.25 / len(data.test)) ** 0.5
        yield (
            f"{len(data.test)} test examples: one score is known to about {points:.0f} points "
            "either way, so small differences stay open"
        )
    seen = set(data.train.answers.tolist())
    for name in SPLITS[1:]:
        split = data.split(name)
        new = sorted({data.answers[row] for row in split.answers.tolist() if row not in seen})
        if new:
            yield f"{name}: {len(new)} answers that training does not have, such as {new[0]!r}"
    twice = Counter(zip(data.train.images.tolist(), data.train.questions, strict=True))
    if repeated := [question for (_, question), count in twice.items() if count > 1]:
        yield (
            f"train: {len(repeated)} questions are asked twice of one image, such as "
            f"{repeated[0]!r}"
        )
