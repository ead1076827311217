"""The ridge reader as a module: fused tokens -> features, and the loss that trains a fusion.

It has no weights of its own, except the layers and projector of a decoder into whose layers a
method injects; their classifier is replaced by the closed-form head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusionbench.api.types import Fused, ReaderShape, Unsupported
from fusionbench.readers.attentive import Projector
from fusionbench.readers.decoder import DecoderLayer, run_layers
from fusionbench.readers.injection import project
from fusionbench.readers.ridge import (
    KERNELS,
    TRAINED_STRENGTH,
    Choice,
    Head,
    block_features,
    minibatch_loss,
    one_hot,
    random_layer,
    solve,
)


class RidgeReader(nn.Module):
    """Features of fused tokens [batch, width], the loss on them, and the head behind them."""

    weight: Tensor
    bias: Tensor
    kernel: Tensor
    squared: Tensor
    strength: Tensor

    def __init__(
        self,
        in_dim: int,
        grid: tuple[int, int],
        *,
        width: int,
        shape: ReaderShape | None = None,
        aligned: bool = False,
        redrawn: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.shape = grid, shape
        self.widths: dict[str, int] = {}
        """Width of each block, in the order of the features; known after the first batch."""
        weight, bias = random_layer(in_dim if shape is None else shape.width, redrawn=redrawn)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("kernel", torch.tensor(KERNELS[0].weights))
        self.register_buffer("squared", torch.tensor(0.0))
        self.register_buffer("strength", torch.tensor(TRAINED_STRENGTH))
        self.head: Head | None = None
        layers = 0 if shape is None else shape.layers
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(layers) if shape)
        # A decoder reads projected tokens; elsewhere only the alignment of a summary needs it.
        needed = shape is not None or aligned
        self.projector: nn.Module = Projector(in_dim, width) if needed else nn.Identity()

    def forward(self, fused: Fused) -> Float[Tensor, "batch width"]:
        """The features of all blocks, side by side.

        Raises Unsupported for a fusion that injects into layers where there are none.
        """
        blocks = block_features(self.tokens(fused), self.weight, self.bias, self.grid)
        self.widths = {name: values.shape[1] for name, values in blocks.items()}
        return torch.cat(list(blocks.values()), dim=1)

    def tokens(self, fused: Fused) -> Float[Tensor, "batch token dim"]:
        """What is read: the fused tokens, or a decoder's last hidden states at the image."""
        if self.shape is not None:
            image = project(fused, self.projector)
            seen = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
            return run_layers(self.layers, self.shape, image, seen, fused, self.projector)
        if fused.reaches_inside:
            raise Unsupported("injects into the reader's layers, and this reader has none")
        tokens = fused.tokens
        return tokens if fused.after_projector is None else fused.after_projector(tokens)

    def loss(  # noqa: PLR0913
        self,
        features: Float[Tensor, "batch width"],
        questions: Float[Tensor, "question question"],
        asked: Int[Tensor, " batch"],
        answers: Int[Tensor, " batch"],
        rows: Int[Tensor, " batch"],
        classes: int,
    ) -> Float[Tensor, ""]:
        """The leave-one-out error of a minibatch with the chosen kernel."""
        with torch.autocast(features.device.type, enabled=False):
            return minibatch_loss(
                self.split(features.float()),
                self.kernel,
                self.squared,
                self.strength,
                questions[asked][:, asked],
                one_hot(answers, classes),
                rows,
            )

    def use(self, choice: Choice) -> None:
        """Train with this kernel, and with its strength if it is not too small."""
        self.kernel.copy_(torch.tensor(choice.kernel.weights))
        self.squared.fill_(float(choice.kernel.squared))
        self.strength.fill_(max(choice.strength, TRAINED_STRENGTH))

    @torch.no_grad()
    def fit(  # noqa: PLR0913
        self,
        features: Float[Tensor, "example width"],
        questions: Float[Tensor, "question question"],
        asked: Int[Tensor, " example"],
        answers: Int[Tensor, " example"],
        rows: Int[Tensor, " example"],
        classes: int,
    ) -> Choice:
        """Choose kernel and strength, and solve the head on these examples."""
        targets = one_hot(answers, classes)
        self.head = solve(self.split(features.float()), asked, questions, targets, rows)
        return self.head.choice

    def scores(
        self, features: Float[Tensor, "batch width"], asked: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch answer"]:
        """The head's score of each answer; RuntimeError before `fit`."""
        if self.head is None:
            raise RuntimeError("the ridge reader has no head before it is fitted")
        return self.head(self.split(features.float()), asked)

    def split(self, features: Float[Tensor, "batch width"]) -> dict[str, Tensor]:
        """The features by block."""
        parts = torch.split(features, list(self.widths.values()), dim=1)
        return dict(zip(self.widths, parts, strict=True))
