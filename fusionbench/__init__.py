"""FusionBench: which way of fusing the layers of one vision encoder is really better?"""

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A wheel carries methods/ and tasks/ inside this package; a checkout keeps them beside it.
_package = Path(__file__).resolve().parent
if not (_package / "methods").is_dir():
    __path__.append(str(_package.parent))

if TYPE_CHECKING:
    from fusionbench.report.results import LoadedResults


def load(folder: "str | Path") -> "LoadedResults":
    """A results folder whose `scores`, `cells`, `contrasts` and `costs` are pandas data frames.

    Raises UserError if the folder does not exist or holds no record.
    """
    from fusionbench.report.results import LoadedResults

    return LoadedResults(folder)
