"""Runs a study on a cluster with Slurm: array tasks through submitit, results through the store.

Each array task plans its own cells anew on its node and runs them with the workers of one machine.
What happened is read from the records and from Slurm's queue, never from what submitit returns:
without accounting it does not learn that a task died. Only `scontrol` and `squeue` are asked, since
many clusters keep no accounting for `sacct`.
"""

import hashlib
import importlib.util
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fusionbench.api.errors import UserError, disk_error
from fusionbench.launchers.jobs import Event, Job
from fusionbench.launchers.local import LocalLauncher
from fusionbench.launchers.progress import make_progress
from fusionbench.launchers.sweep import run_plan
from fusionbench.records.cell import RunOptions
from fusionbench.records.files import write_atomic
from fusionbench.records.store import Store
from fusionbench.records.verified import sizes
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.data import packed_tasks
from fusionbench.study.parts import only
from fusionbench.study.plan import Cell, ModelJob, TrainJob, make_plan, resolve
from fusionbench.study.reading import from_plain
from fusionbench.study.study import Study, as_plain

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

HOME = "slurm"
"""Folder inside a folder of results: notes and logs of tasks, and what submitit writes."""
_SECONDS = 60.0
"""A controller that restarts answers later; this is the longest wait for one answer."""
_HELD = "held"
COMPLETING = "COMPLETING"
"""The state of a task whose processes have ended or are being ended, on its way out or back."""


def job_name(folder: Path) -> str:
    """The name of all jobs of a folder of results, by which they are found again."""
    return f"fusionbench-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]}"


def largest_array() -> int:
    """The most tasks of one array. Raises UserError if no controller answers."""
    text = _asked("scontrol", "show", "config")
    if text is None:
        raise UserError(
            "`scontrol show config` has no answer: there is no Slurm here, or it is down",
            "run this on a login node of the cluster, or leave --launcher slurm out",
        )
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(found[1])) if found else 1


def active_tasks(name: str) -> dict[str, str] | None:
    """State of each task in the queue, by id (`12_3`, or `12` of a job without an array).

    None while the controller gives no answer.
    """
    user = str(os.getuid())
    text = _asked("squeue", "-h", "-r", "-u", user, "--name", name, "-o", "%i|%T|%r")
    if text is None:
        return None
    found: dict[str, str] = {}
    for line in text.splitlines():
        task, state, reason = (*line.split("|"), "", "")[:3]
        found[task] = f"{state} {_HELD}" if _HELD in reason.lower() else state
    return found


def is_held(state: str) -> bool:
    """Whether a state is that of a task which waits until somebody releases it."""
    return state.endswith(_HELD)


def ended(task: str) -> str:
    """How a task ended: `CANCELLED, exit code 0:15`; empty where Slurm no longer knows it."""
    text = _asked("scontrol", "show", "job", task, "-o") or ""
    facts = dict(re.findall(r"\b(JobState|ExitCode)=(\S+)", text))
    if "JobState" not in facts:
        return ""
    code = facts.get("ExitCode", "0:0")
    return facts["JobState"] + ("" if code == "0:0" else f", exit code {code}")


def note_tasks(home: Path, tasks: Mapping[str, tuple[str, ...]]) -> None:
    """Remember the cells of each task. Raises OSError."""
    first = min(tasks).partition("_")[0]
    text = json.dumps({"tasks": {task: list(cells) for task, cells in tasks.items()}})
    write_atomic(home / f"tasks-{first}.json", text.encode())


def noted_tasks(home: Path) -> dict[str, tuple[str, ...]]:
    """The cells of each task that was ever submitted for this folder."""
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(home.glob("tasks-*.json")):
        # A note that cannot be read costs a second submission, which waits for the first.
        with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            tasks = json.loads(file.read_text(encoding="utf-8"))["tasks"]
            found |= {str(task): tuple(map(str, cells)) for task, cells in tasks.items()}
    return found


