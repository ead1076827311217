"""Methods that each break one promise, and the checks that have to notice.

Every class is sound but for the one thing in its docstring. `caught_by` names the checks that must
fail, the one made for it first; all others must pass or be skipped.
"""

import itertools
import os
import sys

import torch
from torch import nn

from fusionbench.api.fusion import Fusion, InEncoderFusion
from fusionbench.api.types import Fused, Injection
from fusionbench.checks.toy import ToyEncoder

TRAINED = ("answer_leak", "learns_signal", "random_labels")
STORED = ("state_dict", "safetensors")
SHAPES = ("shapes", "shapes_depth", "shapes_width", "shapes_grid", "shapes_prefix")


class Sound(Fusion):
    """The penultimate layer and a map of an early one, side by side; nothing is broken."""

    caught_by: tuple[str, ...] = ()

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((shape.layers - 1,), (1,))
        self.out_dim = 2 * shape.dim
        self.map = nn.Linear(shape.dim, shape.dim)

    def forward(self, hidden, query):
        return Fused(tokens=self.joined(hidden, query))

    def joined(self, hidden, query):
        late, early = hidden[:, :, self.shape.prefix :]
        return torch.cat([late, self.map(early)], dim=-1)


class SoundStepper(InEncoderFusion):
    """Adds a map of the mean token after every block but the last; nothing is broken."""

    caught_by: tuple[str, ...] = ()
    identity_at_init = True

    def __init__(self, shape):
        super().__init__(shape)
        self.depth = shape.layers - 1
        self.map = nn.Linear(shape.dim, shape.dim)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def start(self, tokens, query):
        return tokens.new_zeros(len(tokens))

    def after_block(self, block, tokens, state):
        return tokens + self.map(tokens.mean(dim=1, keepdim=True)), state + 1

    def finish(self, tokens, state):
        return Fused(tokens=self.patches(tokens))


class WrongWidth(Sound):
    """Declares one channel more than it gives."""

    caught_by = (*SHAPES, "vmapped", *TRAINED)

    def __init__(self, shape):
        super().__init__(shape)
        self.out_dim += 1


class ForTenBlocks(Sound):
    """Has room for ten layers, whatever the encoder has."""

    caught_by = ("shapes_depth",)

    def __init__(self, shape):
        super().__init__(shape)
        self.room = list(range(10))

    def joined(self, hidden, query):
        return super().joined(hidden, query) + 0 * self.room[self.shape.layers - 1]


