"""Synthetic encoder, reader, batches and task for the checks; no weights or data needed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Delta, Encoder
from fusionbench.api.fusion import Method, Tap
from fusionbench.api.seeding import stream
from fusionbench.api.tasks import Scoring
from fusionbench.api.types import Fused, StackShape
from fusionbench.harness.bundle import Bundle, Examples
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import own_settings
from fusionbench.harness.stepping import States, fuse
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.models.readers.decoder import DecoderReader, decoder_shape
from fusionbench.records.cell import Budget, Setting


class ToyEncoder(Encoder):
    """Fixed random pre-norm blocks of one head and an MLP, started from `hs[0]` or images.

    Weights of all blocks are stacked in one tensor of each kind, which is fast to build.
    """

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape, self.size = shape, max(shape.grid)
        rng = torch.Generator().manual_seed(0)

        def drawn(rows: int, columns: int) -> nn.Parameter:
            # Standard deviation of torch's Linear.
            weights = torch.randn(shape.layers, rows, columns, generator=rng)
            return nn.Parameter(weights / (3 * columns) ** 0.5)

        self.mix = drawn(3 * shape.dim, shape.dim)
        mlp = shape.mlp or 2 * shape.dim
        self.widen, self.narrow = drawn(mlp, shape.dim), drawn(shape.dim, mlp)
        self.freeze()

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Mean colour of each patch, repeated over the channels; prefix tokens are zero."""
        pixels = rearrange(images.float() / 255, "b h w c -> b c h w")
        colours = F.adaptive_avg_pool2d(pixels, self.shape.grid)
        patches = repeat(colours, "b c y x -> b (y x) (k c)", k=-(-self.shape.dim // 3))
        return F.pad(patches[..., : self.shape.dim], (0, 0, self.shape.prefix, 0))

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, from 1."""
        return self.adapted(index, tokens, None)

    def adapted(
        self, index: int, tokens: Float[Tensor, "batch token dim"], delta: Delta | None
    ) -> Float[Tensor, "batch token dim"]:
        """The block with `delta` added to the output of each linear layer; `o` is the identity."""

        def layer(name: str, weight: Tensor, given: Tensor) -> Tensor:
            plain = F.linear(given, weight)
            return plain if delta is None else plain + delta(name, given)

        normed = _normed(tokens)
        query, key, value = (
            layer(name, weight, normed)
            for name, weight in zip("qkv", self.mix[index - 1].chunk(3), strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + (mixed if delta is None else mixed + delta("o", mixed))
        widened = F.gelu(layer("fc1", self.widen[index - 1], _normed(tokens)))
        return tokens + layer("fc2", self.narrow[index - 1], widened)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Without scale and shift."""
        return _normed(tokens)

    @torch.no_grad()
    def states_from(
        self, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "state batch token dim"]:
        """`hs[0..L]` of these `hs[0]`, and behind them `hs[L..0]` after the final norm."""
        states = [tokens]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return torch.stack([*states, *(self.norm(state) for state in reversed(states))])


def _normed(tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
    return F.layer_norm(tokens, tokens.shape[-1:])


def draw(
    shape: StackShape, *, batch: int = 3, seed: int = 1
) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch query_dim"]]:
    """`hs[0]` and queries, standard normal."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, shape.tokens, shape.dim, generator=rng)
    return tokens, torch.randn(batch, shape.query_dim, generator=rng)


READER = decoder_shape(32, 4)
_ANSWERS = 7
_WORDS = 5
_QUERY = 6


class FixedReader(DecoderReader):
    """A frozen decoder with one question: shows the effect of injections and patches."""

    question: Tensor

    def __init__(self, in_dim: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(4)
            super().__init__(in_dim, READER, query_dim=_QUERY, answers=_ANSWERS)
            self.register_buffer("question", torch.randn(1, _WORDS, _QUERY))
        self.requires_grad_(False)

    def answer_to(self, fused: Fused) -> Float[Tensor, "batch answer"]:
        """Logits for fused tokens of any batch size and precision."""
        batch = len(fused.tokens)
        mask = torch.ones(batch, _WORDS, dtype=torch.bool, device=fused.tokens.device)
        return self(fused, self.question.expand(batch, -1, -1), mask)


def reader_for(fused: Fused) -> FixedReader:
    """A reader of the tokens' width and precision."""
    return _reader(fused.tokens.shape[-1], fused.tokens.dtype)


@cache
def _reader(in_dim: int, dtype: torch.dtype) -> FixedReader:
    return FixedReader(in_dim).to(dtype)


SHAPE = StackShape(layers=7, dim=16, grid=(4, 4), prefix=1, query_dim=6, reader=READER, mlp=32)
"""Deep enough that papers' layers differ; an even square grid, which some methods need."""
ANSWER = "the decoder's answer"

TRACER = "aot_eager"
"""Traces forward and backward; `inductor` also generates kernels, which takes minutes."""

Outputs = Mapping[str, Float[Tensor, "batch *rest"]]
"""Outputs by name: everything that reaches the reader or the answer."""

_JITTER = 0.2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A class with settings."""

    name: str
    cls: type[Method]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    """Facts of the decorator; empty for a class."""
    compiler: str = TRACER
    """Backend of `torch.compile`."""

    def build(self, shape: StackShape = SHAPE, *, seed: int = 0) -> Method:
        """A new method; the seed draws its initial weights."""
        constructor: type = self.cls
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return constructor(shape, **own_settings(self.settings))

    def jittered(self, shape: StackShape = SHAPE, *, seed: int = 0) -> Method:
        """A new method with noise on every weight."""
        method = self.build(shape, seed=seed)
        jitter(method, seed)
        return method


def jitter(method: Method, seed: int) -> None:
    """Add normal noise to every weight: a gate that starts at zero hides what follows it."""
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in method.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.add_(_JITTER * noise.to(parameter.dtype))


def run(
    method: Method,
    tokens: Float[Tensor, "batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Fused:
    """Run the method on the toy encoder's states of `hs[0]` = `tokens`."""
    encoder = ToyEncoder(method.shape).to(tokens.dtype)
    return run_on(method, encoder.states_from(tokens), query, encoder)


def run_on(
    method: Method,
    states: Float[Tensor, "state batch token dim"],
    query: Float[Tensor, "batch query_dim"],
    encoder: Encoder,
) -> Fused:
    """Run the method on these `hs[0..L]`."""
    return fuse(
        method,
        lambda taps: torch.stack([states[list(tap)].mean(dim=0) for tap in taps]),
        query,
        encoder,
    )


def run_drawn(method: Method, *, batch: int = 3, seed: int = 1) -> Fused:
    """The method on random states."""
    return run(method, *draw(method.shape, batch=batch, seed=seed))


def outputs_of(
    method: Method,
    tokens: Float[Tensor, "batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Outputs:
    """All outputs of the method, computed at once."""
    return dict(outputs(run(method, tokens, query)))


def outputs(
    fused: Fused, reader: FixedReader | None = None
) -> Iterator[tuple[str, Float[Tensor, "batch *rest"]]]:
    """(name, output) of everything that reaches the reader; the first axis is the batch.

    For a method that injects into the reader's layers also the answer of `reader`, by default a
    fixed decoder.
    """
    yield "tokens", fused.tokens
    if fused.after_projector is not None:
        # It has no parameters and accepts any width, so the projector can be omitted.
        yield "tokens after the projector", fused.after_projector(fused.tokens)
    if fused.summary is not None:
        yield "summary", fused.summary
    for number, injection in enumerate(fused.injections):
        yield f"injection {number}", injection.values
    if fused.reaches_inside:
        yield ANSWER, (reader or reader_for(fused)).answer_to(fused)


def without_query(shape: StackShape) -> StackShape:
    """The same encoder without a question."""
    return replace(shape, query_dim=0)


BUDGET = Budget(
    steps=30,
    batch=32,
    lrs=(3e-3,),
    resample="none",
    reader_width=READER.width,
    query_dim=SHAPE.query_dim,
)
"""Every training example is seen once: a falling loss cannot come from memorising."""
TEST_ITEMS = 256
_QUESTIONS = ("is it there?", "do you see it?")
_SIGNAL = 1.5


class YesOrNo(Scoring):
    """Two equally frequent answers."""

    chance = 0.5


@dataclass(kw_only=True)
class ToyMaterials(Materials):
    """Materials with hidden states in memory."""

    stack: Float[Tensor, "state image token dim"]

    def states(self, rows: Int[Tensor, " example"]) -> States:
        """The hidden states of these images, by tap."""

        def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
            return torch.stack([self.stack[list(tap)][:, rows].mean(dim=0) for tap in taps])

        return gather


@cache
def materials(
    labels: Literal["planted", "random"],
    *,
    words: tuple[str, str] = ("no", "yes"),
    flipped: bool = False,
    budget: Budget = BUDGET,
) -> ToyMaterials:
    """Hidden states that contain the labels ("planted") or not ("random").

    `words` are the texts of the answers; `flipped` exchanges all answers, not the images.
    """
    train, test = budget.steps * budget.batch, TEST_ITEMS
    draws = stream("checks", labels)
    answers = draws.integers(0, 2, train + test)
    tokens = draws.standard_normal((train + test, SHAPE.tokens, SHAPE.dim)).astype(np.float32)
    if labels == "planted":
        way = draws.standard_normal(SHAPE.dim)
        way *= _SIGNAL / np.linalg.norm(way) * np.sqrt(2)
        tokens += ((2 * answers - 1)[:, None, None] * way).astype(np.float32)
    encoder = ToyEncoder(SHAPE)
    given = 1 - answers if flipped else answers
    return ToyMaterials(
        name=f"check_{labels}",
        task=YesOrNo(),
        bundle=_bundle(given, train, words, draws.integers(0, len(_QUESTIONS), train + test)),
        budget=budget,
        shape=SHAPE,
        key=FeatureKey(weights="", size=0, images="", count=0, precision="fp32", dtype="float32"),
        device=torch.device("cpu"),
        encoder=encoder,
        stack=encoder.states_from(torch.from_numpy(tokens)),
    )


def _bundle(
    answers: Int[np.ndarray, " example"],
    train: int,
    words: tuple[str, str],
    questions: Int[np.ndarray, " example"],
) -> Bundle:
    everything = Examples(
        items=tuple(map(str, range(len(answers)))),
        groups=tuple(map(str, range(len(answers)))),
        rows=np.arange(len(answers)),
        questions=questions,
        answers=answers,
    )
    first, rest = _part(everything, slice(0, train)), _part(everything, slice(train, None))
    return Bundle(
        answers=words,
        questions=_QUESTIONS,
        train=first,
        val=rest,
        test=rest,
        images="",
        count=len(answers),
    )


def _part(whole: Examples, rows: slice) -> Examples:
    return replace(
        whole,
        items=whole.items[rows],
        groups=whole.groups[rows],
        rows=whole.rows[rows],
        questions=whole.questions[rows],
        answers=whole.answers[rows],
    )
