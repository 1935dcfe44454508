"""Translate: a tensor of "cuda" is a tensor of the target, and says so. Operations that name no device cost nothing."""
