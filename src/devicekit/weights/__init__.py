"""Weights: safetensors files onto the right device, in the right dtype, at the speed of memory, and safely back."""
