"""FusionBench: which way of fusing the layers of one vision encoder is really better?"""

from pathlib import Path

__version__ = "0.1.0"

# A wheel carries methods/ and tasks/ inside this package; a checkout keeps them beside it.
_package = Path(__file__).resolve().parent
if not (_package / "methods").is_dir():
    __path__.append(str(_package.parent))
