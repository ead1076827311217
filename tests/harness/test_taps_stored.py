"""What lies on disk is what methods declare: single layers and means over groups, once each."""

from dataclasses import replace

from fusionbench.api.types import StackShape
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
