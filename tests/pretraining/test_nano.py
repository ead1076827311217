"""How nano was trained, and that it saw nothing that a task validates or tests on."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionbench.harness.probes import ProbeLimits, fit, probe_layers
from fusionbench.models.encoders.build import build, load_vit
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.vit import ViT
from fusionbench.registry.plugins import load_task
from nano import train as pretrain
from nano.card import random_twin
from nano.detail import detail, detail_told
from nano.images import render
from nano.lessons import NANO, TEACHER_MIDDLE, Lessons, teach
from nano.pool import PoolPlan, image_hash, local_tasks, sources, without
from nano.train import Recipe, common_part


def look(image: np.ndarray) -> bytes:
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()


@pytest.mark.slow
def test_nothing_in_the_pretraining_pool_is_validated_or_tested_on_by_a_task():
    held_out: set[bytes] = set()
    train: dict[str, set[bytes]] = {}
    plan = PoolPlan(procedural=300, skip=("elpv",))
    for card in local_tasks(plan.skip):
        data = load_task(card).load()
        for split in (data.val, data.test):
            held_out |= {look(data.images[row]) for row in np.unique(split.images)}
        train[card.name] = {look(data.images[row]) for row in np.unique(data.train.images)}
    # Before the filter: the sources are disjoint by themselves, the filter is a second lock.
    seen = {name: {look(i) for i in images} for name, images in sources(plan)}
    assert len(seen) >= 2 and all(seen.values())
    for name, looks in seen.items():
        assert not looks & held_out, name
        assert name not in train or looks <= train[name], f"{name}: its train split only"


def test_a_held_out_image_is_left_out_of_the_pool():
    images = render(3, seed=9, side=16)
    kept = without(images, {image_hash(images[1])})
    assert np.array_equal(kept, images[[0, 2]])


def test_procedural_pictures_depend_on_the_seed_and_more_of_them_begin_alike():
    few, many = render(4, seed=1, side=32), render(6, seed=1, side=32)
    assert np.array_equal(few, many[:4])
    assert not np.array_equal(few, render(4, seed=2, side=32))
    assert many.dtype == np.uint8 and many.std() > 20


def small_lessons() -> Lessons:
    """Targets that are a fixed linear map of the mean colour of each patch: learnable in steps."""
    images = torch.from_numpy(render(48, seed=0, side=64))
    pixels = pretrain.patch_pixels(images)
    colours = pixels.unflatten(-1, (3, -1)).mean(-1)
    tokens = torch.cat([colours.mean(1, keepdim=True), colours], dim=1)
    torch.manual_seed(0)
    return Lessons(
        images=images,
        last=(tokens @ torch.randn(3, 6)).half(),
        middle=colours.half(),
        counts={"x": 48},
    )


@pytest.mark.thorough
def test_training_learns_and_is_the_same_twice(caplog):
    data, recipe = small_lessons(), Recipe(batch=16)
    short = pretrain.train(data, recipe, steps=2)
    again = pretrain.train(data, recipe, steps=2)
    other = pretrain.train(data, replace(recipe, seed=1), steps=2)
    for name, value in short.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(short.patch.weight, other.patch.weight)
    caplog.set_level("INFO")
    pretrain.train(data, recipe, steps=25)
    losses = [float(x) for x in re.findall(r"loss ([0-9.]+)", caplog.text)]
    assert losses[-1] < 0.8 * losses[0]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    encoder = pretrain.train(small_lessons(), Recipe(batch=8), steps=1)
    pretrain.save(encoder, tmp_path, training={"teacher": "a test"})
    loaded = load_vit(tmp_path / "nano.safetensors")
    assert loaded.config == NANO
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_the_teachers_tokens_are_averaged_onto_nanos_grid():
    torch.manual_seed(0)
    # Twice nano's grid, like the teacher's 8 x 8.
    teacher = ViT(replace(NANO, layers=6, dim=16, heads=2, mlp=16, patch=8, grid=8))
    pretrain.initialise(teacher)
    teacher.freeze()
    images = torch.from_numpy(render(2, seed=0, side=64))
    tokens = teacher.norm(teacher.hidden_states(images)[-1])
    middle = teacher.hidden_states(images)[TEACHER_MIDDLE]
    last, parts = teach(teacher, images)
    # The teacher speaks in bfloat16.
    near = {"atol": 0.05, "rtol": 0.05}
    assert last.shape == (2, 17, 16) and parts.shape == (2, 16, 64)
    torch.testing.assert_close(last[:, 0], tokens[:, 0], **near)
    torch.testing.assert_close(last[:, 1], tokens[:, [1, 2, 9, 10]].mean(1), **near)
    torch.testing.assert_close(last[:, -1], tokens[:, [55, 56, 63, 64]].mean(1), **near)
    torch.testing.assert_close(parts[:, 0], middle[:, [1, 2, 9, 10]].flatten(1), **near)


def test_the_probe_finds_the_weights_of_a_separable_problem():
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    answers = (x[:, 2] > 0).long()
    weights = fit(x, answers, classes=2, penalty=1e-3)
    assert ((x @ weights).argmax(1) == answers).float().mean() > 0.97
    assert weights[2].abs().max() > 5 * weights[[0, 1, 3, 4]].abs().max()


def test_nanos_card_belongs_to_these_weights_and_tells_the_command():
    card = describe("nano")
    text = Path(card.path).with_name("NANO.md").read_text()
    assert card.weights in text
    assert "python -m nano.train" in text


def scores(encoder: ViT, name: str) -> list[float]:
    task = load_task(next(card for card in local_tasks(()) if card.name == name))
    limits = ProbeLimits(train=600, val=100, test=600)
    return [score.test for score in probe_layers(encoder, task, task.load(), limits=limits)]


@pytest.mark.slow
def test_nanos_last_layer_knows_more_of_meaning_than_random_weights():
    nano = build("nano")
    assert scores(nano, "animal_mnist")[-1] > scores(random_twin(nano), "animal_mnist")[-1] + 0.05


@pytest.mark.slow
def test_nanos_middle_layers_know_more_of_fine_detail_than_its_last():
    by_layer = scores(build("nano"), "scenes_orientation")
    assert sum(by_layer[2:5]) / 3 > by_layer[-1] + 0.02


def test_patches_that_are_all_alike_have_everything_in_common():
    draw = torch.Generator().manual_seed(0)
    alike = torch.randn(1, 1, 96, generator=draw).expand(8, 17, 96)
    apart = torch.randn(64, 17, 96, generator=draw)
    assert common_part([alike]).item() == pytest.approx(1.0, abs=1e-3)
    assert common_part([apart]).item() < 0.01
    assert common_part([alike, apart]).item() == pytest.approx(0.5, abs=0.01)


# What pretraining takes for local detail, and how much of it tokens tell.


def stripes(*, down: bool) -> torch.Tensor:
    """One patch of 16 x 16 with soft lines, along the rows or the columns."""
    wave = torch.sin(torch.arange(16) * 0.8)
    lines = wave[:, None].expand(16, 16) if down else wave[None, :].expand(16, 16)
    return lines.expand(1, 1, 3, 16, 16)


def test_lines_that_run_the_other_way_flip_the_second_moment_and_keep_the_energy():
    rows, columns = (detail(stripes(down=down))[0, 0] for down in (True, False))
    torch.testing.assert_close(rows[0], columns[0])
    assert rows[0] > 0.1
    torch.testing.assert_close(rows[1], -columns[1])
    assert abs(rows[1]) > 0.9 * rows[0]


def test_a_flat_patch_has_no_detail():
    assert detail(torch.full((1, 1, 3, 16, 16), 0.7)).abs().max() < 1e-3


def test_tokens_that_hold_the_detail_tell_all_of_it_and_noise_tells_almost_none():
    told = detail(torch.randn(64, 16, 3, 16, 16, generator=torch.manual_seed(0)))
    noise = torch.randn(64, 17, 32)
    # The layer norm divides by a token's deviation; a large constant pair keeps that nearly fixed.
    held = torch.cat([0.01 * told, torch.tensor([10.0, -10.0]).expand(64, 16, 2)], dim=-1)
    held = torch.cat([torch.zeros(64, 1, held.shape[-1]), held], dim=1)
    assert detail_told(held, told) > 0.95
    assert detail_told(noise, told) < 0.1


def test_the_price_has_a_gradient():
    tokens = torch.randn(8, 17, 6, requires_grad=True)
    detail_told(tokens, detail(torch.randn(8, 16, 3, 16, 16))).backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0
