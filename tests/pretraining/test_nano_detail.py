"""What pretraining takes for local detail, and how much of it tokens tell."""

import torch

from nano.detail import detail, detail_told


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
