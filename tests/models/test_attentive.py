"""The attentive reader's positions: their values, who gets which, and that they are read."""

import numpy as np
import pytest
import torch

from fusionbench.api.types import Fused, Injection, Unsupported
from fusionbench.models.readers import ridge
from fusionbench.models.readers.attentive import positions
from fusionbench.models.readers.build import build_reader
from fusionbench.models.readers.ridge import RidgeReader

WIDTH, GRID = 16, (2, 3)


def _line(places, width):
    """Sine and cosine, written out."""
    half = width // 2
    rates = [10_000 ** (-i / half) for i in range(half)]
    return np.array([
        [np.sin(p * r) for r in rates] + [np.cos(p * r) for r in rates] for p in places
    ])  # fmt: skip


@pytest.fixture
def reader():
    torch.manual_seed(0)
    return build_reader(
        "attentive", 8, width=WIDTH, query_dim=5, length=4, answers=3, grid=GRID, positions=True
    )  # fmt: skip


def _logits(reader, tokens):
    rng = torch.Generator().manual_seed(2)
    question = torch.randn(len(tokens), 4, 5, generator=rng)
    return reader(Fused(tokens=tokens), question, torch.ones(len(tokens), 4, dtype=torch.bool))


def _tokens(count, seed=1):
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(seed))


