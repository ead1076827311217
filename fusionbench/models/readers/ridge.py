"""Ridge reader: kernel ridge regression on fused tokens and questions, solved in closed form.

Fused tokens t [n, d] become z = LayerNorm(t) without parameters and four blocks of features:

    places   vec(z)
    coarse   vec of z averaged over 2 x 2 neighbours; vec(z) where the tokens fill no grid
    content  mean over tokens of z
    tokens   mean over tokens of relu(W z + b), W and b fixed and random

A block is centred on the training mean and divided by the mean norm of its training features; its
kernel is the inner product. An image kernel is (k + 1) / 2 or its square, k a mean of block
kernels; it is multiplied by the kernel of the questions. The constant matters: a centred kernel
has a null vector, with which every leave-one-out error vanishes as the strength goes to 0.

The leave-one-out residual is r_i = a_i / H_ii with H = (K + strength)^-1 and a = H Y (Allen 1974;
Rifkin and Lippert 2007, "Notes on regularized least-squares"); examples that share an image are
left out together: r_G = (H_GG)^-1 a_G.

The module `RidgeReader` has no weights of its own, except the layers and projector of a decoder
into whose layers a method injects; their classifier is replaced by the closed-form head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.seeding import stream
from fusionbench.api.types import Fused, ReaderShape, Unsupported
from fusionbench.models.readers.attentive import Projector
from fusionbench.models.readers.decoder import DecoderLayer, run_layers
from fusionbench.models.readers.injection import project

BLOCKS = ("places", "coarse", "content", "tokens")
HIDDEN = 256
"""Width of the random features behind `tokens`."""
STRENGTHS = tuple(float(10 ** (power / 2)) for power in range(-10, 3))
"""1e-5 .. 10 in half decades."""
TRAINED_STRENGTH = 0.01
"""Least strength in the loss of a minibatch, where few examples make a small one unstable."""
CHOICE = 384
"""Examples on which kernel and strength are chosen; the solution uses all."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A mean of block kernels, k: the image kernel is (k + 1) / 2 or its square."""

    blocks: tuple[str, ...]
    squared: bool

    @property
    def name(self) -> str:
        """For example `(content+tokens)^2`."""
        joined = "+".join(self.blocks)
        return f"({joined})^2" if self.squared else joined

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of `BLOCKS`."""
        return tuple((name in self.blocks) / len(self.blocks) for name in BLOCKS)


KERNELS = (
    Kernel(blocks=("content", "tokens"), squared=False),
    Kernel(blocks=("content", "tokens"), squared=True),
    Kernel(blocks=("places", "content", "tokens"), squared=True),
    Kernel(blocks=("coarse",), squared=True),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Kernel and strength with the smallest leave-one-out error."""

    kernel: Kernel
    strength: float
    error: float
    """Mean squared leave-one-out residual as a share of the targets' mean square."""


def random_layer(
    dim: int, *, redrawn: bool = False
) -> tuple[Float[Tensor, "dim hidden"], Float[Tensor, " hidden"]]:
    """W and b of the block `tokens`: the same for all tokens of width `dim`, on every machine.

    `redrawn`: from torch's generator instead, so that seeds average over draws.
    """
    if redrawn:
        values = torch.randn(dim + 1, HIDDEN)
    else:
        drawn = stream("ridge", "tokens", dim).standard_normal((dim + 1, HIDDEN))
        values = torch.from_numpy(drawn.astype(np.float32))
    return values[:dim] / dim**0.5, values[dim] * 0.5


