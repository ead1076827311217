"""Local detail of a patch, and how much of it tokens tell linearly: for pretraining `nano`.

Detail is what gradients say of a patch whatever stands there: how much structure it has, and which
way that runs, at two scales. Suffixes: B batch, N patch, D width, K statistic.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_RIDGE = 1e-2


def detail(
    patches: Float[Tensor, "batch patch channel height width"],
) -> Float[Tensor, "batch patch statistic"]:
    """Energy of the gradient and its second and fourth angular moments, fine and coarse.

    The moments cos 2a, sin 2a, cos 4a, sin 4a of the gradient's angle a, weighted with its size,
    say which way lines run, whatever their sign (structure tensor; Foerstner and Guelch, 1987).
    """
    grey = reduce(patches, "b n c i j -> b n i j", "mean")
    coarse = reduce(grey, "b n (i p) (j q) -> b n i j", "mean", p=2, q=2)
    return torch.cat([_moments(grey), _moments(coarse)], dim=-1)


def detail_told(
    tokens: Float[Tensor, "batch token dim"],
    told: Float[Tensor, "batch patch statistic"],
) -> Float[Tensor, ""]:
    """Share of the variance of `told` that tokens explain linearly (R squared), 0 to 1."""
    prefix = tokens.shape[1] - told.shape[1]
    normed = F.layer_norm(tokens, tokens.shape[-1:])
    return _explained(
        rearrange(normed[:, prefix:], "b n d -> (b n) d"), rearrange(told, "b n k -> (b n) k")
    )


def _moments(grey: Float[Tensor, "batch patch height width"]) -> Float[Tensor, "batch patch five"]:
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    right = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    size = (down.square() + right.square() + 1e-8).sqrt()
    angle = torch.atan2(down, right)
    waves = [torch.ones_like(angle)]
    waves += [wave(times * angle) for times in (2, 4) for wave in (torch.cos, torch.sin)]
    return torch.stack([reduce(size * wave, "b n i j -> b n", "mean") for wave in waves], dim=-1)


def _explained(
    x_BD: Float[Tensor, "row dim"], y_BK: Float[Tensor, "row statistic"]
) -> Float[Tensor, ""]:
    """R squared of a ridge regression, mean over statistics."""
    x_BD, y_BK = _standard(x_BD), _standard(y_BK)
    rows, dim = x_BD.shape
    gram = x_BD.T @ x_BD / rows + _RIDGE * torch.eye(dim)
    cross = x_BD.T @ y_BK / rows
    return (cross * torch.linalg.solve(gram, cross)).sum(dim=0).mean()


def _standard(values: Float[Tensor, "row channel"]) -> Float[Tensor, "row channel"]:
    return (values - values.mean(dim=0)) / (values.std(dim=0) + 1e-4)
