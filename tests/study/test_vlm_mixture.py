"""A mixture is named, and its hash follows the training rows only."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conversation_files import picture, standard, written

from fusionbench.api.errors import UserError
from fusionbench.api.tasks import Split, TaskData
from fusionbench.registry.catalog import read_catalog
from fusionbench.study import mixture as module
from fusionbench.study.mixture import Part, describe_mixture, parse_mixture
from fusionbench.study.study import LOCAL_TASKS, SMOKE

BUDGET = replace(SMOKE.budget, train_items=3)


def toy(seed: int = 0) -> TaskData:
    """Twelve images, four examples a split."""
    images = np.random.default_rng(seed).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)

    def split(name: str, first: int) -> Split:
        return Split(
            items=tuple(f"{name}-{n}" for n in range(4)),
            images=np.arange(first, first + 4),
            questions=("What?", "Which?") * 2,
            answers=np.array([0, 1, 1, 0]),
        )

    parts = {"train": split("train", 0), "val": split("val", 4), "test": split("test", 8)}
    return TaskData(images=images, answers=("no", "yes"), **parts)


def hashed(data: TaskData, monkeypatch, limit: int = 3) -> tuple[int, str]:
    monkeypatch.setattr(module, "planned_data", lambda card, planned: data)
    return module._hashed(read_catalog().tasks["digits"], "planned", limit)


def test_the_default_names_the_eleven_local_tasks_without_licence_agreement():
    tasks = read_catalog().tasks
    assert set(LOCAL_TASKS) == {name for name, card in tasks.items() if not card.encoder} - {"elpv"}
    assert len(LOCAL_TASKS) == 11
    assert tuple(part.name for part in parse_mixture(())) == LOCAL_TASKS


def test_settings_stand_in_brackets():
    parts = parse_mixture(["digits[share=2]", "a/mix.json[images=coco, share=0.5]", "hub:o/n"])
    assert parts == (
        Part(name="digits", share=2.0),
        Part(name="a/mix.json", share=0.5, images="coco"),
        Part(name="hub:o/n"),
    )
    assert [part.is_task for part in parts] == [True, False, False]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["digits", "textile", "digits[share=2]"], "digits is named twice"),
        (["a/mix.json", "b/mix.json"], "mix.json is named twice"),
        (["digits[share=0]"], "share of digits must be above 0, got 0"),
        (["digits[share=much]"], "share of digits must be above 0, got much"),
        (["digits[shares=2]"], "no setting 'shares'; did you mean 'share'"),
        (["digits[images=coco]"], "a folder of images belongs to a file"),
        (["mix.json[config=a]"], "a folder of images belongs to a file"),
    ],
)
def test_wrong_names_are_refused(names, words):
    with pytest.raises(UserError) as error:
        parse_mixture(names)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "no task or conversation file 'digit'; did you mean 'digits'?"),
        ("planted_layer", "an encoder of its own"),
        ("no.json", "there is no conversation file"),
    ],
)
def test_parts_that_are_not_there_are_refused(name, words):
    with pytest.raises(UserError) as error:
        describe_mixture(parse_mixture([name]), read_catalog(), BUDGET)
    assert words in str(error.value)


def test_a_task_whose_package_is_missing_names_the_command(monkeypatch):
    monkeypatch.setattr("fusionbench.registry.catalog.importable", lambda name: False)
    with pytest.raises(UserError) as error:
        describe_mixture(parse_mixture(["digits"]), read_catalog(), BUDGET)
    assert "digits needs sklearn" in error.value.message and "pip install" in error.value.hint


def test_val_and_test_images_do_not_enter_the_hash_of_a_task(monkeypatch):
    first = hashed(toy(), monkeypatch)
    other = toy()
    other.images[4:] = 255 - other.images[4:]
    changed = replace(other, test=replace(other.test, questions=("New?",) * 4))
    assert hashed(changed, monkeypatch) == first
    # The fourth training example is outside the budget.
    other.images[3] = 0
    assert hashed(other, monkeypatch) == first
    assert first[0] == 3 and hashed(toy(), monkeypatch, 0)[0] == 4


def test_every_training_row_enters_the_hash_of_a_task(monkeypatch):
    base = toy()
    hashes = [hashed(base, monkeypatch)[1], hashed(base, monkeypatch, 4)[1]]
    image = toy()
    image.images[2, 1, 1, 0] ^= 1
    answer = replace(base.train, answers=np.array([0, 1, 0, 0]))
    question = replace(base.train, questions=("What?", "Which one?") * 2)
    item = replace(base.train, items=("a", *base.train.items[1:]))
    hashes += [hashed(image, monkeypatch)[1]]
    hashes += [
        hashed(replace(base, train=split), monkeypatch)[1] for split in (answer, question, item)
    ]
    # The same class numbers mean other answers.
    hashes += [hashed(replace(base, answers=("yes", "no")), monkeypatch)[1]]
    assert len(set(hashes)) == len(hashes)


def test_rows_are_hashed_once_for_a_task_and_a_budget(monkeypatch):
    card = read_catalog().tasks["scenes_count"]
    monkeypatch.setattr(module, "planned_data", lambda card, planned: toy())
    first = module._rows_of(card, "data of the test", 2)
    monkeypatch.setattr(module, "planned_data", lambda *_: pytest.fail("read again"))
    assert module._rows_of(card, "data of the test", 2) == first


def test_the_card_of_tasks_and_files_names_rows_shares_and_versions(tmp_path, monkeypatch):
    written(tmp_path, standard(tmp_path), "mix.json")
    catalog = read_catalog()
    monkeypatch.setattr(module, "_train_rows", lambda tasks, budget: [(3, "f" * 64)])
    parts = parse_mixture(["digits[share=2]", "mix.json"])
    card = describe_mixture(parts, catalog, BUDGET, tmp_path)
    digits, mix = card.parts
    assert (digits.name, digits.kind, digits.share, digits.rows) == ("digits", "task", 2.0, 3)
    assert digits.version == catalog.tasks["digits"].version
    # Four items with five turns.
    assert (mix.name, mix.kind, mix.rows, mix.version) == ("mix.json", "file", 5, 0)
    assert card.rows == 8


def test_the_hash_of_a_mixture_does_not_depend_on_names_folders_or_order(tmp_path):
    cards = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        items = standard(folder)
        written(folder, items, f"{name}.json")
        written(folder, items[:2], "part.jsonl")
        parts = parse_mixture([f"{name}.json", "part.jsonl"][:: 1 if name == "one" else -1])
        cards.append(describe_mixture(parts, read_catalog(), BUDGET, folder))
    assert cards[0].hash == cards[1].hash
    double = parse_mixture(["one.json[share=2]", "part.jsonl"])
    assert describe_mixture(double, read_catalog(), BUDGET, tmp_path / "one").hash != cards[0].hash


def test_the_same_rows_twice_are_refused(tmp_path):
    items = standard(tmp_path)
    written(tmp_path, items, "a.json")
    written(tmp_path, items, "b.jsonl")
    with pytest.raises(UserError, match="b.jsonl has the same rows as a.json"):
        describe_mixture(parse_mixture(["a.json", "b.jsonl"]), read_catalog(), BUDGET, tmp_path)


def test_a_pack_keeps_the_hash_of_the_training_rows(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    from fusionbench.study.data import pack, task_hash

    card = read_catalog().tasks["digits"]
    before = module._hashed(card, task_hash(card), 16)
    pack([card], "nano", size=4, out=tmp_path)
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path))
    assert module._hashed(card, task_hash(card), 16) == before


def test_a_mixture_is_described_without_torch_and_without_image_libraries(tmp_path):
    picture(tmp_path, "a.png")
    written(tmp_path, standard(tmp_path), "mix.json")
    code = (
        "import sys; from pathlib import Path; from fusionbench.study.mixture import *;"
        "from fusionbench.registry.catalog import read_catalog;"
        "from fusionbench.study.study import SMOKE;"
        f"describe_mixture(parse_mixture(['mix.json']), read_catalog(), SMOKE.budget, "
        f"Path({str(tmp_path)!r}));"
        "print([m for m in ('torch', 'PIL', 'datasets', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
