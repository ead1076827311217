"""DLA: a recurrent unit over depth refreshes what earlier layers left, then MRLA-light looks at it.

Wang et al., IJCAI 2024, arXiv:2406.13392, the light form. After a block with input o and output x:
    h, c = DSU(mean(x), h, c)
    o    = o * DSU(mean(o), h, c) + DWConv(o)
    x    = x + g * norm(MRLA-light(x, o))
The official code hands the unit's second call the state of the batch's first sample alone. That
is repaired; `dla_as_published` keeps it, and is not in `all`, since its scores depend on the
evaluation batch. Ours in the port: LayerNorm for BatchNorm, so that no image depends on its batch,
and g, one number a block, which starts at zero. CLS is left as it is.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, InEncoderFusion, StackShape, at_least, method
from fusionbench.methods._sizes import inner_blocks
from fusionbench.methods._units import (
    LightLayerAttention,
    RecurrentUnit,
    UnitState,
    as_images,
    as_patches,
)


class Block(nn.Module):
    """What one block has of its own."""

    def __init__(self, dim: int, head: int) -> None:
        super().__init__()
        self.refresh = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.light = LightLayerAttention(dim, head=head, activated=False)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        images: Float[Tensor, "batch dim y x"],
        before: Float[Tensor, "batch dim y x"],
        scale: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch patch dim"]:
        """What the block's output finds in its refreshed input."""
        refreshed = before * scale[..., None, None] + self.refresh(before)
        return self.norm(as_patches(self.light(images, refreshed)))


@method(
    "dla",
    version=1,
    idea="recurrent unit and attention over depth",
    control="mrla-light",
    unmatched="parameters: the method that it extends, which lacks the recurrent unit",
    paper="arXiv:2406.13392",
    year=2024,
    parity="deviates: exact unit and attention in a transformer; the sample leak is repaired",
    parameters="2*(4*D*D//reduction + D//reduction + 3*D) + (L - 1)*(21*D + 11)",
    switches={"reduction": (1, 2, 8, 16), "leak": (True,)},
)
@method(
    "dla_as_published",
    version=1,
    idea="dla with its leak between images",
    variants={"": {"leak": True}},
    control="dla",
    in_all=False,
    paper="arXiv:2406.13392",
    year=2024,
    parity="deviates: exact unit and attention in a transformer, with the sample leak",
    parameters="2*(4*D*D//reduction + D//reduction + 3*D) + (L - 1)*(21*D + 11)",
    switches={"leak": (False,)},
)
class DLA(InEncoderFusion):
    """`reduction` of the unit; `head`: channels of a head; `leak`: the first sample's state."""

    needs_grid = True
    identity_at_init = True
    live_after_steps = 2

    def __init__(
        self, shape: StackShape, *, reduction: int = 4, head: int = 32, leak: bool = False
    ) -> None:
        super().__init__(shape)
        at_least(1, reduction=reduction, head=head)
        # Only the penultimate layer is read.
        self.depth = inner_blocks(shape)
        self.leak = leak
        if leak:
            why = "as published: the unit's second call sees the state of the batch's first sample"
            self.expected_failures = {"batch_order": why, "batch_split": why}
        self.unit = RecurrentUnit(shape.dim, gates=3, reduction=reduction)
        self.gates = nn.Parameter(torch.zeros(self.depth))
        self.blocks = nn.ModuleList(Block(shape.dim, head) for _ in range(self.depth))

    def start(
        self,
        tokens: Float[Tensor, "batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> UnitState:
        """An empty unit."""
        return self.unit.start(tokens)

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: UnitState
    ) -> tuple[Float[Tensor, "batch token dim"], UnitState]:
        """Refresh the block's input and let the block's output look at it."""
        patches, before = self.patches(tokens), self.patches(state.before)
        hidden, cell = self.unit(patches.mean(dim=1), state.hidden, state.cell)
        seen = [x[:1].expand_as(x) if self.leak else x for x in (hidden, cell)]
        scale, _ = self.unit(before.mean(dim=1), *seen)
        images, earlier = (as_images(x, self.shape.grid[0]) for x in (patches, before))
        found = self.blocks[block - 1](images, earlier, scale)
        prefix = tokens[:, : self.shape.prefix]
        moved = torch.cat([prefix, patches + self.gates[block - 1] * found], dim=1)
        return moved, UnitState(moved, hidden, cell)

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: UnitState) -> Fused:
        """The patches of the modified block L-1; the gates are the trace."""
        return Fused(tokens=self.patches(tokens), trace={"gate": self.gates.detach()})
