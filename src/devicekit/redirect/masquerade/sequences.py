"""Packed sequences: how long they are is known on the host, wherever they lie (PackedSequence.cpp)."""

from __future__ import annotations

from typing import Any

import torch

from devicekit.redirect.masquerade.mode import Masquerade

__all__ = ["install"]

RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")
"""They take the number of each step's sequences, beside the data."""


def install(mode: Masquerade) -> None:
    """Handle what packs and unpacks: the first of what they return lies where the data does, the second on the host.
    And what runs over it.
    """

    def only_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = mode.places.index(args[0])
        out = func(*args, **kwargs)
        if index is not None:
            mode.places.settle(out[0], index)
        return out

    def pack(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lengths = args[1]
        index = mode.places.index(lengths)
        if index is not None:
            raise RuntimeError(
                f"'lengths' argument should be a 1D CPU int64 tensor, but got {lengths.dim()}D cuda:{index} Long tensor"
            )
        return only_data(func, args, kwargs)

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sizes = args[1]
        if not isinstance(sizes, torch.Tensor) or sizes.is_floating_point():  # nothing packed: it is the hidden state
            return mode.compute(func, args, kwargs)
        return mode.compute(lambda data, *rest, **more: func(data, sizes, *rest, **more), (args[0], *args[2:]), kwargs)

    functions = torch._C._VariableFunctions
    mode.handle(functions._pack_padded_sequence, pack)
    mode.handle(functions._pad_packed_sequence, only_data)
    for name in RECURRENT:
        mode.handle(getattr(functions, name), run)
