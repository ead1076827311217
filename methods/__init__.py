"""Built-in fusion methods, one family a file; each imports only fusionbench.api."""
