"""`fusionbench ablate` from the first cell to the tables; a second run has nothing to do."""

import csv

import in_process
import pytest
from in_process import run
from toy_suite import section

FEW = ["--preset", "smoke", "--tasks", "planted_layer", "--seeds", "2", "--workers", "1", "--quiet"]


def test_an_ablation_runs_resumes_and_adds_a_factorial_to_the_same_records(tmp_path):
    code, out, said = run("ablate", "mema", "--only", "query,feedback", *FEW, "--out", tmp_path)
    assert code == 0, said
    assert "8 cells run, 0 were there, 0 failed" in out
    assert "simple effects" in out and "| query=false" in out and "| feedback=none" in out
    first = (tmp_path / "report" / "tables" / "ablation.csv").read_bytes()
    code, out, _ = run("ablate", "mema", "--only", "query,feedback", *FEW, "--out", tmp_path)
    assert code == 0 and "0 cells run, 8 were there" in out
    assert (tmp_path / "report" / "tables" / "ablation.csv").read_bytes() == first
    code, out, _ = run("ablate", "mema", "--factorial", "query,feedback", *FEW, "--out", tmp_path)
    # mema, mema-no_query and mema-readout are there already.
    assert code == 0 and "2 cells run, 6 were there" in out
    rows = list(csv.DictReader((tmp_path / "report" / "tables" / "ablation.csv").open()))
    assert {row["design"] for row in rows} == {"one_factor_out", "factorial"}
    assert "query x feedback" in {row["effect"] for row in rows}
    assert "Ablations" in (tmp_path / "report" / "report.md").read_text()


def test_an_ablation_that_ends_at_once_is_resumed_with_its_tables(tmp_path, monkeypatch):
    limits = []

    def interrupted(self, jobs, on_event):
        limits.append(self.fail.options.cell_seconds)
        raise KeyboardInterrupt

    arguments = ("ablate", "mema", "--only", "query", *FEW, "--seeds", "1", "--out", tmp_path,
                 "--limit-cell", "70")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(in_process.InProcessLauncher, "run", interrupted)
        assert run(*arguments)[0] == 130 and limits == [70]
    code, out, said = run("resume", tmp_path, "--quiet")
    assert code == 0 and "2 cells run, 0 were there" in out, said
    table = section(tmp_path / "report", "ablation")
    assert "query=false" in table


def test_a_dry_run_says_what_would_run_and_writes_nothing(call, tmp_path):
    code, out, _ = call("ablate", "mema", *FEW, "--out", tmp_path / "no", "--dry-run")
    assert code == 0 and "58 of 58 cells to run" in out
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mema", "--only", "queri"], "did you mean 'query'"),
        (["memo"], "did you mean 'mema'"),
        (["last"], "declares no switches"),
        (["mema", "--only", "query", "--factorial", "query,init"], "exclude each other"),
        (["mema", "--factorial", "query"], "2 to 8"),
    ],
)
def test_mistakes_are_answered_with_one_line_and_a_hint(call, arguments, told):
    code, out, said = call("ablate", *arguments)
    assert code == 2 and not out
    lines = said.strip().splitlines()
    assert told in lines[0] and lines[1].startswith("hint: ")
