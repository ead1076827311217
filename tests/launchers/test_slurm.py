"""A study on a real Slurm, which the tests start in a folder of their own."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import in_process
import pytest
import slurm_cluster
from slurm_cluster import Cluster, wait_for

from fusionbench.api.errors import UserError
from fusionbench.launchers import slurm
from fusionbench.launchers.slurm import HOME, SlurmOptions, note_tasks, noted_tasks, private_folder
from fusionbench.records.store import Store

WHY_NOT = slurm_cluster.missing()
real = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
PLUGIN = Path(slurm_cluster.__file__).parent / "held_methods.py"
HELD = ("held_one", "held_two", "held_three", "held_four")
STUDY = (
    "run", "--preset", "smoke", "--tasks", "planted_layer", "--device", "cpu",
    "--plugin", str(PLUGIN), "--methods", ",".join(HELD),
)  # fmt: skip
# As in this process, where reports have no figures.
WITHOUT_FIGURES = """
from fusionbench.cli.main import main
from fusionbench.report import build
build.write_figures = lambda *_: []
main()
"""
ON_CLUSTER = ("--launcher", "slurm", "--partition", "test", "--time", "10")


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("submitit")
    # Every user must be able to reach the socket of munge, which pytest's own folder forbids.
    with tempfile.TemporaryDirectory(prefix="slurm-") as place:
        Path(place).chmod(0o755)
        # Arrays of three tasks at most: four need two arrays.
        found = Cluster(Path(place) / "home", largest_array=3)
        try:
            found.start()
            yield found
        finally:
            found.stop()


@pytest.fixture
def here(cluster, monkeypatch):
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(slurm, "_POLL_SECONDS", 0.5)
    return cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same study on this machine alone."""
    folder = tmp_path_factory.mktemp("whole")
    in_process.fusionbench(*STUDY, "--out", folder)
    return folder


def tables(folder):
    found = (folder / "report").rglob("*")
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in found if p.suffix in (".md", ".csv")
    }


@pytest.mark.fault("clusters", "a cluster that does not answer", "one line, exit code 2")
def test_a_cluster_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, said = in_process.run(*STUDY, *ON_CLUSTER, "--out", tmp_path / "x")
    assert code == 2 and "scontrol" in said and "Traceback" not in said


@pytest.mark.fault("clusters", "a cluster that does not answer", "one line, exit code 2")
def test_nothing_is_submitted_twice_while_the_queue_is_not_known(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "largest_array", lambda: 100)
    monkeypatch.setattr(slurm, "noted_tasks", lambda home: {"12_0": ("a",)})
    monkeypatch.setattr(slurm, "active_tasks", lambda name: None)
    refused = pytest.fail
    monkeypatch.setattr(slurm.SlurmLauncher, "_submitted", lambda *_: refused("submitted"))
    code, _, said = in_process.run(*STUDY, *ON_CLUSTER, "--out", tmp_path / "x")
    assert code == 2 and "squeue gives no answer" in said and "Traceback" not in said


def test_options_of_a_cluster_need_a_cluster(tmp_path):
    code, _, said = in_process.run(*STUDY, "--partition", "test", "--out", tmp_path / "x")
    assert code == 2 and "--launcher slurm" in said
    code, _, said = in_process.run(*STUDY, "--launcher", "slrum", "--out", tmp_path / "x")
    assert code == 2 and "did you mean 'slurm'" in said


