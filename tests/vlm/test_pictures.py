"""Images are read ahead in order, errors come in their step, padding is LLaVA's."""

import threading
import time

import numpy as np
import pytest
from conversation_files import picture
from PIL import Image

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.vlm.pictures import ahead, padded, pixels


def test_results_come_in_order_whatever_the_threads_do():
    def read(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return number * number

    steps = [list(range(step * 5, step * 5 + step % 4)) for step in range(20)]
    found = list(ahead(steps, read, threads=4))
    assert found == [[number * number for number in step] for step in steps]


def test_it_reads_no_further_than_the_steps_ahead():
    seen, gate = [], threading.Event()

    def steps():
        for step in range(50):
            seen.append(step)
            yield [step]

    reading = ahead(steps(), lambda number: number, threads=2, depth=3)
    assert next(reading) == [0] and len(seen) == 4
    assert next(reading) == [1] and len(seen) == 5
    gate.set()
    reading.close()
    assert len(seen) == 5


def test_an_error_comes_in_the_step_of_its_item():
    def read(number: int) -> int:
        if number in (5, 6):
            raise UserError(f"row {number} has no image")
        return number

    reading = ahead([[0, 1], [2, 3], [4, 6, 5], [7]], read, threads=3)
    assert [next(reading), next(reading)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="row 6 has no image"):
        next(reading)


@pytest.mark.parametrize("size", [(9, 4), (4, 9), (5, 5), (7, 6)])
def test_padding_puts_the_image_in_the_middle_of_the_mean_colour(size, tmp_path):
    mean = (0.48145466, 0.4578275, 0.40821073)
    image = Image.open(picture(tmp_path, "a.png", size=size)).convert("RGB")
    width, height = size
    side = max(size)
    # The rule written with arrays.
    wanted = np.empty((side, side, 3), dtype=np.uint8)
    wanted[:] = [122, 116, 104]
    top, left = (side - height) // 2, (side - width) // 2
    wanted[top : top + height, left : left + width] = np.asarray(image)
    assert (np.asarray(padded(image, mean)) == wanted).all()
    held = Picture(name="a.png", content=tmp_path / "a.png")
    assert (pixels(held, "pad", mean) == wanted).all()
    assert (pixels(held, "squash", mean) == np.asarray(image)).all()


def test_an_unknown_fit_and_a_broken_image_are_refused(tmp_path):
    held = Picture(name="row 3: a.png", content=b"nothing")
    with pytest.raises(ValueError, match="pixels must be one of squash, pad, processor"):
        pixels(held, "crop", (0, 0, 0))
    with pytest.raises(UserError, match="row 3: a.png is not an image"):
        list(ahead([[held]], lambda one: pixels(one, "pad", (0, 0, 0))))
