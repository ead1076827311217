"""Built-in tasks, one family a file; each imports only fusionbench.api."""
