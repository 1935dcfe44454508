"""A small kernel graph: built and checked in Python, fused, compiled for every backend, and held against NumPy."""
