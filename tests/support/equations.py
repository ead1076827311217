"""Parts of networks in NumPy, for tests that compute a method's equation a second time."""

import math

import numpy as np
import torch
from torch import nn

from fusionbench.api.fusion import Method
from fusionbench.api.modules import CrossAttention
from fusionbench.api.types import ReaderShape, StackShape

SHAPE = StackShape(
    layers=6,
    dim=8,
    grid=(2, 3),
    prefix=2,
    query_dim=4,
    reader=ReaderShape(layers=4, width=12, heads=2, mlp=16),
)


def drawn(method: Method, *, seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights for the method in float64; random states of its taps, and a question."""
    rng = torch.Generator().manual_seed(seed)
    method.double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=rng))
    shape, taps = method.shape, len(getattr(method, "taps", ()))
    states = torch.randn(taps, batch, shape.tokens, shape.dim, generator=rng).double()
    return states, torch.randn(batch, shape.query_dim, generator=rng).double()


def values(tensor: torch.Tensor | nn.Parameter) -> np.ndarray:
    return tensor.detach().numpy()


def linear(module: nn.Linear, x: np.ndarray) -> np.ndarray:
    found = x @ values(module.weight).T
    return found if module.bias is None else found + values(module.bias)


def layer_norm(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * values(module.weight) + values(module.bias)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    shares = np.exp(x - x.max(axis=axis, keepdims=True))
    return shares / shares.sum(axis=axis, keepdims=True)


def attention(module: CrossAttention, asked: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Of one image: every head, one after the other. `asked`, `seen`: [token dim]."""
    weights, biases = (values(p) for p in (module.in_proj_weight, module.in_proj_bias))
    query, key, value = (
        x @ w.T + b
        for x, w, b in zip(
            (asked, seen, seen), np.split(weights, 3), np.split(biases, 3), strict=True
        )
    )
    part = query.shape[1] // module.heads
    heads = []
    for head in range(module.heads):
        at = slice(head * part, (head + 1) * part)
        shares = softmax(query[:, at] @ key[:, at].T / math.sqrt(part))
        heads.append(shares @ value[:, at])
    return linear(module.out_proj, np.concatenate(heads, axis=1))
