"""Scores from stored answers: equal for what was recorded, a difference for anything else."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from benchmark_cases import CASES
from toy_records import spec as toy_spec
from vlm_records import cell, copied, trained_folder

from fusionbench.api.benchmarks import data_hash, stream
from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.merge import merge
from fusionbench.records.outcomes import pack, unpack
from fusionbench.records.store import Items, Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.rescore import Rescorer

# They share a folder of small trained models, whose training takes most of the time.
pytestmark = pytest.mark.thorough

CATALOG = read_catalog()


def again(folder, **options):
    store = Store.open(folder)
    return list(Rescorer(store=store, catalog=CATALOG, **options).run())


def verdicts(found):
    return [one.verdict for one in found]


def files(folder):
    """Contents by name, without the note of what was checked."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".checked")
    }


def rewritten(folder, record, change):
    """Change the stored answers of a cell and write its record again, as a run would have."""
    store = Store.open(folder)
    said, outcomes, items = store.answers(record), store.outcomes(record), store.items(record)
    for path in (folder / "cells" / f"{record.id}.json", folder / ".checked"):
        path.unlink(missing_ok=True)
    said, outcomes, record = change(said, np.array(outcomes), record)
    with Store.create(folder) as new:
        new.write(record, outcomes, items, said)


def test_scores_come_out_as_recorded_and_nothing_is_written(tmp_path):
    folder = copied(tmp_path / "cells")
    before = files(folder)
    found = again(folder)
    assert verdicts(found) == ["equal"] * 8
    assert files(folder) == before


def test_a_merged_folder_is_scored_again_alike(tmp_path):
    merge([trained_folder()], tmp_path / "compact")
    assert verdicts(again(tmp_path / "compact")) == ["equal"] * 8


def test_other_outcomes_than_those_of_the_texts_are_differences(tmp_path):
    folder, record = copied(tmp_path / "cells"), cell("mema", "digits")

    def change(said, outcomes, record):
        outcomes[2] = 1 - outcomes[2]
        return said, outcomes, dataclasses.replace(record, score=float(outcomes.mean()))

    rewritten(folder, record, change)
    (other,) = [one for one in again(folder) if one.verdict != "equal"]
    assert other.record.id == record.id and other.verdict == "differs"
    text = "\n".join(other.details)
    item = Store.open(folder).answers(record)[2].item
    assert "1 of 16 outcomes" in text
    assert f"item {item}" in text
    assert "score: recorded" in text


def test_another_score_or_metric_over_the_same_outcomes_is_a_difference(tmp_path):
    folder, record = copied(tmp_path / "cells"), cell("mema", "digits")
    rewritten(folder, record, lambda s, o, r: (s, o, dataclasses.replace(r, scores={"f1": 0.9})))
    (other,) = [one for one in again(folder) if one.verdict != "equal"]
    assert any("f1: recorded 0.9, now nothing" in line for line in other.details)


def test_answers_that_belong_to_other_items_are_a_difference(tmp_path):
    folder, record = copied(tmp_path / "cells"), cell("blind")
    rewritten(folder, record, lambda s, o, r: ([*s[1:], s[0]], o, r))
    found = {one.record.id: one for one in again(folder)}
    assert "are not those to the task's 16 items" in found[record.id].details[0]
    assert verdicts(found.values()).count("equal") == 7


def test_answers_that_were_edited_are_no_record_and_are_named(tmp_path):
    folder, record = copied(tmp_path / "cells"), cell("mema")
    file = folder / "answers" / f"{record.id}.jsonl.gz"
    said = unpack(file.read_bytes())
    file.write_bytes(pack([dataclasses.replace(said[0], text="edited"), *said[1:]]))
    store = Store.open(folder)
    found = list(Rescorer(store=store, catalog=CATALOG).run())
    assert record.id not in {one.record.id for one in found} and len(found) == 7
    assert [record.id in one.source for one in store.problems] == [True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_version": 9}, "recorded with version 9 of digits, here is 2"),
        ({"task": "no_such"}, "no task 'no_such' here"),
        ({"data": "0" * 64}, "the data of digits is not that of the record"),
    ],
)
def test_cells_of_other_code_or_data_are_left_out_with_the_reason(change, reason, tmp_path):
    record = cell("mema", "digits")
    other = dataclasses.replace(record, spec=dataclasses.replace(record.spec, **change))
    store = Store.open(trained_folder())
    with Store.create(tmp_path) as new:
        new.write(other, store.outcomes(record), store.items(record), store.answers(record))
    (found,) = again(tmp_path)
    assert (found.verdict, found.details) == ("left out", (found.details[0],))
    assert reason in found.details[0]


