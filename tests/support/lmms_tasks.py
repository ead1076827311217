"""Local tasks of FusionBench as tasks of lmms-eval, and lmms-eval run on them offline.

`python tests/support/lmms_tasks.py FOLDER` writes `lmms_output` and `lmms_cells` of `tests/records`
again, by way of an empty folder.
"""

import io
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from fusionbench.cli.run import run
from fusionbench.records.cell import RunOptions
from fusionbench.records.merge import merge
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task
from fusionbench.study.reading import load_study

TASKS = ("digits", "scenes_count")
ITEMS = 24
STUDY = f"""\
track: vlm
preset: smoke
methods: [penultimate]
tasks: [{", ".join(TASKS)}]
mixture: [{", ".join(TASKS)}]
budget: {{steps: 40, batch: 16, train_items: 128, test_items: {ITEMS}}}
"""
MISSING = (
    ""
    if find_spec("lmms_eval") and list(entry_points(group="lmms_eval.models"))
    else "the extra lmms is not installed, or not with this version of FusionBench"
)
_TASK = """\
task: local_{name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: tasks/{name}.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
process_results: !function utils.results
metric_list:
  - metric: accuracy
    aggregation: !function utils.mean
    higher_is_better: true
  - metric: exact
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
_UTILS = """\
def visual(document):
    return [document["image"].convert("RGB")]


def text(document, lmms_eval_specific_kwargs=None):
    return document["question"]


def results(document, answers):
    right = float(answers[0].strip().lower() == document["answer"].lower())
    return {"accuracy": {"question_id": document["item"], "score": right}, "exact": right}


def mean(entries):
    return sum(entry["score"] for entry in entries) / len(entries)
"""


def train(home: Path) -> None:
    """Run the study into `cells`."""
    (home / "study.yaml").write_text(STUDY)
    options = RunOptions(out=str(home / "cells"), workers=1, quiet=True, device="cpu")
    assert run(load_study(home / "study.yaml"), options, sys.stdout) == 0


def write_tasks(folder: Path) -> None:
    """Write the first test items of the local tasks as `local_<name>`, images as PNG."""
    import datasets
    from PIL import Image

    folder.mkdir()
    (folder / "utils.py").write_text(_UTILS)
    tasks = read_catalog(()).tasks
    for name in TASKS:
        data = load_task(tasks[name]).load()
        test, rows = data.test, []
        for item in range(ITEMS):
            png = io.BytesIO()
            Image.fromarray(data.images[test.images[item]]).save(png, "PNG")
            rows.append(
                {
                    "item": test.items[item],
                    "question": test.questions[item],
                    "answer": data.answers[test.answers[item]],
                    "image": {"bytes": png.getvalue(), "path": None},
                }
            )
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.to_parquet(str(folder / f"{name}.parquet"))
        (folder / f"local_{name}.yaml").write_text(_TASK.format(name=name))


def evaluate(home: Path, arguments: str) -> Path:
    """Run lmms-eval in `home`, where `write_tasks` wrote `tasks`; the folder of its results."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home / "hub")}
    command = [sys.executable, "-m", "lmms_eval", "--model", "fusionbench"]
    command += ["--model_args", arguments, "--include_path", "tasks", "--batch_size", "8"]
    command += ["--tasks", ",".join(f"local_{name}" for name in TASKS), "--log_samples"]
    command += ["--output_path", "out", "--device", "cpu"]
    done = subprocess.run(
        command, cwd=home, env={**os.environ, **offline}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "out"


def store(home: Path, records: Path) -> None:
    """Write what lmms-eval says of a model, and its records in the compact form."""
    train(home)
    write_tasks(home / "tasks")
    model = next(r.model for r in Store.open(home / "cells").records() if r.label != "blind")
    output = evaluate(home, f"cell={model},results=cells")
    merge([home / "cells"], home / "merged")
    for made, name in ((output, "lmms_output"), (home / "merged", "lmms_cells")):
        shutil.rmtree(records / name)
        shutil.copytree(made, records / name)


if __name__ == "__main__":
    store(Path(sys.argv[1]).resolve(), Path(__file__).parent.parent / "records")
