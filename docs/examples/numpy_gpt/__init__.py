"""A language model in NumPy alone: its own gradients, its own optimiser, on hosts where torch is not installed."""
