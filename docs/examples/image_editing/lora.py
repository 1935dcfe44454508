"""A LoRA file added into the weights by hand, and taken out again to the last bit; peft is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import devicekit as dk

__all__ = ["Lora"]

PREFIX, DOWN, UP = "transformer.", ".lora_A.weight", ".lora_B.weight"
"""How diffusers names them: ``transformer.double_stream_blocks.0.block.attn1.to_q.lora_A.weight``."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to one weight of shape (out, in): ``up @ down``, of shapes (out, rank) and (rank, in)."""

    weight: torch.nn.Parameter
    down: torch.Tensor
    up: torch.Tensor


class Lora:
    """A low-rank update of a transformer's weights, not yet applied. One at a time.

    Args:
        transformer: whose weights are meant.
        factors: by name, as ``dm.load_safetensors`` gives them.

    Raises:
        DeviceKitError: a name or a shape does not fit this transformer. Nothing is changed then.
    """

    def __init__(self, transformer: torch.nn.Module, factors: Mapping[str, torch.Tensor]) -> None:
        self._updates = _updates(transformer, factors)
        self._before: list[torch.Tensor] = []

    def __len__(self) -> int:
        """How many weights it changes."""
        return len(self._updates)

    @property
    def applied(self) -> bool:
        """The weights have it in them."""
        return bool(self._before)

    @torch.no_grad()
    def apply(self, scale: float = 1.0) -> None:
        """Add it, times ``scale``, computed in float32. What the weights were is kept, for ``undo``.

        Raises:
            DeviceKitError: the weights are offloaded layer by layer, and are not here.
        """
        self.undo()
        for update in self._updates:
            weight = update.weight
            added = scale * (update.up.float() @ update.down.float())
            self._before.append(weight.detach().clone())  # one by one, so that what fails midway can be undone
            weight.copy_(weight.float() + added.to(weight.device))

    @torch.no_grad()
    def undo(self) -> None:
        """Bring back what was before ``apply``, exactly. Once more does nothing.

        Raises:
            DeviceKitError: as for ``apply``.
        """
        self._check()
        for update, before in zip(self._updates, self._before, strict=False):
            update.weight.copy_(before)
        self._before = []

    def _check(self) -> None:
        if any(update.weight.is_meta for update in self._updates):
            why = "they are offloaded layer by layer, and come only when they are needed"
            raise dk.DeviceKitError("The weights cannot be written to.", why=why, try_="do it before they are placed")


def _updates(transformer: torch.nn.Module, factors: Mapping[str, torch.Tensor]) -> list[Update]:
    weights = dict(transformer.named_parameters())
    layers = {name.removesuffix(suffix) for name in factors for suffix in (DOWN, UP) if name.endswith(suffix)}
    if strange := sorted(name for name in factors if not name.endswith((DOWN, UP))):
        raise _unfit(strange[0], f"its name ends neither with {DOWN} nor with {UP}")
    if not layers:
        raise dk.DeviceKitError("This file holds no LoRA.", why="there is no tensor in it")
    return [_update(weights, factors, layer) for layer in sorted(layers)]


def _update(weights: Mapping[str, torch.nn.Parameter], factors: Mapping[str, torch.Tensor], layer: str) -> Update:
    weight = weights.get(f"{layer.removeprefix(PREFIX)}.weight")
    if not layer.startswith(PREFIX) or weight is None:
        raise _unfit(layer, "this transformer has no layer of this name")
    if layer + DOWN not in factors or layer + UP not in factors:
        raise _unfit(layer, "one of its two factors is missing")
    down, up = factors[layer + DOWN], factors[layer + UP]
    if down.ndim != 2 or up.ndim != 2 or (up.shape[0], down.shape[1]) != weight.shape or up.shape[1] != down.shape[0]:
        shapes = f"{tuple(up.shape)} times {tuple(down.shape)} does not give {tuple(weight.shape)}"
        raise _unfit(layer, shapes)
    return Update(weight, down, up)


def _unfit(name: str, why: str) -> dk.DeviceKitError:
    return dk.DeviceKitError(
        f"The LoRA's {name} does not fit.", why=why, try_="a file that was made for this model, as diffusers writes it"
    )
