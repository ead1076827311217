"""Notices an attention map: any tensor whose last two axes are as long as the sequence."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Maps(TorchDispatchMode):
    """Inside it, `found` takes the shape of every map that an operation gives, back or forth."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        square = (self.tokens, self.tokens)
        shapes = (tuple(one.shape) for one in tree_leaves(out) if isinstance(one, Tensor))
        self.found += [shape for shape in shapes if shape[-2:] == square]
        return out
