"""What one training may not leave to the next is found, named and set back."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import bad_plugins
import pytest
import torch
from torch import nn
from toy_cells import BUDGET, materials

from fusionbench.api.types import StackShape
from fusionbench.harness import train
from fusionbench.harness.guard import Changes, Guard, Sealed, reseed, versions
from fusionbench.harness.materials import prefetch
from fusionbench.harness.stepping import taps_of
from fusionbench.launchers.jobs import jobs_of
from fusionbench.launchers.runner import Runner
from fusionbench.records.cell import RunOptions
from fusionbench.records.pictures import picture_files, read_pictures
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.study.data import load_data
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import SMOKE

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


# Reading ahead: the same hidden states in the same order, and an end for the thread.

TAPS = ((0,), (2, 3))
ROWS = [torch.arange(16) + shift for shift in (0, 5, 9, 30, 31)]


@pytest.fixture
def mapped(monkeypatch):
    """As if nothing fitted on the device."""
    shared = materials(list(TAPS), BUDGET)
    monkeypatch.setattr(shared, "resident", lambda taps: False)
    return shared


def reading():
    return [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_what_is_read_ahead_is_what_would_have_been_read(mapped):
    found = list(prefetch(mapped, TAPS, ROWS))
    assert len(found) == len(ROWS)
    for picked, hidden in zip(ROWS, found, strict=True):
        assert torch.equal(hidden, mapped.states(picked)(TAPS)) and hidden.dtype == torch.float32
    assert not reading()


def test_it_is_read_by_a_thread_and_not_beyond_a_few_batches(mapped, monkeypatch):
    seen, gather = [], mapped.mapped

    def watched(taps, rows):
        seen.append(threading.current_thread() is threading.main_thread())
        return gather(taps, rows)

    monkeypatch.setattr(mapped, "mapped", watched)
    states = prefetch(mapped, TAPS, ROWS)
    next(states)
    assert seen and not any(seen) and len(seen) <= 3
    states.close()
    assert not reading()


def test_some_taps_may_lie_on_the_device_and_others_not(mapped, monkeypatch):
    monkeypatch.setattr(mapped, "resident", lambda taps: taps == (TAPS[0],))
    for picked, hidden in zip(ROWS, prefetch(mapped, TAPS, ROWS), strict=True):
        assert torch.equal(hidden, mapped.states(picked)(TAPS))


def test_what_lies_on_the_device_starts_no_thread():
    shared = materials(list(TAPS), BUDGET)
    assert shared.resident(TAPS)
    states = prefetch(shared, TAPS, ROWS)
    assert torch.equal(next(states), shared.states(ROWS[0])(TAPS)) and not reading()


def test_a_gpu_holds_what_fits_into_half_of_its_free_memory_and_the_rest_stays_mapped(monkeypatch):
    shared, moved = materials(list(TAPS), BUDGET), []
    stored = torch.zeros(10, 4)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    shared.device = torch.device("cuda")
    for free in (2 * stored.nbytes, 2 * stored.nbytes + 2):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert shared._place(stored) is stored
        assert len(moved) == (free > 2 * stored.nbytes)
    assert moved == [torch.device("cuda")]
    # Of what was free before the first one: others do not get half of the rest each.
    there = SimpleNamespace(nbytes=10 * stored.nbytes, device=torch.device("cuda", 0))
    shared._taps = {TAPS[0]: there}
    for free in (12 * stored.nbytes, 12 * stored.nbytes + 2):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        shared._place(stored)
        assert len(moved) == 1 + (free > 12 * stored.nbytes)


# What lies on disk is what methods declare: single layers and means over groups, once each.

# Of the planted encoder with 8 blocks: the mean of four layers is one file.
DECLARED = {
    "penultimate": {(7,)},
    "dense_connector-dci": {(7,), (0, 1, 2, 3), (4, 5, 6, 7)},
    "mema": {(0,), (1,)},
}


def encoded(folder, methods, task):
    """Encode a task for some methods of a folder of results."""
    Store.create(folder)
    study = replace(SMOKE, methods=methods, tasks=(task,))
    encoding = jobs_of(make_plan(resolve(study, read_catalog(())), ()))[0]
    Runner(RunOptions(out=str(folder), device="cpu")).encode(encoding)


def stored(monkeypatch, folder, methods):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(folder / "cache"))
    encoded(folder / "results", methods, "planted_layer")
    # Random bytes are no pictures.
    assert not picture_files(folder / "results")
    return {path.name for path in (folder / "cache" / "features").iterdir()}


def test_only_declared_taps_are_stored_and_methods_share_them(monkeypatch, tmp_path):
    found = {name: stored(monkeypatch, tmp_path / name, (name,)) for name in DECLARED}
    cards = read_catalog(()).methods
    shape = StackShape(layers=8, dim=64, grid=(4, 4), prefix=1, query_dim=8)
    for name, taps in DECLARED.items():
        method = load_method(cards[name])(shape, **cards[name].settings)
        assert set(taps_of(method)) == taps
    assert {name: len(files) for name, files in found.items()} == {
        name: len(taps) for name, taps in DECLARED.items()
    }
    together = stored(monkeypatch, tmp_path / "all", tuple(DECLARED))
    assert together == set.union(*found.values())
    assert len(together) == len(set.union(*DECLARED.values()))


def test_a_task_leaves_pictures_of_its_test_examples_and_is_drawn_once(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    encoded(tmp_path / "one", ("penultimate",), "digits")
    (file,), problems = picture_files(tmp_path / "one"), []
    (found,) = read_pictures(tmp_path / "one", problems)
    data = read_catalog(()).tasks["digits"]
    truth = load_data(data).test
    count = len(found.right)
    assert problems == [] and found.task == "digits" and count == SMOKE.budget.test_items
    assert found.right == tuple(map(int, truth.answers[:count]))
    assert found.question(0) == truth.questions[0]
    # Another folder gets the same file, and nobody reads the task again.
    monkeypatch.setattr(Runner, "_cut", None)
    encoded(tmp_path / "two", ("penultimate",), "digits")
    (again,) = picture_files(tmp_path / "two")
    assert again.name == file.name and again.read_bytes() == file.read_bytes()
