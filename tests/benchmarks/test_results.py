"""Every target has its script, and the page of results holds what was measured and no more."""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_lines import FaultLines

HERE = Path(__file__).resolve().parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not HERE.exists(), reason="an installed wheel has no benchmarks")


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def targets():
    return script("targets")


@pytest.fixture(scope="module")
def reliability():
    return script("reliability")


def test_every_target_has_a_script(targets):
    for target in targets.TARGETS:
        script = target.command.split()[1]
        assert (HERE.parent / script).is_file(), script
        assert f'target="{target.id}"' in (HERE.parent / script).read_text(), target.id


def test_the_page_is_what_the_measurements_say(targets, tmp_path):
    targets.write(HERE / "results", tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == (HERE / "RESULTS.md").read_text()


def test_points_of_a_curve_name_what_was_measured(targets, tmp_path):
    rows = [
        {"target": "tokens=64", "plain": 1.0, "ours": value, "unit": "ms", "note": name}
        for name, value in (("scalar_mix", 2.0), ("mema", 3.0))
    ]
    values = {"script": "scaling-tokens", "device": "a machine", "rows": rows}
    (tmp_path / "one.json").write_text(json.dumps(values))
    targets.write(tmp_path, tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    for name, value in (("scalar_mix", 2), ("mema", 3)):
        assert f"| scaling-tokens | {name} | tokens=64 | 1 | {value} | ms | a machine |" in page


def test_measurements_are_joined_by_device_and_the_newest_of_a_script_counts(targets, tmp_path):
    def write(name, script, device, at, value):
        values = {"script": script, "device": device, "at": at, "rows": [value]}
        (tmp_path / name).write_text(json.dumps(values))

    write("plan-a-card.json", "plan", "A Card", "2026-01-01", 1)
    write("start-a-card.json", "start", "A Card", "2026-01-01", 2)
    write("plan-other.json", "plan", "other", "2026-01-01", 3)
    targets.join(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a-card.json", "other.json"}
    first = targets.measured(tmp_path)
    assert [one["rows"] for one in first] == [[1], [3], [2]]
    targets.join(tmp_path)
    assert targets.measured(tmp_path) == first
    write("plan-a-card.json", "plan", "A Card", "2026-02-01", 4)
    write("start-a-card.json", "start", "A Card", "2025-01-01", 5)
    targets.join(tmp_path)
    assert [one["rows"] for one in targets.measured(tmp_path)] == [[4], [3], [2]]
    assert {path.name for path in tmp_path.iterdir()} == {"a-card.json", "other.json"}


def test_the_figure_of_scaling_draws_what_was_measured_and_its_floor(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location("scaling", HERE / "scaling.py")
    figure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figure)
    steps = [
        {"target": f"tokens={n} blocks=12", "plain": n, "ours": 2 * n, "unit": "ms", "note": "mix"}
        for n in (64, 256)
    ]
    tokens, _, seeds, *_ = figure.PANELS
    assert figure.lines(steps, tokens) == {
        "step of mix": ([64, 256], [128, 512]), "the bare encoder": ([64, 256], [64, 256])
    }  # fmt: skip
    runs = [{"target": f"seeds={n}", "plain": n, "ours": 2.0, "note": ""} for n in (1, 4)]
    assert figure.lines(runs, seeds) == {
        "one pass": ([1, 4], [2, 2]), "a loop": ([1, 4], [1, 4]), "one seed": ([1, 4], [1, 1])
    }  # fmt: skip
    values = {"script": "scaling-tokens", "device": "x", "rows": steps}
    (tmp_path / "scaling-tokens-x.json").write_text(json.dumps(values))
    figure.draw(tmp_path, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    # Nothing was measured, nothing is drawn.
    figure.draw(tmp_path / "empty", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert (HERE / figure.FIGURE).name in (HERE / "RESULTS.md").read_text()


def test_a_target_without_a_measurement_says_so_and_one_with_names_its_device(targets, tmp_path):
    row = {"target": "plan", "plain": 9.0, "ours": 4.5, "unit": "s", "note": ""}
    values = {"script": "start_and_plan", "device": "a machine", "rows": [row]}
    (tmp_path / "one.json").write_text(json.dumps(values))
    targets.write(tmp_path, tmp_path / "RESULTS.md")
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    (plan,) = [line for line in lines if line.startswith("| planning")]
    (ten,) = [line for line in lines if line.startswith("| ten seeds")]
    assert "9 -> 4.5 s, a machine" in plan and "not yet measured" in ten


@pytest.mark.thorough
def test_every_fault_of_the_matrix_has_its_test_and_every_test_of_a_fault_a_row(reliability):
    lines = reliability.read([reliability.KEPT])
    gone = {line.function for line in lines if not reliability.test_files(line.function)}
    assert not gone, f"no such tests: remove their lines from {reliability.KEPT.name}"
    named = reliability.declared()
    assert len(named) > 80
    rows = reliability.PAGE.read_text()
    for _, fault, then, _ in named:
        assert f"| {fault} | " in rows and f" | {then} | " in rows
    known = {(group, fault) for group, fault, *_ in named}
    assert {(line.group, line.fault) for line in lines} <= known


@pytest.mark.thorough
def test_the_matrix_is_what_the_tests_said(reliability):
    lines = reliability.read([reliability.KEPT])
    page = reliability.PAGE.read_text()
    assert reliability.filled(page, lines) == page
    assert not [line.test for line in lines if line.outcome == "failed"]


def test_a_test_of_a_fault_writes_a_line_and_the_matrix_counts_what_held(reliability, tmp_path):
    writer = FaultLines(tmp_path / "lines.jsonl")
    for number, outcome, when in ((1, "passed", "call"), (2, "failed", "call"),
                                  (3, "skipped", "setup"), (4, "passed", "teardown")):  # fmt: skip
        told = [("fault", ["clusters", "a fault", "it ends well", True]), ("injections", 10)]
        writer.pytest_runtest_logreport(
            SimpleNamespace(
                nodeid=f"tests/benchmarks/test_results.py::test_every_target_has_a_script[{number}]",
                user_properties=told, outcome=outcome, when=when, passed=outcome == "passed",
            )
        )  # fmt: skip
    lines = reliability.read([tmp_path / "lines.jsonl"])
    row = "| a fault | 20 | it ends well | 10 of 20 | `benchmarks/test_results.py` (slow) |"
    assert reliability.matrix(lines)[2:] == [row]
    (counted, failed) = reliability.runs(lines)
    assert "slow tests: 3 of commit" in counted and "1 failed, 1 skipped" in counted
    assert failed == "- failed: `test_every_target_has_a_script[2]`"
    (extra,) = reliability.matrix([], [("another", "it is named", "x/test_y.py")])[2:]
    assert extra == "| another | 0 | it is named | not run | `x/test_y.py` |"
    only_skipped = [line for line in lines if line.outcome == "skipped"]
    assert "| 0 | it ends well | not run |" in reliability.matrix(only_skipped)[2]
    with pytest.raises(ValueError, match="no place for clusters"):
        reliability.filled("a page without places", lines)


def test_the_share_of_killed_mutants_leaves_out_those_that_are_equivalent(reliability, tmp_path):
    outcomes = ["killed"] * 6 + ["timeout", "survived", "equivalent", "equivalent"]
    lines = [{"file": "fusionbench/stats/tied.py", "outcome": one} for one in outcomes]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    row = "| `fusionbench/stats` | 10 | 7 | 2 | 1 | 87.5 % |"
    assert reliability.mutants(tmp_path / "x.jsonl")[2:] == [row]
    assert reliability.mutants(tmp_path / "none.jsonl") == ["Not run yet."]


def test_mutants_are_the_same_each_time_and_differ_from_the_code():
    mutation = script("mutation_testing")
    file = mutation.ROOT / "fusionbench" / "stats" / "tied.py"
    few = mutation.mutants(file, 8, 0)
    assert few == mutation.mutants(file, 8, 0) and len({one.number for one in few}) == 8
    kinds = {one.kind for one in mutation.mutants(file, 10_000, 0)}
    assert {"comparison", "arithmetic", "constant", "return"} <= kinds
    for one in few:
        tree = mutation.Changes(one.number).visit(ast.parse(file.read_text()))
        assert ast.unparse(tree) != ast.unparse(ast.parse(file.read_text()))
    named, others = mutation.tests_of("fusionbench/stats/tied.py")
    assert [Path(one).name for one in named] == ["test_verdicts.py"] and len(others) > 4
