"""An edited plug-in never keeps its old scores: the run stops, or runs its cells again."""

import shutil

import in_process
import pytest

from fusionbench.records.folder import set_aside
from fusionbench.records.states import superseded
from fusionbench.records.store import Store
from fusionbench.registry.provenance import code_hash

FILE = '''"""A method of one's own."""
from fusionbench.api import Fused, Fusion, method


@method("own", version=1)
class Own(Fusion):
    """{docstring}"""

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = (({tap},),)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]))
'''
STUDY = ("run", "--preset", "smoke", "--tasks", "planted_layer", "--device", "cpu", "--quiet")


def write(folder, tap=1, docstring="One layer."):
    file = folder / "mine.py"
    file.write_text(FILE.format(tap=tap, docstring=docstring))
    return file


def arguments(file, out, *more):
    return (*STUDY, "--methods", "own,penultimate", "--plugin", file, "--out", out, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    in_process.fusionbench(*arguments(write(folder), folder / "results"))
    return folder


@pytest.fixture
def home(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


def one(out, label="own"):
    (found,) = [record for record in Store.open(out).records() if record.label == label]
    return found


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file edited after its records were made",
    "the run stops with both hashes; `--again` moves the old records aside",
)
def test_a_run_stops_with_what_changed_and_what_to_do_whatever_task_it_asks_for(home):
    out = home / "results"
    before = one(out).provenance["plugin_files"]["mine.py"]
    file = write(home, tap=4)
    for more in ((), ("--tasks", "planted_random")):
        code, _, said = in_process.run(*arguments(file, out, *more))
        assert code == 2, said
        error, hint = said.strip().splitlines()
        assert "method 'own' was edited" in error and str(file) in error
        assert f"1 records in {out} were made by {before}" in error
        assert "--again runs" in hint and "raise version=1" in hint and "superseded/" in hint
    assert (
        f"note: method 'own' was edited: {file}"
        in in_process.run(*arguments(file, out, "--dry-run"))[2]
    )


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file edited after its records were made",
    "the run stops with both hashes; `--again` moves the old records aside",
)
def test_again_runs_its_cells_alone_and_keeps_the_old_record_out_of_every_table(home):
    out = home / "results"
    old = one(out)
    assert superseded(Store.open(out)) == {}
    said = in_process.fusionbench(*arguments(write(home, tap=4), out, "--again"))
    assert "1 cells run, 1 were there" in said
    new = one(out)
    assert new.id == old.id and new.taps == ((4,),) != old.taps
    assert [str(problem) for problem in Store.open(out).problems] == []
    assert superseded(Store.open(out)) == {"own on planted_layer": 1}
    kept = (out / "superseded" / f"{old.id}.1.json").read_text()
    assert old.outcomes in kept and (out / "superseded" / f"{old.id}.1.outcomes.bin").is_file()
    status = in_process.fusionbench("status", out)
    assert "superseded: 1 of own on planted_layer" in status and "2 done" in status
    # The same file again is no change, and a second edit is kept beside the first.
    again = in_process.fusionbench(*arguments(write(home, tap=4), out, "--again"))
    assert "0 cells run, 2 were there" in again
    in_process.fusionbench(*arguments(write(home, tap=2), out, "--again"))
    assert superseded(Store.open(out)) == {"own on planted_layer": 2}


def test_comments_and_docstrings_are_no_change_and_a_new_version_keeps_both(home):
    out = home / "results"
    file = write(home, docstring="The same layer, told better.")
    file.write_text(file.read_text() + "\n\n# A comment.\n")
    assert "0 cells run, 2 were there" in in_process.fusionbench(*arguments(file, out))
    file = write(home, tap=4)
    file.write_text(file.read_text().replace("version=1", "version=2"))
    assert "1 cells run, 1 were there" in in_process.fusionbench(*arguments(file, out))
    assert superseded(Store.open(out)) == {}


def test_a_compact_folder_is_told_to_run_elsewhere(home):
    in_process.fusionbench("merge", home / "results", "-o", home / "compact")
    code, _, said = in_process.run(*arguments(write(home, tap=4), home / "compact", "--again"))
    assert code == 2 and "is compact" in said and "--out DIR" in said


def test_the_code_of_a_file_has_one_hash_whatever_its_comments(tmp_path):
    first, second, third = (tmp_path / f"{name}.py" for name in "abc")
    first.write_text("def f(x):\n    return x + 1\n")
    second.write_text('"""Text."""\n\n\ndef f(x):\n    # why\n    return (x + 1)\n')
    third.write_text("def f(x):\n    return x + 2\n")
    assert code_hash(third) != code_hash(first)
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    assert code_hash(broken) == ""


def test_what_belongs_to_a_record_is_set_aside_with_it(tmp_path):
    from vlm_records import write_vlm

    folder = write_vlm(tmp_path / "vlm", methods=("blind", "mema"), tasks=("digits",), pope=False)
    record = next(one for one in Store.open(folder).records() if one.spec.method == "mema")
    (folder / "models").mkdir(exist_ok=True)
    weights = folder / "models" / f"{record.model}.safetensors"
    weights.write_bytes(b"weights")
    assert set_aside(record, folder) and not set_aside(record, folder)
    store = Store.open(folder)
    assert record.id not in store.finished() and not weights.exists()
    assert superseded(store) == {"mema on digits": 1}
    kept = {file.name for file in (folder / "superseded").iterdir()}
    assert f"{record.model}.1.models.safetensors" in kept
    assert f"{record.id}.1.outcomes.bin" in kept
    assert any(name.startswith(f"{record.id}.1.answers") for name in kept)
