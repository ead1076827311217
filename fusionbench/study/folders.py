"""`folder:DIR` as a task: a folder of images becomes a plug-in file in the cache.

The file's name and the task's are made from the content, so that the same images in another place
are the same task. Where they lie stands beside it, in a file that is no part of its source.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusionbench.api.errors import disk_error
from fusionbench.api.folders import content_id, guessed, read_images, read_rows
from fusionbench.records.files import cache_dir, write_atomic
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


def with_folders(study: Study, plugins: Sequence[str]) -> tuple[Study, tuple[str, ...]]:
    """The study with tasks in place of `folder:DIR`, and the plug-ins with their files.

    A task of an earlier `folder:DIR` is found by its name. Raises UserError for images or a table
    that cannot be used.
    """
    files = list(plugins)
    tasks = []
    for name in study.tasks:
        if name.startswith(PREFIX):
            file = task_file(name)
            name = _name(file)
            files.append(str(file))
        elif _NAME.fullmatch(name) and _file(name).is_file():
            files.append(str(_file(name)))
        tasks.append(name)
    return replace(study, tasks=tuple(tasks)), tuple(dict.fromkeys(files))


def task_file(text: str) -> Path:
    """The plug-in file of `folder:DIR`, written if its content is new. Raises UserError."""
    folder = Path(text.removeprefix(PREFIX)).expanduser().resolve()
    rows = read_rows(folder)
    file = _file(f"images-{content_id(folder, rows)}")
    try:
        if not file.is_file():
            chance = guessed(read_images(folder, rows))
            source = _SOURCE.format(name=_name(file), chance=round(chance, 6))
            write_atomic(file, source.encode())
        write_atomic(file.with_suffix(".json"), json.dumps({"folder": str(folder)}).encode())
    except OSError as error:
        raise disk_error(error, file.parent) from error
    return file


def _file(name: str) -> Path:
    return cache_dir("tasks", f"{name.replace('-', '_')}.py")


def _name(file: Path) -> str:
    return file.stem.replace("_", "-")
