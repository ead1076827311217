"""What passes between an encoder, a fusion method and a reader."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

# Papers give layer indices for the 24 blocks of CLIP ViT-L/14.
_PAPER_LAYERS = 24


class Unsupported(Exception):
    """A method and an encoder, task or reader do not fit; the cell is skipped with this reason."""


@dataclass(frozen=True, kw_only=True)
class ReaderShape:
    """The layers of a reader, as far as a method that reaches into them must know them."""

    layers: int
    width: int
    heads: int
    mlp: int
    """Width inside the MLP of a layer."""


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """What a method may know before it sees data.

    Hidden states are `hs[0..layers]`: `hs[0]` is the input of block 1 (after any pre-norm),
    `hs[i]` the output of block i, `hs[layers]` the last block before the final norm.
    """

    layers: int
    dim: int
    grid: tuple[int, int]
    """Patches, height x width, row-major."""
    prefix: int = 0
    """Leading tokens that are not patches: CLS, registers."""
    query_dim: int = 0
    """Width of the question's vector; 0: no query available."""
    reader: ReaderShape | None = None
    """None: the reader has no layers, so that nothing can be injected into it."""

    @property
    def normed(self) -> int:
        """Index of one more tap: `hs[layers]` behind the encoder's final norm."""
        return self.layers + 1

    def reader_layers(self) -> ReaderShape:
        """The reader's layers; Unsupported if it has none."""
        if self.reader is None:
            raise Unsupported("reaches into the reader's layers, and this reader has none")
        return self.reader

    @property
    def tokens(self) -> int:
        """Tokens of one hidden state, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]

    def layer(self, index: int) -> int:
        """Resolve a hidden-state index, negative ones counted from the end (-1 is `hs[layers]`).

        Raises ValueError for an index outside the stack.
        """
        resolved = index + self.layers + 1 if index < 0 else index
        if not 0 <= resolved <= self.layers:
            raise ValueError(
                f"hidden state {index} does not exist: this encoder has hs[0..{self.layers}]"
            )
        return resolved

    def paper_layer(self, index: int, *, blocks: int = _PAPER_LAYERS) -> int:
        """Map `hs[index]` of a paper's encoder to this one, keeping "penultimate" penultimate.

        With 24 blocks in the paper, `hs[i]`, 1 <= i <= 23, goes to round(i (L-1) / 23), never to
        `hs[0]`; `hs[24]` to `hs[L]`.
        """
        if not 0 <= index <= blocks:
            raise ValueError(f"a paper's layer lies in 0..{blocks}, got {index}")
        if index == 0:
            return 0
        if index == blocks:
            return self.layers
        # int(x + 1/2) instead of round(): halves go up on every encoder alike.
        return max(1, int(index * (self.layers - 1) / (blocks - 1) + 0.5))


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Values added to the reader's hidden states at the image positions.

    `layer` counts the reader's layers from 0; `before` adds to the layer's input. Values are as
    wide as the reader, or `through_projector` as wide as the fusion's tokens: then the reader's
    own projector makes them.
    """

    layer: int
    when: Literal["before", "after"]
    values: Float[Tensor, "batch token dim"]
    through_projector: bool = False


ReaderLayer = Callable[..., Float[Tensor, "batch position width"]]
"""A layer of a reader: hidden states, and by name the attention mask and what else the reader
hands to its layers. Its parts are named as in Llama: `input_layernorm`, `self_attn`,
`post_attention_layernorm`, `mlp`."""


@dataclass(frozen=True, kw_only=True)
class ReaderPatch:
    """Runs in place of one layer of the reader.

    `wrap` takes the layer, for its parts, and gives what runs instead.
    """

    layer: int
    wrap: Callable[[nn.Module], ReaderLayer]


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What a fusion method gives: tokens for the reader, and what else it has to say."""

    tokens: Float[Tensor, "batch token dim"]
    after_projector: Callable[[Tensor], Tensor] | None = None
    """What is done to the projected tokens; free of parameters."""
    injections: tuple[Injection, ...] = ()
    patches: tuple[ReaderPatch, ...] = ()
    summary: Float[Tensor, "batch dim"] | None = None
    """Compared with the answer's embedding by the harness, times `summary_weight`."""
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Extra loss terms, already weighted."""
    trace: Mapping[str, Tensor] = field(default_factory=dict)
    """For the plots: layer weights, gate openings, memory norms; first axis the layer."""

    @property
    def reaches_inside(self) -> bool:
        """Whether the reader must have layers."""
        return bool(self.injections or self.patches)
