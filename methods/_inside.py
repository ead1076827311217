"""What the methods share that reach into the reader's layers."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import StackShape, Tap, one_of

_SINGLE = {"18": (18,), "3_18": (3, 18), "3_18_23": (3, 18, 23)}
STRATEGIES = (*_SINGLE, "former", "latter", "all")
_HALF = 12
_BASE = 23

Target = tuple[int, int, int]
"""Number of the projector, hidden state in the paper's encoder, layer of the reader."""


def targets(strategy: str, layers: int) -> tuple[Target, ...]:
    """Which of CLIP's hidden states goes to which of the reader's `layers` (Lin et al. 2025).

    Single layers k go to int(k layers / 24 - 1); "former" is hs[1..12] to layers 0..11, "latter"
    hs[13..24] to the last 12, "all" is both. What falls outside the reader is left out.
    """
    one_of("strategy", strategy, STRATEGIES)
    if strategy in _SINGLE:
        chosen = [(k, int(k * layers / 24 - 1)) for k in _SINGLE[strategy]]
    else:
        former = [(k, k - 1) for k in range(1, _HALF + 1)]
        latter = [(k, layers - 2 * _HALF + k - 1) for k in range(_HALF + 1, 2 * _HALF + 1)]
        chosen = {"former": former, "latter": latter, "all": former + latter}[strategy]
    return tuple((j, k, m) for j, (k, m) in enumerate(chosen) if 0 <= m < layers)


def first_of_each_layer(found: tuple[Target, ...]) -> tuple[Target, ...]:
    """As the official code does it: of several states for one layer only the first arrives."""
    first = {m: (j, k, m) for j, k, m in reversed(found)}
    return tuple(target for target in found if first[target[2]] == target)


def joined(base: Tap, others: tuple[Tap, ...]) -> tuple[tuple[Tap, ...], tuple[int, ...]]:
    """The base in front, every tap once; and where the others stand."""
    taps = tuple(dict.fromkeys((base, *others)))
    return taps, tuple(taps.index(tap) for tap in others)


def entering(
    shape: StackShape, found: tuple[Target, ...], *, repeat: bool
) -> tuple[tuple[Tap, ...], tuple[int, ...]]:
    """The taps, hs[23] in front, and each target's row among them; `repeat`: hs[23] for all."""
    states = tuple(_BASE if repeat else k for _, k, _ in found)
    base, *others = ((shape.paper_layer(state),) for state in (_BASE, *states))
    return joined(base, tuple(others))


def layer_projector(dim: int, width: int) -> nn.Sequential:
    """LLaVA's `mlp2x_gelu`."""
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))


def normed(tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
    """What the common projector does to its input, so that one learning rate serves all layers."""
    return F.layer_norm(tokens, tokens.shape[-1:])
