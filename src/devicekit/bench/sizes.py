"""How large the work is by which a device is tuned: large enough to keep it busy, small enough for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from devicekit.bench.stage import TorchStage
from devicekit.bench.transformer import Shape, Transformer

__all__ = ["Size", "tuning_size"]


@dataclass(frozen=True, slots=True)
class Size:
    """A small transformer and what it is given."""

    shape: Shape
    batch: int
    seq: int

    def transformer(self, stage: TorchStage, dtype: str) -> Transformer:
        """The model on a device."""
        return Transformer(stage.torch, self.shape, lambda sides, deviation: stage.normal(sides, dtype, deviation))


def tuning_size(stage: TorchStage) -> Size:
    """What suits this device."""
    if stage.backend.accelerator:
        return Size(Shape(hidden=1024, layers=8, vocabulary=1024, positions=256), batch=16, seq=256)
    return Size(Shape(hidden=512, layers=4, vocabulary=1024, positions=256), batch=8, seq=64)
