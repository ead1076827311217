"""Every target has its script, and the page of results holds what was measured and no more."""

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not HERE.exists(), reason="an installed wheel has no benchmarks")


@pytest.fixture
def targets():
    spec = importlib.util.spec_from_file_location("benchmark_targets", HERE / "targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    spec = importlib.util.spec_from_file_location("scaling_figure", HERE / "scaling_figure.py")
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