def block_features(
    tokens: Float[Tensor, "batch token dim"],
    weight: Float[Tensor, "dim hidden"],
    bias: Float[Tensor, " hidden"],
    grid: tuple[int, int],
) -> dict[str, Float[Tensor, "batch width"]]:
    """The features of each block."""
    z = F.layer_norm(tokens.float(), tokens.shape[-1:])
    coarse = z
    if tokens.shape[1] == grid[0] * grid[1]:
        square = rearrange(z, "b (h w) d -> b d h w", h=grid[0])
        coarse = F.avg_pool2d(square, 2, ceil_mode=True)
    return {
        "places": z.flatten(1),
        "coarse": coarse.flatten(1),
        "content": z.mean(dim=1),
        "tokens": F.relu(z @ weight + bias).mean(dim=1),
    }


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Mean and mean norm of each block's training features."""

    means: dict[str, Float[Tensor, " width"]]
    norms: dict[str, Float[Tensor, ""]]

    @classmethod
    def of(cls, blocks: dict[str, Float[Tensor, "example width"]]) -> "Scales":
        """Measured on these examples."""
        means = {name: values.mean(dim=0) for name, values in blocks.items()}
        norms = {
            name: torch.linalg.vector_norm(values - means[name], dim=1).mean().clamp(min=1e-12)
            for name, values in blocks.items()
        }
        return cls(means=means, norms=norms)

    def __call__(
        self, blocks: dict[str, Float[Tensor, "example width"]]
    ) -> dict[str, Float[Tensor, "example width"]]:
        """Centred and scaled features."""
        return {n: (values - self.means[n]) / self.norms[n] for n, values in blocks.items()}


def question_kernel(
    vectors: Float[Tensor, "question query_dim"],
) -> Float[Tensor, "question question"]:
    """(1 + <c, c'>) / 2, c the centred mean token vector over its mean norm; 1 for one question.

    `vectors`: the different questions of all splits. The order of their words is lost.
    """
    centred = vectors - vectors.mean(dim=0)
    norm = torch.linalg.vector_norm(centred, dim=1).mean()
    if len(vectors) == 1 or float(norm) == 0:
        return torch.ones(len(vectors), len(vectors), device=vectors.device)
    centred = centred / norm
    return (1 + centred @ centred.T) / 2


def image_kernel(
    one: dict[str, Float[Tensor, "a width"]],
    other: dict[str, Float[Tensor, "b width"]],
    kernel: Kernel,
) -> Float[Tensor, "a b"]:
    """The image kernel between scaled features."""
    mean = torch.stack([one[name] @ other[name].T for name in kernel.blocks]).mean(dim=0)
    base = (mean + 1) / 2
    return base * base if kernel.squared else base


def same_image(rows: Int[Tensor, " example"]) -> Bool[Tensor, "example example"]:
    """True for two examples of one image."""
    return rows[:, None] == rows[None, :]


