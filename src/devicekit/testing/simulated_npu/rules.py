"""What the device refuses, and what an operator's schema says about its arguments.

Nothing in here knows the tensor class: it is told which arguments lie on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from devicekit.testing.simulated_npu.machine import NAME, device_index, machine

__all__ = [
    "Schema",
    "refuse_dtype",
    "refuse_index",
    "refuse_layout",
    "refuse_mixed",
    "schema_of",
    "tensors_in",
]

_aten = torch.ops.aten

# Operators that connect the host with the device.
_COPIES = frozenset({_aten.copy_, _aten._copy_from, _aten._to_copy, _aten._foreach_copy_})
# Operators whose indices may stay on the host while the data is on the device.
_INDEXED = frozenset(
    {
        _aten.index,
        _aten.index_put,
        _aten.index_put_,
        _aten._index_put_impl_,
        _aten._unsafe_index,
        _aten._unsafe_index_put,
    }
)
_DOUBLES = frozenset({torch.float64, torch.complex128})
_QUANTIZED = frozenset({torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4})


@dataclass(frozen=True, slots=True)
class Schema:
    """What has to be known about one operator before it runs."""

    places: dict[str, int]
    """Name of each argument to its position."""
    written: tuple[str, ...]
    """The arguments that the operator writes to."""
    returned: tuple[str | None, ...]
    """For each result: the written argument that it is, or None when it is a new tensor."""
    generator: str | None
    """The argument that takes a generator."""
    draws: bool
    """Draws random numbers, with or without an argument for the generator."""
    composite: bool
    """Is made of other operators. These arrive whole in inference mode, where autograd, which
    would have taken them apart, is left out."""

    def value(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The value of one argument in a call; None when it was left out."""
        place = self.places[name]
        return args[place] if place < len(args) else kwargs.get(name)


@functools.cache
def schema_of(operator: Any) -> Schema:
    """Read an operator's schema once."""
    schema = operator._schema
    places = {argument.name: place for place, argument in enumerate(schema.arguments)}
    written = {_alias(a): a.name for a in schema.arguments if _alias(a)}
    generators = [a.name for a in schema.arguments if "Generator" in str(a.type)]
    return Schema(
        places=places,
        written=tuple(written.values()),
        returned=tuple(written.get(_alias(r)) if _alias(r) else None for r in schema.returns),
        generator=generators[0] if generators else None,
        draws=torch.Tag.nondeterministic_seeded in operator.tags,
        composite=operator._can_decompose(),
    )


def _alias(value: Any) -> frozenset[str]:
    """The alias set of an argument or result that is written to; empty for all others."""
    info = value.alias_info
    return frozenset(info.before_set) if info is not None and info.is_write else frozenset()


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """All tensors among an operator's arguments, which nest one level deep."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (v for v in value if isinstance(v, torch.Tensor))


def refuse_mixed(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise torch's own error when host and device tensors meet; host scalars are welcome.

    A host storage, which only ``set_`` takes, is not.
    """
    packet = operator.overloadpacket
    if packet in _COPIES:
        return
    if packet in _INDEXED:
        args = (args[0], *args[2:])
    values = (*args, *kwargs.values())
    foreign: list[Any] = [t for t in tensors_in(values) if t.device.type != NAME and t.dim() > 0]
    foreign += [v for v in values if isinstance(v, torch.UntypedStorage) and v.device.type != NAME]
    if foreign:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and {foreign[0].device}!"
        )


def refuse_index(device: torch.device) -> None:
    """Raise RuntimeError for a device that this machine does not have."""
    count = machine().settings.count
    if device_index(device) >= count:
        raise RuntimeError(f"Invalid device ID: {device}, but this machine has {count} npu device")


def refuse_layout(layout: torch.layout | None) -> None:
    """Raise NotImplementedError for sparse and other layouts."""
    if layout not in (None, torch.strided):
        raise NotImplementedError(f"the simulated npu holds strided tensors only, not {layout}")


def refuse_dtype(dtype: torch.dtype) -> None:
    """Raise RuntimeError for what the AI core cannot compute: quantised types and float64."""
    settings = machine().settings
    if dtype in _QUANTIZED or (dtype in _DOUBLES and not settings.float64):
        raise RuntimeError(
            f"{NAME}: {dtype} is not supported by the AI core of {settings.soc}; "
            "convert to a type that it has (float32, float16) first"
        )
