"""Interface of frozen encoders: embedding, blocks with their linear layers, final norm.

`q`, `k`, `v` and `o` of attention, `fc1` and `fc2` of the MLP; some encoders compute q, k and v in
one product, `qkv`. The blocks may come from any library: their modules are found by name and
changed through forward hooks, never by a copy of their weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.types import StackShape, Unsupported

LAYERS = ("q", "k", "v", "o", "fc1", "fc2")
"""Names of the linear layers of a block."""
Delta = Callable[[str, Tensor], Tensor]
"""From a layer's name and its input, what is added to its output."""

_MODULES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("qkv",),
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "o": ("out_proj", "o_proj", "attn.proj", "attention.output.dense", "out"),
    "fc1": ("fc1", "intermediate.dense"),
    "fc2": ("fc2", "output.dense"),
}
_COMPLETE = ({"q", "k", "v", "o", "fc1", "fc2"}, {"qkv", "o", "fc1", "fc2"})


def blocks_of(encoder: nn.Module, layers: int) -> Sequence[nn.Module]:
    """The encoder's list of `layers` blocks; empty if it holds none."""
    for name, module in encoder.named_modules():
        chained = isinstance(module, nn.Sequential) and _ends(name, "blocks")
        if (chained or isinstance(module, nn.ModuleList)) and len(module) == layers:
            return list(module)
    return ()


def linears_of(block: nn.Module) -> Mapping[str, nn.Linear]:
    """The linear layers of a block by name; empty unless attention and MLP are complete.

    Gated MLPs, which have a third linear layer, are not complete in this sense.
    """
    linears = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    found: dict[str, nn.Linear] = {}
    for path, module in linears.items():
        for name, endings in _MODULES.items():
            if name not in found and any(_ends(path, ending) for ending in endings):
                found[name] = module
                break
    return found if set(found) in _COMPLETE and len(found) == len(linears) else {}


@contextmanager
def added(linears: Mapping[str, nn.Linear], delta: Delta) -> Iterator[None]:
    """Within this block `delta` is added to the output of each of these layers.

    Raises Unsupported on leaving if a layer did not run exactly once: its block then reads the
    weights in another way, which no hook sees.
    """
    calls = dict.fromkeys(linears, 0)
    with ExitStack() as stack:
        # Compiled blocks do not look at hooks that were added later.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in linears.items():
            handle = module.register_forward_hook(partial(_add, name, delta, calls))
            stack.callback(handle.remove)
        yield
    if missed := [name for name, count in calls.items() if count != 1]:
        raise Unsupported(f"the encoder's blocks do not run {', '.join(missed)} as a layer")


def _add(  # noqa: PLR0913
    name: str,
    delta: Delta,
    calls: dict[str, int],
    module: nn.Module,
    given: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    calls[name] += 1
    parts = ("q", "k", "v") if name == "qkv" else (name,)
    return output + torch.cat([delta(part, given[0]) for part in parts], dim=-1)


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")


class Encoder(nn.Module, ABC):
    """A frozen vision transformer: its weights never change and get no gradient.

    `hs[0] = embed(images)`, `hs[i] = block(i, hs[i-1])` for i = 1..L, `norm(hs[L])` equals the
    last hidden state of the original model.
    """

    shape: StackShape
    size: int
    """Side of the square input in pixels."""

    def freeze(self) -> None:
        """Disable gradients of the weights and switch to evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    @abstractmethod
    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """`hs[0]` of images that are resized to `size` and normalised."""

    @abstractmethod
    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index` (1..L) on these tokens; differentiable in the tokens."""

    @abstractmethod
    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The final norm."""

    def linears(self, index: int) -> Mapping[str, nn.Linear]:
        """The linear layers of block `index` by name (`api.encoders`); empty: out of reach."""
        blocks = blocks_of(self, self.shape.layers)
        return linears_of(blocks[index - 1]) if blocks else {}

    @property
    def mlp(self) -> int:
        """Hidden width of the blocks' MLPs, 0 if their linear layers are out of reach."""
        found = self.linears(1)
        return found["fc1"].out_features if found else 0

    def adapted(
        self, index: int, tokens: Float[Tensor, "batch token dim"], delta: Delta
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index` with `delta(layer, input)` added to each linear layer's output.

        Raises Unsupported if the layers are out of reach.
        """
        linears = self.linears(index)
        if not linears:
            raise Unsupported("the linear layers of this encoder's blocks are out of reach")
        with added(linears, delta):
            return self.block(index, tokens)

    @torch.no_grad()
    def hidden_states(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> list[Float[Tensor, "batch token dim"]]:
        """`hs[0..L]`, without gradients."""
        states = [self.embed(images)]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return states
