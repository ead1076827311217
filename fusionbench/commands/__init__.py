"""One module a command: its flags, and what it does. Each imports what it needs when it runs.

`fusionbench.cli` joins them. What a person got wrong is a UserError (exit code 2); other exit codes
are given back by the command.
"""
