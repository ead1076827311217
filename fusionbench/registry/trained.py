"""How much a method trains on an encoder, for controls that have to train as much."""

from functools import cache

import torch

from fusionbench.api.errors import unknown
from fusionbench.api.types import StackShape
from fusionbench.registry.catalog import MethodCard, read_catalog
from fusionbench.registry.plugins import load_method


def trained_parameters(name: str, shape: StackShape) -> int:
    """Parameters of the built-in method `name` at this shape; nothing of it is kept.

    Without the projector's share: that depends on the reader. Raises UserError for an unknown
    name, Unsupported where the method does not fit the shape.
    """
    card = _card(name)
    with torch.device("meta"):
        built = load_method(card)(shape, **card.settings)
    return sum(parameter.numel() for parameter in built.parameters())


@cache
def _card(name: str) -> MethodCard:
    known = {n: card for n, card in read_catalog().methods.items() if card.source == "built-in"}
    if name not in known:
        raise unknown("method", name, known)
    return known[name]
