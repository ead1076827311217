"""Every command in the README and the docs runs, long ones with the smallest preset."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import fusionbench
from PIL import Image
from vlm_cells import save_picture

from fusionbench.records.cost import read as read_profiles
from fusionbench.records.cost import write as write_profile
from fusionbench.records.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ("README.md", "CONTRIBUTING.md", "results/README.md")
PAGES = [page for page in (*map(ROOT.joinpath, TEXTS), *sorted(ROOT.glob("docs/*.md")))]
PAGES = [page for page in PAGES if page.exists()]
BLOCK = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.DOTALL)
# What CI does itself, from nothing; running it here would recurse.
BY_CI = ("pip ", "pytest", "bash .ci/run", "git ", "cd ", "export ", "python -m venv", ". ")
SMALLEST = ["--preset", "smoke"]
# The track vlm has no planted tasks; its models train on two tasks instead of eleven.
VLM = ["--mixture", "digits,scenes_count"]
VLM_TASK = "digits"
# A small value of the same kind in place of one that means much work.
SMALL_VALUE = {"--methods": "penultimate", "--tasks": "planted_layer"}
BIG = ("all", "*")
# The same for `check`: one method instead of all of them.
ONE_METHOD = "penultimate"
SMALL_STUDY = ["--preset", "smoke", "--methods", "penultimate", "--tasks", "planted_layer"]
# Their commands are also run by the tests of `check`, `new-method`, `ablate`, `pack` and reports,
# and by tests/house/test_docs_site.py.
SLOW_PAGES = ("ablations.md", "add-a-method.md", "checks.md", "packing.md", "reporting.md",
              "first-ten-minutes.md")  # fmt: skip
# Commands for a cluster run on this machine; tests/launchers/test_slurm.py has a real one.
ON_CLUSTER = ("--launcher", "--partition", "--time", "--sbatch")
DROPPED = ("--preset", "--seeds", "--device", *ON_CLUSTER)
KEPT_TASKS = ("digits", "scenes_count")
SWITCH = {"mema": "query", "token_gate": "depth"}


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("#")[0].split("&&"):
                    if (text := part.strip()) and not text.startswith(BY_CI):
                        found.append((page.name, text))
    return list(dict.fromkeys(found))


def pages() -> list:
    """Documents with commands; those whose commands have tests of their own are slow."""
    names = sorted({page for page, _ in commands()})
    return [pytest.param(n, marks=pytest.mark.slow if n in SLOW_PAGES else ()) for n in names]


def smallest(arguments: list[str]) -> list[str]:
    """The same command, but with one seed, two steps, and no grid of everything."""
    if arguments[0] == "profile":
        return ["profile", "scalar_mix", "--batch", "1", "--width", "16", "--blocks", "2"]
    if arguments[0] == "check":
        return [ONE_METHOD if word in BIG else word for word in arguments]
    kept, i = [], 0
    vlm = arguments[0] == "run" and "vlm" in arguments
    small = SMALL_VALUE | ({"--tasks": VLM_TASK} if vlm else {})
    while i < len(arguments):
        word, value = arguments[i], arguments[i + 1] if i + 1 < len(arguments) else ""
        if word in small and any(mark in value for mark in BIG):
            kept += [word, small[word]]
        elif word not in DROPPED:
            kept.append(word)
            i += 1
            continue
        i += 2
    is_file = any(word.endswith(".yaml") for word in arguments)
    if arguments[0] == "ablate":
        few = [] if {"--only", "--factorial"} & set(kept) else ["--only", SWITCH.get(kept[1], "")]
        return [*kept, *SMALLEST, *few, "--seeds", "1", "--tasks", "planted_layer"]
    if arguments[0] != "run" or is_file:
        return kept
    few = [] if "--tasks" in kept else ["--tasks", small["--tasks"]]
    return [*kept, *few, *SMALLEST, *(VLM if vlm else [])]


def small_paper(arguments: list[str]) -> list[str]:
    """`paper --run` on one task, with one seed."""
    run = arguments[0] == "paper" and "--run" in arguments
    return [*arguments, *SMALLEST, "--tasks", "digits", "--seeds", "1"] if run else arguments


def with_cell(arguments: list[str], folder: Path) -> list[str]:
    """The command with the id of a cell of the page's own results in place of `CELL`."""
    if "CELL" not in arguments:
        return arguments
    cells = folder / arguments[arguments.index("--out") + 1] / "cells"
    cell = min(cells.glob("*.json")).stem
    return [cell if word == "CELL" else word for word in arguments]


def example_method() -> str:
    """The README's complete method."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with finished results where the documents say they are."""
    place = tmp_path_factory.mktemp("docs")
    fusionbench("run", *SMALL_STUDY, "--out", "results/local", folder=place)
    (place / "my_mix.py").write_text(example_method())
    save_picture(place / "picture.png")
    write_images(place)
    for name in ("README.md", "methods", "tasks", "docs", "tests"):
        if (ROOT / name).exists():
            (place / name).symlink_to(ROOT / name)
    return place


def write_images(place: Path) -> None:
    """Two folders of noise: one with classes, one with a table of questions."""
    draws = np.random.default_rng(0)
    rows = ["image,question,answer"]
    for row in range(12):
        files = [place / "photos" / name / f"{row}.png" for name in ("cat", "dog")]
        for file in (*files, place / "figures" / f"{row}.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
        rows.append(f"{row}.png,is it raining?,{('yes', 'no')[row % 2]}")
    (place / "figures" / "questions.csv").write_text("\n".join(rows) + "\n")


def copy_two_tasks(shipped: Path, copy: Path) -> None:
    """Two tasks of fifteen: the commands are the same, and their tables take no time."""
    store = Store.open(shipped)
    with Store.create(copy) as small:
        for record in store.records():
            if record.spec.task in KEPT_TASKS:
                small.write(record, store.outcomes(record), store.items(record))
        for run in store.history.requests():
            small.history.add(run)
    for one in read_profiles(shipped):
        write_profile(copy, one)


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests of an installed wheel")
@pytest.mark.parametrize("page", pages())
def test_every_documented_command_runs(page, folder):
    # In the page's order: what one command writes, the next one may read.
    done = []
    if page == "reporting.md":
        shutil.rmtree(folder / "results" / "quick", ignore_errors=True)
        copy_two_tasks(ROOT / "results" / "quick", folder / "results" / "quick")
    for text in (text for name, text in commands() if name == page):
        words, variables = shlex.split(text), {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        if words[:3] == ["python", "-m", "fusionbench"]:
            words = ["fusionbench", *words[3:]]
        assert words[0] == "fusionbench", f"{page}: this test does not know how to run {text!r}"
        if (small := with_cell(small_paper(smallest(words[1:])), folder)) not in done:
            fusionbench(*small, folder=folder, variables=variables)
            done.append(small)


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests of an installed wheel")
def test_the_readme_is_short_and_starts_with_its_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    text = "\n".join(lines[:25])
    assert "pip install -e '.[data]' && fusionbench run --methods all --tasks all" in text
    assert "pip install -e '.[test]' && pytest -n auto" in text
    assert "fusion-bench" in text


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests of an installed wheel")
def test_the_example_study_in_the_text_is_the_one_on_disk():
    page = (ROOT / "docs" / "studies.md").read_text()
    block = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    assert block == (ROOT / "docs" / "example-study.yaml").read_text()


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests of an installed wheel")
def test_the_example_claims_in_the_text_are_those_on_disk():
    page = (ROOT / "docs" / "reporting.md").read_text()
    block = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    assert block == (ROOT / "docs" / "example-claims.yaml").read_text()
