"""SparseCut: shortcuts from vision layers to layers of the language model, through one projector.

arXiv:2602.00505; code public since February 2026, without a licence, so that this is written from
its equations. The reader sees P(hs[L-1]) as image tokens, and in front of reader layer m(j)
    h[image] += P(hs[i(j)])      with the reader's own projector P for all j
No parameter is added. As checked in, i = 1, 4, ..., 22 of 24 blocks and m = 4, 9, ..., 39 of 40
layers (counted from 0): eight shortcuts, m(j) = (j + 1) R / 8 - 1, rounded towards zero for a
reader of another depth R, where several may enter one layer and add up. Deviations of the released
code: that list is used on its high-resolution path only, where P is a cross-attention from the
global view to four crops; the plain path adds hs[1..8] in its place; and with 32 reader layers two
of the eight never fire. `repeat`, the control, sends hs[L-1] through every shortcut.
"""

from jaxtyping import Float
from torch import Tensor

from fusionbench.api import Fused, Fusion, Injection, StackShape, method, one_of
from fusionbench.methods._inside import joined

_BLOCKS = 24
_BASE = 23


@method(
    "sparsecut",
    version=1,
    idea="layers enter the reader, no parameters",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="sparsecut-repeat",
    reader="decoder",
    paper="arXiv:2602.00505",
    year=2026,
    parity="equations: without the cross-attention to high-resolution crops",
    parameters="0",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"shortcuts": (2, 4, 24), "order": ("descending",), "repeat": (True,)},
    idle=(({"repeat": True}, ("order",)),),
)
class SparseCut(Fusion):
    """`shortcuts`: how many, 1 to 24; `order`: "ascending", or "descending" (deep layers first)."""

    def __init__(
        self,
        shape: StackShape,
        *,
        shortcuts: int = 8,
        order: str = "ascending",
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        if not 1 <= shortcuts <= _BLOCKS:
            raise ValueError(f"shortcuts must lie in 1..{_BLOCKS}, got {shortcuts}")
        depth = shape.reader_layers().layers
        states = [1 + j * (_BLOCKS // shortcuts) for j in range(shortcuts)]
        if one_of("order", order, ("ascending", "descending")) == "descending":
            states.reverse()
        self.targets = tuple(int((j + 1) * depth / shortcuts - 1) for j in range(shortcuts))
        others = (_BASE if repeat else state for state in states)
        base = (shape.paper_layer(_BASE),)
        self.taps, self.rows = joined(base, tuple((shape.paper_layer(k),) for k in others))

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The penultimate layer's patches; the shortcuts on their way into the reader."""
        injections = (
            Injection(
                layer=layer,
                when="before",
                values=self.patches(hidden[row]),
                through_projector=True,
            )
            for layer, row in zip(self.targets, self.rows, strict=True)
        )
        return Fused(tokens=self.patches(hidden[0]), injections=tuple(injections))
