"""What Slurm says: its limits, the tasks in its queue, how a task ended; and notes of submissions.

Asked of `scontrol` and `squeue` alone, since many clusters keep no accounting for `sacct`.
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fusionbench.api.errors import UserError
from fusionbench.records.files import write_atomic

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
