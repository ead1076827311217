"""CLI's projection: one projector for all layers, and a low-rank term for each.

Chen et al. 2026, arXiv:2601.10710 (no code released). With the reader's own projector P,
    h[image] += P(hs_k) + B_k A_k hs_k
in front of reader layer m(k), with the layers of Layer_Select_Fuse's internal fusion, whose
projector for each layer this replaces by r (D + H) parameters. CLI's second part, a gate for each
pair of layers that looks at the reader's state, is not here. B starts at zero, as low-rank
terms do; hs_k is normalised, as in P.
"""

from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, Injection, StackShape, at_least, method
from fusionbench.methods._inside import entering, normed, targets


class LowRank(nn.Module):
    """B A x, zero at the start."""

    def __init__(self, dim: int, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token width"]:
        """Each token on its own."""
        return self.up(self.down(x))


@method(
    "cli_amp",
    version=1,
    idea="layers enter the reader, low-rank projector",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="cli_amp-repeat",
    reader="decoder",
    paper="CLI, arXiv:2601.10710",
    year=2026,
    parity="no official code",
    parameters="3*rank*(D + H)",
    switches={"repeat": (True,), "rank": (2, 32), "strategy": ("18", "3_18", "former", "latter")},
)
class CLIProjection(Fusion):
    """`rank` r of each term; `strategy`: as in lsf_internal_direct; `repeat`: its control."""

    live_after_steps = 2

    def __init__(
        self,
        shape: StackShape,
        *,
        strategy: str = "3_18_23",
        rank: int = 8,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, rank=rank)
        reader = shape.reader_layers()
        found = targets(strategy, reader.layers)
        self.targets = tuple(m for _, _, m in found)
        self.taps, self.rows = entering(shape, found, repeat=repeat)
        self.terms = nn.ModuleList(LowRank(shape.dim, reader.width, rank) for _ in found)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The base's tokens; the others on their way into the reader, in two parts."""
        injections: list[Injection] = []
        for layer, row, term in zip(self.targets, self.rows, self.terms, strict=True):
            seen = self.patches(hidden[row])
            injections += [
                Injection(layer=layer, when="before", values=seen, through_projector=True),
                Injection(layer=layer, when="before", values=term(normed(seen))),
            ]
        return Fused(tokens=self.patches(hidden[0]), injections=tuple(injections))
