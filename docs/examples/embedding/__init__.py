"""Texts to vectors with a sentence-transformers model, and what lies nearest to what, on any device."""