def _asked(*command: str) -> str | None:
    """What a command prints; None if it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


_MOST_TASKS = 200
"""Array tasks of one run, unless `--sbatch tasks=N` says otherwise."""
_REQUEUES = 1000
"""The most time limits of a task."""
_MOST_STALLED = 20
"""Time limits in a row without a new record, after which a task ends; a long training of the track
`vlm` goes on from its own checkpoints."""
_HOLD_SECONDS = 600.0
_SIGNAL_SECONDS = 90
"""Seconds before the time limit at which Slurm sends the signal."""
_POLL_SECONDS = 5.0
_SETTLE_POLLS = 2
"""Polls after the last task has ended: a network file system shows new files late."""
_COMPLETING_POLLS = 120
"""Polls in which all tasks only complete: ten minutes, which no sound node needs."""
_STOPPED = 143
TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What is asked of the cluster."""

    partition: str = ""
    minutes: int = 60
    """Time limit of a task."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Options of sbatch by name, and `tasks`: the number of array tasks."""

    @property
    def tasks(self) -> int:
        """The most array tasks. Raises UserError for anything but a positive number."""
        text = self.more.get(TASKS, str(_MOST_TASKS))
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"--sbatch {TASKS}={text}: not a number of tasks", "for example 20")
        return int(text)

    def parameters(self, name: str, processors: int) -> dict[str, Any]:
        """The parameters of submitit's executor."""
        more = {key: value or True for key, value in self.more.items() if key != TASKS}
        # A quarter of a short limit: work is done before the signal comes.
        seconds = min(_SIGNAL_SECONDS, self.minutes * 60 // 4)
        found = {
            "name": name,
            "timeout_min": self.minutes,
            "cpus_per_task": processors,
            "slurm_signal_delay_s": seconds,
            "slurm_array_parallelism": self.tasks,
            "slurm_stderr_to_stdout": True,
            "slurm_additional_parameters": {"requeue": True, **more},
        }
        return found | ({"slurm_partition": self.partition} if self.partition else {})


class _Stop(BaseException):
    """Slurm asks this process to end."""


@dataclass(frozen=True, kw_only=True)
class ArrayTask:
    """The cells of one array task; called on a node, where it runs those without a record."""

    study: Mapping[str, Any]
    """The study as JSON values: the node reads its own catalog and data."""
    cells: tuple[str, ...]
    options: RunOptions
    recorded: int = 0
    """Cells with a record when the last time limit came."""
    stalled: int = 0
    """Time limits in a row without a new record."""

    def __call__(self) -> None:
        """Run the cells. Raises UserError if the node's study does not have all of them."""
        signal.signal(signal.SIGTERM, _stop)
        try:
            self._run()
        except _Stop:
            # Slurm ends the process itself: after `scancel` for good, after a preemption to run it
            # again. A process that ends by itself would be no case for the second.
            time.sleep(_HOLD_SECONDS)
            sys.exit(_STOPPED)

    def _run(self) -> None:
        catalog = read_catalog(self.options.plugins, packed=packed_tasks())
        resolved = resolve(from_plain(self.study), catalog, data_root=self.options.data_root)
        store = Store.create(self.options.out)
        plan = only(make_plan(resolved, store.finished(), keep=True), set(self.cells))
        if missing := set(self.cells) - {cell.spec.id for cell in plan.cells}:
            raise UserError(
                f"{len(missing)} of {len(self.cells)} cells are not in the study on this node: its "
                "data, its weights or its plug-ins differ",
                "the node needs the files of the machine that submitted",
            )
        run_plan(plan, LocalLauncher(self.options), make_progress(quiet=False))

    def checkpoint(self) -> "DelayedSubmission | None":
        """The same task, to go on after its time limit; None if time limits bring no record."""
        from submitit.helpers import DelayedSubmission

        there = sizes(Path(self.options.out) / "cells", ".json")
        now = sum(cell in there for cell in self.cells)
        stalled = 0 if now > self.recorded else self.stalled + 1
        if stalled > _MOST_STALLED:
            return None
        return DelayedSubmission(replace(self, recorded=now, stalled=stalled))


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


class SlurmLauncher:
    """Submits the jobs as array tasks and follows them until none is left in the queue."""

    def __init__(self, options: RunOptions, wanted: SlurmOptions, study: Study) -> None:
        """Raises UserError if submitit is not installed or no Slurm answers."""
        folder = Path(options.out).absolute()
        self.home = folder / HOME
        self.name = job_name(folder)
        self._wanted, self._study = wanted, as_plain(study)
        # A node has no progress bar, and its working folder may be another.
        self._options = replace(
            options,
            out=str(folder),
            workers=max(1, options.workers),
            plugins=tuple(str(Path(one).absolute()) for one in options.plugins),
            data_root=str(Path(options.data_root).absolute()) if options.data_root else "",
        )
        if importlib.util.find_spec("submitit") is None:
            raise UserError(
                "--launcher slurm needs the package submitit",
                "pip install 'layer-fusionbench[slurm]'",
            )
        self._largest = largest_array()

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Submit what is not in the queue yet and report each cell.

        Raises UserError if Slurm refuses. Ctrl-C leaves the tasks in the queue.
        """
        trainings = [job.cells for job in jobs if isinstance(job, TrainJob | ModelJob)]
        follow = Follow(
            store=Store.create(self._options.out),
            cells={cell.spec.id: cell for cells in trainings for cell in cells},
        )
        noted = noted_tasks(self.home)
        active = active_tasks(self.name) if noted else {}
        if active is None:
            raise UserError(
                "squeue gives no answer, so what is in the queue is not known",
                "try again when it does: what is in the queue is not submitted twice",
            )
        tasks = {task: noted[task] for task in active if task in noted}
        queued = {cell for cells in tasks.values() for cell in cells}
        new = [cells for cells in trainings if not {cell.spec.id for cell in cells} <= queued]
        tasks |= self._submitted(new)
        on_event(Event(kind="note", text=f"{len(tasks)} tasks in the queue, logs: {self.home}"))
        try:
            self._wait(follow, tasks, on_event)
        except KeyboardInterrupt:
            text = f"the tasks stay in the queue; `scancel --name {self.name}` removes them"
            on_event(Event(kind="note", text=text))
            raise
        for event in follow.rest(tasks, self.home):
            on_event(event)

    def close(self) -> None:
        """Nothing to release: the tasks are Slurm's."""

    def _submitted(self, trainings: Sequence[Sequence[Cell]]) -> dict[str, tuple[str, ...]]:
        """Submit trainings in arrays that the cluster takes; the cells of each task."""
        count = min(self._wanted.tasks, len(trainings))
        parts = [
            tuple(cell.spec.id for cells in trainings[first::count] for cell in cells)
            for first in range(count)
        ]
        found: dict[str, tuple[str, ...]] = {}
        for start in range(0, count, self._largest):
            found |= self._array(parts[start : start + self._largest])
        return found

    def _array(self, parts: Sequence[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        work = [ArrayTask(study=self._study, cells=p, options=self._options) for p in parts]
        private_folder(self.home)
        try:
            executor = AutoExecutor(self.home, cluster="slurm", slurm_max_num_timeout=_REQUEUES)
            executor.update_parameters(**self._wanted.parameters(self.name, self._options.workers))
            jobs = executor.submit_array(work)
            found = {str(job.job_id): part for job, part in zip(jobs, parts, strict=True)}
            note_tasks(self.home, found)
        except (FailedJobError, FailedSubmissionError) as error:
            said = [line for line in str(error).splitlines() if "error" in line.lower()] or ["?"]
            hint = "the cluster's own rules: --partition, --time, --sbatch KEY=VALUE"
            raise UserError(f"Slurm takes no job: {said[-1].strip()}", hint) from error
        except OSError as error:
            raise disk_error(error, self.home) from error
        return found

    def _wait(
        self,
        follow: "Follow",
        tasks: Mapping[str, tuple[str, ...]],
        on_event: Callable[[Event], None],
    ) -> None:
        """Report records until all cells have one or no task is left in the queue."""
        empty, most, said = 0, 0, ""
        while follow.cells and empty <= most:
            time.sleep(_POLL_SECONDS)
            for event in follow.news():
                on_event(event)
            queue = active_tasks(self.name)
            if (note := _trouble(queue)) and note != said:
                on_event(Event(kind="note", text=note))
            said = note
            if queue is not None:
                states = [state for task, state in queue.items() if task in tasks]
                # A node that does not answer may keep a task that has ended for ever.
                empty = empty + 1 if all(state == COMPLETING for state in states) else 0
                most = _COMPLETING_POLLS if states else _SETTLE_POLLS


def _trouble(queue: Mapping[str, str] | None) -> str:
    """What keeps tasks from going on, for people; empty where nothing does."""
    if queue is None:
        # Tasks go on without their controller.
        return "no answer of squeue: waiting for Slurm"
    held = sorted(task for task, state in queue.items() if is_held(state))
    return f"held: {', '.join(held)}; `scontrol release` lets them go on" if held else ""


class Follow:
    """The cells of a run that have no record yet, and the records that appear."""

    def __init__(self, store: Store, cells: Mapping[str, Cell]) -> None:
        self.store = store
        self.cells = dict(cells)
        self._failed = self._failures()

    def _failures(self) -> Counter[str]:
        """Number of failures on disk of each cell."""
        files = sizes(self.store.folder / "failures", ".json")
        return Counter(name.partition(".")[0] for name in files)

    def news(self) -> Iterator[Event]:
        """An event for each cell that has got a record since the last call."""
        there = sizes(self.store.folder / "cells", ".json")
        for name in [name for name in self.cells if name in there]:
            record = self.store.find(name)
            if record is not None:
                kind = record.status if record.status in ("done", "skipped") else "failed"
                yield Event(kind=kind, cell=self.cells.pop(name), text=record.reason)

    def rest(self, tasks: Mapping[str, tuple[str, ...]], home: Path) -> Iterator[Event]:
        """Events for the cells that ended without a record, and for the tasks of those lost."""
        new = self._failures() - self._failed
        reasons = {one.id: one.reason for one in self.store.failures(())} if new else {}
        for name in [name for name in self.cells if new[name]]:
            text = (reasons.get(name, "").splitlines() or [""])[-1]
            yield Event(kind="failed", cell=self.cells.pop(name), text=text)
        for task, cells in sorted(tasks.items()):
            left = sum(cell in self.cells for cell in cells)
            if left:
                how = ended(task) or "its state is no longer known"
                log = home / f"{task}_0_log.out"
                text = f"task {task} has ended ({how}) with {left} cells left; its log: {log}"
                yield Event(kind="lost", text=text)


def private_folder(path: Path) -> None:
    """Make a folder that no other user reads or writes: what submitit finds in it is run.

    Raises UserError if it belongs to another user or is a link.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
        if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode):
            raise UserError(
                f"{path} is a link or belongs to another user, who could run programs through it",
                "choose another folder with --out",
            )
        path.chmod(0o700)
    except OSError as error:
        raise disk_error(error, path) from error
