"""Every p-value, verdict and MDE that is printed comes from `stats.verdicts.judge`."""

import ast
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paired_studies import study

import fusionbench
from fusionbench.cli import reports
from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.power import PowerOptions
from fusionbench.stats import verdicts

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from test_ablation import BOTH, fill  # noqa: E402

GAINS = {"penultimate": 0.0, "repeat": 0.0, "mema": 0.1, "concat": 0.0}
CLAIM = """\
claims:
  - {id: one, sentence: A., method: mema, relation: better, than: penultimate, tasks: suite}
"""
CSV = ReportOptions(formats=("csv",))
TESTS = {"holm", "benjamini_hochberg", "p_value", "p_equivalent", "mde", "decide"}
"""What only the judge may turn into an answer; a raw p of one reference is shown as it is."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("judge")
    facts = {"control": "none: nothing to match"}
    paths = [
        study(place / name, GAINS, seeds=5, draw=draw, count=80, facts=facts)
        for draw, name in enumerate("ab")
    ]
    fill(place / "ablation", BOTH, seeds=5)
    (place / "claims.yaml").write_text(CLAIM)
    return place, *paths


def printed(place, a, b, out):
    """The text of each kind of answer."""
    streams = {name: io.StringIO() for name in ("claims", "power", "diff")}
    reports.check(a, str(place / "claims.yaml"), out=None, plugins=[], stream=streams["claims"])
    reports.power(a, PowerOptions(), out=None, stream=streams["power"])
    reports.diff(a, b, out=None, stream=streams["diff"])
    tables = write_report(a, out / "report", CSV).tables
    ablations = write_report(place / "ablation", out / "ablation", CSV).tables
    return {name: stream.getvalue() for name, stream in streams.items()} | {
        "contrasts": (tables / "contrasts.csv").read_text(),
        "main": (tables / "main.csv").read_text(),
        "ablation": (ablations / "ablation.csv").read_text(),
    }


def test_another_judge_changes_every_table(folders, tmp_path, monkeypatch):
    before = printed(*folders, tmp_path / "before")
    judge = verdicts.judge

    def other(questions, correction, **options):
        """Answers whose numbers are moved a little."""
        changes = {"p": 0.123, "p_adjusted": 0.321, "mde": 0.0456, "low": -0.5, "high": 0.5}
        return [
            replace(answer, **{name: new for name, new in changes.items()
                               if getattr(answer, name) is not None})
            for answer in judge(questions, correction, **options)
        ]  # fmt: skip

    monkeypatch.setattr(verdicts, "judge", other)
    after = printed(*folders, tmp_path / "after")
    assert [name for name in before if before[name] == after[name]] == []
    for name in ("contrasts", "main", "ablation"):
        assert "0.321" in after[name] and "0.321" not in before[name]
    assert "4.6 (4.6)" in after["power"]
    assert "[-50.0, +50.0]" in after["claims"]
    assert "(q 0.32)" in after["diff"]


def test_no_file_of_the_report_corrects_or_decides_by_itself():
    """Corrections are called in `stats.verdicts` alone; a raw p-value has one more place."""
    found = set()
    for folder in ("report", "records", "cli"):
        for path in (Path(fusionbench.__file__).parent / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    found |= {(path.name, name)} if name in TESTS else set()
    # `p_baseline` and `p_control` in contrasts.csv; `Goal.mde` calls the judge.
    assert found == {("contrast_table.py", "p_value"), ("power.py", "mde")}
