"""A synthetic encoder whose hidden states hold known answers: the suite's own ground truth.

Every patch of a 12 x 12 image is 27 bytes: the first four are hidden bits (1 from 128 on), the
rest is noise. The parity of one hidden bit over all 16 patches is a planted bit; no token alone
and no low-degree function of the tokens knows it. The blocks let the four planted bits be seen so:

| bit | seen in | erased by | read by |
|---|---|---|---|
| layer | `hs[5]` | block 6 | whatever reads layer 5 |
| first | `hs[2]` | block 3 | } the pair task asks for the parity of both: |
| second | `hs[5]` | block 6 | } whatever joins layers 2 and 5, and not by a linear map |
| feedback | `hs[6..8]`, only in tokens whose gate channel a method has written | - | feedback |

So `last` and `penultimate` see nothing; layers 2 and 5 are what a paper's layers 8 and 16 of 24
become here (`StackShape.paper_layer`: 7 -> 2, 15 -> 5), and each lies in one half of the stack.
Tasks compute the same parities from the pixels (`tasks/planted.py`); a test compares them.
"""

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.seeding import stream
from fusionbench.api.types import StackShape

ENCODERS = {
    "planted": {"version": 1, "layers": 8, "dim": 64, "grid": (4, 4), "prefix": 1, "size": 12}
}

LAYER, FIRST, SECOND, FEEDBACK = range(4)
"""The planted bits, in the order of a patch's hidden bits."""
_HIDDEN = slice(0, 4)
_GATE = slice(4, 5)
_SIGNALS = slice(5, 41)
_NOISE = slice(41, 64)
_COPIES = 9
"""Channels that show one planted bit."""
_SEEN_IN = {LAYER: (5,), FIRST: (2,), SECOND: (5,), FEEDBACK: (6, 7, 8)}

_HIDDEN_SIZE = 2.0
"""Hidden bits are +-2 and snapped back by every block: feedback below 2 a block cannot flip one."""
_SIGNAL_SIZE = 3.0
_GATE_SLOPE = 16.0
"""A write of 1/16 into the gate channel opens it to tanh(1) = 0.76."""


def planted(name: str) -> "Planted":
    """The encoder of that name. Raises ValueError for another name."""
    if name not in ENCODERS:
        raise ValueError(f"no planted encoder {name!r}; there are: {', '.join(ENCODERS)}")
    return Planted()


class Planted(Encoder):
    """Fixed blocks without weights; images must be those of the planted tasks."""

    size = 12
    shuffle: Tensor
    cover: Tensor
    sign: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shape = StackShape(layers=8, dim=64, grid=(4, 4), prefix=1)
        noise, signals = _NOISE.stop - _NOISE.start, _SIGNALS.stop - _SIGNALS.start
        draws = stream("planted encoder")
        # Shuffles with signs: layers look alike, differ, and are exact in every precision.
        shuffle = [_order(draws, noise) for _ in range(self.shape.layers + 1)]
        cover = [draws.integers(0, noise, signals) for _ in range(self.shape.layers + 1)]
        sign = draws.integers(0, 2, (self.shape.layers + 1, noise)) * 2 - 1
        self.register_buffer("shuffle", torch.from_numpy(np.stack(shuffle)), persistent=False)
        self.register_buffer("cover", torch.from_numpy(np.stack(cover)), persistent=False)
        self.register_buffer("sign", torch.from_numpy(sign).float(), persistent=False)

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Patches as tokens behind a CLS token without hidden bits.

        Raises ValueError for images of another size: resized bits are no bits.
        """
        if images.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"planted reads images of {self.size} x {self.size} pixels, "
                f"got {images.shape[1]} x {images.shape[2]}: use it with planted tasks only"
            )
        patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=3, q=3)
        # Uniform bytes become unit variance; the middle lies between two bytes, so none is 0.
        values = (patches.to(self.sign.dtype) - 127.5) / 74
        cls = torch.cat([values.new_ones(len(values), 1, 4), values[:, :1, 4:].flip(-1)], dim=-1)
        values = torch.cat([cls, values], dim=1)
        hidden, noise = _snap(values[..., :4]), values[..., 4:]
        return self._tokens(0, hidden, torch.zeros_like(hidden[..., :1]), noise)

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Snap the hidden bits, shuffle the noise, rewrite the signals, leave the gate alone."""
        noise = tokens[..., _NOISE][..., self.shuffle[index]] * self.sign[index].to(tokens.dtype)
        return self._tokens(index, _snap(tokens[..., _HIDDEN]), tokens[..., _GATE], noise)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """None: there is nothing to normalise."""
        return tokens

    def _tokens(
        self,
        index: int,
        hidden: Float[Tensor, "batch token 4"],
        gate: Float[Tensor, "batch token 1"],
        noise: Float[Tensor, "batch token 23"],
    ) -> Float[Tensor, "batch token dim"]:
        """Hidden state `index`: where no bit is seen, the signal channels hold noise as well."""
        bits = (hidden[:, 1:] / _HIDDEN_SIZE).prod(dim=1, keepdim=True)
        seen = [float(index in _SEEN_IN[bit]) for bit in (LAYER, FIRST, SECOND, FEEDBACK)]
        shown = _SIGNAL_SIZE * bits * bits.new_tensor(seen)
        opening = torch.ones_like(hidden)
        opening = torch.cat([opening[..., :FEEDBACK], torch.tanh(_GATE_SLOPE * gate)], dim=-1)
        signals = repeat(opening * shown, "b n bit -> b n (bit copy)", copy=_COPIES)
        return torch.cat([hidden, gate, signals + noise[..., self.cover[index]], noise], dim=-1)


def _snap(hidden: Float[Tensor, "batch token 4"]) -> Float[Tensor, "batch token 4"]:
    """+-2, never 0, and without a gradient."""
    return torch.where(hidden >= 0, _HIDDEN_SIZE, -_HIDDEN_SIZE).to(hidden.dtype)


def _order(draws: np.random.Generator, count: int) -> np.ndarray:
    """A random order, from integers alone: `permutation` may change with NumPy."""
    return np.argsort(draws.integers(0, 2**62, count), kind="stable")
