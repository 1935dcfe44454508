"""Load weights straight into a torch module: in place where that is possible, else into memory of the module's own.

Everything is checked before anything is changed: names, shapes and dtypes. Memory that the module does not have yet is
made and filled before the module sees it. Only tensors that lie on the right device in the right dtype already are
filled where they are; if reading fails in the middle of that, the error says which ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from devicekit.errors import WeightsError
from devicekit.values import LoadResult
from devicekit.weights.checkpoint import Checkpoint
from devicekit.weights.header import shown
from devicekit.weights.loading import Loader, bytes_of, shape_of
from devicekit.weights.reading import Request
from devicekit.weights.selection import Keys, Rename, requests, selected, selects, tied
from devicekit.weights.slots import Slot, is_inference, loads_itself, slots_of

__all__ = ["load_into"]

SAID = 5
"""Names in a message, before it says how many more there are."""
BESIDE = 4 << 20
"""Bytes that are held beside a tensor which cannot be filled where it lies."""


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
        why = "into= takes a torch.nn.Module" + ("" if torch else f", and the {loader.backend.name} backend has none")
        raise WeightsError(f"Weights cannot be loaded into a {type(module).__name__}.", why=why)
    with loader.opened(path) as found:
        filling = _Filling(loader, torch, module, found, keys, rename)
        result = filling.run(strict)
    unsaved = [name for name in result.meta_keys if not filling.is_saved(name)]
    if unsaved:
        warnings.warn(
            f"{_some(unsaved)} of the {type(module).__name__} stays on the meta device: no checkpoint holds a buffer "
            "with persistent=False, so the module's author has to compute it",
            stacklevel=3,
        )
    return result


class _Filling:
    """One load into one module."""

    def __init__(self, loader: Loader, torch: Any, module: Any, found: Checkpoint, keys: Keys, rename: Rename) -> None:
        self.loader = loader
        self.torch = torch
        self.module = module
        self.found = found
        self.keys = None if keys is None else selects(keys)
        self.chosen = selected(found, self.keys, rename)
        self.again = tied(self.chosen)
        self.slots = slots_of(torch, module)

    def is_saved(self, name: str) -> bool:
        """It is a name in the module's state dict."""
        return name in self.slots and name in self.slots[name].names

    def run(self, strict: bool) -> LoadResult:
        """Do it."""
        if loads_itself(self.torch, self.module):
            return self._by_torch(strict)
        fits = {name: stored for name, stored in self.chosen.items() if self.is_saved(name)}
        filled = {id(self.slots[name]) for name in fits}
        missing = self._of_the_part(
            name for slot in self._distinct() if id(slot) not in filled and not slot.optional for name in slot.names
        )
        unexpected = self._left_out(self.chosen)
        if strict and (missing or unexpected):
            raise self._unfit(missing, unexpected)
        wishes = requests(fits, self.loader.arrays, self.loader.wanted(self._own))
        self._check(wishes)
        self._fill(self._one_for_each(wishes))
        return self._result(missing, unexpected)

    # -- what fits ---------------------------------------------------------------------------------
    def _distinct(self) -> list[Slot]:
        return list({id(slot): slot for slot in self.slots.values()}.values())

    def _of_the_part(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.keys is None or self.keys(name)]

    def _left_out(self, names: Iterable[str]) -> list[str]:
        """Without second names, and those of tensors that fit under another name."""
        used = {id(stored) for name, stored in self.chosen.items() if self.is_saved(name)}
        return [name for name in names if name not in self.again and id(self.chosen.get(name)) not in used]

    def _unfit(self, missing: list[str], unexpected: list[str], left: str = "") -> WeightsError:
        parts = []
        if missing:
            parts.append(f"the file lacks {_some(missing)}")
        if unexpected:
            parts.append(f"the module has no {_some(unexpected)}")
        fix = _prefix_fix(missing, unexpected) or "strict=False to load what fits"
        return self._error("; ".join(parts) + left, fix)

    def _error(self, why: str, fix: str = "") -> WeightsError:
        what = f"{self.found.label} does not fit the {type(self.module).__name__}."
        return WeightsError(what, why=why, try_=fix)

    def _check(self, wishes: Mapping[str, Request]) -> None:
        wrong = [why for name, request in wishes.items() if (why := self._mismatch(self.slots[name].tensor, request))]
        if wrong:
            more = f"; {len(wrong) - SAID} more differ" if len(wrong) > SAID else ""
            raise self._error("; ".join(wrong[:SAID]) + more)

    def _mismatch(self, tensor: Any, request: Request) -> str:
        shape = shape_of(request)
        if shape != tuple(tensor.shape):
            return f"{shown(request.name)} has the shape {list(shape)}, the module's is {list(tensor.shape)}"
        if tensor.layout is not self.torch.strided:
            return f"{shown(request.name)} is dense, the module's is {tensor.layout}"
        dtype = request.wanted
        if tensor.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
            return f"{shown(request.name)} holds {dtype}, and the module's has requires_grad, which takes real numbers"
        return ""

    def _own(self, name: str) -> Any:
        """Without dtype= a module keeps its own, as in load_state_dict; on the meta device it has none of value."""
        tensor = self.slots[name].tensor if name in self.slots else None
        return None if tensor is None or tensor.is_meta else tensor.dtype

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
        with loader.watched(bytes_of(request for _, request in wishes if request.name not in fresh)):
            fresh.update(loader.bring(waiting))
            self._fill_in_place(placed, strided)
        for name, tensor in fresh.items():
            slots[name].put(self.torch, tensor)
        self._complete({id(slot) for slot, _ in wishes})

    def _where(self, tensor: Any, request: Request) -> str:
        if tensor.is_meta or not self.loader.holds(tensor) or tensor.dtype is not request.wanted:
            return "fresh"
        if 0 in tensor.stride():
            return "fresh"  # expanded: elements that share memory cannot be written to
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
                self._through_a_copy(slot.tensor, request)
        except WeightsError as error:
            names = [request.name for request in placed] + [request.name for _, request in strided]
            left = f"; in the module {_some(names)} may be filled in part, all else is as it was"
            raise WeightsError(error.what, why=error.why + left, try_=error.try_) from error

    def _through_a_copy(self, tensor: Any, request: Request) -> None:
        for where, part in _in_rows(request):
            loaded = self.loader.bring([part])[part.name]
            with self.torch.inference_mode(tensor.is_inference()):
                tensor.detach()[where].copy_(loaded)
            del loaded  # before the next one is made

    def _complete(self, filled: set[int]) -> None:
        """Give what the file does not fill its place on the device, and batch norm's counter its first value."""
        backend, device = self.loader.backend, self.loader.device
        for slot in self._distinct():
            tensor = slot.tensor
            if id(slot) in filled:
                continue
            if tensor.is_meta and slot.optional:
                slot.put(self.torch, self.torch.zeros(tensor.shape, dtype=tensor.dtype, device=device))
            elif not tensor.is_meta and not self.loader.holds(tensor):
                slot.put(self.torch, backend.put(tensor.detach(), device))

    # -- modules with their own way ------------------------------------------------------------------
    def _by_torch(self, strict: bool) -> LoadResult:
        """Through load_state_dict, which knows the module's hooks; they decide what is missing."""
        before = self._distinct()
        anew = self.loader.dtype is not None or any(slot.tensor.is_meta for slot in before)
        state = self._state(before, anew)
        inference = not anew and any(is_inference(self.torch, slot.tensor) for slot in before)
        left = "; what fits is loaded already, for this module has its own way to load"
        itself = type(self.module).load_state_dict is not self.torch.nn.Module.load_state_dict
        options = {"strict": strict and itself and self.keys is None, **({"assign": True} if anew else {})}
        try:
            with self.torch.inference_mode(inference), self.torch.no_grad():
                told = self.module.load_state_dict(state, **options)
        except RuntimeError as exc:
            raise self._error(str(exc) + left) from exc
        finally:
            if anew:
                self._keep_objects(before)
        self.slots = slots_of(self.torch, self.module)
        self._complete(set())
        missing = self._of_the_part(getattr(told, "missing_keys", ()))  # not every override tells
        unexpected = self._left_out(getattr(told, "unexpected_keys", ()))
        if strict and (missing or unexpected):
            raise self._unfit(missing, unexpected, left)
        return self._result(missing, unexpected)

    def _state(self, slots: list[Slot], anew: bool) -> dict[str, Any]:
        """The state dict; all names of a tied tensor get the same one."""
        loader = self.loader
        # What is copied into the module is cast on the way, so that it need not be held twice.
        wanted = loader.wanted(self._own) if anew else lambda _name, _held, stored: loader.backend.narrow(stored)
        once = {name: stored for name, stored in self.chosen.items() if name not in self.again}
        wishes = requests(once, loader.arrays, wanted)
        # What is copied anyway is read: touching a mapping of a file that has shrunk would end the process.
        state = {name: loader.mapped(request) if anew else None for name, request in wishes.items()}
        waiting = [wishes[name] for name, tensor in state.items() if tensor is None]
        with loader.watched(bytes_of(waiting)):
            state.update(loader.bring(waiting))
        state.update({name: state[kept] for name, kept in self.again.items() if self.is_saved(name)})
        for slot in slots:
            given = [name for name in slot.names if name in state]
            if given:
                state.update({name: state[given[-1]] for name in slot.names if name not in state})
        return state

    def _keep_objects(self, slots: list[Slot]) -> None:
        """Undo what ``assign=True`` does beside: new parameters for an optimizer's old ones, several for tied ones."""
        for slot in slots:
            held = [getattr(part, leaf, slot.tensor) for part, leaf in slot.places]
            new = [tensor for tensor in held if tensor is not slot.tensor]
            if new and not slot.tensor.is_meta and type(new[-1]) is self.torch.nn.Parameter:
                slot.put(self.torch, new[-1].detach())
            elif new:
                slot.hold(new[-1])

    def _result(self, missing: list[str], unexpected: list[str]) -> LoadResult:
        left = tuple(name for name, slot in self.slots.items() if slot.tensor.is_meta)
        return LoadResult(tuple(missing), tuple(unexpected), left, self.found.metadata)


