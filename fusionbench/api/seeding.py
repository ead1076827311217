"""Named random streams: equal names give equal numbers, so runs are paired by their names.

Streams that methods share (resample, order, reader) have names without the method.
"""

import hashlib

import numpy as np


def seed_of(*names: str | int) -> int:
    """A 63-bit seed from names; the same on every machine and Python version."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(*names: str | int) -> np.random.Generator:
    """The NumPy generator of these names."""
    return np.random.Generator(np.random.PCG64(seed_of(*names)))
