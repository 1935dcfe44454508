"""Answer ``tensor.to(device)`` inside somebody else's ``to``: a module's, a pipeline's, a tokenizer's output's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["TensorMoves"]


class TensorMoves(TorchFunctionMode):
    """While it is entered, moving a tensor to ``place`` in this thread is ``move(tensor, dtype)``."""

    def __init__(self, place: torch.device, move: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self._place = place
        self._move = move

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Torch hands every call on tensors to this, before its own code."""
        if func is torch.Tensor.to:
            named = {name: value for name, value in (kwargs or {}).items() if name != "copy"}
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **named)
            if device is not None and device.type == self._place.type:
                return self._move(args[0], dtype or args[0].dtype)
        return func(*args, **(kwargs or {}))
