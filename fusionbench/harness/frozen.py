"""A frozen encoder made ready for training through it: compiled blocks, recomputed activations.

Its weights get no gradient whatever happens here, and the outcome changes by rounding at most, so
neither choice is part of a cell's identity. Blocks are compiled one by one: all blocks of an
encoder share one code object and one graph, which takes seconds once per worker, where a graph of
the whole encoder takes minutes per method.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionbench.api.encoders import Delta, Encoder, blocks_of

P = ParamSpec("P")
_GRAPHS = 64


def compile_blocks(encoder: Encoder, *, backend: str | Callable[..., object] = "inductor") -> bool:
    """Compile each block in place; False for an encoder without a list of blocks."""
    blocks = blocks_of(encoder, encoder.shape.layers)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return bool(blocks)


def compiled(run: Callable[P, Tensor], mode: str) -> Callable[P, Tensor]:
    """One graph of a whole step, a method's gates fused with the blocks around them.

    `mode` is `default`, `reduce-overhead` (the same, captured in CUDA graphs), or the name of a
    backend. What cannot be compiled runs as it is.
    """
    if mode == "reduce-overhead":
        # Graphs of the pass before this one keep its memory.
        torch.compiler.reset()
    # One more for each method, task and number of seeds; beyond it nothing is compiled any more.
    # (The first mention of torch._dynamo imports it, which takes as long as all of torch.)
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _GRAPHS)
    known = mode in ("default", "reduce-overhead")
    options: dict[str, Any] = {"mode": mode} if known else {"backend": mode}
    fast: Callable[P, Tensor] = torch.compile(run, dynamic=False, **options)
    broken = False

    def call(*given: P.args, **named: P.kwargs) -> Tensor:
        nonlocal broken
        if not broken:
            try:
                next_step()
                return fast(*given, **named)
            except torch._dynamo.exc.TorchDynamoException as error:
                broken = True
                warnings.warn(f"not compiled: {str(error).splitlines()[0]}", stacklevel=2)
        return run(*given, **named)

    return call


def next_step() -> None:
    """Graphs of `reduce-overhead` may reuse their memory from here on: no gradient is left."""
    mark: Callable[[], None] = torch.compiler.cudagraph_mark_step_begin
    mark()


class Checkpointed(Encoder):
    """Keeps the input of each block only and runs the block again on the way back.

    Memory falls from a dozen activations a block to one, for one forward pass more.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.shape, self.size = encoder.shape, encoder.size
        for name in ("mean", "std"):
            # What pads an image; an encoder of a plug-in may have none.
            if hasattr(encoder, name):
                setattr(self, name, getattr(encoder, name))

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """As the encoder does."""
        return self.encoder.embed(images)

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`; without gradients there is nothing to keep."""
        if not (torch.is_grad_enabled() and tokens.requires_grad):
            return self.encoder.block(index, tokens)
        # A frozen block draws nothing: its random state need not be kept.
        return checkpoint(
            self.encoder.block, index, tokens, use_reentrant=False, preserve_rng_state=False
        )

    def adapted(
        self, index: int, tokens: Float[Tensor, "batch token dim"], delta: Delta
    ) -> Float[Tensor, "batch token dim"]:
        """As `block`, with `delta` added to the outputs of its linear layers."""
        if not torch.is_grad_enabled():
            return self.encoder.adapted(index, tokens, delta)
        return checkpoint(
            self.encoder.adapted, index, tokens, delta,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip

    def linears(self, index: int) -> Mapping[str, nn.Linear]:
        """As the encoder has."""
        return self.encoder.linears(index)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """As the encoder does."""
        return self.encoder.norm(tokens)
