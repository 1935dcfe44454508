"""Load weights straight into a torch module: in place where that is possible, else into memory of the module's own.

Everything is checked before anything is changed: names, shapes and dtypes. Memory that the module does not have yet is
made and filled before the module sees it. Only tensors that lie on the right device in the right dtype already are
filled where they are; if reading fails in the middle of that, the error says which ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from devicekit.errors import WeightsError
from devicekit.values import LoadResult
from devicekit.weights.checkpoint import Checkpoint, opened_checkpoint
from devicekit.weights.header import shown
from devicekit.weights.loading import Loader, shape_of
from devicekit.weights.reading import Request
from devicekit.weights.selection import Keys, Rename, aliases, requests, selected, selects

__all__ = ["load_into"]

SAID = 5
"""Names in a message, before it says how many more there are."""


@dataclass
class Slot:
    """One parameter or buffer, and all places that hold it: tied ones have several."""

    tensor: Any
    places: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    saved: bool = True
    """Part of the state dict; buffers with ``persistent=False`` are not."""

    def put(self, torch: Any, tensor: Any) -> None:
        """Have the module hold this tensor; a parameter stays the same object, for an optimizer may know it."""
        old = self.tensor
        if isinstance(old, torch.nn.Parameter):
            if not old.is_meta and torch._has_compatible_shallow_copy_type(old, tensor):
                if old.grad is not None and (old.dtype is not tensor.dtype or old.device != tensor.device):
                    old.grad = None  # of the old weights, and of no use beside the new ones
                old.data = tensor
                return
            tensor = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
        for holder, leaf in self.places:
            holder[leaf] = tensor
        self.tensor = tensor


def slots_of(module: Any) -> dict[str, Slot]:
    """All parameters and buffers by every name that they have."""
    named: dict[str, Slot] = {}
    by_tensor: dict[int, Slot] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for holder, unsaved in ((part._parameters, ()), (part._buffers, part._non_persistent_buffers_set)):
            for leaf, tensor in holder.items():
                if tensor is None:
                    continue
                slot = by_tensor.setdefault(id(tensor), Slot(tensor, saved=leaf not in unsaved))
                name = f"{prefix}.{leaf}" if prefix else leaf
                slot.places.append((holder, leaf))
                slot.names.append(name)
                named[name] = slot
    return named


def loads_itself(torch: Any, module: Any) -> bool:
    """A part of the module has its own way to load (hooks, an overridden method, extra state, lazy parameters)."""
    plain = torch.nn.Module
    return any(
        type(part)._load_from_state_dict is not plain._load_from_state_dict
        or type(part).load_state_dict is not plain.load_state_dict
        or type(part).get_extra_state is not plain.get_extra_state
        or part._load_state_dict_pre_hooks
        or part._load_state_dict_post_hooks
        or any(isinstance(p, torch.nn.parameter.UninitializedTensorMixin) for p in part._parameters.values())
        for part in module.modules()
    )


def load_into(
    loader: Loader, module: Any, path: Any, *, strict: bool = True, keys: Keys = None, rename: Rename = None
) -> LoadResult:
    """Fill a module, on the device; what it holds beside goes there too.

    Raises:
        WeightsError: it cannot be read, does not fit, or with ``strict`` leaves something out. The module is untouched
            then, or the error says what was filled.
    """
    torch = loader.backend.torch if loader.backend.needs_torch else None
    if torch is None or not isinstance(module, torch.nn.Module):
        why = "into= takes a torch.nn.Module" + ("" if torch else ", and this host has no torch")
        raise WeightsError(f"Weights cannot be loaded into a {type(module).__name__}.", why=why)
    with opened_checkpoint(path) as found, loader.arrays.plain():
        return _Filling(loader, torch, module, found, keys, rename).run(strict)


class _Filling:
    """One load into one module."""

    def __init__(self, loader: Loader, torch: Any, module: Any, found: Checkpoint, keys: Keys, rename: Rename) -> None:
        self.loader = loader
        self.torch = torch
        self.module = module
        self.found = found
        self.keys = keys
        self.chosen = selected(found, keys, rename)
        self.also = aliases(found, keys, rename)
        self.slots = slots_of(module)

    def run(self, strict: bool) -> LoadResult:
        fits = {name: stored for name, stored in self.chosen.items() if name in self.slots and self.slots[name].saved}
        if loads_itself(self.torch, self.module):
            return self._by_torch(strict)
        missing, unexpected = self._differences(fits)
        if strict and (missing or unexpected):
            raise self._unfit(missing, unexpected)
        wishes = requests(fits, self.loader.arrays, self._wanted())
        self._check_shapes(wishes)
        self._fill(self._one_for_each(wishes))
        return self._result(missing, unexpected)

    # -- what fits ---------------------------------------------------------------------------------
    def _differences(self, fits: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        filled = {id(self.slots[name]) for name in fits}
        wanted = selects(self.keys)
        missing = [
            name
            for name, slot in self.slots.items()
            if slot.saved and id(slot) not in filled and (self.keys is None or wanted(name))
        ]
        return missing, [name for name in self.chosen if name not in fits]

    def _unfit(self, missing: list[str], unexpected: list[str]) -> WeightsError:
        parts = []
        if missing:
            parts.append(f"the file lacks {_some(missing)}")
        if unexpected:
            parts.append(f"the module has no {_some(unexpected)}")
        fix = _prefix_fix(missing, unexpected) or "strict=False to load what fits"
        return self._error("; ".join(parts), fix)

    def _error(self, why: str, fix: str = "") -> WeightsError:
        what = f"{self.found.label} does not fit the {type(self.module).__name__}."
        return WeightsError(what, why=why, try_=fix)

    def _check_shapes(self, wishes: Mapping[str, Request]) -> None:
        wrong = [
            f"{shown(name)} has the shape {list(shape_of(request))}, the module's is {list(slot.tensor.shape)}"
            for name, request in wishes.items()
            if shape_of(request) != tuple((slot := self.slots[name]).tensor.shape)
        ]
        if wrong:
            more = f"; {len(wrong) - SAID} more differ" if len(wrong) > SAID else ""
            raise self._error("; ".join(wrong[:SAID]) + more)

    def _wanted(self) -> Callable[[str, Any], Any]:
        asked = self.loader.wanted()
        if self.loader.dtype is not None:
            return asked
        # Without dtype= a module keeps its own, as in load_state_dict; on the meta device it has none of value.
        return lambda name, stored: asked(name, stored) if self._is_meta(name) else self._kept(name)

    def _is_meta(self, name: str) -> bool:
        return bool(self.slots[name].tensor.is_meta)

    def _kept(self, name: str) -> Any:
        return self.loader.backend.narrow(self.slots[name].tensor.dtype)

    def _one_for_each(self, wishes: Mapping[str, Request]) -> list[tuple[Slot, Request]]:
        """Of several names of one tensor the last counts, as in load_state_dict."""
        last = {id(self.slots[name]): (self.slots[name], request) for name, request in wishes.items()}
        return list(last.values())

    # -- filling -----------------------------------------------------------------------------------
    def _fill(self, wishes: list[tuple[Slot, Request]]) -> None:
        loader = self.loader
        fresh: dict[str, Any] = {}
        placed: list[Request] = []
        waiting: list[Request] = []
        strided: list[tuple[Slot, Request]] = []
        slots = {request.name: slot for slot, request in wishes}
        for slot, request in wishes:
            where = self._where(slot.tensor, request)
            if where == "in place":
                placed.append(request._replace(flat=slot.tensor.detach().view(-1)))
            elif where == "through a copy":
                strided.append((slot, request))
            else:
                mapped = loader.mapped(request) if slot.tensor.is_meta else None
                if mapped is None:
                    waiting.append(request)
                else:
                    fresh[request.name] = mapped
        fresh.update(loader.bring(waiting))
        self._fill_in_place(placed, strided)
        for name, tensor in fresh.items():
            slots[name].put(self.torch, tensor)
        self._move_the_rest({id(slot) for slot, _ in wishes})

    def _where(self, tensor: Any, request: Request) -> str:
        if tensor.is_meta or not self.loader.holds(tensor) or tensor.dtype is not request.wanted:
            return "fresh"
        ordinary = self.loader.backend.accelerator or type(tensor) in (self.torch.Tensor, self.torch.nn.Parameter)
        if ordinary and tensor.is_contiguous() and not tensor.is_inference():
            return "in place"
        return "through a copy"

    def _fill_in_place(self, placed: list[Request], strided: list[tuple[Slot, Request]]) -> None:
        """What can fail in the middle; then say what the module holds now."""
        try:
            if placed:
                self.loader.into(placed)
                for request in placed:
                    self.torch.autograd.graph.increment_version(request.flat)
            for slot, request in strided:
                loaded = self.loader.bring([request])[request.name]
                with self.torch.inference_mode(slot.tensor.is_inference()):
                    slot.tensor.detach().copy_(loaded)
        except WeightsError as error:
            names = [request.name for request in placed] + [request.name for _, request in strided]
            left = f"; in the module {_some(names)} may be filled in part, all else is as it was"
            raise WeightsError(error.what, why=error.why + left, try_=error.try_) from error

    def _move_the_rest(self, filled: set[int]) -> None:
        backend, device = self.loader.backend, self.loader.device
        for slot in {id(slot): slot for slot in self.slots.values()}.values():
            tensor = slot.tensor
            if id(slot) not in filled and not tensor.is_meta and not self.loader.holds(tensor):
                slot.put(self.torch, backend.put(tensor.detach(), device))

    # -- modules with their own way ------------------------------------------------------------------
    def _by_torch(self, strict: bool) -> LoadResult:
        """Through load_state_dict, which knows the module's hooks; they decide what is missing."""
        asked, named = self.loader.wanted(), self.slots
        keeps = self.loader.dtype is None

        def wanted(name: str, stored: Any) -> Any:
            known = keeps and name in named and not named[name].tensor.is_meta
            return self._kept(name) if known and named[name].tensor.is_floating_point() else asked(name, stored)

        wishes = requests(self.chosen, self.loader.arrays, wanted)
        state = {name: self.loader.mapped(request) for name, request in wishes.items()}
        state.update(self.loader.bring(wishes[name] for name, tensor in state.items() if tensor is None))
        state.update({alias: state[kept] for alias, kept in self.also.items() if alias in named})
        anew = any(slot.tensor.is_meta for slot in named.values()) or not keeps
        try:
            told = self.module.load_state_dict(state, strict=strict and self.keys is None, assign=anew)
        except RuntimeError as exc:
            raise self._error(str(exc), "strict=False to load what fits" if strict else "") from exc
        self.slots = slots_of(self.module)
        self._move_the_rest(set())
        return self._result(list(told.missing_keys), list(told.unexpected_keys))

    def _result(self, missing: list[str], unexpected: list[str]) -> LoadResult:
        left = tuple(name for name, slot in self.slots.items() if slot.tensor.is_meta)
        unsaved = [name for name in left if not self.slots[name].saved]
        if unsaved:
            warnings.warn(
                f"{_some(unsaved)} of the {type(self.module).__name__} stays on the meta device: no checkpoint holds a "
                "buffer with persistent=False, so the module's author has to compute it",
                stacklevel=5,
            )
        return LoadResult(tuple(missing), tuple(unexpected), left, self.found.metadata)


def _some(names: list[str]) -> str:
    listed = ", ".join(shown(name) for name in names[:SAID])
    return listed + (f" and {len(names) - SAID} more" if len(names) > SAID else "")


def _prefix_fix(missing: list[str], unexpected: list[str]) -> str:
    """A rename that would make every name fit, for wrappers that put a prefix before all names."""
    if not missing or len(missing) != len(unexpected):
        return ""
    short, long = (unexpected, missing) if len(unexpected[0]) < len(missing[0]) else (missing, unexpected)
    if not long[0].endswith(short[0]):
        return ""
    prefix = long[0][: len(long[0]) - len(short[0])]
    if not prefix or {prefix + name for name in short} != set(long):
        return ""
    if long is unexpected:
        return f"rename=lambda name: name.removeprefix({prefix!r})"
    return f"rename=lambda name: {prefix!r} + name"
