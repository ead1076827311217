"""The site has a page for everything, its links resolve, and what its pages show is true."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from in_process import fusionbench, run

from fusionbench import api
from fusionbench.api.tasks import validate
from fusionbench.checks import check_method
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
CATALOG = read_catalog()
CONFIG = ROOT / "mkdocs.yml"
pytestmark = pytest.mark.skipif(not CONFIG.exists(), reason="tests of an installed wheel")
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


def test_every_page_is_in_the_navigation_once(hooks, made):
    nav = [
        *leaves(yaml.safe_load(CONFIG.read_text())["nav"]),
        *leaves(hooks.catalogue_nav(CATALOG)),
    ]
    written = {page.name for page in DOCS.glob("*.md")}
    assert sorted(nav) == sorted(written | set(made))


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


@pytest.mark.parametrize("card", CATALOG.methods.values(), ids=lambda card: card.name)
def test_every_method_has_a_section_with_what_it_reads_and_its_control(card, made):
    page = made[f"catalogue/methods/{card.family}.md"]
    section = page.partition(f"\n### {card.name}\n")[2].partition("\n### ")[0]
    assert "| reads | " in section and "| control | " in section
    named = "none" if card.control == card.name else card.control.partition(":")[0]
    assert named in section.replace("\\", "")
    assert f"({card.family}.md#{card.name})" in made["catalogue/methods/index.md"]


def test_the_layers_of_known_methods_are_shown(made):
    pages = {name: made[f"catalogue/methods/{name}.md"] for name in ("dense_connector", "mema")}
    assert "| reads | `hs[23]`, `hs[7]`, `hs[15]` |" in pages["dense_connector"]
    assert "`mean(hs[0..11])`, `mean(hs[12..23])`" in pages["dense_connector"]
    assert "changes the input of the next one" in pages["mema"]
    assert "y = W_y [mean_n x ; max_n x ; x_cls]" in pages["mema"]


@pytest.mark.parametrize("card", [*CATALOG.tasks.values(), *CATALOG.benchmarks.values()],
                         ids=lambda card: card.name)  # fmt: skip
def test_every_task_has_a_page_with_chance_and_licence(card, made):
    page = made[f"catalogue/tasks/{card.name}.md"]
    assert "| chance | " in page and "| licence | " in page
    assert f"({card.name}.md)" in made["catalogue/tasks/index.md"]


def test_a_page_of_a_task_with_data_has_sizes_questions_and_pictures(hooks):
    card = CATALOG.tasks["planted_layer"]
    page = hooks.catalogue.task_page(card, hooks.catalogue.load_task(card))
    assert "| examples | 4,096 train + 512 val + 1,024 test |" in page
    assert "one: “is the hidden bit 0 or 1?”" in page
    assert page.count("data:image/png;base64,") == 4


def test_the_score_of_a_method_is_that_of_the_shipped_study(made):
    # The front page's numbers are compared with the records by a test of their own.
    front = (ROOT / "docs" / "index.md").read_text()
    difference = re.findall(r"`mema` +\| `penultimate` +\| ([^|]*?) +\|", front)[0]
    assert f"{difference} points from the penultimate layer" in made["catalogue/methods/mema.md"]


def test_every_command_and_option_is_in_the_reference(made):
    page = made["cli.md"]
    help_text = fusionbench("--help")
    commands = re.findall(r"^  ([a-z][a-z-]+)  ", help_text, re.MULTILINE)
    assert len(commands) > 20
    for name in commands:
        assert f"\n### {name}\n" in page
    for option in re.findall(r"--[a-z-]+", fusionbench("run", "--help")):
        assert option == "--help" or f"`{option}" in page


def test_every_public_name_is_in_the_reference_of_python():
    text = (DOCS / "reference.md").read_text()
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert {name.rpartition(".")[2] for name in documented} >= set(api.__all__) | {"run", "load"}
    for path in documented:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


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


def test_the_card_that_the_first_page_shows_is_what_the_command_prints():
    command, shown = OUTPUT.findall((DOCS / "first-ten-minutes.md").read_text())[0]
    assert fusionbench(*command.split()[1:]) == shown


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


@pytest.mark.parametrize("name", ["wide.py", "asked.py", "pooled.py"])
def test_the_methods_of_the_page_on_methods_pass_the_checks(name, tmp_path):
    files = dict(PYTHON.findall((DOCS / "write-a-method.md").read_text()))
    assert set(files) == {"wide.py", "asked.py", "pooled.py"}
    (tmp_path / name).write_text(files[name])
    rules = ("shapes", "taps", "batch_split", "live", "parameters", "vmapped")
    report = check_method(str(tmp_path / name), only=rules)
    assert not report.unexpected, report


def test_the_task_of_the_page_on_tasks_is_found_and_valid(tmp_path):
    ((name, source),) = PYTHON.findall((DOCS / "write-a-task.md").read_text())
    (tmp_path / name).write_text(source)
    card = read_catalog([str(tmp_path / name)]).tasks["brightest"]
    data = load_task(card).load()
    validate(data)
    assert len(data.test) == 256
