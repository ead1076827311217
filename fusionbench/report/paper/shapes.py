"""The shapes of four papers' tables: `papers.yaml` as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fusionbench.api.errors import unknown
from fusionbench.report.reported import Reported, reported


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a paper's table."""

    row: str
    """As the paper calls it."""
    ours: str = ""
    """The method here; empty if there is none."""
    why: str = ""
    """Why there is none."""
    method: str = ""
    """Its name in `reported.csv`."""
    reported: tuple[str, ...] = ()
    """In whose tables its published numbers stand."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One table."""

    name: str
    title: str
    against: str
    """The method that the others are compared with."""
    rows: tuple[Line, ...]
    benchmarks: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()

    def published(self, line: Line) -> dict[str, Reported]:
        """The line's published numbers by benchmark; the first of the file where two exist.

        OCRBench has a number for each of its parts and one for all; it is the last that is meant.
        """
        found: dict[str, Reported] = {}
        for number in reported():
            here = number.method == line.method and number.given_by in line.reported
            whole = not number.metric.endswith(_PARTS)
            if here and whole and number.base_model in self.base_models:
                found.setdefault(number.benchmark, number)
        return {name: found[name] for name in self.benchmarks if name in found}


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper."""

    name: str
    title: str
    paper: str
    """Authors, venue, number."""
    regime: str
    differs: tuple[str, ...]
    tables: tuple[Shape, ...]

    @property
    def methods(self) -> list[str]:
        """Every method of ours that its tables need."""
        lines = [line for table in self.tables for line in table.rows]
        names = [line.ours for line in lines] + [table.against for table in self.tables]
        return [name for name in dict.fromkeys(names) if name]


_PARTS = ("Recognition", "VQA-Scene", "VQA-Doc", "KIE", "HMER")


@cache
def papers() -> Mapping[str, Paper]:
    """All papers by name."""
    import yaml

    text = (files("fusionbench.report.paper") / "papers.yaml").read_text(encoding="utf-8")
    return {name: _paper(name, values) for name, values in yaml.safe_load(text).items()}


def paper(name: str) -> Paper:
    """The paper of that name. Raises UserError with the nearest one."""
    if name not in papers():
        raise unknown("paper", name, papers())
    return papers()[name]


def _paper(name: str, values: Mapping[str, Any]) -> Paper:
    tables = tuple(_shape(table) for table in values["tables"])
    return Paper(name=name, **{**values, "differs": tuple(values["differs"]), "tables": tables})


def _shape(values: Mapping[str, Any]) -> Shape:
    lines = tuple(
        Line(**{**line, "reported": tuple(line.get("reported", ()))}) for line in values["rows"]
    )
    lists = {name: tuple(values.get(name, ())) for name in ("benchmarks", "base_models")}
    return Shape(**{**values, **lists, "rows": lines})
