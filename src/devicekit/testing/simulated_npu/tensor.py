"""A tensor that says it is on ``npu:0`` and keeps its numbers in an ordinary CPU tensor.

Every operator on it arrives in ``__torch_dispatch__``, below autograd; it is checked as the device
would check it, and then runs on the CPU tensors. Views share a storage as they do anywhere, so
in-place writes through views, tied weights and the memory counters come out right by themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from devicekit.testing.simulated_npu import rules
from devicekit.testing.simulated_npu.generator import borrowed_by_cpu, refuse_foreign
from devicekit.testing.simulated_npu.machine import NAME, machine

__all__ = ["NpuTensor", "host", "placed"]

_CPU = torch.device("cpu")
_NPU_TYPES = (NAME, "privateuseone")


class NpuTensor(torch.Tensor):
    """A tensor on the simulated device; made by ``placed``, never by hand."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # so torch says
    _host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> NpuTensor:
        """Wrap a CPU tensor; ``placed`` also counts its storage."""
        made: NpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made._host = host
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own one is a plain function
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    # Its presence makes nn.Module.to and .half swap tensors instead of setting `param.data`.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_host"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], context: None, size: Any, stride: Any) -> NpuTensor:
        return NpuTensor(inner["_host"])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # nameless in torch
        text = repr(self._host)[:-1] + f", device='{NAME}:0'"
        if self.grad_fn is not None:
            text += f", grad_fn=<{self.grad_fn.name().rpartition('::')[2]}>"
        elif self.requires_grad:
            text += ", requires_grad=True"
        is_parameter = isinstance(self, torch.nn.Parameter)
        return ("Parameter containing:\n" if is_parameter else "") + text + ")"

    def __format__(self, specification: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), specification)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The host tensor's storage says that it is on npu:0 (storage.py), so torch writes the
        # very file that it writes for a real device.
        if isinstance(self, torch.nn.Parameter):
            rebuild: Any = torch._utils._rebuild_parameter
            return rebuild, (self.detach(), self.requires_grad, {})
        rebuild, args = self._host._reduce_ex_internal(protocol)  # type: ignore[no-untyped-call]  # torch's
        return rebuild, (*args[:4], self.requires_grad, *args[5:])

    def numpy(self, *, force: bool = False) -> Any:
        """The NumPy array of a copy on the host, with ``force=True``; TypeError without."""
        if not force:
            raise TypeError(
                f"can't convert {NAME}:0 device type tensor to numpy. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        return self.detach().cpu().numpy(force=True)

    def tolist(self) -> Any:
        """The numbers as Python's own, in nested lists."""
        return self.detach().cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The storage, which says ``npu:0``."""
        return self._host.untyped_storage()

    def data_ptr(self) -> int:
        """The address; good for telling tensors apart, as on a real device."""
        return self._host.data_ptr()

    @property
    def data(self) -> torch.Tensor:
        """The same tensor, detached."""
        return self.detach()

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if not isinstance(new, NpuTensor):
            raise RuntimeError(f"cannot set the data of a tensor on {NAME}:0 to one on {new.device}")
        _become(self, new._host)


def placed(host: torch.Tensor) -> NpuTensor:
    """A tensor on the device over these numbers, counted against the device's memory."""
    machine().memory.take(host.untyped_storage())
    return NpuTensor(host)


def host(value: Any) -> Any:
    """The CPU tensor behind a device tensor, also in a list; anything else as it is."""
    if isinstance(value, NpuTensor):
        return value._host
    if isinstance(value, (list, tuple)):
        return [host(v) for v in value]
    return value


def _run(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operator on the device."""
    if operator is torch.ops.aten.record_stream.default:
        return None
    schema = rules.schema_of(operator)
    if schema.composite:
        return operator.decompose(*args, **kwargs)
    rules.refuse_mixed(operator, args, kwargs)
    host_args, host_kwargs = host(args), {name: host(v) for name, v in kwargs.items()}
    leaves = _leaves_device(kwargs)
    if "device" in kwargs and not leaves:
        host_kwargs["device"] = _CPU
    with _random_numbers(schema, host_args, host_kwargs):
        try:
            result = operator(*host_args, **host_kwargs)
        except RuntimeError as error:
            raise machine().memory.explain(error) from error
    _follow_writes(schema, args, kwargs)
    return result if leaves else _results(schema, result, args, kwargs)


def _leaves_device(kwargs: dict[str, Any]) -> bool:
    """Whether an operator was asked to put its result elsewhere."""
    target = kwargs.get("device")
    if target is None:
        return False
    if target.type not in _NPU_TYPES:
        return True
    rules.refuse_index(target)
    return False


@contextlib.contextmanager
def _drawn_from_device() -> Iterator[None]:
    with borrowed_by_cpu(machine().generator):
        yield


def _random_numbers(
    schema: rules.Schema, args: list[Any], kwargs: dict[str, Any]
) -> contextlib.AbstractContextManager[None]:
    """Check the generator of a call, or put in the device's own."""
    if schema.generator is None:
        return _drawn_from_device() if schema.draws else contextlib.nullcontext()
    given = schema.value(schema.generator, args, kwargs)
    if given is not None:
        refuse_foreign(given)
    elif schema.places[schema.generator] < len(args):
        args[schema.places[schema.generator]] = machine().generator
    else:
        kwargs[schema.generator] = machine().generator
    return contextlib.nullcontext()


def _follow_writes(schema: rules.Schema, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Let tensors follow their host tensors, which ``resize_``, ``set_`` or ``t_`` reshape."""
    for name in schema.written:
        for tensor in rules.tensors_in([schema.value(name, args, kwargs)]):
            if isinstance(tensor, NpuTensor) and _geometry(tensor) != _geometry(tensor._host):
                _become(tensor, tensor._host)


def _geometry(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype


def _become(tensor: NpuTensor, host_tensor: torch.Tensor) -> None:
    """Make a tensor show this host tensor from now on."""
    fresh = placed(host_tensor)
    torch.Tensor.data.__set__(tensor, fresh)  # type: ignore[attr-defined]  # a C descriptor
    tensor._host = host_tensor


def _results(schema: rules.Schema, result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Results as the caller must see them: the written arguments themselves, or new tensors."""
    if not isinstance(result, (tuple, list)):
        name = schema.returned[0] if schema.returned else None
        return _computed(result) if name is None else schema.value(name, args, kwargs)
    if len(schema.returned) != len(result):
        return type(result)(_computed(r) for r in result)
    return tuple(
        _computed(r) if name is None else schema.value(name, args, kwargs)
        for name, r in zip(schema.returned, result, strict=True)
    )


def _computed(result: Any) -> Any:
    """Place one result.

    A computed scalar may be float64: torch.amp.GradScaler inverts its scale so, on an NPU too.
    """
    if isinstance(result, (tuple, list)):
        return type(result)(_computed(r) for r in result)
    if not isinstance(result, torch.Tensor) or result.device != _CPU:
        return result
    rules.refuse_layout(result.layout)
    if result.dim() > 0:
        rules.refuse_dtype(result.dtype)
    return placed(result)
