"""Every built-in method by name, built for a toy encoder."""

import torch

from fusionbench.api.fusion import Method
from fusionbench.api.types import StackShape
from fusionbench.registry.cards import MethodCard
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method

CARDS: dict[str, MethodCard] = {
    name: card for name, card in read_catalog().methods.items() if card.source == "built-in"
}


def names() -> list[str]:
    return list(CARDS)


def variants(family: str) -> dict[str, dict]:
    """Changed settings by the variant's suffix."""
    return {card.variant: dict(card.changes) for card in CARDS.values() if card.family == family}


def build(name: str, shape: StackShape, *, seed: int = 0) -> Method:
    """The method with the settings of its name; the seed draws its initial values."""
    card = CARDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_method(card)(shape, **card.changes)
