"""Pictures of a task's examples: small, shared, read back whole or not at all."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_records import put, spec

from fusionbench.api.tasks import Split, TaskData
from fusionbench.harness.bundle import cut, shown
from fusionbench.records.files import write_atomic
from fusionbench.records.merge import merge
from fusionbench.records.pictures import (
    MOST,
    PICTURES,
    draw_sheet,
    has_pictures,
    picture_file,
    picture_files,
    read_pictures,
)
from fusionbench.records.states import fingerprint
from fusionbench.records.store import Items, Store
from fusionbench.study.study import QUICK

COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], dtype=np.uint8)


def flat(*, side=16, count=3):
    """Images of one colour each."""
    rows = COLOURS[np.arange(count) % 3]
    return np.broadcast_to(rows[:, None, None], (count, side, side, 3)).copy()


def made(questions=("which colour?", "is it red?", "which colour?", "is it red?")):
    """The examples of a task of three images, two questions about the first one."""
    images = np.array([0, 0, 1, 2])
    test = Split(
        items=tuple("abcd"), images=images, questions=questions, answers=np.array([0, 1, 0, 1])
    )
    other = replace(test, items=tuple("efgh"))
    data = TaskData(images=flat(), answers=("x", "y"), train=other, val=other, test=test)
    bundle, pixels = cut("toy", data, QUICK.budget)
    items = Items(names=bundle.test.items, groups=bundle.test.groups).hash
    return shown(bundle, pixels, "toy", "d" * 64, items)


def opened(sheet):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("RGB"))


def write(folder: Path, found) -> Path:
    file = picture_file(folder, found.task, found.data, found.items)
    write_atomic(file, found.to_json().encode())
    return file


def test_each_example_finds_its_own_picture_question_and_answer():
    found = made()
    assert [found.question(n) for n in range(4)] == [
        "which colour?", "is it red?", "which colour?", "is it red?",
    ]  # fmt: skip
    assert [found.answer(n) for n in range(4)] == ["x", "y", "x", "y"]
    # Two questions about one image share a tile.
    assert found.tiles == (0, 0, 1, 2) and (found.width, found.height) == (16, 16)
    sheet = opened(found.sheet)
    assert sheet.shape == (found.size[1], found.size[0], 3)
    for example, colour in zip((0, 2, 3), COLOURS, strict=True):
        x = found.tiles[example] % found.columns * found.width + found.width // 2
        y = found.tiles[example] // found.columns * found.height + found.height // 2
        assert np.abs(sheet[y, x].astype(int) - colour).max() < 40


def test_large_images_shrink_with_their_shape_and_only_the_first_examples_are_drawn():
    wide = np.zeros((300, 40, 160, 3), dtype=np.uint8)
    tiles, size, columns, sheet = draw_sheet(wide, np.arange(300))
    assert size == (64, 16) and len(tiles) == MOST
    assert opened(sheet).shape == (-(-MOST // columns) * 16, columns * 64, 3)


def test_a_file_comes_back_as_it_was_and_equal_examples_give_equal_bytes(tmp_path):
    found, problems = made(), []
    file = write(tmp_path, found)
    assert list(read_pictures(tmp_path, problems)) == [found] and problems == []
    assert file.read_text() == made().to_json()
    # Other data or other examples never share a file.
    others = {picture_file(tmp_path, "toy", found.data, "0" * 20), file}
    assert len(others | {picture_file(tmp_path, "toy", "e" * 64, found.items)}) == 3


DAMAGE = {
    "cut": lambda text, values: text[: len(text) // 2],
    "edited": lambda text, values: text.replace("is it red?", "is it blue?"),
    "a row that is not there": lambda text, values: changed(values, right=[0, 1, 0, 2]),
    "no image": lambda text, values: changed(values, sheet=base64.b64encode(b"x" * 20).decode()),
    "no base64": lambda text, values: changed(values, sheet='");}</style><script>'),
    "another type": lambda text, values: changed(values, width="16"),
    "a later schema": lambda text, values: changed(values, schema=99),
}


def changed(values, **new):
    from fusionbench.records.cell import checksum

    values = {**values, **new}
    del values["checksum"]
    return json.dumps(values | {"checksum": checksum(values)})


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_ignored(damage, tmp_path):
    file = write(tmp_path, made())
    text = file.read_text()
    file.write_text(DAMAGE[damage](text, json.loads(text)))
    problems = []
    assert list(read_pictures(tmp_path, problems)) == []
    (problem,) = problems
    assert problem.source == str(file) and problem.message.startswith("ignored: ")


def test_merged_folders_keep_the_pictures_and_a_report_without_them_is_out_of_date(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        with Store.create(folder) as store:
            put(store, spec("mema", "digits", seed), 0.5)
    before = fingerprint(Store.open(folders[0]), [])
    file = write(folders[0], made())
    assert fingerprint(Store.open(folders[0]), []) != before
    # Another version of Pillow drew other bytes in the second folder: either may stay.
    write(folders[1], replace(made(), texts=("which colour?", "red?"))).rename(
        folders[1] / "pictures" / file.name
    )
    merge(folders, tmp_path / "one")
    merge(folders[::-1], tmp_path / "two")
    kept = [path.read_bytes() for name in ("one", "two") for path in picture_files(tmp_path / name)]
    assert len(kept) == 2 and kept[0] == kept[1]


@pytest.fixture
def compact(tmp_path):
    """A folder with pictures of two tasks, and its compact form."""
    found = [replace(made(), task=name) for name in ("shapes", "toy")]
    with Store.create(tmp_path / "live") as store:
        put(store, spec("mema", "digits"), 0.5)
    files = [write(tmp_path / "live", one) for one in found]
    merge([tmp_path / "live"], tmp_path / "compact")
    return tmp_path / "compact", found, files


def test_the_compact_form_has_all_pictures_in_one_file_and_knows_whose_they_are(compact):
    folder, found, files = compact
    assert picture_files(folder) == [folder / PICTURES] and not (folder / "pictures").exists()
    problems = []
    assert list(read_pictures(folder, problems)) == found and problems == []
    here = [picture_file(folder, one.task, one.data, one.items) for one in found]
    assert [file.name for file in here] == [file.name for file in files]
    assert all(map(has_pictures, here)) and not here[0].exists()
    assert not has_pictures(picture_file(folder, "toy", "e" * 64, found[1].items))
    # Pictures that a run adds to it are read too, and each once.
    write(folder, replace(found[0], task="added"))
    write(folder, found[1])
    names = [one.task for one in read_pictures(folder, problems)]
    assert names == ["added", "shapes", "toy"] and problems == []


def test_a_compact_folder_of_an_earlier_version_has_a_file_for_each_task(compact):
    folder, found, _ = compact
    (folder / PICTURES).unlink()
    for one in found:
        write(folder, one)
    assert list(read_pictures(folder, [])) == found
    assert all(has_pictures(file) for file in picture_files(folder))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named_and_the_others_stay(damage, compact):
    folder, found, _ = compact
    first, second = (folder / PICTURES).read_text().splitlines()
    (folder / PICTURES).write_text(f"{DAMAGE[damage](first, json.loads(first))}\n{second}\n")
    problems = []
    assert list(read_pictures(folder, problems)) == found[1:]
    (problem,) = problems
    assert problem.source == f"{folder / PICTURES}:1" and problem.message.startswith("ignored: ")
    store = Store.open(folder)
    store.finished(reread=True)
    assert any("changed since it was written" in str(one) for one in store.problems)
