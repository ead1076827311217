"""One thread and a cache folder of its own for each test process."""

import os
import tempfile

import pytest

# Before anything of ours is imported: workers and hash notes must not touch the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="fusionbench-test-cache-")
os.environ["FUSIONBENCH_CACHE"] = _CACHE.name
os.environ.pop("FUSIONBENCH_DATA", None)
os.environ.pop("FUSIONBENCH_PLUGINS", None)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