def test_a_task_that_judges_otherwise_is_a_difference(monkeypatch):
    task = CATALOG.tasks["digits"]
    from fusionbench.registry.plugins import load_task

    monkeypatch.setattr(type(load_task(task)), "judge", lambda self, text, example: 0.5)
    found = again(trained_folder())
    assert {one.record.spec.task for one in found if one.verdict == "differs"} == {"digits"}
    assert verdicts(found).count("equal") == 4


def test_a_folder_without_answers_is_an_error(tmp_path):
    with Store.create(tmp_path) as store:
        store.write(CellRecord(spec=toy_spec(), status="done", score=0.5))
    with pytest.raises(UserError, match="no cell in .* kept its answers"):
        again(tmp_path)


@pytest.fixture(params=["pope", "mme", "mmmu", "seed_image"])
def benchmark_cell(request, tmp_path):
    """A folder with one cell of a small benchmark, recorded as a run does it, and its data root."""
    from fusionbench.vlm.evaluate import score

    case = CASES[request.param]
    source = case.source(next(form for form in case.forms if form != "hub"), tmp_path / "data")
    benchmark = case.benchmark
    answers = case.answered(list(stream(benchmark, source)))
    found = score(benchmark, answers)
    card, training = CATALOG.benchmarks[case.name], cell("mema").spec.training
    record = CellRecord(
        spec=toy_spec(
            task=case.name, task_version=card.version, data=data_hash(benchmark, source),
            track="vlm", training=training,
        ),
        status="done",
        metric=benchmark.metric,
        score=float(found.outcomes.mean()),
        scores={benchmark.metric: float(found.outcomes.mean())},
        examples=len(found.outcomes),
        measures=found.measures,
    )  # fmt: skip
    with Store.create(tmp_path / "cells") as store:
        record = store.write(record, found.outcomes, found.items, found.answers)
    return tmp_path, record, found


def test_a_benchmark_is_scored_again_from_its_files(benchmark_cell):
    root, record, _ = benchmark_cell
    (found,) = again(root / "cells", data_root=str(root / "data"))
    assert (found.verdict, found.details) == ("equal", ())
    (found,) = again(root / "cells")
    assert found.verdict == "left out" and "--data-root" in found.details[0]


def test_another_measure_of_a_benchmark_is_a_difference(benchmark_cell):
    root, record, found = benchmark_cell
    name = next(n for n, v in sorted(found.measures.items()) if isinstance(v, float))
    other = {**found.measures, name: found.measures[name] + 0.01, "unheard of": 1.0}

    def change(said, outcomes, record):
        return said, outcomes, dataclasses.replace(record, measures=other)

    rewritten(root / "cells", record, change)
    (again_,) = again(root / "cells", data_root=str(root / "data"))
    assert again_.verdict == "differs"
    assert any(line.startswith(f"measure {name}: recorded") for line in again_.details)
    assert "measure unheard of: recorded 1, now nothing" in again_.details


def test_files_of_another_release_of_a_benchmark_are_left_out(benchmark_cell):
    root, record, _ = benchmark_cell
    spec = dataclasses.replace(record.spec, data="0" * 64)
    store = Store.open(root / "cells")
    with Store.create(root / "others") as new:
        said = store.answers(record)
        new.write(
            dataclasses.replace(record, spec=spec), store.outcomes(record),
            Items(names=tuple(one.item for one in said), groups=("x",) * len(said)), said,
        )  # fmt: skip
    (found,) = again(root / "others", data_root=str(root / "data"))
    assert found.verdict == "left out" and "are not those of the record" in found.details[0]


def test_neither_a_model_nor_torch_is_loaded():
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from fusionbench.cli.again import rescore\n"
        f"code = rescore(Path({str(trained_folder())!r}), data_root='', plugins=[], "
        "stream=sys.stdout)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 cells with answers: 8 equal, 0 differ, 0 left out" in done.stdout
