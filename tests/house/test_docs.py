"""Every command in the README and the docs runs, long ones with the smallest preset."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from in_process import fusionbench, run
from PIL import Image
from vlm_records import save_picture

from fusionbench import api
from fusionbench.api.tasks import validate
from fusionbench.checks import check_method
from fusionbench.records.cost import read as read_profiles
from fusionbench.records.cost import write as write_profile
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task

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
# Their commands are also run by the tests of `check`, `new-method`, `ablate` and reports.
SLOW_PAGES = ("ablations.md", "add-a-method.md", "checks.md", "reporting.md",
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


@pytest.mark.thorough
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


# The site has a page for everything, its links resolve, and what its pages show is true.

DOCS = ROOT / "docs"
CATALOG = read_catalog()
CONFIG = ROOT / "mkdocs.yml"
site_only = pytest.mark.skipif(not CONFIG.exists(), reason="tests of an installed wheel")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
OUTPUT = re.compile(
    r"```bash\n(fusionbench [^\n]*)\n```\n+(?:[^`#]*\n\n)?```text\n(.*?)```", re.DOTALL
)
PYTHON = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"[+-]?\d+\.\d+")


@pytest.fixture(scope="module")
def hooks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "site"))
        yield importlib.import_module("hooks")


@pytest.fixture(scope="module")
def made(hooks):
    return hooks.made(with_data=False)


def leaves(nav):
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(part)


@site_only
def test_every_page_is_in_the_navigation_once(hooks, made):
    nav = [
        *leaves(yaml.safe_load(CONFIG.read_text())["nav"]),
        *leaves(hooks.catalogue_nav(CATALOG)),
    ]
    written = {page.name for page in DOCS.glob("*.md")}
    assert sorted(nav) == sorted(written | set(made))


@site_only
def test_every_link_of_a_page_leads_to_a_page(hooks, made):
    texts = {page.name: page.read_text() for page in DOCS.glob("*.md")} | made
    copied = {DOCS / path for path in (*made, *hooks.COPIED)}
    for name, text in texts.items():
        outside = re.sub(r"```.*?```", "", hooks.on_page_markdown(text), flags=re.DOTALL)
        for target in LINK.findall(outside):
            if not target.startswith(("http", "data:", "results/", "docs/")):
                file = (DOCS / name).parent / target
                file = Path(*_resolved(file))
                assert file.exists() or file in copied, (name, target)


def _resolved(file):
    parts = []
    for part in file.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return parts


@site_only
@pytest.mark.parametrize("card", CATALOG.methods.values(), ids=lambda card: card.name)
def test_every_method_has_a_section_with_what_it_reads_and_its_control(card, made):
    page = made[f"catalogue/methods/{card.family}.md"]
    section = page.partition(f"\n### {card.name}\n")[2].partition("\n### ")[0]
    assert "| reads | " in section and "| control | " in section
    named = "none" if card.control == card.name else card.control.partition(":")[0]
    assert named in section.replace("\\", "")
    assert f"({card.family}.md#{card.name})" in made["catalogue/methods/index.md"]


@site_only
def test_the_layers_of_known_methods_are_shown(made):
    pages = {name: made[f"catalogue/methods/{name}.md"] for name in ("dense_connector", "mema")}
    assert "| reads | `hs[23]`, `hs[7]`, `hs[15]` |" in pages["dense_connector"]
    assert "`mean(hs[0..11])`, `mean(hs[12..23])`" in pages["dense_connector"]
    assert "changes the input of the next one" in pages["mema"]
    assert "y = W_y [mean_n x ; max_n x ; x_cls]" in pages["mema"]


@site_only
@pytest.mark.parametrize("card", [*CATALOG.tasks.values(), *CATALOG.benchmarks.values()],
                         ids=lambda card: card.name)  # fmt: skip
def test_every_task_has_a_page_with_chance_and_licence(card, made):
    page = made[f"catalogue/tasks/{card.name}.md"]
    assert "| chance | " in page and "| licence | " in page
    assert f"({card.name}.md)" in made["catalogue/tasks/index.md"]


@site_only
def test_a_page_of_a_task_with_data_has_sizes_questions_and_pictures(hooks):
    card = CATALOG.tasks["planted_layer"]
    page = hooks.catalogue.task_page(card, hooks.catalogue.load_task(card))
    assert "| examples | 4,096 train + 512 val + 1,024 test |" in page
    assert "one: “is the hidden bit 0 or 1?”" in page
    assert page.count("data:image/png;base64,") == 4


@site_only
def test_the_score_of_a_method_is_that_of_the_shipped_study(made):
    # The front page's numbers are compared with the records by a test of their own.
    front = (ROOT / "docs" / "index.md").read_text()
    difference = re.findall(r"`mema` +\| `penultimate` +\| ([^|]*?) +\|", front)[0]
    assert f"{difference} points from the penultimate layer" in made["catalogue/methods/mema.md"]


@site_only
def test_every_command_and_option_is_in_the_reference(made):
    page = made["cli.md"]
    help_text = fusionbench("--help")
    commands = re.findall(r"^  ([a-z][a-z-]+)  ", help_text, re.MULTILINE)
    assert len(commands) > 20
    for name in commands:
        assert f"\n### {name}\n" in page
    for option in re.findall(r"--[a-z-]+", fusionbench("run", "--help")):
        assert option == "--help" or f"`{option}" in page


@site_only
def test_every_public_name_is_in_the_reference_of_python():
    text = (DOCS / "reference.md").read_text()
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert {name.rpartition(".")[2] for name in documented} >= set(api.__all__) | {"run", "load"}
    for path in documented:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


@site_only
def test_aligned_columns_of_a_docstring_become_code(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    griffe = pytest.importorskip("griffe", reason="the extra docs")
    assert griffe
    columns = importlib.import_module("columns")
    text = columns.fenced("Declare it.\n\nname     of it\nversion  raised\n         always")
    assert text.count("```") == 2 and "```text\nname     of it" in text


# What the pages show.


def same(shown: str, printed: str, points: float) -> bool:
    """Equal but for numbers, which differ by at most `points`, and the widths of columns."""
    texts = [re.sub(r"[ -]+", " ", NUMBER.sub("#", text)) for text in (shown, printed)]
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (shown, printed)]
    return texts[0] == texts[1] and np.allclose(*numbers, rtol=0, atol=points)


@site_only
def test_the_card_that_the_first_page_shows_is_what_the_command_prints():
    command, shown = OUTPUT.findall((DOCS / "first-ten-minutes.md").read_text())[0]
    assert fusionbench(*command.split()[1:]) == shown


@site_only
@pytest.mark.slow
def test_the_first_ten_minutes_print_what_the_page_shows(tmp_path, monkeypatch, capsys):
    page = (DOCS / "first-ten-minutes.md").read_text()
    blocks = OUTPUT.findall(page)
    assert len(blocks) == 3
    for command, shown in blocks:
        printed = fusionbench(*command.split()[1:], folder=tmp_path).splitlines()
        for line in shown.splitlines():
            assert any(same(line.rstrip(), one.rstrip(), points=3.0) for one in printed), line
    code, shown = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", page, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102  (the page's own code)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for line, other in zip(shown.splitlines(), printed, strict=True):
        assert same(line.rstrip(), other, points=3.0)


def mistakes():
    text = (DOCS / "troubleshooting.md").read_text()
    found = re.findall(r"^\$ fusionbench (.*)\n(error: .*)$", text, re.MULTILINE)
    # The track vlm reads all local tasks before it looks for a benchmark.
    return [pytest.param(*one, marks=pytest.mark.slow if "vlm" in one[0] else ()) for one in found]


@pytest.mark.few(2)
@site_only
@pytest.mark.parametrize(("command", "error"), mistakes())
def test_each_error_of_the_page_on_troubleshooting_is_real(command, error, tmp_path):
    if "elpv" in command and CATALOG.tasks["elpv"].available:
        pytest.skip("elpv is installed")
    if "--device cuda" in command and importlib.import_module("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, printed = run(*command.split(), folder=tmp_path)
    assert code == 2
    assert error in printed.splitlines()
    assert "\nhint: " in printed


@site_only
@pytest.mark.parametrize("name", ["wide.py", "asked.py", "pooled.py"])
def test_the_methods_of_the_page_on_methods_pass_the_checks(name, tmp_path):
    files = dict(PYTHON.findall((DOCS / "write-a-method.md").read_text()))
    assert set(files) == {"wide.py", "asked.py", "pooled.py"}
    (tmp_path / name).write_text(files[name])
    rules = ("shapes", "taps", "batch_split", "live", "parameters", "vmapped")
    report = check_method(str(tmp_path / name), only=rules)
    assert not report.unexpected, report


@site_only
def test_the_task_of_the_page_on_tasks_is_found_and_valid(tmp_path):
    ((name, source),) = PYTHON.findall((DOCS / "write-a-task.md").read_text())
    (tmp_path / name).write_text(source)
    card = read_catalog([str(tmp_path / name)]).tasks["brightest"]
    data = load_task(card).load()
    validate(data)
    assert len(data.test) == 256
