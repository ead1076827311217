"""What a child process may do instead of giving a result. Standard library only: it starts soon."""

import os
import sys
import time


def leaves(how):
    """Give `how` back, or end as it says."""
    if how == "raises":
        raise ValueError("on purpose")
    if how == "exits":
        sys.exit(0)
    if how == "dies":
        os._exit(0)
    if how == "hangs":
        time.sleep(600)
    return how
