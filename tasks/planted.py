"""Ground truth for the suite itself: tasks whose right answer about layers is known.

They run on the encoder `planted`, which says what it shows where. Images are random bytes; the
first four bytes of each 3 x 3 patch are hidden bits (1 from 128 on), and the planted bits are their
parities over all 16 patches, so a label cannot be learnt from the pixels or by heart.
"""

import numpy as np

from fusionbench.api import Split, Task, TaskData, stream, task

_SIZES = {"train": 4096, "val": 512, "test": 1024}
_LAYER, _FIRST, _SECOND, _FEEDBACK = range(4)


class _Planted(Task):
    """The parity of some of the planted bits."""

    chance = 0.5
    bits: tuple[int, ...]

    def load(self) -> TaskData:
        """Random images whose hidden bits are turned to a balanced label."""
        name = type(self).__name__
        parts = {split: self._draw(name, split) for split in _SIZES}
        starts = dict(zip(_SIZES, np.cumsum([0, *_SIZES.values()]), strict=False))
        splits = {
            split: Split(
                items=tuple(f"{name}/{split}/{index:05d}" for index in range(count)),
                images=np.arange(count) + starts[split],
                questions=("is the hidden bit 0 or 1?",) * count,
                answers=parts[split][1],
            )
            for split, count in _SIZES.items()
        }
        images = np.concatenate([parts[split][0] for split in _SIZES])
        return TaskData(images=images, answers=("0", "1"), **splits)

    def _draw(self, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        draws = stream("planted task", name, split)
        count = _SIZES[split]
        images = draws.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
        # Of each two neighbours one is 0 and one is 1, so every prefix is balanced.
        labels = (np.arange(count) + np.repeat(draws.integers(0, 2, count // 2), 2)) % 2
        if self.bits:
            wrong = planted_bits(images)[:, self.bits].sum(axis=1) % 2 != labels
            # The first patch's byte of one of the bits crosses 128: its parity changes.
            row, column, channel = _byte(self.bits[0])
            images[wrong, row, column, channel] ^= 128
        return images, labels


def planted_bits(images: np.ndarray) -> np.ndarray:
    """The four planted bits of each image, [image 4]: parities over its patches."""
    hidden = [
        images[:, row::3, column::3, channel] >> 7 for row, column, channel in map(_byte, range(4))
    ]
    return np.stack([bit.sum(axis=(1, 2)) % 2 for bit in hidden], axis=1).astype(np.int64)


def _byte(bit: int) -> tuple[int, int, int]:
    """Row, column and channel of a hidden bit within its patch."""
    return 0, bit // 3, bit % 3


@task("planted_layer", version=1, family="planted", group="fine", encoder="planted", in_suite=False)
class PlantedLayer(_Planted):
    """Seen in hidden state 5 and nowhere else."""

    bits = (_LAYER,)


@task("planted_pair", version=1, family="planted", group="fine", encoder="planted", in_suite=False)
class PlantedPair(_Planted):
    """The parity of one bit seen in hidden state 2 and another in 5; each alone says nothing."""

    bits = (_FIRST, _SECOND)


@task(
    "planted_feedback", version=1, family="planted", group="fine", encoder="planted", in_suite=False
)
class PlantedFeedback(_Planted):
    """Seen from block 6 on, in tokens whose gate channel something wrote: no block ever does."""

    bits = (_FEEDBACK,)


@task(
    "planted_random", version=1, family="planted", group="fine", encoder="planted", in_suite=False
)
class PlantedRandom(_Planted):
    """Labels without any relation to the image: nobody may beat chance."""

    bits = ()
