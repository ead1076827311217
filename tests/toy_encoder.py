"""The kit's toy encoder, with a shape of the tests' own as the default."""

from torch import Tensor

from fusionbench.checks import toy
from fusionbench.checks.subject import run
from fusionbench.types import StackShape

__all__ = ["SHAPE", "ToyEncoder", "draw", "run"]

SHAPE = StackShape(layers=5, dim=16, grid=(3, 4), prefix=1, query_dim=6)


class ToyEncoder(toy.ToyEncoder):
    def __init__(self, shape: StackShape = SHAPE) -> None:
        super().__init__(shape)


def draw(shape: StackShape = SHAPE, *, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """hs[0] and queries."""
    return toy.draw(shape, batch=batch, seed=seed)
