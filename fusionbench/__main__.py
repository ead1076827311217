"""`python -m fusionbench`: the command line of an uninstalled checkout."""

from fusionbench.cli import main

if __name__ == "__main__":
    main()
