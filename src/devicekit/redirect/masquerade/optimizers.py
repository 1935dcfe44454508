"""An optimizer's state, loaded from anywhere: it goes to where its parameter is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from devicekit.redirect.masquerade.mode import Masquerade

__all__ = ["install"]


def install(mode: Masquerade) -> None:
    """torch.optim moves it to the parameter's real device, which is the host."""
    places, layer = mode.places, mode.layer

    def make(real: Callable[..., Any]) -> Any:
        def process(param: Any, value: Any, param_id: int, param_groups: Any, key: Any = None) -> Any:
            out = real(param, value, param_id, param_groups, key)
            index = places.index(param) if layer.on else None
            if index is None or (key == "step" and not _counts_on_device(param_id, param_groups)):
                return out
            return out.to(f"cuda:{index}")

        return staticmethod(process)

    layer.wrap(torch.optim.Optimizer, "_process_value_according_to_param_policy", make)


def _counts_on_device(param_id: int, param_groups: Any) -> bool:
    """Steps are counted on the host, unless the optimizer is fused or can be captured in a graph."""
    groups = (group for group in param_groups if param_id in group["params"])
    return any(group.get("fused") or group.get("capturable") for group in groups)
