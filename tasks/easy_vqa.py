"""easy-VQA: one coloured shape, simple questions (PyPI `easy-vqa`, MIT; Victor Zhou, 2019).

As published, most questions are of the kind "is there a red shape?", and a guesser who never
looks answers 67 % of them rightly. As in VQA v2 (Goyal et al., CVPR 2017), yes and no are made
equally frequent for every question of that kind, by leaving examples out; all others stay.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from fusionbench.api import Split, Task, TaskData, task
from fusionbench.tasks._sources import draw, fair_order, package_folder

_VAL_IMAGES = 500
Example = tuple[str, str, int]
"""Question, answer, image."""


@task(
    "easy_vqa",
    version=1,
    family="easy_vqa",
    group="semantic",
    needs=("easy_vqa",),
    get="pip install easy-vqa==1.0",
)
class EasyVqa(Task):
    """Which shape, which colour, is it there? One shape in each image.

    The package's own test split; val is carved out of its training images.
    """

    # Best answer to each question, known from the training split: see the module's docstring.
    chance = 0.363

    def load(self) -> TaskData:
        """4,000 + 1,000 images of 64 x 64, named by folder and number."""
        home = package_folder("easy_vqa", get="pip install easy-vqa==1.0") / "data"
        answers = tuple(sorted((home / "answers.txt").read_text().split()))
        files = {part: _files(home / part / "images") for part in ("train", "test")}
        held_out = set(sorted(files["train"], key=lambda i: draw("val", str(i)))[:_VAL_IMAGES])
        train, test = (_examples(home / part / "questions.json") for part in ("train", "test"))
        parts = {
            "train": ("train", [example for example in train if example[2] not in held_out]),
            "val": ("train", [example for example in train if example[2] in held_out]),
            "test": ("test", test),
        }
        start = {"train": 0, "test": len(files["train"])}
        images = [np.asarray(Image.open(files[part][i])) for part in start for i in files[part]]
        splits = {
            split: _split(part, examples, answers, start[part])
            for split, (part, examples) in parts.items()
        }
        return TaskData(images=np.stack(images), answers=answers, **splits)


def _files(folder: Path) -> dict[int, Path]:
    """Images by number, which are 0, 1, 2, … without a gap."""
    return {int(path.stem): path for path in sorted(folder.glob("*.png"), key=_number)}


def _number(path: Path) -> int:
    return int(path.stem)


def _examples(file: Path) -> list[Example]:
    return [(question, answer, image) for question, answer, image in json.loads(file.read_text())]


def _split(part: str, examples: Iterable[Example], answers: tuple[str, ...], start: int) -> Split:
    named = {
        f"easy_vqa/{part}/{image:04d}/{question}": (question, answer, image)
        for question, answer, image in _even(examples)
    }
    items = list(named)
    order = [items[i] for i in fair_order(items, [answer for _, answer, _ in named.values()])]
    return Split(
        items=tuple(order),
        images=np.array([start + named[item][2] for item in order]),
        questions=tuple(named[item][0] for item in order),
        answers=np.array([answers.index(named[item][1]) for item in order]),
    )


def _even(examples: Iterable[Example]) -> list[Example]:
    """As many yes as no for each question that has such answers."""
    by_question: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        by_question[example[0]][example[1]].append(example)
    kept: list[Example] = []
    for by_answer in by_question.values():
        groups = list(by_answer.values())
        if set(by_answer) <= {"yes", "no"}:
            size = min(len(by_answer["yes"]), len(by_answer["no"]))
            groups = [sorted(group, key=_draw_example)[:size] for group in groups]
        kept.extend(example for group in groups for example in group)
    return kept


def _draw_example(example: Example) -> int:
    return draw("even", example[0], str(example[2]))
