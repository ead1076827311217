"""Layers kept whole: side by side in the channels, pooled into one wide token, or as more tokens.

last4_patches      channels   [norm(hs[L-3]) ; ... ; norm(hs[L])]             Oquab et al. 2023
concat_all         channels   [hs[1] ; ... ; hs[L]]
concat_all-pooled  one token  [cls hs[1] ; mean hs[1] ; ... ; mean hs[L]]     Ciernik et al. 2026
token_concat       tokens     [norm(hs[18]) ; norm(hs[20]) ; norm(hs[22]) ; norm(hs[24])]
                                                                              Assran et al. 2025
`norm` is the encoder's own final norm, the same for every layer. `cls` is the first prefix token;
an encoder without one has the means alone. `pooled` is the linear arm of attentive layer fusion,
without its classifier; `token_concat` is the input of the attentive probe of V-JEPA 2 (out_layers
17, 19, 21, 23, counted from 0). `repeat`, the control, reads the penultimate layer in place of
every other one.
"""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, Tap, method, one_of

_LAST = 4


@method(
    "last4_patches",
    version=1,
    idea="last four layers, normed, side by side",
    variants={
        "": {"layers": "last", "norm": "final"},
        "repeat": {"layers": "last", "norm": "final", "repeat": True},
    },
    in_all=("",),
    control="last4_patches-repeat",
    paper="DINOv2, arXiv:2304.07193",
    year=2023,
    parity="equations: no recorded case",
    parameters="3*D*H",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"norm": ("none", "own"), "layers": ("even",), "repeat": (True,)},
)
@method(
    "concat_all",
    version=1,
    idea="all layers side by side",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="concat_all-repeat",
    paper="the layers of ALF's linear arm, arXiv:2601.09322",
    year=2026,
    parity="equations: patches, where the linear arm pools",
    parameters="(L - 1)*D*H",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"norm": ("final", "own"), "layers": ("last", "even"), "repeat": (True,)},
)
@method(
    "concat_all-pooled",
    version=1,
    idea="CLS and mean of all layers, one token",
    variants={"": {"pooled": True}, "repeat": {"pooled": True, "repeat": True}},
    in_all=("",),
    control="concat_all-pooled-repeat",
    paper="linear arm of ALF, arXiv:2601.09322",
    year=2026,
    parity="equations: without its classifier, which the reader replaces",
    parameters="(2*L - 1)*D*H",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"norm": ("final", "own"), "layers": ("last", "even"), "repeat": (True,)},
)
class LayerConcat(Fusion):
    """`layers`: "all" of 1..L, the "last" four, or four at "even" intervals (round down k L / 4).

    `norm`: "none", the encoder's "final" one, or an affine LayerNorm of each layer's "own".
    `pooled`: CLS and mean patch of each layer as one token [batch 1 (layer kind dim)], in place of
    the patches [batch patch (layer dim)].
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        layers: str = "all",
        norm: str = "none",
        pooled: bool = False,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        chosen = _layers(one_of("layers", layers, ("all", "last", "even")), shape.layers)
        one_of("norm", norm, ("none", "final", "own"))
        self.pooled = pooled
        self.taps, self.copies = _taps(shape, chosen, norm=norm == "final", repeat=repeat)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.dim) for _ in chosen if norm == "own")
        kinds = 2 if pooled and shape.prefix else 1
        self.out_dim = kinds * shape.dim * len(chosen)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Concatenate the channels of all layers."""
        states = repeat(hidden, "tap b n d -> (k tap) b n d", k=self.copies)
        if self.norms:
            states = torch.stack([norm(x) for norm, x in zip(self.norms, states, strict=True)])
        if not self.pooled:
            patches = states[:, :, self.shape.prefix :]
            return Fused(tokens=rearrange(patches, "tap b n d -> b n (tap d)"))
        kinds = [reduce(states[:, :, self.shape.prefix :], "tap b n d -> tap b d", "mean")]
        if self.shape.prefix:
            kinds.insert(0, states[:, :, 0])
        return Fused(tokens=rearrange(torch.stack(kinds), "kind tap b d -> b 1 (tap kind d)"))


@method(
    "token_concat",
    version=1,
    idea="tokens of four layers as one sequence",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="token_concat-repeat",
    paper="V-JEPA 2, arXiv:2506.09985",
    year=2025,
    parity="equations: no recorded case",
    parameters="0",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"norm": (False,), "layers": ("23", "24", "6,12,18,24"), "repeat": (True,)},
)
class TokenConcat(Fusion):
    """The patches of several layers as one sequence [batch (layer patch) dim].

    `layers`: as in a paper's encoder of 24 blocks, mapped to this one; `norm`: behind the encoder's
    final norm.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        layers: str = "18,20,22,24",
        norm: bool = True,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        chosen = self.paper_taps(layers)
        self.taps = tuple(tuple(map(shape.normed_layer, t)) if norm else t for t in chosen)
        if repeat:
            base = shape.normed_layer(-2) if norm else shape.layer(-2)
            self.taps = ((base,),)
        self.copies = len(chosen) if repeat else 1
        self.identity_at_init = self.taps == ((shape.layer(-2),),) and self.copies == 1

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Concatenate the tokens of all layers."""
        patches = hidden[:, :, self.shape.prefix :]
        return Fused(tokens=repeat(patches, "tap b n d -> b (k tap n) d", k=self.copies))


def _layers(name: str, depth: int) -> tuple[int, ...]:
    """Layers of 1..`depth`, ascending; fewer than four on a shallower encoder."""
    if name == "all":
        return tuple(range(1, depth + 1))
    if name == "last":
        return tuple(range(max(depth - _LAST, 0) + 1, depth + 1))
    even = (max(k * depth // _LAST, 1) for k in range(1, _LAST + 1))
    return tuple(dict.fromkeys(even))


def _taps(
    shape: StackShape, layers: tuple[int, ...], *, norm: bool, repeat: bool
) -> tuple[tuple[Tap, ...], int]:
    """The taps, and how often they are read: the penultimate layer once per layer for `repeat`."""
    place = shape.normed_layer if norm else shape.layer
    if repeat:
        return ((place(-2),),), len(layers)
    return tuple((place(layer),) for layer in layers), 1
