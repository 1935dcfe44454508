"""What a module holds: its parameters and buffers, each once, with all places and names that it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Slot", "is_inference", "loads_itself", "slots_of"]


@dataclass
class Slot:
    """One parameter or buffer, and all places that hold it: tied ones have several."""

    tensor: Any
    places: list[tuple[Any, str]] = field(default_factory=list)
    """Parts of the module, and the attribute there."""
    names: list[str] = field(default_factory=list)
    """In the state dict; buffers with ``persistent=False`` have none."""
    optional: bool = False
    """A file need not hold it: batch norm's counter, which old checkpoints lack."""

    def put(self, torch: Any, tensor: Any) -> None:
        """Have the module hold this tensor; a parameter stays the same object, for an optimizer may know it."""
        old = self.tensor
        if isinstance(old, torch.nn.Parameter):
            if not old.is_meta and torch._has_compatible_shallow_copy_type(old, tensor):
                if old.grad is not None and (old.dtype is not tensor.dtype or old.device != tensor.device):
                    old.grad = None  # of the old weights, and of no use beside the new ones
                old.data = tensor
                tensor = old
            else:
                tensor = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
        self.hold(tensor)

    def hold(self, tensor: Any) -> None:
        """Have all places hold this very object; by setattr, for some parts keep lists of their own (``nn.RNN``)."""
        for part, leaf in self.places:
            if getattr(part, leaf) is not tensor:
                setattr(part, leaf, tensor)
        self.tensor = tensor


def slots_of(torch: Any, module: Any) -> dict[str, Slot]:
    """All parameters and buffers by every name that they have."""
    named: dict[str, Slot] = {}
    by_tensor: dict[int, Slot] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        counts = type(part)._load_from_state_dict is _norm(torch)
        for holder, unsaved in ((part._parameters, ()), (part._buffers, part._non_persistent_buffers_set)):
            for leaf, tensor in holder.items():
                if tensor is None:
                    continue
                slot = by_tensor.setdefault(id(tensor), Slot(tensor))
                name = f"{prefix}.{leaf}" if prefix else leaf
                slot.places.append((part, leaf))
                slot.optional |= counts and leaf == "num_batches_tracked"
                if leaf not in unsaved:
                    slot.names.append(name)
                named[name] = slot
    return named


def _norm(torch: Any) -> Any:
    """How batch norms load: like any other part, only that their counter may be missing and begins at 0 then."""
    return torch.nn.modules.batchnorm._NormBase._load_from_state_dict


def loads_itself(torch: Any, module: Any) -> bool:
    """A part of the module has its own way to load (hooks, an overridden method, extra state, lazy parameters)."""
    plain = torch.nn.Module
    return any(
        type(part)._load_from_state_dict not in (plain._load_from_state_dict, _norm(torch))
        or type(part).load_state_dict is not plain.load_state_dict
        or type(part).set_extra_state is not plain.set_extra_state
        or part._load_state_dict_pre_hooks
        or part._load_state_dict_post_hooks
        or any(isinstance(p, torch.nn.parameter.UninitializedTensorMixin) for p in part._parameters.values())
        for part in module.modules()
    )


def is_inference(torch: Any, tensor: Any) -> bool:
    """It was made under ``torch.inference_mode``, so only there it can be changed in place."""
    return not torch.nn.parameter.is_lazy(tensor) and bool(tensor.is_inference())
