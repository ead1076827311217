"""Size and tokens of built-in methods on three encoders, without weights."""

import torch
from registered_methods import CARDS

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, ReaderShape, StackShape
from fusionbench.harness.model import build_fusion
from fusionbench.harness.stepping import fuse
from fusionbench.models.readers.decoder import decoder_shape
from fusionbench.registry.plugins import load_method

SMALL = decoder_shape(128, 8)
VICUNA = ReaderShape(layers=32, width=4096, heads=32, mlp=11008)
SHAPES = {
    "8 blocks, width 96": StackShape(
        layers=8, dim=96, grid=(6, 6), prefix=0, query_dim=64, reader=SMALL, mlp=384
    ),
    "12 blocks, width 384, CLS": StackShape(
        layers=12, dim=384, grid=(8, 8), prefix=1, query_dim=64, reader=SMALL, mlp=1536
    ),
    "CLIP ViT-L/14 at 336 pixels": StackShape(
        layers=24, dim=1024, grid=(24, 24), prefix=1, query_dim=4096, reader=VICUNA, mlp=4096
    ),
}


class Passing(Encoder):
    """Blocks that return their input: shapes need no more."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape, self.size = shape, max(shape.grid)

    def embed(self, images):
        raise AssertionError("no image is read")

    def block(self, index, tokens):
        return tokens

    def adapted(self, index, tokens, delta):
        return tokens

    def norm(self, tokens):
        return tokens


def built(name: str, shape: StackShape) -> Method:
    card = CARDS[name]
    with torch.device("meta"):
        return build_fusion(load_method(card), card.settings, shape)


def added_parameters(method: Method) -> int:
    """What the method trains in addition to a projector of the encoder's width."""
    fusion = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return fusion + (method.out_dim - method.shape.dim) * method.shape.reader_layers().width


def tokens_of(method: Method) -> tuple[int, int]:
    """Number and width of the tokens that enter the projector, and behind it."""
    shape = method.shape
    with torch.device("meta"):
        query = torch.empty(2, shape.query_dim)

        def states(taps):
            return torch.empty(len(taps), 2, shape.tokens, shape.dim)

        fused: Fused = fuse(method, states, query, Passing(shape))
        tokens = fused.tokens
        after = tokens if fused.after_projector is None else fused.after_projector(tokens)
    return tokens.shape[2], after.shape[1]