def minibatch_loss(  # noqa: PLR0913
    blocks: dict[str, Float[Tensor, "batch width"]],
    weights: Float[Tensor, " block"],
    squared: Float[Tensor, ""],
    strength: Float[Tensor, ""],
    questions: Float[Tensor, "batch batch"],
    targets: Float[Tensor, "batch answer"],
    rows: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Mean squared leave-one-out residual over the targets' mean square, differentiable.

    `weights` are the kernel's over `BLOCKS`, `squared` is 0 or 1: tensors, so that models with
    different kernels run under one `torch.vmap`. Features are scaled on the minibatch itself.
    """
    scaled = Scales.of(blocks)(blocks)
    mean = sum(
        weights[BLOCKS.index(name)] * (values @ values.mT) for name, values in scaled.items()
    )
    base = (mean + 1) / 2
    kernel = base * (1 + squared * (base - 1)) * questions
    eye = torch.eye(len(targets), device=targets.device)
    centred = targets - targets.mean(dim=0)
    inverse = torch.linalg.inv(kernel + strength * eye)
    # The blocks of `inverse` that belong to one image, each inverted on the residual's own image.
    own = torch.where(same_image(rows), inverse, 0.0)
    residual = torch.linalg.solve(own, inverse @ centred)
    return residual.square().sum(dim=1).mean() / centred.square().sum(dim=1).mean().clamp(min=1e-12)


def leave_out_errors(
    kernel: Float[Tensor, "example example"],
    targets: Float[Tensor, "example answer"],
    images: Int[Tensor, " example"],
    strengths: Sequence[float] = STRENGTHS,
) -> Float[Tensor, " strength"]:
    """Mean squared residual of each strength when each image is left out, from one eigensystem."""
    values, vectors = torch.linalg.eigh(kernel)
    shrunk = 1 / (values.clamp(min=0)[:, None] + torch.tensor(strengths).to(values))
    turned = shrunk[:, :, None] * (vectors.T @ targets)[:, None]
    solved = rearrange(vectors @ turned.flatten(1), "i (l c) -> i l c", l=len(strengths))
    total = torch.zeros(len(strengths), dtype=kernel.dtype, device=kernel.device)
    for members in by_size(images):
        own = vectors[members]
        inverse = (own[:, :, None] * own[:, None]) @ shrunk
        own_solved = rearrange(solved[members], "g i l c -> g l i c")
        residual = torch.linalg.solve(rearrange(inverse, "g i j l -> g l i j"), own_solved)
        total += residual.square().sum(dim=(0, 2, 3))
    return total / len(targets)


def by_size(images: Int[Tensor, " example"]) -> list[Int[Tensor, "image member"]]:
    """Positions of each image's examples: one table for each number of examples an image has."""
    _, inverse, counts = torch.unique(images, return_inverse=True, return_counts=True)
    order = torch.argsort(inverse, stable=True)
    first = counts.cumsum(0) - counts
    return [
        order[first[counts == size][:, None] + torch.arange(int(size), device=images.device)]
        for size in torch.unique(counts)
    ]


def choose(
    scaled: dict[str, Float[Tensor, "example width"]],
    questions: Float[Tensor, "example example"],
    targets: Float[Tensor, "example answer"],
    images: Int[Tensor, " example"],
) -> Choice:
    """Kernel and strength with the smallest leave-one-out error; ties go to the first."""
    scale = float(targets.square().sum(dim=1).mean()) or 1.0
    found = []
    for kernel in KERNELS:
        gram = image_kernel(scaled, scaled, kernel) * questions
        errors = leave_out_errors(gram, targets, images)
        at = int(errors.argmin())
        error = float(errors[at]) / scale
        found.append(Choice(kernel=kernel, strength=STRENGTHS[at], error=error))
    return min(found, key=lambda choice: choice.error)


@dataclass(frozen=True, kw_only=True)
class RidgeHead:
    """A solved ridge regression: scores of the answers for new examples."""

    choice: Choice
    scales: Scales
    train: dict[str, Float[Tensor, "example width"]]
    """Scaled features of the kernel's blocks."""
    asked: Int[Tensor, " example"]
    """Question of each training example, a row of `questions`."""
    questions: Float[Tensor, "question question"]
    weights: Float[Tensor, "example answer"]
    means: Float[Tensor, " answer"]

    def __call__(
        self, blocks: dict[str, Float[Tensor, "batch width"]], asked: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch answer"]:
        """Score of each answer: the kernel with the training examples times the solution."""
        wanted = {name: blocks[name] for name in self.choice.kernel.blocks}
        gram = image_kernel(self.scales(wanted), self.train, self.choice.kernel)
        gram = gram * self.questions[asked][:, self.asked]
        return gram @ self.weights + self.means


def solve(
    blocks: dict[str, Float[Tensor, "example width"]],
    asked: Int[Tensor, " example"],
    questions: Float[Tensor, "question question"],
    targets: Float[Tensor, "example answer"],
    images: Int[Tensor, " example"],
) -> RidgeHead:
    """Choose kernel and strength on the first `CHOICE` examples, then solve on all."""
    scales = Scales.of(blocks)
    means = targets.mean(dim=0)
    part = {name: values[:CHOICE] for name, values in blocks.items()}
    first = targets[:CHOICE]
    choice = choose(
        Scales.of(part)(part),
        questions[asked[:CHOICE]][:, asked[:CHOICE]],
        first - first.mean(dim=0),
        images[:CHOICE],
    )
    train = scales({name: blocks[name] for name in choice.kernel.blocks})
    gram = (image_kernel(train, train, choice.kernel) * questions[asked][:, asked]).double()
    gram.diagonal().add_(choice.strength)
    factor = torch.linalg.cholesky(gram)
    weights = torch.cholesky_solve((targets - means).double(), factor).float()
    return RidgeHead(
        choice=choice, scales=scales, train=train, asked=asked, questions=questions,
        weights=weights, means=means,
    )  # fmt: skip


def one_hot(answers: Int[Tensor, " example"], classes: int) -> Float[Tensor, "example answer"]:
    """1 for the true answer, 0 for the others."""
    return F.one_hot(answers, classes).float()


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
        self.head: RidgeHead | None = None
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
