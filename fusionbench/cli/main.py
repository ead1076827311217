"""The command line: the modules of `fusionbench.cli`, joined here.

What a person got wrong ends in one line, a hint and exit code 2, a failed cell in exit code 1,
Ctrl-C in 130.
"""

import os
import sys

from fusionbench.api.errors import UserError
from fusionbench.cli import (
    ablate,
    check,
    doctor,
    list_,
    merge,
    new,
    pack,
    probe_layers,
    profile,
    reports,
    run,
)
from fusionbench.cli.app import app

COMMANDS = (run, reports, merge, ablate, probe_layers, profile, list_, check, pack, new, doctor)
"""In the order of `--help`: a module adds its command when it is imported."""


def main() -> None:
    """Run the command line; the installed script and `python -m fusionbench` come here."""
    # NumPy's threads wait for each other by spinning: a product of 1 ms takes 100 where other
    # processes keep the cores, as workers and the report's own copies do. NumPy reads it once.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        sys.exit(2)