def _in_rows(request: Request) -> Iterator[tuple[Any, Request]]:
    """Parts of a tensor along its first dimension, small enough to be held beside it, and where they belong."""
    entry = request.stored.entry
    rows = entry.shape[0] if entry.shape else 1
    nbytes = max(1, entry.nbytes // request.dtype.itemsize * request.wanted.itemsize)
    step = max(1, BESIDE * rows // nbytes)
    if step >= rows or entry.format.packed > 1:
        yield ..., request
        return
    row = entry.nbytes // rows
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        shape = (end - begin, *entry.shape[1:])
        part = entry._replace(shape=shape, begin=entry.begin + begin * row, nbytes=(end - begin) * row)
        yield slice(begin, end), request._replace(stored=request.stored._replace(entry=part))


def _some(names: list[str]) -> str:
    listed = ", ".join(shown(name) for name in names[:SAID])
    return listed + (f" and {len(names) - SAID} more" if len(names) > SAID else "")


def _prefix_fix(missing: list[str], unexpected: list[str]) -> str:
    """A rename that would make every name fit, for wrappers that put a prefix before all names."""
    if not missing or len(missing) != len(unexpected):
        return ""
    short, long = sorted((missing, unexpected), key=lambda names: len(min(names)))
    prefix = min(long).removesuffix(min(short))  # a prefix keeps the order, in which files and modules differ
    if {prefix + name for name in short} != set(long):
        return ""
    if long is unexpected:
        return f"rename=lambda name: name.removeprefix({prefix!r})"
    return f"rename=lambda name: {prefix!r} + name"
