"""The planted encoder shows each bit where its docstring says and nowhere else.

Probes are ridge regressions on the labels' signs, fitted on train and scored on test: a linear
one, and one on all pairwise products for what is visible only jointly.
"""

from functools import cache

import numpy as np
import pytest
import torch

from fusionbench.api.tasks import Split, TaskData
from fusionbench.api.types import StackShape
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.planted import (
    _GATE,
    _HIDDEN,
    FEEDBACK,
    FIRST,
    LAYER,
    SECOND,
    Planted,
    planted,
)
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task

# Four standard errors of a guesser on 1,024 examples.
CHANCE = 0.5 + 4 * 0.5 / 32
LAYERS = range(9)
TRAIN = 2048


@cache
def encoder() -> Planted:
    made = build("planted")
    assert isinstance(made, Planted)
    return made


@cache
def data(task: str) -> TaskData:
    return load_task(read_catalog().tasks[task]).load()


@cache
def states(task: str, split: str, opening: float = 0.0) -> list[np.ndarray]:
    """Mean tokens of every hidden state; `opening` is written into the gate after block 1."""
    part: Split = getattr(data(task), split)
    rows = part.images[:TRAIN]
    tokens = encoder().embed(torch.from_numpy(data(task).images[rows]))
    found = [tokens]
    for index in LAYERS[1:]:
        tokens = encoder().block(index, tokens)
        if index == 1:
            tokens[:, 1::2, _GATE] += opening
        found.append(tokens)
    # Odd tokens are the ones that a write may have opened, CLS is number 0.
    return [
        np.concatenate([h[:, 1::2].mean(1), h[:, ::2].mean(1)], axis=1)
        for h in map(np.asarray, found)
    ]


def accuracy(train: np.ndarray, test: np.ndarray, task: str) -> float:
    signs = data(task).train.answers[: len(train)] * 2 - 1
    mean, spread = train.mean(0), train.std(0) + 1e-6
    x, y = ((part - mean) / spread for part in (train, test))
    kernel = x @ x.T + 100 * np.eye(len(x)) if x.shape[1] > len(x) else None
    if kernel is not None:
        weights = x.T @ np.linalg.solve(kernel, signs)
    else:
        weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ signs)
    return float(((y @ weights > 0) == (data(task).test.answers == 1)).mean())


def per_layer(task: str, opening: float = 0.0) -> list[float]:
    pairs = zip(states(task, "train", opening), states(task, "test", opening), strict=True)
    return [accuracy(train, test, task) for train, test in pairs]


def squares(rows: np.ndarray) -> np.ndarray:
    """All products of two features, and the features."""
    index = np.triu_indices(rows.shape[1])
    return np.concatenate([rows, rows[:, index[0]] * rows[:, index[1]]], axis=1)


def joint(layers: tuple[int, ...], split: str) -> np.ndarray:
    """Products of features (patch means) within and between layers of the pair task."""
    rows = [states("planted_pair", split)[i][:1280, :64] for i in layers]
    return squares(np.concatenate(rows, axis=1))


def test_the_layer_task_is_solved_by_layer_5_and_by_no_other():
    scores = per_layer("planted_layer")
    assert scores.pop(5) == 1.0
    assert max(scores) < CHANCE


@pytest.mark.thorough
def test_the_pair_task_is_solved_by_no_single_layer_not_even_by_products():
    assert max(per_layer("planted_pair")) < CHANCE
    for layer in (2, 5):
        score = accuracy(joint((layer,), "train"), joint((layer,), "test"), "planted_pair")
        assert score < CHANCE


def test_the_pair_task_is_solved_by_layers_2_and_5_together():
    assert accuracy(joint((2, 5), "train"), joint((2, 5), "test"), "planted_pair") > 0.97


def test_the_feedback_task_is_solved_by_no_layer_while_nobody_writes():
    assert max(per_layer("planted_feedback")) < CHANCE


@pytest.mark.parametrize("opening", [0.2, -0.2])
def test_the_feedback_task_is_solved_after_block_5_once_the_gate_is_written(opening):
    scores = per_layer("planted_feedback", opening)
    assert max(scores[:6]) < CHANCE
    assert min(scores[6:]) == 1.0


def test_only_tokens_whose_gate_was_written_reveal_anything():
    shut = [accuracy(a[:, 64:], b[:, 64:], "planted_feedback") for a, b in _opened()]
    assert max(shut) < CHANCE


def test_random_labels_are_solved_by_no_layer():
    assert max(per_layer("planted_random")) < CHANCE


def test_tasks_and_encoder_agree_on_the_planted_bits():
    """The label follows from the encoder's own hidden bits, in every split."""
    asked = {
        "planted_layer": [LAYER],
        "planted_pair": [FIRST, SECOND],
        "planted_feedback": [FEEDBACK],
    }
    for task, bits in asked.items():
        for split in (data(task).train, data(task).val, data(task).test):
            tokens = encoder().embed(torch.from_numpy(data(task).images[split.images]))
            ones = (tokens[:, 1:, _HIDDEN] > 0).sum(1).numpy()
            assert (ones[:, bits].sum(1) % 2 == split.answers).all()


def test_the_gate_is_differentiable_and_the_hidden_bits_are_not():
    tokens = encoder().embed(torch.from_numpy(data("planted_layer").images[:4])).requires_grad_()
    out = tokens
    for index in LAYERS[1:]:
        out = encoder().block(index, out)
    (slope,) = torch.autograd.grad(out.square().sum() + out.sum(), tokens)
    assert (slope[..., _GATE] != 0).all()
    assert (slope[..., _HIDDEN] == 0).all()


def test_feedback_of_moderate_size_changes_no_hidden_bit():
    generator = torch.Generator().manual_seed(0)
    tokens = plain = encoder().embed(torch.from_numpy(data("planted_layer").images[:64]))
    for index in LAYERS[1:]:
        plain = encoder().block(index, plain)
        tokens = encoder().block(
            index, tokens + 3 * torch.rand(tokens.shape, generator=generator) - 1.5
        )
    assert torch.equal(tokens[..., _HIDDEN], plain[..., _HIDDEN])


def test_layers_look_alike_in_size():
    sizes = [np.sqrt((state**2).mean()) for state in _plain_tokens()]
    assert max(sizes) < 2 * min(sizes)
    directions = {state[0, 0].round(3).tobytes() for state in _plain_tokens()}
    assert len(directions) == len(LAYERS)


def test_the_literal_facts_are_those_of_the_encoder():
    card = describe("planted")
    shape = StackShape(layers=card.layers, dim=card.dim, grid=card.grid, prefix=card.prefix)
    assert encoder().shape == shape
    assert encoder().size == card.size
    assert not list(encoder().parameters())


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="12 x 12 pixels, got 64 x 64"):
        encoder().embed(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="there are: planted"):
        planted("planted_2")


def _opened() -> list[tuple[np.ndarray, np.ndarray]]:
    train, test = (states("planted_feedback", split, 0.2) for split in ("train", "test"))
    return list(zip(train, test, strict=True))


def _plain_tokens() -> list[np.ndarray]:
    images = torch.from_numpy(data("planted_layer").images[:64])
    return [state.numpy() for state in encoder().hidden_states(images)]
