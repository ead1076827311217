"""The command line. Exit codes: 0 success, 1 a cell or check failed, 2 user error, 130 Ctrl-C."""

import os
import sys
import traceback

from fusionbench.api.errors import UserError
from fusionbench.cli import (
    ablate,
    ask,
    check,
    doctor,
    export,
    fetch,
    folder,
    import_lmms,
    listing,
    merge,
    new,
    pack,
    probe_layers,
    profile,
    reports,
    reproduce,
    rescore,
    run,
    verify,
)
from fusionbench.cli.app import app
from fusionbench.cli.streams import shown_streams

COMMANDS = (
    run,
    folder,
    reports,
    merge,
    ask,
    export,
    import_lmms,
    rescore,
    verify,
    reproduce,
    ablate,
    probe_layers,
    profile,
    listing,
    check,
    pack,
    fetch,
    new,
    doctor,
)
"""In the order of `--help`; a module registers its commands when it is imported."""


def main() -> None:
    """Entry point of the installed script and of `python -m fusionbench`."""
    # OpenBLAS threads wait by spinning: where workers occupy the cores, a product of 1 ms takes
    # 100 ms. NumPy reads the variable once, at import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with shown_streams():
        try:
            app()
        except UserError as error:
            sys.stderr.write(f"error: {error.message}\n")
            if error.hint:
                sys.stderr.write(f"hint: {error.hint}\n")
            sys.exit(2)
        except Exception:
            # Its text may hold what a terminal must not act on; the interpreter would print it raw.
            sys.stderr.write(traceback.format_exc())
            sys.exit(1)
