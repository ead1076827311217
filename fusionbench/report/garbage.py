"""No search for garbage among records: there may be 100,000, and all of them stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """What is made inside is no candidate for the collector until `released`.

    A full pass looks at every record that was read, a second for 100,000 of them; reading sets
    many off, and drawing a figure another. Reference counts free what is in no cycle, as ever.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


@contextmanager
def released() -> Iterator[None]:
    """At the end, what was kept inside is a candidate again."""
    before = gc.get_freeze_count()
    try:
        yield
    finally:
        # What somebody else froze before stays frozen.
        if not before:
            gc.unfreeze()
