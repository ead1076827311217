"""Images are read ahead in order, errors come in their step, padding is LLaVA's."""

import threading
import time

import numpy as np
import pytest
from conversation_files import picture
from PIL import Image

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.vlm.batch import ReadAhead, padded, pixels


def pictures(count: int) -> list[Picture]:
    return [Picture(name=f"item {number}", content=bytes([number])) for number in range(count)]


def number_of(picture: Picture) -> np.ndarray:
    return np.full((1, 1, 3), picture.content[0], dtype=np.uint8)


def test_images_are_read_before_they_are_asked_for_and_once():
    read, done = [], threading.Event()

    def slow(picture: Picture) -> np.ndarray:
        time.sleep(0.002 * (picture.content[0] % 3 == 0))
        read.append(picture.name)
        if len(read) == 8:
            done.set()
        return number_of(picture)

    held = pictures(10)
    reading = ReadAhead(slow, threads=3)
    reading.expect(held[:4])
    reading.expect(held[:8])
    assert done.wait(timeout=10)
    # The last two were not announced.
    assert [int(reading(one)[0, 0, 0]) for one in reversed(held)] == list(reversed(range(10)))
    assert sorted(read) == [one.name for one in held]
    # Asked for again, an image is read again.
    assert reading(held[0])[0, 0, 0] == 0 and len(read) == 11
    reading.close()


def test_no_more_images_wait_than_allowed():
    gate, started = threading.Event(), []

    def blocked(picture: Picture) -> np.ndarray:
        started.append(picture.name)
        assert gate.wait(timeout=10)
        return number_of(picture)

    held = pictures(9)
    reading = ReadAhead(blocked, threads=9, most=3)
    reading.expect(held)
    gate.set()
    assert [int(reading(one)[0, 0, 0]) for one in held] == list(range(9))
    # Three by the pool, the others in order by whoever asked.
    assert sorted(started[:3]) == [one.name for one in held[:3]]
    assert started[3:] == [one.name for one in held[3:]]
    reading.expect(held)
    reading.close()


def test_an_error_comes_where_its_image_is_asked_for():
    def read(picture: Picture) -> np.ndarray:
        if picture.content[0] == 2:
            raise UserError(f"{picture.name} is not an image")
        return number_of(picture)

    held = pictures(4)
    reading = ReadAhead(read, threads=2)
    reading.expect(held)
    assert [int(reading(one)[0, 0, 0]) for one in (*held[:2], held[3])] == [0, 1, 3]
    with pytest.raises(UserError, match="item 2 is not an image"):
        reading(held[2])
    reading.close()


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
        pixels(held, "pad", (0, 0, 0))
