"""Rendered scenes, one task a skill: small print, counting, texture, a small object's colour,
relations, existence and orientation.

64 x 64 pixels from a seed with integer geometry and bitmaps of our own (`_paint.py`). Skills of
fine detail and of meaning are separate tasks: `group` names the one that a skill needs more.
"""

from collections.abc import Mapping

import numpy as np

from fusionbench.api import Split, Task, TaskData, stream, task
from fusionbench.tasks._paint import PAINTERS, PRETRAINING

_SIZES = {"train": 4096, "val": 512, "test": 1024}


class _Scenes(Task):
    """Scenes of one painter; the class is named like the task."""

    skill: str

    def load(self) -> TaskData:
        """One image for each example; each has its own stream, so pools may grow."""
        return _drawn(self.skill, _SIZES, series="scene, third series")


def extra_examples(name: str, sizes: Mapping[str, int]) -> TaskData:
    """As many examples of a task as wanted, none of which it or pretraining uses: for probes."""
    return _drawn(name, sizes, series="scene probe")


def _drawn(skill: str, sizes: Mapping[str, int], *, series: str) -> TaskData:
    painter = PAINTERS[skill]
    images: list[np.ndarray] = []
    splits = {}
    for split, count in sizes.items():
        wanted = _even_answers(f"{series} answers", skill, split, count)
        scenes = [
            painter.paint(stream(series, skill, split, index), int(answer))
            for index, answer in enumerate(wanted)
        ]
        splits[split] = Split(
            items=tuple(f"{skill}/{split}/{index:05d}" for index in range(count)),
            images=np.arange(count) + len(images),
            questions=tuple(question for _, question in scenes),
            answers=wanted,
        )
        images += [image for image, _ in scenes]
    return TaskData(images=np.stack(images), answers=painter.answers, **splits)


def extra_images(count: int, *, seed: int) -> np.ndarray:
    """Scenes of all kinds that no task uses, uint8 [count 64 64 3]: for pretraining an encoder."""
    names = sorted(PRETRAINING)
    images = []
    for index in range(count):
        painter = PRETRAINING[names[index % len(names)]]
        draws = stream("scene extra", seed, index)
        images.append(painter.paint(draws, int(draws.integers(0, len(painter.answers))))[0])
    return np.stack(images)


def _even_answers(series: str, skill: str, split: str, count: int) -> np.ndarray:
    """Each answer once in every run of as many examples: any prefix is balanced."""
    answers = len(PAINTERS[skill].answers)
    blocks = -(-count // answers)
    draws = stream(series, skill, split).integers(0, 2**62, (blocks, answers))
    return np.argsort(draws, axis=1, kind="stable").reshape(-1)[:count]


@task("scenes_text", version=2, family="scenes", group="fine")
class ScenesText(_Scenes):
    """Which word stands there in small print? A constant question."""

    skill = "scenes_text"
    chance = 0.25


@task("scenes_count", version=2, family="scenes", group="semantic")
class ScenesCount(_Scenes):
    """How many shapes? A constant question."""

    skill = "scenes_count"
    chance = 0.25


@task("scenes_texture", version=2, family="scenes", group="fine")
class ScenesTexture(_Scenes):
    """Which texture? A constant question."""

    skill = "scenes_texture"
    chance = 0.25


@task("scenes_tiny_color", version=2, family="scenes", group="fine")
class ScenesTinyColor(_Scenes):
    """Which colour has the small circle, square or triangle?"""

    skill = "scenes_tiny_color"
    chance = 0.25


@task("scenes_relation", version=2, family="scenes", group="semantic")
class ScenesRelation(_Scenes):
    """On which side of one shape is the other?"""

    skill = "scenes_relation"
    chance = 0.25


@task("scenes_exists", version=2, family="scenes", group="semantic")
class ScenesExists(_Scenes):
    """Is there such a shape? Popular and adversarial scenes, half of them with yes."""

    skill = "scenes_exists"
    chance = 0.5


@task("scenes_orientation", version=2, family="scenes", group="fine")
class ScenesOrientation(_Scenes):
    """Which way do the lines run? A constant question."""

    skill = "scenes_orientation"
    chance = 0.25
