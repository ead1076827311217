"""`python -m fusionbench`: the command line of an uninstalled checkout."""

import sys

import fusionbench

if not hasattr(fusionbench, "__version__"):
    # A folder of this name in the working folder, which `-m` puts first on the path, hides an
    # editable install.
    del sys.path[0]
    for _name in [name for name in sys.modules if name.partition(".")[0] == "fusionbench"]:
        del sys.modules[_name]

from fusionbench.cli.main import main

if __name__ == "__main__":
    main()
