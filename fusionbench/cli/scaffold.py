"""Small complete packages to start from: a method or a task, its tests, its entry point."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Literal

from fusionbench.api.errors import UserError, disk_error
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.discovery import importable

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_KIT_TEST = """

@each_check(FILE)
def test_it_keeps_the_promises_of_every_method(verdict):
    verdict()
"""


def new_package(kind: Literal["method", "task"], name: str, out: Path, catalog: Catalog) -> Path:
    """Write the package `fusionbench-NAME` into a folder and give its own folder back.

    Raises UserError for a name that is taken or is none, a folder that exists, no permission.
    """
    _check(kind, name, catalog)
    home = out / f"fusionbench-{name.replace('_', '-')}"
    if home.exists():
        raise UserError(f"{home} exists already", "choose another name, or another --out")
    values = _values(name)
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "module.py": f"{values['module']}.py",
        "test.py": f"tests/test_{name}.py",
    }
    try:
        for template, target in files.items():
            _write(_TEMPLATES / kind / f"{template}.txt", home / target, values)
    except OSError as error:
        raise disk_error(error, home) from error
    return home


def _check(kind: str, name: str, catalog: Catalog) -> None:
    if not _NAME.fullmatch(name) or name == "all":
        raise UserError(
            f"{name!r} is no name for a {kind}",
            "small letters, digits and single underscores, such as depth_gate",
        )
    known = catalog.methods if kind == "method" else catalog.tasks
    families = {card.family for card in catalog.methods.values()} if kind == "method" else set()
    if name in {*known, *families}:
        raise UserError(f"there is a {kind} {name!r} already", "choose another name")


def _values(name: str) -> Mapping[str, str]:
    words = name.split("_")
    # The conformance kit tests a method further where this version has it.
    kit = importable("fusionbench.checks")
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "cls": "".join(word.capitalize() for word in words),
        "module": f"fusionbench_{name}",
        "distribution": f"fusionbench-{name.replace('_', '-')}",
        "kit_import": "from fusionbench.checks import each_check" if kit else "",
        "kit_test": _KIT_TEST if kit else "",
    }


def _write(template: Path, target: Path, values: Mapping[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = Template(template.read_text(encoding="utf-8")).substitute(values)
    target.write_text(text.rstrip() + "\n", encoding="utf-8")
