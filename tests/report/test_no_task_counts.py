"""An aggregate over no task at all is a reason in every table, never a traceback."""

import io
from dataclasses import replace

import pytest
from paired_studies import study

from fusionbench.cli.reports import check, diff, power, write
from fusionbench.records.pairs import NO_TASK, NotComparable, Results, common, measure
from fusionbench.records.scores import BLIND, INSENSITIVE
from fusionbench.report.build import write_report
from fusionbench.report.power import PowerOptions
from fusionbench.report.results import LoadedResults

GAINS = {"penultimate": 0.0, "repeat": 0.0, "mema": 0.1}


@pytest.fixture(scope="module", params=[1, 5])
def folder(request, tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "results", GAINS, seeds=request.param)


@pytest.fixture(autouse=True, params=[BLIND, INSENSITIVE])
def none_counts(request, monkeypatch):
    def marked(table, *_):
        return replace(table, tasks=tuple(replace(t, mark=request.param) for t in table.tasks))

    monkeypatch.setattr("fusionbench.records.pairs.marked_by_blind", marked)


def test_no_pair_has_no_estimate_and_the_reason():
    assert measure([], []).gap == NO_TASK
    with pytest.raises(NotComparable, match=NO_TASK):
        common([])


def test_the_report_says_so_and_has_the_tasks(folder, tmp_path):
    write_report(folder, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "suite (0 tasks)" in page and "no task" in page
    assert "digits" in (tmp_path / "tables" / "main.csv").read_text()


def test_claims_power_diff_and_frames_say_so(folder, tmp_path):
    heard = io.StringIO()
    assert check(folder, "published", out=None, plugins=(), stream=heard) == 0
    assert "0 holds, 0 fails" in heard.getvalue()
    heard = io.StringIO()
    power(folder, PowerOptions(), out=None, stream=heard)
    assert "digits" in heard.getvalue() and "suite" not in heard.getvalue()
    heard = io.StringIO()
    diff(folder, folder, out=None, stream=heard)
    assert "digits" in heard.getvalue()
    found = LoadedResults(folder)
    assert len(found.contrasts()) and len(found.scores())
    write("mema", folder, tmp_path / "paper", io.StringIO())


def test_the_tables_count_no_task(folder):
    (table,) = Results.open(folder).tables
    assert not table.suite.any()
