"""Runs a study in the processes that torchrun or `accelerate launch` started.

Each of them starts the whole command. Rank 0 plans, scores and records in its own process; the
others train with it, one model after the other.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from fusionbench.launchers.jobs import Event, Job, in_turn
from fusionbench.launchers.runner import Runner
from fusionbench.launchers.signing import Failures
from fusionbench.launchers.workers import events_of
from fusionbench.records.cell import RunOptions
from fusionbench.vlm.processes import World, dismiss, follow, joined


class WorldLauncher:
    """Runs all jobs in this process, rank 0, which leads the trainings of the others."""

    def __init__(self, options: RunOptions, world: World, *, entered: ExitStack) -> None:
        self._runner = Runner(options, world=world)
        self._fail = Failures(options)
        self._world = world
        self._entered = entered

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs, in their order. Raises UserError for what makes further work impossible."""
        for event in in_turn(partial(events_of, self._runner.run), jobs, self._fail):
            on_event(event)

    def close(self) -> None:
        """Let the other processes end."""
        dismiss(self._world)
        self._entered.close()


def lead_or_follow(options: RunOptions) -> WorldLauncher | None:
    """The launcher of rank 0; None in every other process, once rank 0 has dismissed it.

    Raises UserError if the launcher's world has another size than `options.processes`.
    """
    entered = ExitStack()
    opened: AbstractContextManager[World] = joined(options.processes or 1, device=options.device)
    world = entered.enter_context(opened)
    if world.main:
        return WorldLauncher(options, world, entered=entered)
    with entered:
        follow(world)
    return None
