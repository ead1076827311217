"""What a dry run says before anything runs, and what a run says while nothing is trained yet."""

import io
import re

import pytest

from fusionbench.cli import summary
from fusionbench.launchers.jobs import Event
from fusionbench.launchers.progress import Lines
from fusionbench.launchers.runner import told
from fusionbench.launchers.sweep import run_plan
from fusionbench.models.encoders import catalog


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_paper_preset_is_planned_without_its_weights_in_few_lines(call, cache, tmp_path):
    arguments = ("run", "--preset", "paper", "--tasks", "digits", "--dry-run", "--out", tmp_path)
    code, out, said = call(*arguments)
    assert code == 0, said
    assert "first: the weights of dinov2-small are not here" in out
    assert len(out.splitlines()) < 200 and "--full" in out
    (total,) = re.findall(r"^(\d+) of \1 cells to run", out)
    by_method, by_task = out.split("\n\n")[1:3]
    for table in (by_method, by_task):
        counts = [int(line.split()[0]) for line in table.splitlines()[1:]]
        assert sum(counts) == int(total)
    # What `all` adds on this encoder: its layers are known without the weights.
    assert "layer[index=12" in by_method and "layer[index=13" not in by_method


def test_the_sizes_that_a_plan_uses_are_those_of_the_weights(cache):
    from fusionbench.models.encoders.dinov2 import ARCHITECTURE

    card = catalog.card("dinov2-small", image_size=112)
    assert (card.layers, card.dim) == (ARCHITECTURE["layers"], ARCHITECTURE["dim"])
    assert card.grid == (8, 8) and card.size == 112 and not card.available and not card.weights
    assert catalog.card("dinov2-small").size == ARCHITECTURE["size"]


def test_start_up_and_report_are_those_of_the_last_run_here(call, cache, tmp_path):
    plan = ("run", "--tasks", "planted_layer", "--methods", "last", "--preset", "smoke",
            "--dry-run", "--out", tmp_path / "out")  # fmt: skip
    assert "were not measured here yet" in call(*plan)[1]
    summary.note_times(12.34, 30.0, 4)
    assert "start-up with encoding 12 s and report 30 s on top" in call(*plan)[1]
    (cache / "times" / "run.json").write_text("{torn")
    assert "were not measured here yet" in call(*plan)[1]


def test_an_encoding_says_how_many_images_and_how_long(monkeypatch):
    clock = iter(range(0, 100, 5))
    monkeypatch.setattr("fusionbench.launchers.runner.time.monotonic", lambda: next(clock))
    texts = [event.text for event in told("digits", [500, 1000, 2000], 2000)]
    assert texts == [
        "encoding digits: 2,000 images", "encoding digits: 500 of 2,000 images, 15 s left",
        "encoding digits: 1,000 of 2,000 images, 10 s left",
        "encoding digits: 2,000 of 2,000 images, 0 s left",
    ]  # fmt: skip


class Launcher:
    def __init__(self, events, error=None):
        self.events, self.error, self.closed = events, error, None

    def run(self, jobs, on_event):
        for event in self.events:
            on_event(event)
        if self.error:
            raise self.error

    def close(self):
        self.closed = True


class Plan:
    cells, pending, finished = (), (1,), 0

    def jobs(self):
        return iter(())


def test_a_stage_is_shown_and_ctrl_c_is_answered_before_the_workers_end(monkeypatch):
    stream = io.StringIO()
    progress = Lines(stream)
    launcher = Launcher(
        [Event(kind="stage", text="encoding digits: 5 images")], KeyboardInterrupt()
    )
    monkeypatch.setattr("fusionbench.launchers.sweep.jobs_of", lambda plan: [object()])
    closing = launcher.close
    monkeypatch.setattr(launcher, "close", lambda: (stream.write("CLOSED\n"), closing()))
    monkeypatch.setattr("fusionbench.launchers.progress._LINE_EVERY", 0.0)
    result = run_plan(Plan(), launcher, progress)
    assert result.interrupted
    lines = stream.getvalue().splitlines()
    assert "encoding digits: 5 images" in lines
    assert lines.index("stopping: the workers end; cells that are recorded stay") < lines.index(
        "CLOSED"
    )


def test_without_a_network_the_ways_out_are_named(call, cache, monkeypatch):
    def unreachable():
        raise OSError("no connection to the hub")

    monkeypatch.setattr("fusionbench.models.encoders.fetch.require_hub", unreachable)
    for command in (
        ("fetch", "hf:somebody/vit"),
        ("run", "--encoder", "hf:somebody/vit", "--tasks", "planted_layer", "--methods", "last"),
    ):
        code, _, said = call(*command)
        assert code == 2 and "no connection to the hub" in said
        for way in ("hf:/path", "HF_HOME", "fusionbench pack", "FUSIONBENCH_DATA"):
            assert way in said, way


def test_completion_is_offered(call, monkeypatch):
    code, out, _ = call("--help")
    assert code == 0 and "--install-completion" in out
