"""Write the fault matrix of `docs/reliability.md` from what the tests that inject faults say.

    FUSIONBENCH_FAULTS=lines.jsonl pytest -n auto -m "slow or not slow"
    python benchmarks/reliability.py lines.jsonl

Each line is one test (tests/support/fault_lines.py). The last line of each test is kept in
`benchmarks/results/reliability.jsonl`; without an argument the page is written from it alone. A
matrix has one row for each fault: how many were injected, what is required and how many held it. A
fault that a test names and no line tells of is "not run". The mutants of
benchmarks/mutation_testing.py are counted too.
"""

import argparse
import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "reliability.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: {} -->", "<!-- end of faults -->"
MUTATED, RUNS, MUTANTS = "mutated formats", "runs", "mutants"
"""Places of the page besides those of the groups of faults."""
MUTANTS_FILE = KEPT.with_name("mutation-testing.jsonl")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a test says: `test` is its function and parameters, wherever its file lies."""

    test: str
    group: str
    fault: str
    then: str
    slow: bool
    injections: int
    note: str
    outcome: str
    commit: str
    date: str

    @property
    def function(self) -> str:
        """The test without its parameters."""
        return self.test.partition("[")[0]


def read(files: Iterable[Path]) -> list[Line]:
    """The last line of each test, in the order of group, fault and test."""
    found = {}
    for file in files:
        for text in file.read_text().splitlines():
            values = json.loads(text)
            line = Line(**{**values, "test": values["test"].rpartition("::")[2]})
            found[line.test] = line
    return sorted(found.values(), key=lambda line: (line.group, line.fault, line.test))


def write(lines: Sequence[Line], file: Path) -> None:
    """Keep the lines."""
    file.write_text("".join(json.dumps(asdict(line), sort_keys=True) + "\n" for line in lines))


def test_files(function: str, tests: Path = ROOT / "tests") -> list[str]:
    """Files with a test of that name, relative to the folder of tests."""
    start = f"def {function}("
    files = [file for file in sorted(tests.rglob("test_*.py")) if start in file.read_text()]
    return [file.relative_to(tests).as_posix() for file in files]


def declared(tests: Path = ROOT / "tests") -> list[tuple[str, str, str, str]]:
    """Group, fault, requirement and file of each marker that stands in a test file."""
    found = []
    for file in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = [one.value for one in node.args if isinstance(one, ast.Constant)]
                if node.func.attr == "fault" and len(words) == 3:
                    found.append((*words, file.relative_to(tests).as_posix()))
    return found


def matrix(lines: Sequence[Line], declared: Iterable[tuple[str, str, str]] = ()) -> list[str]:
    """The table of one group of faults; `declared`: fault, requirement and file."""
    rows = defaultdict(list)
    for line in lines:
        rows[line.fault].append(line)
    table = ["| fault | injected | required | held | tests |", "|---|---:|---|---:|---|"]
    for fault, then, file in sorted(set(declared)):
        if fault not in rows:
            table.append(f"| {fault} | 0 | {then} | not run | `{file}` |")
    for fault, all_of_it in rows.items():
        ran = [line for line in all_of_it if line.outcome != "skipped"]
        count = sum(line.injections for line in ran)
        held = sum(line.injections for line in ran if line.outcome == "passed")
        files = sorted({file for line in all_of_it for file in test_files(line.function)})
        named = ", ".join(f"`{file}`" for file in files)
        slow = " (slow)" if all(line.slow for line in all_of_it) else ""
        shown = f"{held:,} of {count:,}" if ran else "not run"
        table.append(f"| {fault} | {count:,} | {all_of_it[0].then} | {shown} | {named}{slow} |")
    return table


def mutations(lines: Sequence[Line]) -> list[str]:
    """What became of the mutated files, by format."""
    table = ["| format | mutations | named | same tables | silent, crash or hang |"]
    table.append("|---|---:|---:|---:|---:|")
    for line in lines:
        if line.note and line.outcome == "passed":
            counts = {what: int(count) for count, what in re.findall(r"(\d+) ([a-z ]+)", line.note)}
            name = line.test.partition("[")[2].rpartition("-")[0]
            kind, _, rest = name.partition("-")
            if kind not in ("live", "compact"):
                kind, rest = ("pack" if "pack" in line.function else "cache"), name
            form = f"{kind}: `{rest}`"
            cells = (line.injections, counts.get("named", 0), counts.get("same tables", 0), 0)
            table.append(f"| {form} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return table


def runs(lines: Sequence[Line]) -> list[str]:
    """When the tests ran, and what failed or was skipped."""
    groups = defaultdict(list)
    for line in lines:
        groups[line.date, line.commit, line.slow].append(line)
    said = [
        f"- {'slow' if slow else 'fast'} tests: {len(those)} of commit {commit} on {date}, "
        f"{sum(line.injections for line in those if line.outcome != 'skipped'):,} faults, "
        f"{sum(line.outcome == 'failed' for line in those)} failed, "
        f"{sum(line.outcome == 'skipped' for line in those)} skipped"
        for (date, commit, slow), those in sorted(groups.items())
    ]
    failed = [f"- failed: `{line.test}`" for line in lines if line.outcome == "failed"]
    return [*said, *failed]


def mutants(file: Path) -> list[str]:
    """Mutants of each folder or file of code, and how many of them a test killed."""
    found = defaultdict(Counter)
    for text in file.read_text().splitlines() if file.exists() else ():
        values = json.loads(text)
        place = Path(values["file"])
        name = place if place.parent.name == "records" else place.parent
        found[name.as_posix()][values["outcome"]] += 1
    table = ["| code | mutants | killed | equivalent | survived | killed, of those that differ |"]
    table.append("|---|---:|---:|---:|---:|---:|")
    for name, counts in sorted(found.items()):
        killed = counts["killed"] + counts["timeout"]
        share = 100 * killed / max(1, counts.total() - counts["equivalent"])
        cells = (counts.total(), killed, counts["equivalent"], counts["survived"])
        shown = " | ".join(f"{cell:,}" for cell in cells)
        table.append(f"| `{name}` | {shown} | {share:.1f} % |")
    return table if found else ["Not run yet."]


def filled(page: str, lines: Sequence[Line]) -> str:
    """The page with its tables replaced. ValueError if it has no place for a group."""
    groups = defaultdict(list)
    for line in lines:
        groups[line.group].append(line)
    named = defaultdict(list)
    for group, *rest in declared():
        named[group].append(tuple(rest))
    parts = {group: matrix(groups[group], named[group]) for group in sorted({*groups, *named})}
    parts[MUTATED], parts[MUTANTS] = mutations(lines), mutants(MUTANTS_FILE)
    parts[RUNS] = runs(lines)
    for name, part in parts.items():
        begin = BEGIN.format(name)
        if page.count(begin) != 1:
            raise ValueError(f"the page has no place for {name}")
        head, _, rest = page.partition(begin)
        _, end, tail = rest.partition(END)
        page = "\n".join([f"{head}{begin}", "", *part, "", f"{end}{tail}"])
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", nargs="*", type=Path, help="files of lines to add")
    lines = read([*(file for file in [KEPT] if file.exists()), *parser.parse_args().lines])
    write(lines, KEPT)
    PAGE.write_text(filled(PAGE.read_text(), lines))
    print(f"{len(lines)} tests, {sum(line.injections for line in lines):,} faults: {PAGE}")


if __name__ == "__main__":
    main()
