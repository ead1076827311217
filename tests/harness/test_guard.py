"""What one training may not leave to the next is found, named and set back."""

import bad_plugins
import pytest
import torch
from torch import nn

from fusionbench.harness import train
from fusionbench.harness.guard import Changes, Guard, Sealed, reseed, versions

WATCHED = train
"""A module of the engine that a bad kind patches."""
KINDS = [
    kind
    for kind, bad in bad_plugins.METHODS.items()
    if bad.done and bad.place == "forward"
    # Of an encoder or of materials, which a cell has; of a pipe; and what cannot be set back.
    and not kind.startswith(("encoder_", "states_", "questions_", "closes", "hooked", "thread"))
]  # fmt: skip


@pytest.fixture
def guard():
    # pytest names the phase of a test in the environment: tests renew the guard themselves.
    found = Guard()
    yield found
    found.restore(thorough=True)


@pytest.mark.fault(
    "plug-ins and workers",
    "state of the process changed: threads, flags, default type, grad mode, functions, tensors",
    "set back and named; a process that cannot be set back is replaced",
)
@pytest.mark.parametrize("kind", ["threads", "algorithms", *KINDS])
def test_what_a_plugin_changes_is_named_and_set_back(kind, guard):
    bad, names = bad_plugins.METHODS[kind], {}
    exec(bad_plugins.HEAD, names)
    guard.renew()
    exec(bad.code, names)
    found = guard.restore(thorough=True)
    assert bad.words.partition(" 1 ->")[0] in " ".join(found.notes()), found
    assert not found.lasting
    assert guard.restore(thorough=True) == Changes()


@pytest.mark.fault(
    "plug-ins and workers",
    "state of the process changed: threads, flags, default type, grad mode, functions, tensors",
    "set back and named; a process that cannot be set back is replaced",
)
def test_what_cannot_be_set_back_is_told_apart_and_then_accepted(guard):
    guard.renew()
    layer = nn.modules.module.register_module_forward_hook
    handle = layer(lambda module, given, output: output * 2 if torch.is_tensor(output) else None)
    found = guard.restore(thorough=False)
    assert found.lasting == ("a fixed computation gives other numbers",) and not found.reset
    (note,) = found.notes()
    assert note.endswith("(a fixed computation gives other numbers), the process was left")
    guard.accept()
    assert guard.restore(thorough=False) == Changes()
    handle.remove()
    assert guard.restore(thorough=False).lasting
    guard.accept()


def test_secrets_of_the_environment_are_not_named(guard, monkeypatch):
    guard.renew()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = guard.restore(thorough=True)
    assert found.reset == ("environment: HF_TOKEN",)


def test_built_in_methods_are_compared_in_what_changes_numbers(guard, monkeypatch):
    guard.renew()
    monkeypatch.setenv("COMPILER_CACHE", "x")
    torch.set_default_dtype(torch.float64)
    found = guard.restore(thorough=False)
    assert found.reset == ("torch.set_default_dtype: torch.float32 -> torch.float64",)


def test_random_streams_start_from_their_names():
    reseed("a", 1)
    first = torch.rand(3)
    torch.rand(7)
    reseed("a", 1)
    assert torch.equal(torch.rand(3), first)
    reseed("a", 2)
    assert not torch.equal(torch.rand(3), first)


class Blocks(nn.Module):
    """As much of an encoder as a seal reads."""

    size = 8

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, 3)
        self.requires_grad_(False).eval()

    def hidden_states(self, images):
        return [self.map(images.float())]


@pytest.mark.fault(
    "plug-ins and workers",
    "state of the process changed: threads, flags, default type, grad mode, functions, tensors",
    "set back and named; a process that cannot be set back is replaced",
)
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.map.weight.mul_(1.01),
        lambda e: e.map.weight.data.mul_(1.01),
        lambda e: e.train(),
        lambda e: e.requires_grad_(True),
        lambda e: e.map.register_forward_hook(lambda m, i, o: o + 1),
        lambda e: setattr(e, "hidden_states", lambda images: 1 / 0),
    ],
)
def test_an_encoder_that_somebody_changed_is_found(change):
    encoder = Blocks()
    seal = Sealed(encoder, thorough=False)
    seal.deepen()
    assert not seal.broken(thorough=True)
    change(encoder)
    assert seal.broken(thorough=True)


def test_writing_to_a_tensor_is_counted():
    tensors = [torch.zeros(2), torch.zeros(3)]
    before = versions(tensors)
    tensors[1][0] = 1
    assert versions(tensors) != before
