"""Reads what torch, pickle and NumPy wrote, without executing any of it."""
