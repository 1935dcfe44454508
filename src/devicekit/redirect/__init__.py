"""Run code written for CUDA as it is, on another device: while a redirect is in force, "cuda" means its target.

Nothing is patched before one is entered, and nothing stays patched after it is left.
"""

from __future__ import annotations
