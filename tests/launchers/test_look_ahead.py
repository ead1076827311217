"""The first look at a task's data: hashes by several processes, images kept until encoded."""

from dataclasses import replace

import numpy as np
import pytest

from fusionbench.harness.bundle import bundle_path, cut, drop_images, kept_images, read_bundle
from fusionbench.registry.catalog import read_catalog
from fusionbench.study import data as task_source
from fusionbench.study.data import load_data, task_hash, task_hashes
from fusionbench.study.study import SMOKE

NAMES = ("digits", "planted_layer")
BUDGET = SMOKE.budget


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Two tasks that no cache has seen."""
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("FUSIONBENCH_DATA", raising=False)
    return [read_catalog().tasks[name] for name in NAMES]


def test_every_hash_is_found_once_whoever_looks(cards, monkeypatch):
    alone = [task_source._look(card, None) for card in cards]
    for file in task_source.cache_dir("data").iterdir():
        file.unlink()
    assert list(task_hashes(cards).values()) == alone
    monkeypatch.setattr(task_source, "load_data", None)  # nobody reads the data again
    assert [task_hash(card) for card in cards] == alone
    task_hashes(cards)


def test_the_images_of_a_cut_are_kept_until_they_are_encoded(cards):
    task_hashes(cards, BUDGET)
    for card in cards:
        bundle = read_bundle(bundle_path(card.name, task_hash(card), BUDGET))
        expected, pixels = cut(card.name, load_data(card), BUDGET)
        assert bundle.images == expected.images
        assert np.array_equal(kept_images(bundle), pixels)
        drop_images(bundle)
        assert kept_images(bundle) is None
        drop_images(bundle)


def test_another_budget_keeps_nothing_that_was_seen_before(cards, tmp_path):
    task_hashes(cards)
    assert not (tmp_path / "images").exists()
    task_hashes(cards, replace(BUDGET, train_items=8))
    assert not (tmp_path / "images").exists()


def test_a_damaged_file_of_images_counts_as_none(cards):
    task_hashes(cards[:1], BUDGET)
    bundle = read_bundle(bundle_path(cards[0].name, task_hash(cards[0]), BUDGET))
    (file,) = task_source.cache_dir("images").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert kept_images(bundle) is None
