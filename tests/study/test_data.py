"""A packed folder stands in for the packages, pixel for pixel and cell for cell."""

import json
import lzma
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from encoder_families import MAKERS
from toy_cells import BrightHalf

from fusionbench.api.errors import UserError
from fusionbench.api.tasks import data_hash, validate
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.vit import fitted
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.data import (
    check_packed,
    load_data,
    pack,
    packed_data,
    packed_tasks,
    planned_data,
    task_hash,
)
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import QUICK, preset

SIZE = 32
LOAD = "fusionbench.study.data.load_data"


@cache
def original(name):
    """A task's own data, read once for all tests."""
    return load_data(read_catalog().tasks[name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("packed")
    cards = read_catalog().tasks
    names = [name for name in ("digits", "textile") if cards[name].available]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOAD, lambda card: original(card.name))
        count, size = pack([cards[n] for n in (*names, "scenes_text")], "nano", size=SIZE, out=out)
    assert count == len(names) and size == sum(f.stat().st_size for f in out.rglob("*.*"))
    return out


@pytest.mark.thorough
def test_packed_data_is_the_original_at_the_encoder_s_size(folder, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    for name in ("digits", "textile"):
        packed, source = packed_data(name), original(name)
        validate(packed)
        wanted = torch.from_numpy(source.images)
        if wanted.shape[1] > SIZE:
            assert packed.images.shape[1:3] == (SIZE, SIZE)
        # What the encoder would make of either is the same to the last bit.
        how = {"size": SIZE, "interpolation": "bilinear", "fit": "squash", "crop": 1.0}
        ours = fitted(torch.from_numpy(np.array(packed.images)), **how)
        assert torch.equal(ours, fitted(wanted, **how))
        for split in ("train", "val", "test"):
            one, two = packed.split(split), source.split(split)
            assert one.items == two.items and one.questions == two.questions
            assert (one.answers == two.answers).all() and (one.images == two.images).all()


@pytest.mark.thorough
def test_a_packed_task_keeps_the_hash_of_its_original(folder, monkeypatch):
    card = read_catalog().tasks["textile"]
    monkeypatch.setattr(LOAD, lambda card: original(card.name))
    hashed = task_hash(card)
    assert hashed == data_hash(original("textile"))
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    assert task_hash(card) == hashed


@pytest.mark.thorough
def test_cells_keep_their_identity_and_packages_are_not_needed(folder, monkeypatch):
    budget = replace(QUICK.budget, image_size=SIZE)
    study = replace(QUICK, budget=budget, methods=("last",), tasks=("digits",))
    before = {cell.spec.id for cell in make_plan(resolve(study, read_catalog()), ()).cells}
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    monkeypatch.setattr("fusionbench.registry.catalog.importable", lambda name: False)
    catalog = read_catalog(packed=packed_tasks())
    assert catalog.tasks["digits"].available and not catalog.tasks["easy_vqa"].available
    after = {cell.spec.id for cell in make_plan(resolve(study, catalog), ()).cells}
    assert after == before


CROPPING = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_center_crop": True,
    "resample": 3,
}


@pytest.fixture(scope="module")
def cropping(tmp_path_factory) -> str:
    """A checkpoint whose processor resizes bicubically to 40 pixels and takes 32 of them."""
    home = tmp_path_factory.mktemp("vit")
    name = MAKERS["vit"](home).name
    (home / "preprocessor_config.json").write_text(json.dumps(CROPPING))
    return name


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_an_encoder_sees_the_same_pixels_from_a_pack(fit, cropping, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    name = f"{cropping}[fit={fit}]"
    encoder = build(name)
    assert (encoder.images.interpolation, encoder.images.fit) == ("bicubic", fit)
    # Crops keep the shape: an image that is no square, and larger than what is read.
    draw = np.random.default_rng(3)
    small = BrightHalf().load()
    pixels = draw.integers(0, 256, (len(small.images), 90, 70, 3), dtype=np.uint8)
    tall = replace(small, images=pixels)
    with monkeypatch.context() as patched:
        patched.setattr(LOAD, lambda card: tall)
        # The hash of these images is no hash of the task.
        patched.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
        pack([read_catalog().tasks["digits"]], name, size=SIZE, out=tmp_path)
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path))
    packed = packed_data("digits").images[:64]
    assert packed.shape[1:3] == ((51, 40) if fit == "crop" else (SIZE, SIZE))
    seen = encoder.pixels(torch.from_numpy(np.array(packed)))
    assert torch.equal(seen, encoder.pixels(torch.from_numpy(pixels[:64])))


def test_resized_images_are_refused_to_another_encoder_or_size(folder, cropping, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(folder))
    nano = describe("nano", image_size=SIZE)
    check_packed({"textile": nano, "scenes_text": describe("nano")})
    for other in (describe("nano"), describe(f"{cropping}[fit=crop]"), describe(cropping)):
        with pytest.raises(UserError, match="textile was packed for nano at 32 pixels"):
            check_packed({"textile": other})
    study = replace(QUICK, methods=("last",), tasks=("textile",))
    with pytest.raises(UserError, match="nano would see at 64"):
        resolve(study, read_catalog(packed=packed_tasks()))
    # A task of the mixture is trained on, also where it is not scored.
    model = replace(
        preset("quick", "vlm"), methods=("last",), tasks=("scenes_text",), mixture=("textile",)
    )
    with pytest.raises(UserError, match="nano would see at 64"):
        resolve(model, read_catalog(packed=packed_tasks()))


@pytest.mark.fault(
    "stored data", "a task's images or a pack changed on disk", "refused before anything is encoded"
)
def test_data_that_changed_since_it_was_planned_is_refused_and_planned_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("FUSIONBENCH_DATA", raising=False)
    card = read_catalog().tasks["scenes_text"]
    first = BrightHalf().load()
    monkeypatch.setattr(LOAD, lambda card: first)
    hashed = task_hash(card)
    assert planned_data(card, hashed) is first
    # Another image from a file that the note of the hash knows nothing of.
    other = replace(first, images=255 - first.images)
    monkeypatch.setattr(LOAD, lambda card: other)
    assert task_hash(card) == hashed
    with pytest.raises(
        ValueError, match="the data of scenes_text has changed.*run the study again"
    ):
        planned_data(card, hashed)
    assert task_hash(card) == data_hash(other) != hashed


@pytest.mark.fault(
    "stored data", "a task's images or a pack changed on disk", "refused before anything is encoded"
)
def test_a_pack_whose_files_changed_is_refused(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "pack")
    monkeypatch.setenv("FUSIONBENCH_DATA", str(copy))
    file = copy / "tasks" / "digits.images.xz"
    pixels = bytearray(lzma.decompress(file.read_bytes()))
    pixels[0] ^= 1
    file.write_bytes(lzma.compress(bytes(pixels)))
    with pytest.raises(UserError, match="digits.images.xz: damaged: its hash is not"):
        packed_data("digits")
    values = json.loads((copy / "manifest.json").read_text())
    # As an earlier version packed it: the data itself is compared where nothing was resized.
    del values["files"], values["checksum"]
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="cannot be compared with the hash of its data"):
        packed_data("digits")
    file.write_bytes(lzma.compress(bytes(1 << 20)))
    with pytest.raises(UserError, match="damaged"):
        packed_data("digits")
    for text in ("{", "[" * 100_000, '{"tasks": {"digits": "x"}}'):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest.json: "):
            packed_tasks()


def test_a_pack_that_does_not_exist_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="which is no folder"):
        packed_tasks()


def test_a_folder_without_a_manifest_is_no_pack(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path))
    assert packed_tasks() == {} and packed_data("digits") is None
