"""Methods that break or refuse, for the tests of a sweep."""

from fusionbench.api import Fused, Fusion, StackShape, Unsupported, method


@method("breaks", version=1)
class Breaks(Fusion):
    """Fails in its first step."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = ((1,),)

    def forward(self, hidden, query):
        raise RuntimeError("this method is broken on purpose")


@method("refuses", version=1)
class Refuses(Fusion):
    """Fits no encoder."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        raise Unsupported(f"wants 1,000 layers, this encoder has {shape.layers}")

    def forward(self, hidden, query):
        raise RuntimeError("never built, never called")


@method("twin_one", version=1)
@method("twin_two", version=1)
class Twin(Fusion):
    """One class under two names."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = ((3,),)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]))


@method("diverges", version=1)
class Diverges(Twin):
    """Finite losses, and logits that are NaN when it is scored."""

    def forward(self, hidden, query):
        fused = super().forward(hidden, query)
        return fused if self.training else Fused(tokens=fused.tokens * float("nan"))
