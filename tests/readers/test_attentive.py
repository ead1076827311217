"""The attentive reader's positions: their values, who gets which, and that they are read."""

import numpy as np
import pytest
import torch

from fusionbench.api.types import Fused
from fusionbench.models.readers.attentive import positions
from fusionbench.models.readers.build import build_reader

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
