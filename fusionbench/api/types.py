"""Values passed between encoder, fusion method and reader."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

# Papers give layer indices for the 24 blocks of CLIP ViT-L/14.
_PAPER_LAYERS = 24


class Unsupported(Exception):
    """A method does not fit an encoder, task or reader; the cell is skipped with this reason."""


@dataclass(frozen=True, kw_only=True)
class ReaderShape:
    """Size of a reader's layers, for methods that inject into them."""

    layers: int
    width: int
    heads: int
    mlp: int
    """Hidden width of a layer's MLP."""


class NormedLayer(int):
    """Index of a hidden state after the final norm, as `StackShape.normed_layer` gives it.

    A class of its own, so that an index beyond the last layer is a mistake and no other layer.
    """


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """Shape of the encoder's hidden states and of the reader.

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
    """Width of the question vector; 0: no query."""
    mlp: int = 0
    """Hidden width of the encoder's MLPs; 0: its linear layers cannot be reached."""
    rotary: bool = False
    """Whether the blocks add positions themselves, so that no token may be inserted."""
    reader: ReaderShape | None = None
    """None: the reader has no layers for injection."""

    @property
    def normed(self) -> "NormedLayer":
        """Index of an extra tap: `hs[layers]` after the encoder's final norm."""
        return self.normed_layer(-1)

    def normed_layer(self, index: int) -> "NormedLayer":
        """Index of an extra tap: `hs[index]` after the encoder's final norm.

        Extra taps follow `hs[layers]`, the last layer first: `normed_layer(-1)` is `layers + 1`,
        `normed_layer(0)` is `2 * layers + 1`. Raises ValueError for an index outside the stack.
        """
        return NormedLayer(2 * self.layers + 1 - self.layer(index))

    def has(self, index: int) -> bool:
        """Whether an index of a tap names a hidden state: 0 to `layers`, or a `NormedLayer`."""
        last = 2 * self.layers + 1 if isinstance(index, NormedLayer) else self.layers
        return isinstance(index, int) and 0 <= index <= last

    def source(self, index: int) -> tuple[int, bool]:
        """The hidden state that an index of a tap names, and whether the final norm follows it."""
        normed = index > self.layers
        return (2 * self.layers + 1 - index if normed else index), normed

    def reader_layers(self) -> ReaderShape:
        """The reader's layers; Unsupported if it has none."""
        if self.reader is None:
            raise Unsupported("injects into the reader's layers, and this reader has none")
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
            raise ValueError(f"a paper's layer must be in 0..{blocks}, got {index}")
        if index == 0:
            return 0
        if index == blocks:
            return self.layers
        # int(x + 1/2) instead of round(): halves are always rounded up.
        return max(1, int(index * (self.layers - 1) / (blocks - 1) + 0.5))


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Values added to the reader's hidden states at the image positions.

    `layer` counts from 0; "before" adds to the layer's input, "after" to its output. Values have
    the reader's width, or with `through_projector` the width of the fused tokens: the reader's
    projector is applied to them.
    """

    layer: int
    when: Literal["before", "after"]
    values: Float[Tensor, "batch token dim"]
    through_projector: bool = False


ReaderLayer = Callable[..., Float[Tensor, "batch position width"]]
"""A layer of a reader: takes hidden states and, by keyword, the attention mask and other inputs.
Parts are named as in Llama: `input_layernorm`, `self_attn`, `post_attention_layernorm`, `mlp`."""


@dataclass(frozen=True, kw_only=True)
class ReaderPatch:
    """Replaces one layer of the reader: `wrap` takes the layer and returns its replacement."""

    layer: int
    wrap: Callable[[nn.Module], ReaderLayer]


@dataclass(frozen=True, kw_only=True)
class Fused:
    """Output of a fusion method."""

    tokens: Float[Tensor, "batch token dim"]
    after_projector: Callable[[Tensor], Tensor] | None = None
    """Applied to the projected tokens; has no parameters."""
    injections: tuple[Injection, ...] = ()
    patches: tuple[ReaderPatch, ...] = ()
    summary: Float[Tensor, "batch dim"] | None = None
    """Aligned with the answer's embedding in the loss, with weight `summary_weight`."""
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Extra loss terms, already weighted."""
    trace: Mapping[str, Tensor] = field(default_factory=dict)
    """For the figures: layer weights, gate openings, memory norms; first axis: layer."""

    @property
    def reaches_inside(self) -> bool:
        """Whether the reader must have layers."""
        return bool(self.injections or self.patches)
