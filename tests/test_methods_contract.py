"""What every registered method promises: shapes, starts, live parameters, no batch leaks."""

import copy
import pickle

import pytest
import torch
from registered_methods import build, names
from toy_encoder import ToyEncoder, draw, run

from fusionbench.fusion import Fusion
from fusionbench.readers.decoder import DecoderReader, decoder_shape
from fusionbench.types import Fused, StackShape

# Deep enough for papers' layer numbers to stay apart, a grid that is not square, two prefix tokens.
READER = decoder_shape(16, 4)
SHAPE = StackShape(layers=24, dim=16, grid=(4, 6), prefix=2, query_dim=6, reader=READER)
SQUARE = StackShape(layers=9, dim=16, grid=(4, 4), prefix=1, query_dim=6, reader=READER)
SHALLOW = StackShape(layers=3, dim=16, grid=(4, 4), prefix=1, query_dim=6, reader=READER)
WITHOUT_CLS = StackShape(layers=8, dim=16, grid=(4, 4), query_dim=6, reader=READER)

# Their promise does not hold, on purpose.
DEAD = {"mema-as_written"}
LEAKS_ACROSS_THE_BATCH = {"dla_as_published"}


def told(method, tokens, query, *, inside=False):
    """A method's tokens; what a fixed decoder makes of them where it reaches into its layers."""
    fused = run(method, tokens, query)
    if not (fused.reaches_inside or inside):
        return fused.tokens
    with torch.random.fork_rng():
        torch.manual_seed(4)
        reader = DecoderReader(method.out_dim, READER, query_dim=6, length=5, answers=7)
        question = torch.randn(1, 5, 6).expand(len(tokens), 5, 6)
    return reader(fused, question, torch.ones(len(tokens), 5, dtype=torch.bool))


@pytest.mark.parametrize("shape", [SHAPE, SHALLOW, WITHOUT_CLS], ids=["deep", "shallow", "no cls"])
@pytest.mark.parametrize("name", names())
def test_tokens_have_the_declared_width_and_are_finite(name, shape):
    method = build(name, shape)
    fused = run(method, *draw(shape))
    assert fused.tokens.shape[0] == 3
    assert fused.tokens.shape[-1] == method.out_dim
    assert fused.tokens.isfinite().all()


@pytest.mark.parametrize("name", names())
def test_taps_are_resolved_without_duplicates_and_in_range(name):
    for shape in (SHAPE, SHALLOW):
        method = build(name, shape)
        if isinstance(method, Fusion):
            assert all(0 <= i <= shape.normed for tap in method.taps for i in tap)
            assert all(len(set(tap)) == len(tap) for tap in method.taps)
            assert all(isinstance(i, int) for tap in method.taps for i in tap)


@pytest.mark.parametrize("name", sorted(set(names()) - LEAKS_ACROSS_THE_BATCH))
def test_an_image_does_not_depend_on_the_others_of_its_batch(name):
    method = build(name, SQUARE).eval()
    tokens, query = draw(SQUARE)
    together = told(method, tokens, query)
    alone = torch.cat([told(method, tokens[[i]], query[[i]]) for i in (2, 0, 1)])
    torch.testing.assert_close(together[[2, 0, 1]], alone)


@pytest.mark.parametrize("name", names())
def test_it_starts_as_the_penultimate_layer_if_and_only_if_it_says_so(name):
    method = build(name, SQUARE)
    tokens, query = draw(SQUARE)
    start = told(method, tokens, query)
    inside = run(method, tokens, query).reaches_inside
    penultimate = told(build("penultimate", SQUARE), tokens, query, inside=inside)
    same = start.shape == penultimate.shape and torch.allclose(start, penultimate, atol=1e-6)
    assert same == method.identity_at_init


@pytest.mark.parametrize("name", sorted(set(names()) - DEAD))
def test_every_parameter_moves_within_the_declared_steps(name):
    method = build(name, SQUARE)
    if not list(method.parameters()):
        assert method.live_after_steps == 1
        return
    moved = _moved(method, steps=method.live_after_steps)
    assert moved == {parameter for parameter, _ in method.named_parameters()}


def _moved(method, *, steps):
    tokens, query = draw(SQUARE)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    shape = told(method, tokens, query).shape
    target = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for _ in range(steps):
        fused = run(method, tokens, query)
        loss = ((told(method, tokens, query) - target) ** 2).mean() + sum(fused.losses.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("name", names())
def test_a_pickled_copy_gives_the_same_tokens(name):
    method = build(name, SQUARE)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(method)))
    tokens, query = draw(SQUARE)
    assert torch.equal(told(method, tokens, query), told(twin, tokens, query))


@pytest.mark.parametrize("name", names())
def test_constant_zero_and_huge_inputs_give_finite_tokens_and_gradients(name):
    method = build(name, SQUARE)
    tokens, query = draw(SQUARE)
    for given in (torch.zeros_like(tokens), torch.ones_like(tokens), 1e4 * tokens):
        fused = run(method, given, query)
        assert fused.tokens.isfinite().all()
        parameters = list(method.parameters())
        loss = told(method, given, query).mean() + sum(fused.losses.values())
        if parameters:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            assert all(grad is None or grad.isfinite().all() for grad in found)


@pytest.mark.parametrize("name", names())
def test_bfloat16_autocast_stays_near_full_precision(name):
    method = build(name, SQUARE)
    tokens, query = draw(SQUARE)
    exact = told(method, tokens, query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = told(method, tokens, query).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", names())
def test_several_seeds_at_once_give_what_each_gives_alone(name):
    methods = [build(name, SQUARE, seed=seed) for seed in (0, 1)]
    drawn = [draw(SQUARE, seed=seed) for seed in (5, 6)]
    given = [torch.stack(parts) for parts in zip(*drawn, strict=True)]
    together = (_fused_at_once if isinstance(methods[0], Fusion) else _stepped_at_once)(
        methods, *given
    )
    for index, method in enumerate(methods):
        torch.testing.assert_close(together[index], run(method, *drawn[index]).tokens)


def _fused_at_once(methods, first, query):
    states = torch.stack([torch.stack(ToyEncoder(SQUARE).states_from(x)) for x in first])
    hidden = torch.stack([states[:, list(tap)].mean(dim=1) for tap in methods[0].taps], dim=1)
    return _at_once(methods, "forward", hidden, query)


def _stepped_at_once(methods, tokens, query):
    encoder = ToyEncoder(SQUARE)
    state = _at_once(methods, "start", tokens, query)
    for index in range(1, methods[0].depth + 1):
        tokens = torch.stack([encoder.block(index, x) for x in tokens])
        tokens, state = _at_once(methods, "after_block", tokens, state, block=index)
    return _at_once(methods, "finish", tokens, state)


def _at_once(methods, step, *given, **more):
    """One step of all seeds, as the engine folds them."""
    weights, buffers = torch.func.stack_module_state(methods)
    skeleton = Step(copy.deepcopy(methods[0]), step, more)

    def call(w, b, *rest):
        named = {f"method.{key}": value for key, value in (w | b).items()}
        fused = torch.func.functional_call(skeleton, named, rest)
        return fused.tokens if isinstance(fused, Fused) else fused

    found = torch.vmap(call)(weights, buffers, *given)
    return found


class Step(torch.nn.Module):
    """One of a method's steps as a module's forward."""

    def __init__(self, method, step, more):
        super().__init__()
        self.method, self.step, self.more = method, step, more

    def forward(self, first, second):
        if self.step == "after_block":
            return self.method.after_block(self.more["block"], first, second)
        return getattr(self.method, self.step)(first, second)
