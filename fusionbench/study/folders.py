"""`folder:DIR` as a task: a folder of images becomes a plug-in file in the cache.

The file's name and the task's are made from the content, so that the same images in another place
are the same task. Where they lie stands beside it, in a file that is no part of its source.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fusionbench.api.errors import UserError, disk_error
from fusionbench.api.folders import content_id, guessed, read_images, read_rows
from fusionbench.api.tasks import SPLITS, TaskData
from fusionbench.records.cell import json_object
from fusionbench.records.files import cache_dir, content, write_atomic
from fusionbench.study.study import Study

PREFIX = "folder:"
_NAME = re.compile(r"images-[0-9a-f]{8}")
_SOURCE = '''"""Questions about images of a folder; written by `--tasks folder:DIR`."""

from fusionbench.api import FolderTask, task


@task("{name}", version=1, family="{name}", group="own")
class Images(FolderTask):
    """Images and questions of one's own."""

    place = __file__
    chance = {chance}
'''


def with_folders(
    study: Study, plugins: Sequence[str], hear: Callable[[str], None] = lambda _: None
) -> tuple[Study, tuple[str, ...]]:
    """The study with tasks in place of `folder:DIR`, and the plug-ins with their files.

    `hear` gets a sentence for each folder: the name of its task, and its sizes. A task of an
    earlier `folder:DIR` is found by its name. Raises UserError for images or a table that cannot
    be used.
    """
    files = list(plugins)
    tasks = []
    for name in study.tasks:
        if name.startswith(PREFIX):
            file = task_file(name)
            hear(f"{name} is the task {_name(file)}: {_noted(file)['about']}")
            name = _name(file)
            files.append(str(file))
        elif _NAME.fullmatch(name) and _file(name).is_file():
            files.append(str(_file(name)))
        tasks.append(name)
    return replace(study, tasks=tuple(tasks)), tuple(dict.fromkeys(files))


def task_file(text: str) -> Path:
    """The plug-in file of `folder:DIR`, written if its content is new. Raises UserError."""
    if not text.removeprefix(PREFIX).strip():
        raise UserError(f"{text} names no folder", f"for example {PREFIX}photos")
    folder = Path(text.removeprefix(PREFIX)).expanduser().resolve()
    rows = read_rows(folder)
    file = _file(f"images-{content_id(folder, rows)}")
    try:
        if not file.is_file():
            data = read_images(folder, rows)
            note = {"folder": str(folder), "about": about(data)}
            write_atomic(file.with_suffix(".json"), json.dumps(note).encode())
            source = _SOURCE.format(name=_name(file), chance=round(guessed(data), 6))
            write_atomic(file, source.encode())
        elif (noted := _noted(file)).get("folder") != str(folder):
            note = {"folder": str(folder), "about": noted.get("about", "")}
            write_atomic(file.with_suffix(".json"), json.dumps(note).encode())
    except OSError as error:
        raise disk_error(error, file.parent) from error
    return file


def about(data: TaskData) -> str:
    """Sizes of a task in words: images, answers, examples of each split."""
    height, width = data.images.shape[1:3]
    splits = ", ".join(f"{len(data.split(name))} {name}" for name in SPLITS)
    return (
        f"{len(data.images)} images of {width} x {height}, {len(data.answers)} answers, {splits} "
        "examples"
    )


def _noted(file: Path) -> dict[str, str]:
    """What stands beside a file; empty if that is gone."""
    try:
        return json_object(content(file.with_suffix(".json")).decode())
    except (OSError, ValueError):
        return {"about": ""}


def _file(name: str) -> Path:
    return cache_dir("tasks", f"{name.replace('-', '_')}.py")


def _name(file: Path) -> str:
    return file.stem.replace("_", "-")
