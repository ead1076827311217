"""Every command in the README and the docs runs, long ones with the smallest preset."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.DOTALL)
# What CI does itself, from nothing; running it here would recurse.
BY_CI = ("pip ", "pytest", "bash .ci/run", "git ", "cd ", "export ")
SMALLEST = ["--preset", "smoke", "--methods", "penultimate", "--tasks", "planted_layer"]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("#")[0].split("&&"):
                    if (text := part.strip()) and not text.startswith(BY_CI):
                        found.append((page.name, text))
    return list(dict.fromkeys(found))


def smallest(arguments: list[str]) -> list[str]:
    """The same command, but with one seed and two steps."""
    if arguments[0] != "run":
        return arguments
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in ("--preset", "--methods", "--tasks", "--seeds", "--encoder"):
            skip = not skip
            continue
        kept.append(argument)
    return [*kept, *SMALLEST]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with finished results where the documents say they are."""
    place = tmp_path_factory.mktemp("docs")
    run(["run", *SMALLEST, "--out", "results/local"], place)
    for name in ("README.md", "methods", "tasks", "docs", "tests"):
        if (ROOT / name).exists():
            (place / name).symlink_to(ROOT / name)
    return place


def run(arguments: list[str], place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusionbench", *arguments], cwd=place, capture_output=True,
        text=True, timeout=240, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests of an installed wheel")
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize(("page", "text"), commands())
def test_every_documented_command_runs(page, text, folder):
    words = shlex.split(text)
    while words and "=" in words[0]:
        words.pop(0)
    if words[:3] == ["python", "-m", "fusionbench"]:
        words = ["fusionbench", *words[3:]]
    assert words[0] == "fusionbench", f"{page}: this test does not know how to run {text!r}"
    run(smallest(words[1:]), folder)


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests of an installed wheel")
def test_the_readme_is_short_and_starts_with_its_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    text = "\n".join(lines[:25])
    assert "pip install -e '.[data]' && fusionbench run --methods all --tasks all" in text
    assert "pip install -e '.[test]' && pytest -n auto" in text
    assert "fusion-bench" in text