def test_tokens_that_fill_the_grid_have_half_of_the_width_for_the_row_and_half_for_the_column():
    found = positions(6, WIDTH, GRID).numpy()
    rows, columns = np.divmod(np.arange(6), 3)
    expected = np.hstack([_line(rows, WIDTH // 2), _line(columns, WIDTH // 2)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 4, 5, 12])
def test_any_other_number_of_tokens_is_placed_by_index(tokens):
    found = positions(tokens, WIDTH, GRID).numpy()
    np.testing.assert_allclose(found, _line(np.arange(tokens), WIDTH), atol=1e-6)


@pytest.mark.parametrize(("tokens", "grid"), [(1, (1, 1)), (64, (8, 8)), (300, (8, 8))])
def test_no_two_tokens_share_a_position(tokens, grid):
    found = positions(tokens, 64, grid)
    apart = torch.cdist(found, found) + torch.eye(tokens) * 9
    assert apart.min() > 0.1


@pytest.mark.parametrize("tokens", [4, 6, 12])
def test_the_reader_tells_the_order_of_tokens(reader, tokens):
    given = _tokens(tokens)
    straight, turned = _logits(reader, given), _logits(reader, given.flip(1))
    assert (straight - turned).abs().max() > 1e-3


def test_without_positions_the_order_could_not_be_told(reader):
    reader._placed = lambda seen: seen
    given = _tokens(6)
    torch.testing.assert_close(_logits(reader, given), _logits(reader, given.flip(1)))


def test_positions_add_no_parameter_and_no_buffer(reader):
    linear = [8 * 16, 16 * 16, 5 * 16, 16 * 16, 16 * 16, 16 * 16, 64 * 16, 16 * 3]
    biases = 7 * 16 + 3
    assert sum(p.numel() for p in reader.parameters()) == sum(linear) + biases + 4 * 16
    assert not list(reader.buffers())


# The ridge reader's formulas against plain computations, one example left out after the other.

RIDGE_GRID = (4, 4)


def _blocks(count, seed=0, dim=6, tokens=16):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(count, tokens, dim, generator=rng)
    return ridge.block_features(values, *ridge.random_layer(dim), RIDGE_GRID)


def _left_out(kernel, targets, images, strength):
    """Mean squared residual by solving without each image in turn, in NumPy."""
    total = 0.0
    for image in np.unique(images):
        out, kept = images == image, images != image
        inner = kernel[np.ix_(kept, kept)] + strength * np.eye(kept.sum())
        predicted = kernel[np.ix_(out, kept)] @ np.linalg.solve(inner, targets[kept])
        total += ((targets[out] - predicted) ** 2).sum()
    return total / len(targets)


@pytest.mark.parametrize(
    "images",
    [
        np.arange(24),
        np.repeat(np.arange(8), 3),
        np.r_[np.arange(10), np.arange(10), [0, 20, 21, 22]],
    ],
)
def test_leaving_out_by_formula_equals_solving_without_each_image(images):
    blocks = _blocks(24)
    scaled = ridge.Scales.of(blocks)(blocks)
    rng = np.random.default_rng(1)
    targets = torch.from_numpy(rng.standard_normal((24, 3)))
    for kernel in ridge.KERNELS:
        gram = ridge.image_kernel(scaled, scaled, kernel).double()
        found = ridge.leave_out_errors(gram, targets, torch.from_numpy(images), (0.01, 0.3))
        expected = [_left_out(gram.numpy(), targets.numpy(), images, s) for s in (0.01, 0.3)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("images", [np.arange(16), np.repeat(np.arange(8), 2)])
@pytest.mark.parametrize("kernel", ridge.KERNELS, ids=lambda kernel: kernel.name)
def test_the_loss_of_a_minibatch_is_the_error_of_leaving_its_images_out(kernel, images):
    blocks = _blocks(16)
    scaled = ridge.Scales.of(blocks)(blocks)
    answers = torch.arange(16) % 3
    questions = torch.eye(2).repeat(8, 8) * 0.5 + 0.5
    targets = ridge.one_hot(answers, 3)
    loss = ridge.minibatch_loss(
        blocks, torch.tensor(kernel.weights), torch.tensor(float(kernel.squared)),
        torch.tensor(0.05), questions, targets, torch.from_numpy(images),
    )  # fmt: skip
    gram = (ridge.image_kernel(scaled, scaled, kernel) * questions).double().numpy()
    centred = (targets - targets.mean(dim=0)).double().numpy()
    expected = _left_out(gram, centred, images, 0.05) / (centred**2).sum(axis=1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_the_loss_has_the_gradient_of_finite_differences():
    rng = torch.Generator().manual_seed(4)
    tokens = torch.randn(8, 4, 3, generator=rng, dtype=torch.float64)
    weight, bias = (part.double() for part in ridge.random_layer(3))
    ridge_args = (
        torch.tensor(ridge.KERNELS[2].weights, dtype=torch.float64), torch.tensor(1.0).double(),
        torch.tensor(0.1).double(), torch.ones(8, 8).double(),
        ridge.one_hot(torch.arange(8) % 2, 2).double(), torch.arange(8) // 2,
    )  # fmt: skip

    def loss(values):
        z = torch.nn.functional.layer_norm(values, values.shape[-1:])
        blocks = {
            "places": z.flatten(1), "coarse": z.mean(dim=1), "content": z.mean(dim=1),
            "tokens": torch.relu(z @ weight + bias).mean(dim=1),
        }  # fmt: skip
        return ridge.minibatch_loss(blocks, *ridge_args)

    assert torch.autograd.gradcheck(loss, (tokens.requires_grad_(),), atol=1e-5)


def test_the_solution_predicts_as_a_plain_kernel_ridge_regression():
    blocks, more = _blocks(40), _blocks(9, seed=7)
    answers, asked = torch.arange(40) % 3, torch.arange(40) % 2
    questions = torch.tensor([[1.0, 0.3], [0.3, 1.0]])
    targets = ridge.one_hot(answers, 3)
    head = ridge.solve(blocks, asked, questions, targets, torch.arange(40))
    kernel, strength = head.choice.kernel, head.choice.strength
    scales = ridge.Scales.of(blocks)
    train, test = scales(blocks), scales(more)
    new = torch.arange(9) % 2
    gram = ridge.image_kernel(train, train, kernel) * questions[asked][:, asked]
    cross = ridge.image_kernel(test, train, kernel) * questions[new][:, asked]
    inner = gram.double().numpy() + strength * np.eye(40)
    centred = (targets - targets.mean(dim=0)).double().numpy()
    expected = cross.double().numpy() @ np.linalg.solve(inner, centred)
    expected = expected + targets.mean(dim=0).numpy()
    np.testing.assert_allclose(head(more, new).numpy(), expected, atol=1e-3)


def test_blocks_are_what_the_docstring_says():
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 16, 6, generator=rng)
    weight, bias = ridge.random_layer(6)
    blocks = ridge.block_features(tokens, weight, bias, RIDGE_GRID)
    z = (tokens - tokens.mean(-1, keepdim=True)) / (
        tokens.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(blocks["places"], z.reshape(2, -1))
    torch.testing.assert_close(blocks["content"], z.mean(1))
    torch.testing.assert_close(blocks["tokens"], (z @ weight + bias).clamp(min=0).mean(1))
    square = z.reshape(2, 4, 4, 6)
    corner = square[:, :2, 2:].reshape(2, 4, 6).mean(1)
    grid = blocks["coarse"].reshape(2, 6, 2, 2)
    torch.testing.assert_close(grid[:, :, 0, 1], corner)


def test_tokens_that_fill_no_grid_are_their_own_coarse_places():
    blocks = _blocks(3, tokens=5)
    assert torch.equal(blocks["coarse"], blocks["places"])


def test_constant_tokens_give_the_most_frequent_answer():
    blocks = ridge.block_features(torch.ones(30, 4, 6), *ridge.random_layer(6), RIDGE_GRID)
    answers = torch.tensor([0] * 18 + [1] * 12)
    zeros = torch.zeros(30, dtype=torch.int64)
    head = ridge.solve(blocks, zeros, torch.ones(1, 1), ridge.one_hot(answers, 2), torch.arange(30))
    assert set(head(blocks, zeros).argmax(1).tolist()) == {0}


def test_equal_questions_have_a_kernel_of_one():
    assert torch.equal(ridge.question_kernel(torch.randn(1, 4)), torch.ones(1, 1))
    three = ridge.question_kernel(torch.eye(3))
    assert three[0, 0] > three[0, 1]


def test_a_reader_without_layers_refuses_injections():
    reader = RidgeReader(4, RIDGE_GRID, width=8)
    tokens = torch.randn(2, 16, 4)
    injection = Injection(layer=0, when="before", values=tokens)
    with pytest.raises(Unsupported, match="no layers|has none"):
        reader(Fused(tokens=tokens, injections=(injection,)))


def test_scores_before_a_fit_are_an_error():
    with pytest.raises(RuntimeError, match="before it is fitted"):
        RidgeReader(4, RIDGE_GRID, width=8).scores(
            torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
        )
