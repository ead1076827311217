"""FusionBench: which way of fusing the layers of one vision encoder is really better?"""

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A wheel carries methods/ and tasks/ inside this package; a checkout keeps them beside it.
_package = Path(__file__).resolve().parent
if not (_package / "methods").is_dir():
    __path__.append(str(_package.parent))

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusionbench.api.fusion import Fusion
    from fusionbench.report.results import LoadedResults


def load(folder: "str | Path") -> "LoadedResults":
    """A results folder whose `scores`, `cells`, `contrasts` and `costs` are pandas data frames.

    Raises UserError if the folder does not exist or holds no record.
    """
    from fusionbench.report.results import LoadedResults

    return LoadedResults(folder)


def run(  # noqa: PLR0913  (the flags of the command, as keywords)
    methods: "Sequence[str | type[Fusion]]" = ("all",),
    tasks: "Sequence[str]" = ("all",),
    *,
    out: "str | Path" = "results/local",
    preset: str = "quick",
    encoder: str = "",
    seeds: int | None = None,
    plugins: "Sequence[str | Path]" = (),
    device: str = "auto",
    workers: int = 0,
    quiet: bool = False,
    again: bool = False,
) -> "LoadedResults":
    """Run the missing cells of a study as `fusionbench run` does, and return the folder's results.

    `methods`: names as on the command line, or classes decorated with `@method`, each in a file of
    its own. `again`: run the cells of edited classes again; without it they stop the run.
    Raises UserError for what the command refuses, for a class without a file, and where every cell
    failed; KeyboardInterrupt where the run was interrupted.
    """
    from fusionbench.cli.notebook import run_study

    return run_study(
        methods, tasks, out=out, preset=preset, encoder=encoder, seeds=seeds, plugins=plugins,
        device=device, workers=workers, quiet=quiet, again=again,
    )  # fmt: skip
