"""Built-in methods built for a toy encoder, and their sizes on three encoders without weights."""

import torch

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, ReaderShape, StackShape
from fusionbench.harness.model import build_fusion
from fusionbench.harness.stepping import fuse
from fusionbench.models.readers.decoder import decoder_shape
from fusionbench.registry.cards import MethodCard
from fusionbench.registry.catalog import read_catalog
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


# What the official code trains, counted once for every test that compares with it.

# Trainable parameters beside LLaVA's projector of 20,979,712, as counted in the official code at
# CLIP-L/14-336 and an LLM 4096 wide; the projector's further columns included.
REFERENCE = {
    "penultimate": 0,
    "dense_connector-sti": 0,
    "dense_connector-sci": 8_388_608,
    "dense_connector-dci": 8_388_608,
    "dense_connector-efficient": 8_388_608,
    "mmfuser": 5_190_592,
    "lsf_external_direct-3_18_23": 8_388_608,
    "scalar_mix": 25,
    "scalar_mix-per_channel": 24_576,
    "lln_layerscale-per_layer": 25_239_576,
    "lln_layerscale-shared": 1_051_672,
    "vip_llava": 16_787_456,
    "hf_list": 3 * 1024 * 4096,
    "igva": 27_047_940 + 4_194_304,
    "tgif": 2_112_024,
    "llava_stf": 151_012_352,
    "token_packer": 15_742_976,
    "deepstack": 0,
    "mema": 11_021_569,
    "dia_lstm": 2_630_144,
    "lsf_internal_direct": 62_939_136,
    "lsf_internal_modular": 670_064_646,
    "qwen3vl_deepstack": 15_750_144,
    "mrla-light": 344_304,
    "mrla-base": 270_576,
}

# DLA's recurrent unit with a reduction of 4; its attention is MRLA-light's.
PUBLISHED_UNIT = 2_103_808


# Every built-in method by name, built for a toy encoder.

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
