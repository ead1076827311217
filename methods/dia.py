"""DIANet's LSTM over depth, ported to a frozen vision transformer.

Huang et al., AAAI 2020: one cell, shared by all blocks, sees the mean of each residual branch and
scales its channels: x = h * branch + skip. Here a branch is all that a block adds to its input,
attention and MLP together. Since h is near a quarter at the start, the port does not begin near
the frozen encoder; neither does the original.
"""

from jaxtyping import Float
from torch import Tensor

from fusionbench.api import Fused, InEncoderFusion, StackShape, at_least, method
from fusionbench.methods._sizes import inner_blocks
from fusionbench.methods._units import RecurrentUnit, UnitState


@method(
    "dia_lstm",
    version=1,
    idea="an LSTM over depth scales the channels",
    control="none: the scaling exists only inside the encoder",
    paper="arXiv:1905.10671",
    year=2020,
    parity="deviates: the exact cell, ported to a transformer",
    parameters="2*(5*D*D//reduction + D//reduction + 4*D)",
    switches={"reduction": (1, 2, 8, 16)},
)
class DIALSTM(InEncoderFusion):
    """`reduction`: of the cell's bottlenecks."""

    def __init__(self, shape: StackShape, *, reduction: int = 4) -> None:
        super().__init__(shape)
        at_least(1, reduction=reduction)
        # Only the penultimate layer is read.
        self.depth = inner_blocks(shape)
        self.unit = RecurrentUnit(shape.dim, gates=4, reduction=reduction)

    def start(
        self,
        tokens: Float[Tensor, "batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> UnitState:
        """An empty cell."""
        return self.unit.start(tokens)

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: UnitState
    ) -> tuple[Float[Tensor, "batch token dim"], UnitState]:
        """Scale what the block has added."""
        branch = tokens - state.before
        hidden, cell = self.unit(branch.mean(dim=1), state.hidden, state.cell)
        scaled = state.before + hidden[:, None] * branch
        return scaled, UnitState(scaled, hidden, cell)

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: UnitState) -> Fused:
        """The patches of the modified block L-1."""
        return Fused(tokens=self.patches(tokens))
