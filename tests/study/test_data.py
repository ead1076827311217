"""A packed folder stands in for the packages, pixel for pixel and cell for cell."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusionbench.api.tasks import data_hash, validate
from fusionbench.encoders.vit import resize
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.data import load_data, pack, packed_data, packed_tasks, task_hash
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import QUICK

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("packed")
    cards = read_catalog().tasks
    names = [name for name in ("digits", "textile") if cards[name].available]
    count, size = pack([cards[n] for n in (*names, "scenes_text")], "nano", size=SIZE, out=out)
    assert count == len(names) and size == sum(f.stat().st_size for f in out.rglob("*.*"))
    return out


def test_packed_data_is_the_original_at_the_encoder_s_size(folder, monkeypatch):
    originals = {name: load_data(read_catalog().tasks[name]) for name in ("digits", "textile")}
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    for name, original in originals.items():
        packed = packed_data(name)
        validate(packed)
        wanted = torch.from_numpy(original.images)
        if wanted.shape[1] > SIZE:
            assert packed.images.shape[1:3] == (SIZE, SIZE)
        # What the encoder would make of either is the same to the last bit.
        ours = resize(torch.from_numpy(np.array(packed.images)), SIZE)
        assert torch.equal(ours, resize(wanted, SIZE))
        for split in ("train", "val", "test"):
            one, two = packed.split(split), original.split(split)
            assert one.items == two.items and one.questions == two.questions
            assert (one.answers == two.answers).all() and (one.images == two.images).all()


def test_a_packed_task_keeps_the_hash_of_its_original(folder, monkeypatch):
    card = read_catalog().tasks["textile"]
    original = task_hash(card)
    assert original == data_hash(load_data(card))
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    assert task_hash(card) == original


def test_cells_keep_their_identity_and_packages_are_not_needed(folder, monkeypatch):
    study = replace(QUICK, methods=("last",), tasks=("digits",))
    before = {cell.spec.id for cell in make_plan(resolve(study, read_catalog()), ()).cells}
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    monkeypatch.setattr("fusionbench.registry.catalog.importable", lambda name: False)
    catalog = read_catalog(packed=packed_tasks())
    assert catalog.tasks["digits"].available and not catalog.tasks["easy_vqa"].available
    after = {cell.spec.id for cell in make_plan(resolve(study, catalog), ()).cells}
    assert after == before


def test_a_folder_without_a_manifest_is_no_pack(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path))
    assert packed_tasks() == {} and packed_data("digits") is None
