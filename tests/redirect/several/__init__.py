"""Programs written for CUDA that start processes, or are started by a launcher; they check themselves."""
