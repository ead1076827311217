"""Where the data of a benchmark lies: official files, VLMEvalKit's TSV, or a set of the hub.

Only looks for files; reads none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fusionbench.api.errors import UserError

Form = Literal["files", "tsv", "hub"]
HUB = "hub"
"""As a data root: load every set by its id from the Hugging Face hub or its cache."""
EXTRA = "pip install 'layer-fusionbench[hub]'"
TSV_FROM = "https://opencompass.openxlab.space/utils/VLMEval/"
"""Folder from which VLMEvalKit downloads its files."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Where the data of a benchmark may lie; one of the three forms is enough."""

    folder: str
    """Folder of its files below the data root; the root itself is searched as well."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Official file, or folder with `/` at its end -> where it comes from; all are needed."""
    tsv: str = ""
    """Name of VLMEvalKit's file of the same benchmark."""
    hub: Mapping[str, str] = field(default_factory=dict)
    """`id`, `config` (may be absent) and `split` of the set on the Hugging Face hub."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data of a benchmark in one form."""

    form: Form
    root: Path
    """`files`: the folder that holds all of them; `tsv`: the file; `hub`: the folder of the
    downloaded set, or `Path("hub")` to load it by its id."""
    files: tuple[Path, ...] = ()
    """Annotation files; none for a set of the hub."""


def find_source(name: str, needs: Needs, root: str | Path) -> Source:
    """The first form found below `root`: files, TSV, hub.

    Raises UserError with each expected path and where it comes from.
    """
    home = Path(root).expanduser()
    if str(root) == HUB and needs.hub:
        found: Source | None = Source(form="hub", root=Path(HUB))
    else:
        found = _files(needs, home) or _tsv(needs, home) or _hub(needs, home)
    if found is None:
        raise UserError(
            f"benchmark {name!r} has no data below {root}",
            "needs one of:\n  " + "\n  ".join(ways(needs, home)),
        )
    if found.form == HUB and find_spec("datasets") is None:
        raise UserError(f"benchmark {name!r}: reading {found.root} needs `datasets`", EXTRA)
    return found


def ways(needs: Needs, root: Path | str) -> Iterator[str]:
    """Each form in words: its paths below `root`, which of them are there, their origins."""
    home = Path(root)
    if needs.files:
        yield _all_files(needs, home)
    if needs.tsv:
        yield f"{home / needs.tsv} from {TSV_FROM}{needs.tsv} (VLMEvalKit)"
    if needs.hub:
        yield (
            f"{home / needs.hub['id']}/**/*.parquet from the hub set {needs.hub['id']}, or "
            f"`--data-root {HUB}` (both need {EXTRA})"
        )


def _all_files(needs: Needs, home: Path) -> str:
    """The official files, by origin."""
    folder = max(_folders(needs, home), key=lambda one: sum(_there(needs, one)))
    origins: dict[str, list[str]] = {}
    for (name, origin), there in zip(needs.files.items(), _there(needs, folder), strict=True):
        origins.setdefault(origin, []).append(f"{name} (found)" if there else name)
    parts = (f"{', '.join(names)} from {origin}" for origin, names in origins.items())
    return f"all of, below {folder}: {'; '.join(parts)}"


def _there(needs: Needs, folder: Path) -> list[bool]:
    return [(folder / name).exists() for name in needs.files]


def _folders(needs: Needs, home: Path) -> tuple[Path, Path]:
    return home / needs.folder, home


def _files(needs: Needs, home: Path) -> Source | None:
    for folder in _folders(needs, home):
        if needs.files and all(_there(needs, folder)):
            tables = tuple(folder / one for one in needs.files if not one.endswith("/"))
            return Source(form="files", root=folder, files=tables)
    return None


def _tsv(needs: Needs, home: Path) -> Source | None:
    for folder in _folders(needs, home):
        if needs.tsv and (folder / needs.tsv).is_file():
            file = folder / needs.tsv
            return Source(form="tsv", root=file, files=(file,))
    return None


def _hub(needs: Needs, home: Path) -> Source | None:
    folder = home / needs.hub["id"] if needs.hub else home
    if needs.hub and next(folder.rglob("*.parquet"), None) is not None:
        return Source(form="hub", root=folder)
    return None
