"""The command line: commands of one theme in one file."""
