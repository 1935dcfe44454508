"""Less memory for a pipeline, a module or the process: what can be switched on here, said in words, and undone."""
