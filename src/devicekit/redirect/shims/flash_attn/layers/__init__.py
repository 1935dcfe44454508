"""Layers of the package; of them, the rotary embedding's function is here."""
