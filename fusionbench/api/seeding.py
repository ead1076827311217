"""Independent streams of randomness by name, so that pairing is a matter of spelling.

What methods share (resample, order, reader) is named without the method; see docs/design.md.
"""

import hashlib

import numpy as np


def seed_of(*names: str | int) -> int:
    """A 63-bit seed from names: equal names, equal seed, on every machine and Python."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(*names: str | int) -> np.random.Generator:
    """A NumPy generator for this purpose alone."""
    return np.random.Generator(np.random.PCG64(seed_of(*names)))