def test_the_folder_of_what_is_run_is_private(tmp_path):
    home = tmp_path / "results" / HOME
    private_folder(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    home.chmod(0o777)
    private_folder(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    link = tmp_path / "link"
    link.symlink_to(home)
    with pytest.raises(UserError, match="link"):
        private_folder(link)


def test_what_is_asked_of_the_cluster():
    wanted = SlurmOptions(partition="p", minutes=2, more={"account": "a", "tasks": "7"})
    found = wanted.parameters("name", 3)
    assert wanted.tasks == 7 and found["slurm_array_parallelism"] == 7
    assert found["slurm_partition"] == "p" and found["cpus_per_task"] == 3
    # The signal comes when three quarters of a short limit are over.
    assert found["slurm_signal_delay_s"] == 30
    assert found["slurm_additional_parameters"] == {"requeue": True, "account": "a"}
    for wrong in ("0", "-1", "many", "²", ""):
        with pytest.raises(UserError, match=f"tasks={wrong}: not a number of tasks"):
            _ = SlurmOptions(more={"tasks": wrong}).tasks


@pytest.mark.fault("clusters", "damaged notes of submissions", "left out")
def test_notes_of_submissions_are_read_back_and_damaged_ones_left_out(tmp_path):
    note_tasks(tmp_path, {"12_0": ("a", "b"), "12_1": ("c",)})
    note_tasks(tmp_path, {"13": ("d",)})
    (tmp_path / "tasks-14.json").write_text('{"tasks": ["x"]}')
    assert noted_tasks(tmp_path) == {"12_0": ("a", "b"), "12_1": ("c",), "13": ("d",)}


@pytest.mark.fault(
    "clusters", "a study on a real Slurm, in two arrays", "the tables of one machine, byte for byte"
)
@pytest.mark.slow
@real
def test_a_study_on_a_cluster_gives_the_tables_of_one_machine(here, whole, tmp_path):
    folder = tmp_path / "results"
    code, out, err = in_process.run(*STUDY, *ON_CLUSTER, "--out", folder)
    assert code == 0, out + err
    assert "4 cells run, 0 were there" in out and "4 tasks in the queue" in err
    assert tables(folder) == tables(whole) and tables(folder)
    # Two arrays, since one holds three tasks.
    assert len(list((folder / HOME).glob("tasks-*.json"))) == 2
    assert stat.S_IMODE((folder / HOME).stat().st_mode) == 0o700
    assert "0 cells run, 4 were there" in in_process.fusionbench(*STUDY, "--out", folder)


def started(folder, cluster, hold, *more):
    """The study with waiting methods, on the cluster, in a process of its own."""
    arguments = (*STUDY, *ON_CLUSTER, *more, "--out", str(folder))
    command = [sys.executable, "-c", WITHOUT_FIGURES, *arguments]
    environment = {**os.environ, **cluster.environment, "FUSIONBENCH_TEST_HOLD": str(hold)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


WORKERS = (b"spawn_main", b"forkserver")
"""In the command lines of the processes that run cells."""


def workers_of(task):
    """Processes of a task that run cells: children of the task's own process."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
            variables = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        array, index = task.split("_") if "_" in task else (task, "")
        mine = f"SLURM_ARRAY_JOB_ID={array}" if index else f"SLURM_JOB_ID={array}"
        if any(way in words for way in WORKERS) and mine.encode() in variables:
            if not index or f"SLURM_ARRAY_TASK_ID={index}".encode() in variables:
                found.append(int(place.name))
    return found


@pytest.mark.fault(
    "clusters",
    "Slurm: a task cancelled, one requeued, one signalled, a worker and both daemons killed",
    "the same tables after `resume`",
)
@real
@pytest.mark.slow
def test_cancelled_killed_requeued_and_signalled_tasks_end_with_the_same_tables(
    here, whole, tmp_path, injected
):
    folder, hold = tmp_path / "results", tmp_path / "hold"
    hold.touch()
    run = started(folder, here, hold)
    try:
        wait_for(lambda: list(here.states().values()).count("RUNNING") == 4, 300)
        wait_for(lambda: len(list(folder.glob("claims/*.lock"))) == 4, 300)
        said = in_process.fusionbench("status", folder)
        assert "4 cells: 0 done, 4 running" in said and "cluster: 4 running" in said
        cancelled, killed, requeued, signalled = sorted(here.states())
        here.ask("scancel", cancelled)
        workers = workers_of(killed)
        assert workers
        for process in workers:
            # One of them may be the parent of others, which end with it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        wait_for(lambda: cancelled not in here.states(), 60)
        here.saved()
        here.kill("slurmd")
        here.kill("slurmctld")
        here.start_daemon("slurmctld")
        here.start_daemon("slurmd")
        wait_for(lambda: here.states(), 60)
        here.ask("scontrol", "requeue", requeued)
        # What Slurm sends before the time limit.
        here.ask("scancel", "--signal=USR2", signalled)
        hold.unlink()
        out, err = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 1, out + err
    assert f"task {cancelled} has ended (CANCELLED" in err
    before = set(Store.open(folder).finished())
    said = in_process.fusionbench("status", folder)
    assert f"4 cells: {len(before)} done, 0 running, 0 failed, {4 - len(before)} lost" in said
    assert "cluster: none in the queue" in said
    # The task whose worker was killed may have been given up; the other two went on.
    assert 2 <= len(before) <= 3
    more = ("--device", "cpu", "--plugin", str(PLUGIN), *ON_CLUSTER)
    code, out, err = in_process.run("resume", folder, *more)
    assert code == 0, out + err
    assert tables(folder) == tables(whole)
    injected(6)


@pytest.mark.fault("clusters", "Slurm: a task at its time limit", "requeued, the same tables")
@real
@pytest.mark.slow
def test_a_task_at_its_time_limit_is_requeued_and_ends_with_the_same_tables(here, whole, tmp_path):
    folder, hold = tmp_path / "results", tmp_path / "hold"
    hold.touch()
    # One task for all cells; later options win.
    run = started(folder, here, hold, "--time", "3", "--sbatch", "tasks=1")

    def log():
        return "".join(file.read_text() for file in (folder / HOME).glob("*_log.out"))

    try:
        wait_for(lambda: "Caught signal SIGUSR2" in log(), 300)
        hold.unlink()
        out, err = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, out + err
    assert log().count("Starting with JobEnvironment") >= 2 and "Requeued job" in log()
    assert tables(folder) == tables(whole)
