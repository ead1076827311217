"""`python -m fusionbench`: the command line of an uninstalled checkout."""

from fusionbench.cli.main import main

if __name__ == "__main__":
    main()
