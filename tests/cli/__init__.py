"""The command line: called in this process where that shows all, in one of its own where the process is the point."""
