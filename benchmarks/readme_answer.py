"""Write the measured answer of `results/quick` into README.md, between two comments.

    python benchmarks/readme_answer.py

Every number comes from the tables of the shipped report, which a test writes anew from the records.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "results" / "quick" / "report"
README = ROOT / "README.md"
START, END = "<!-- the answer of results/quick -->", "<!-- end of the answer -->"


def block(report: Path) -> str:
    """The sentences of the report and its planned contrasts on the suite."""
    answer = (report / "tables" / "answer.md").read_text(encoding="utf-8").strip()
    return f"{START}\n{answer}\n\n{planned(report)}\n{END}"


def planned(report: Path) -> str:
    """The planned contrasts as a table, at most twelve rows."""
    added = {
        row["method"].split(" (")[0]: row["added"]
        for row in _rows(report, "summary")
        if row["aggregate"] == "suite"
    }
    rows = [
        {
            "method": f"`{row['method']}`",
            "against": f"`{row['baseline']}`",
            "difference, points": _interval(row, "delta", "low", "high"),
            "from its matched control": _interval(
                row, "control_delta", "control_low", "control_high"
            ),
            "verdict": row["verdict"],
            "parameters added": added.get(row["method"], ""),
        }
        for row in _rows(report, "contrasts")
        if row["kind"] == "planned"
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _interval(row: Mapping[str, str], *names: str) -> str:
    """`+1.2 [-0.4, +2.8]`; empty where nothing was measured."""
    if not row[names[0]]:
        return ""
    value, low, high = (f"{100 * float(row[name]):+.1f}" for name in names)
    return f"{value} [{low}, {high}]"


def _rows(report: Path, table: str) -> list[dict[str, str]]:
    with (report / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(readme: str, report: Path) -> str:
    """The README with the block of this report; ValueError without the two comments."""
    found = re.subn(
        f"{re.escape(START)}.*?{re.escape(END)}", lambda _: block(report), readme, flags=re.DOTALL
    )
    if found[1] != 1:
        raise ValueError(f"README.md needs {START} and {END} once each")
    return found[0]


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8"), REPORT), encoding="utf-8")