class EvenWidth(Sound):
    """Splits the width in two halves."""

    caught_by = ("shapes_width",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens + tokens.unflatten(-1, (4, self.shape.dim // 2)).flatten(-2)


class SquareGrid(Sound):
    """Takes the square root of the number of patches for the side of the grid."""

    caught_by = ("shapes_grid",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        side = int(tokens.shape[1] ** 0.5)
        return tokens.unflatten(1, (side, side)).flatten(1, 2)


class NeedsTwoRows(Sound):
    """Looks at the second row of the grid, whether there is one or not."""

    caught_by = ("shapes_grid",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens + 0 * tokens.unflatten(1, self.shape.grid)[:, 1].mean(dim=1, keepdim=True)


class RegistersArePatches(Sound):
    """Leaves out one leading token, however many there are."""

    caught_by = ("shapes_prefix",)

    def joined(self, hidden, query):
        late, early = hidden[:, :, 1:]
        return torch.cat([late, self.map(early)], dim=-1)


class VectorLoss(Sound):
    """A loss for each image instead of one number."""

    caught_by = ("extras",)

    def forward(self, hidden, query):
        tokens = self.joined(hidden, query)
        # Of shape [1], so that training does not stumble over it.
        return Fused(tokens=tokens, losses={"size": 1e-3 * tokens.mean()[None]})


class TracedGraph(Sound):
    """A trace that keeps the graph alive."""

    caught_by = ("extras",)

    def forward(self, hidden, query):
        return Fused(tokens=self.joined(hidden, query), trace={"norm": self.map.weight.norm(dim=1)})


class DoubleSummary(Sound):
    """Counts in float64, and says so to everybody."""

    caught_by = ("dtype_fp32",)

    def forward(self, hidden, query):
        tokens = self.joined(hidden, query)
        summary = tokens.mean(dim=1)
        return Fused(
            tokens=tokens, summary=summary.double() if summary.dtype == torch.float32 else summary
        )


class FullPrecisionConstant(Sound):
    """A constant that stays float32 when the method goes to bfloat16."""

    caught_by = ("dtype_bf16",)

    def __init__(self, shape):
        super().__init__(shape)
        self.scale = torch.full((self.out_dim,), 0.5)

    def joined(self, hidden, query):
        return super().joined(hidden, query) * self.scale


class MixedTypes(Sound):
    """An operation that refuses float32 beside the bfloat16 of autocast."""

    caught_by = ("autocast",)

    def joined(self, hidden, query):
        late, early = hidden[:, :, self.shape.prefix :]
        return torch.cat([late, torch.lerp(early, self.map(early), 0.5)], dim=-1)


class NoEpsilon(Sound):
    """Divides by a standard deviation that is zero for constant inputs."""

    caught_by = ("extreme_inputs",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        late, early = tokens.chunk(2, dim=-1)
        return torch.cat([late / late.std(dim=-1, keepdim=True), early], dim=-1)


class Unscaled(Sound):
    """Divides by a length that only zero does not have."""

    caught_by = ("extreme_inputs",)

    def joined(self, hidden, query):
        late, early = super().joined(hidden, query).chunk(2, dim=-1)
        return torch.cat([late / late.norm(dim=-1, keepdim=True), early], dim=-1)


class Overflowing(Sound):
    """An exponential that real encoders' large activations overflow."""

    caught_by = ("extreme_inputs",)

    def joined(self, hidden, query):
        late, early = super().joined(hidden, query).chunk(2, dim=-1)
        return torch.cat([late + 1e-3 * late.exp(), early], dim=-1)


class SteepAtZero(Sound):
    """A root whose outputs are finite everywhere, and whose gradient is not."""

    caught_by = ("extreme_inputs",)

    def joined(self, hidden, query):
        late, early = super().joined(hidden, query).chunk(2, dim=-1)
        plain = early - self.map.bias
        return torch.cat([late, early + plain.square().sum(dim=-1, keepdim=True).sqrt()], dim=-1)


class EditsTheQuestion(Sound):
    """Writes into the question's vector, which the next method gets as well."""

    caught_by = ("frozen",)

    def forward(self, hidden, query):
        query.add_(1)
        return super().forward(hidden, query)


class MakesPartsLater(Sound):
    """Makes a map when the first batch comes, after the optimiser was told of all parameters."""

    caught_by = ("parameters", "influence", "needs_grid", *STORED, "deepcopy", "pickled", "vmapped")

    def joined(self, hidden, query):
        if not hasattr(self, "late_map"):
            self.late_map = nn.Linear(self.shape.dim, self.shape.dim)
        late, early = super().joined(hidden, query).chunk(2, dim=-1)
        return torch.cat([late, self.late_map(early)], dim=-1)


class Ranked(Sound):
    """An image's place in its batch is added to it."""

    caught_by = ("batch_order", "batch_split")

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens + 0.1 * torch.arange(len(tokens)).to(tokens.dtype)[:, None, None]


class BatchMean(Sound):
    """The mean over the batch is taken away."""

    caught_by = ("batch_split",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens - 0.1 * tokens.mean(dim=(0, 1))


class BatchMeanInTraining(Sound):
    """So it is, but in training only."""

    caught_by = ("batch_split",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens - 0.1 * tokens.mean(dim=(0, 1)) if self.training else tokens


class BatchMeanInEvaluation(Sound):
    """So it is, but in evaluation only."""

    caught_by = ("batch_split",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens if self.training else tokens - 0.1 * tokens.mean(dim=(0, 1))


class LeakBehindAGate(SoundStepper):
    """Adds the batch's first image behind a gate that starts closed."""

    caught_by = ("batch_order", "batch_split")

    def after_block(self, block, tokens, state):
        return tokens + self.map(tokens[:1].mean(dim=1, keepdim=True)), state + 1


class LeaksIntoTheReader(Sound):
    """The batch's mean token is injected into the reader; the tokens are each image's own."""

    caught_by = ("batch_split",)

    def forward(self, hidden, query):
        tokens = self.joined(hidden, query)
        mean = tokens.mean(dim=0, keepdim=True).expand_as(tokens)
        into = Injection(layer=1, when="before", values=mean, through_projector=True)
        return Fused(tokens=tokens, injections=(into,))


class Counting(Sound):
    """Every call gives a little more than the one before."""

    caught_by = ("determinism",)

    def __init__(self, shape):
        super().__init__(shape)
        self.calls = 0

    def joined(self, hidden, query):
        self.calls += 1
        return super().joined(hidden, query) * (1 + 5e-7 * self.calls)


class DrawsAndPutsBack(Sound):
    """Draws in evaluation, and leaves the generator as it was."""

    caught_by = ("determinism", "vmapped")

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        with torch.random.fork_rng(devices=[]):
            noise = torch.rand(())
        return tokens if self.training else tokens + 0.1 * noise


class Reseeding(Sound):
    """Sets the global seed, so that all runs start alike."""

    caught_by = ("seeds",)

    def __init__(self, shape):
        torch.manual_seed(0)
        super().__init__(shape)


class Unseeded(Sound):
    """Draws its start from the operating system."""

    caught_by = ("seeds",)

    def __init__(self, shape):
        super().__init__(shape)
        nn.init.constant_(self.map.bias, int.from_bytes(os.urandom(4), "big") / 2**32)


class Unused(Sound):
    """A parameter that nothing uses."""

    caught_by = ("gradients", "live")

    def __init__(self, shape):
        super().__init__(shape)
        self.extra = nn.Parameter(torch.ones(shape.dim))


class Detached(Sound):
    """The path to its one map is cut."""

    caught_by = ("gradients", "live")

    def __init__(self, shape):
        super().__init__(shape)
        self.scale = nn.Parameter(torch.ones(()))

    def joined(self, hidden, query):
        return self.scale * super().joined(hidden, query).detach()


class DeadStart(Sound):
    """Two factors that start at zero: neither ever gets a gradient."""

    caught_by = ("live",)

    def __init__(self, shape):
        super().__init__(shape)
        self.left, self.right = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens + self.left * self.right * tokens.flip(-1)


class LaterThanItSays(SoundStepper):
    """A map behind a gate that starts at zero, which takes two steps, not one."""

    caught_by = ("live",)

    def __init__(self, shape):
        super().__init__(shape)
        nn.init.normal_(self.map.weight)
        self.gate = nn.Parameter(torch.zeros(()))

    def after_block(self, block, tokens, state):
        return tokens + self.gate * self.map(tokens.mean(dim=1, keepdim=True)), state + 1


class Cancelling(Sound):
    """A bias that is added before a mean is taken away."""

    caught_by = ("influence",)

    def __init__(self, shape):
        super().__init__(shape)
        self.bias = nn.Parameter(torch.ones(()))

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        weights = (tokens + self.bias).softmax(dim=-1)
        return tokens + weights


class Unfreezing(Sound):
    """Looks for the encoder on the stack and makes it trainable."""

    caught_by = ("frozen",)

    def joined(self, hidden, query):
        frame = None if torch.compiler.is_compiling() else sys._getframe()
        while frame is not None:
            if isinstance(found := frame.f_locals.get("encoder"), ToyEncoder):
                found.mix.requires_grad = True
            frame = frame.f_back
        return super().joined(hidden, query)


class TrainsOtherTaps(Sound):
    """Asks for one hidden state more in training than it has declared."""

    caught_by = ("taps",)

    def __init__(self, shape):
        super().__init__(shape)
        self.planned = self.taps
        del self.taps

    def __getattr__(self, name):
        if name == "taps":
            more = ((2,),) if self.training and self.planned else ()
            return (*more, *self.planned)
        return super().__getattr__(name)

    def joined(self, hidden, query):
        return super().joined(hidden[-2:], query)


class UnusedTap(Sound):
    """Declares a tap that it never reads."""

    caught_by = ("taps",)

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = (*self.taps, (2,))

    def joined(self, hidden, query):
        return super().joined(hidden[:2], query)


class NegativeTap(Sound):
    """Leaves an index unresolved."""

    # A cell refuses it when it is built.
    caught_by = ("taps", "answer_leak", "vmapped", "learns_signal", "random_labels")

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((-2,), (1,))


class DeeperThanNeeded(SoundStepper):
    """Lets the last block run and reads the one before."""

    caught_by = ("taps",)

    def __init__(self, shape):
        super().__init__(shape)
        self.depth = shape.layers

    def start(self, tokens, query):
        return (tokens,)

    def after_block(self, block, tokens, state):
        if block == self.depth:
            return tokens, state
        written, _ = super().after_block(block, tokens, torch.zeros(()))
        return written, (written,)

    def finish(self, tokens, state):
        return super().finish(state[0], state)


class SecretWriter(SoundStepper):
    """Says that it only reads, and writes."""

    caught_by = ("writes",)
    writes = False


class NeverWrites(SoundStepper):
    """Says that it writes, which takes the cache away, and only reads."""

    caught_by = ("writes",)

    def after_block(self, block, tokens, state):
        return tokens, state

    def finish(self, tokens, state):
        return super().finish(tokens + self.map(tokens.mean(dim=1, keepdim=True)), state)


class Unregistered(Sound):
    """Keeps a trainable map in a plain list."""

    caught_by = ("parameters", *STORED, "vmapped", "dtype_bf16", "influence")

    def __init__(self, shape):
        super().__init__(shape)
        self.maps = [nn.Linear(shape.dim, shape.dim)]

    def joined(self, hidden, query):
        late, early = hidden[:, :, self.shape.prefix :]
        return torch.cat([late, self.map(self.maps[0](early))], dim=-1)


class NotPenultimate(Sound):
    """Promises a start that is another."""

    caught_by = ("identity",)
    identity_at_init = True


class StartsWithAClassToken(SoundStepper):
    """Starts as the penultimate layer only where the encoder has a class token."""

    caught_by = ("identity",)

    def __init__(self, shape):
        super().__init__(shape)
        if not shape.prefix:
            nn.init.ones_(self.map.bias)


class SilentPenultimate(SoundStepper):
    """Starts as the penultimate layer and does not say so."""

    caught_by = ("identity",)
    identity_at_init = False


class SecretQuery(Sound):
    """Listens to the question and does not say so."""

    caught_by = ("needs_query",)

    def joined(self, hidden, query):
        heard = query.mean(dim=-1) if query.shape[-1] else hidden.new_zeros(())
        return super().joined(hidden, query) + 0.1 * heard.reshape(-1, 1, 1)


class DeafToTheQuery(Sound):
    """Needs the question and does not listen."""

    caught_by = ("needs_query",)
    needs_query = True


class SecretGrid(Sound):
    """Adds a number for the row a patch lies in, and does not say that it needs the grid."""

    caught_by = ("needs_grid",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        row = torch.arange(tokens.shape[1]) // self.shape.grid[1]
        return tokens + 0.1 * row.to(tokens.dtype)[:, None]


class NoGrid(Sound):
    """Needs the grid and does not look at it."""

    caught_by = ("needs_grid",)
    needs_grid = True


class UnknownExpectation(Sound):
    """Expects a check to fail that does not exist."""

    caught_by = ("expectations",)
    expected_failures = {"shape": "a reason"}


class BetterThanItSays(Sound):
    """Expects a failure that does not come."""

    caught_by = ("live",)
    expected_failures = {"live": "its start is dead"}


class ForgottenBuffer(Sound):
    """A random projection that its state_dict does not hold."""

    caught_by = STORED

    def __init__(self, shape):
        super().__init__(shape)
        self.register_buffer("mixing", torch.randn(shape.dim, shape.dim), persistent=False)

    def joined(self, hidden, query):
        late, early = super().joined(hidden, query).chunk(2, dim=-1)
        return torch.cat([late @ self.mixing, early], dim=-1)


class SharedMemory(Sound):
    """Two names for one tensor, which safetensors refuses."""

    caught_by = ("safetensors",)

    def __init__(self, shape):
        super().__init__(shape)
        self.twin = nn.Linear(shape.dim, shape.dim)
        self.twin.weight = self.map.weight

    def joined(self, hidden, query):
        late, early = super().joined(hidden, query).chunk(2, dim=-1)
        return torch.cat([self.twin(late), early], dim=-1)


class NoTwin(Sound):
    """Its copy is the same object."""

    caught_by = ("deepcopy",)

    def __deepcopy__(self, memo):
        return self


class HoldsAFunction(Sound):
    """Has an attribute that no other process can have."""

    caught_by = ("pickled",)

    def __init__(self, shape):
        super().__init__(shape)
        self.rule = lambda tokens: tokens

    def joined(self, hidden, query):
        return self.rule(super().joined(hidden, query))


@torch._dynamo.disable
def untraceable(tokens):
    return tokens * 2


class BreaksTheGraph(Sound):
    """Calls something that torch.compile must not look into."""

    caught_by = ("compiled",)

    def joined(self, hidden, query):
        return untraceable(super().joined(hidden, query))


class Deciding(Sound):
    """Branches on a value of the data."""

    caught_by = ("vmapped", "compiled")

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        return tokens * 2 if tokens.mean() > 100 else tokens


class WritesIntoZeros(Sound):
    """Fills a tensor in place, which has no axis of seeds."""

    caught_by = ("vmapped",)

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        filled = torch.zeros(tokens.shape, dtype=tokens.dtype)
        return filled.add_(tokens)


class ReadsAnswers(Sound):
    """Gets the answers in training and lets them through, faintly."""

    caught_by = ("answer_leak",)
    reads_answers = needs_query = True

    def joined(self, hidden, query):
        return super().joined(hidden, query) + 0.01 * query.mean(dim=-1)[:, None, None]


class ShoutsAnswers(Sound):
    """Gets the answers in training and passes them on."""

    caught_by = ("random_labels", "answer_leak")
    reads_answers = needs_query = True

    def __init__(self, shape):
        super().__init__(shape)
        self.out_dim = 2 * shape.dim + shape.query_dim

    def joined(self, hidden, query):
        tokens = super().joined(hidden, query)
        told = query[:, None].expand(-1, tokens.shape[1], -1)
        return torch.cat([tokens, 10 * told], dim=-1)


class Blind(Sound):
    """Takes away what the patches have in common, and the signs of what is left."""

    caught_by = ("learns_signal",)

    def joined(self, hidden, query):
        patches = hidden[:, :, self.shape.prefix :]
        late, early = (patches - patches.mean(dim=2, keepdim=True)) ** 2
        return torch.cat([late, self.map(early)], dim=-1)


def broken() -> list[type[Fusion] | type[InEncoderFusion]]:
    """All of them."""
    found = itertools.chain(Sound.__subclasses__(), SoundStepper.__subclasses__())
    return sorted(found, key=lambda cls: cls.__name__)
