"""The built-in tasks keep their promises: chance, balance, fair fronts, fixed pixels."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest

from fusionbench.api.tasks import SPLITS, Split, TaskData, data_hash, validate
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task
from fusionbench.study.study import QUICK

# A change here changes every result on the task: its version must go up with it.
GOLDEN = {
    "animal_mnist": (1, "60e7323f2d270bc7989cea01eed4bdd3832b69d1346078202091705c3fddb9f8"),
    "digits": (2, "7a4ab4535fd51350ba5548ce57f7dc43e7b9200d1465fc60cd8092bcdf5d19b1"),
    "easy_vqa": (1, "265a1f814a14fa5d37ec443406660d598b8b8c3ff7baaf10cbc32f5a7703438f"),
    "elpv": (1, "16e2fce21bca1340553a53f9ccd41589e2bea158a31c284bf16431ee7f05b4c4"),
    "planted_feedback": (1, "b600b24017242af50241a67e1ee57e33280af4ef0908fb8f796409c6cebf633b"),
    "planted_layer": (1, "9a8e3681b7b51712389d2dcbf587d482af30f5e00995bf0f34307767dbb2bc11"),
    "planted_pair": (1, "dc91d00f6ddc2b6aca1439eec14e47099c88aac9b6d9b5bfa71aa1592c9de7ac"),
    "planted_random": (1, "c0caccd91a89e26cf20759aac6533463d7d6a9b8a2f474dac1aee28c6a8e4673"),
    "scenes_count": (2, "2dbf7ac6b8f8c6c85534678a2992cc23f1ad6840251c549dd75350d368e83411"),
    "scenes_exists": (2, "f5531e830400626c39d9d8ca83b8fbbd79221bab820eaac992ef5ccfb957e454"),
    "scenes_orientation": (2, "f1e3e9f7d50079aeb77381684ba075beea63a4090b071bbbb63bf6baa1ade219"),
    "scenes_relation": (2, "cead0b211772ac608893a90d2e51d6c26a77017b394cbc61d6fe2b1c1c8c437f"),
    "scenes_text": (2, "cd1a02dced6fc874e2531a3741e0b4195191159549470ffaf6b0c83c409c1b3d"),
    "scenes_texture": (2, "681f4dce3039f2fbd6af4cf4ee97aeee104c0098b4006f39410fa38fdde7ea47"),
    "scenes_tiny_color": (2, "29a40603566f503ff5aa14970b5d02f850aa80976db41d86a59ef493e3c92279"),
    "textile": (1, "d892faaaf200a99e920e7bcc1a979cfe45493b21499f7eca5111889f92473085"),
}

CARDS = {name: card for name, card in read_catalog().tasks.items() if name in GOLDEN}
AVAILABLE = [name for name, card in CARDS.items() if card.available]
# easy-VQA asks for colours, shapes and yes or no: its thirteen answers cannot be equally frequent.
BALANCED = [name for name in AVAILABLE if name != "easy_vqa"]
CUTS = {
    # Smaller pools than `train_items` are used whole; a seed draws this many of them.
    "train": QUICK.budget.draw,
    "val": QUICK.budget.val_items,
    "test": QUICK.budget.test_items,
}

LOADER = """
import json, sys
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task
from fusionbench.api.tasks import data_hash
cards = read_catalog().tasks
hashes = {name: data_hash(load_task(cards[name]).load()) for name in sys.argv[1:]}
heavy = [m for m in ("torch", "pandas", "scipy", "sklearn", "tensorflow") if m in sys.modules]
print(json.dumps([hashes, heavy]))
"""


@cache
def data(name: str) -> TaskData:
    return load_task(CARDS[name]).load()


def shares(split: Split, answers: int) -> np.ndarray:
    return np.bincount(split.answers, minlength=answers) / len(split)


def test_every_task_of_this_repository_has_a_golden_hash():
    assert set(GOLDEN) == {c.name for c in read_catalog().tasks.values() if c.source == "built-in"}


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_data_is_sound_and_never_changes(name):
    validate(data(name))
    version, golden = GOLDEN[name]
    assert CARDS[name].version == version
    assert data_hash(data(name)) == golden


def test_another_process_loads_the_same_bytes_without_any_heavy_library():
    names = [n for n in ("digits", "animal_mnist", "scenes_text", "planted_pair") if n in AVAILABLE]
    run = subprocess.run(
        [sys.executable, "-c", LOADER, *names], capture_output=True, text=True, check=True
    )
    hashes, heavy = json.loads(run.stdout)
    assert heavy == []
    assert hashes == {name: GOLDEN[name][1] for name in names}


@pytest.mark.parametrize("name", AVAILABLE)
def test_chance_is_what_a_guesser_gets_who_never_looks(name):
    """Such a guesser knows how often each answer to each question is right in training."""
    known: dict[str, Counter[int]] = defaultdict(Counter)
    for question, answer in zip(data(name).train.questions, data(name).train.answers, strict=True):
        known[question][int(answer)] += 1
    test = data(name).test
    guesses = np.array([known[question].most_common(1)[0][0] for question in test.questions])
    score = load_task(CARDS[name]).score(guesses, test.answers).mean()
    assert score == pytest.approx(load_task(CARDS[name]).chance, abs=0.025)


@pytest.mark.parametrize("name", BALANCED)
def test_answers_are_equally_frequent_in_every_split(name):
    answers = len(data(name).answers)
    for split in SPLITS:
        assert np.ptp(shares(data(name).split(split), answers)) < 0.01


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_front_of_a_split_is_a_fair_smaller_split(name):
    answers = len(data(name).answers)
    for split_name in SPLITS:
        whole = data(name).split(split_name)
        front = Split(
            **{
                field: getattr(whole, field)[: CUTS[split_name]]
                for field in ("items", "images", "questions", "answers")
            }
        )
        assert abs(shares(front, answers) - shares(whole, answers)).max() < 0.02
        asked, all_asked = Counter(front.questions), Counter(whole.questions)
        for question, count in all_asked.items():
            expected = count / len(whole)
            spread = np.sqrt(expected * (1 - expected) / len(front))
            assert abs(asked[question] / len(front) - expected) < 5 * spread + 1e-9


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_split_is_large_enough_for_the_quick_study(name):
    for split, size in CUTS.items():
        assert len(data(name).split(split)) >= size


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.needs])
def test_a_missing_package_is_named_with_the_command_that_brings_it(name, monkeypatch):
    monkeypatch.setattr("fusionbench.tasks._sources.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError) as error:
        load_task(CARDS[name]).load()
    assert CARDS[name].get in str(error.value)
    assert CARDS[name].needs[0] in str(error.value)


def test_no_task_of_the_suite_shares_an_image_with_another():
    home: dict[bytes, str] = {}
    for name in AVAILABLE:
        images = data(name).images
        for pixels in {image.tobytes() for image in images[:: max(1, len(images) // 500)]}:
            assert home.setdefault(pixels, name) == name
