"""Where a pipeline's weights go: onto the device, one component at a time, or one layer at a time, by their bytes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from devicekit.efficient.mode import Here, Steps, in_words
from devicekit.efficient.modules import weights_of
from devicekit.values import MemoryStats

__all__ = ["place"]

GIB = 2**30
NOTES = ("_offload_gpu_id", "_offload_device", "_all_hooks")
"""What diffusers notes in a pipeline when it offloads."""


@dataclass(frozen=True, slots=True)
class Load:
    """The bytes of a pipeline, in the dtypes that its weights have now."""

    sizes: Mapping[str, int]
    """By component; what two of them share counts once."""
    held: int
    """Of them, on the device already."""
    in_turn: tuple[str, ...]
    """The components that model offload brings one after the other; the rest it puts on the device for good."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.sizes.values())

    @property
    def largest(self) -> str:
        """The component that takes most, of those that come in turn."""
        return max(self.in_turn or self.sizes, key=lambda name: self.sizes[name])

    @property
    def staying(self) -> int:
        """Bytes of those that do not come in turn."""
        return sum(size for name, size in self.sizes.items() if name not in self.in_turn)


def place(steps: Steps, here: Here, pipe: Any, models: Mapping[str, Any]) -> None:
    """Move the pipeline to the device where it fits, offload it where it does not, and say so in figures."""
    load, reason = _load(here, pipe, models), _placed_already(pipe, models)
    weights = in_words(load.total)
    if reason:
        steps.leave(reason)
    elif load.held == load.total:
        where = "already on" if here.backend.accelerator else "where it is computed:"
        steps.leave(f"CPU offload: everything ({weights}) is {where} {here.device}")
    elif not here.backend.accelerator:
        steps.leave(f"CPU offload: this is the processor; dm.to(pipeline) brings the weights ({weights}) here")
    else:
        _place_by_figures(steps, here, pipe, models, load)


def _place_by_figures(steps: Steps, here: Here, pipe: Any, models: Mapping[str, Any], load: Load) -> None:
    here.backend.empty_cache(here.index)  # what is only cached is available
    stats = here.memory()
    if stats.available is None:
        steps.leave(
            f"CPU offload: {here.backend.name} cannot tell how much memory is available ({stats.source}), "
            f"so nothing was moved; the weights take {in_words(load.total)}"
        )
        return
    room, working = _room(load, stats), _working_room(stats)
    figures = f"weights {in_words(load.total)}, {in_words(room)} available"
    work = f"{in_words(working)} to work in"
    largest = load.sizes[load.largest]
    part = f"the largest component ({load.largest}) takes {in_words(largest)}"
    if load.total + working <= room:
        _move(steps, here, pipe, models, figures, f"they fit, with {work}")
    elif largest + load.staying + working <= room and _offers_model_offload(pipe):
        _offload(steps, here, pipe, models, "model", figures, f"one component at a time; {part}, and {work} are kept")
    else:
        words = f"one layer at a time, which is slow; {part}, and {work} are kept"
        _offload(steps, here, pipe, models, "sequential", figures, words)


def _offers_model_offload(pipe: Any) -> bool:
    """Diffusers' own refuses where no order of the components is known."""
    known = getattr(pipe, "model_cpu_offload_seq", "") is not None
    return known and callable(getattr(pipe, "enable_model_cpu_offload", None))


# -- figures ---------------------------------------------------------------------------------------------
def _load(here: Here, pipe: Any, models: Mapping[str, Any]) -> Load:
    sizes: dict[str, int] = {}
    held, seen = 0, set()
    for name, model in models.items():
        own = [t for t in weights_of([model]) if id(t) not in seen]
        seen |= {id(t) for t in own}
        sizes[name] = sum(t.nbytes for t in own)
        held += sum(t.nbytes for t in own if here.backend.holds(t, here.device))
    # Whoever is not in this chain is moved at once, or stays from its first call on (DiffusionPipeline).
    chain = str(getattr(pipe, "model_cpu_offload_seq", None) or "->".join(sizes)).split("->")
    return Load(sizes, held, tuple(name for name in sizes if name in chain))


def _room(load: Load, stats: MemoryStats) -> int:
    """Bytes that the weights may take: what is there, and what those that are there already take.

    Where the memory is the host's own, moving a weight takes none, for it leaves the host as it comes to the device.
    """
    available = stats.available or 0
    if not stats.unified:
        return available + load.held
    room = available + load.total
    return room if stats.total is None else min(room, stats.total)


def _working_room(stats: MemoryStats) -> int:
    """Bytes to keep for activations: an eighth of the memory, on small devices 1 GiB or a quarter.

    An estimate; what is needed depends on the size of the picture. ComfyUI keeps 1.2 GiB (minimum_inference_memory).
    """
    total = stats.total or stats.available or 0
    return max(total // 8, min(GIB, total // 4))


# -- what is there already -------------------------------------------------------------------------------
def _placed_already(pipe: Any, models: Mapping[str, Any]) -> str:
    """Why the weights are not ours to move; empty when they are."""
    mapped = getattr(pipe, "hf_device_map", None)
    if isinstance(mapped, dict) and len(mapped) > 1:
        return "CPU offload: a device map (hf_device_map) has placed the components, and stays"
    for name, model in models.items():
        for part in model.modules():
            if hasattr(part, "_hf_hook"):
                return f"CPU offload: already on, by accelerate's hooks ({name})"
            if "group_offloading" in getattr(getattr(part, "_diffusers_hook", None), "hooks", ()):
                return f"CPU offload: group offloading is on ({name}), and stays"
    return ""


# -- moving ----------------------------------------------------------------------------------------------
def _move(steps: Steps, here: Here, pipe: Any, models: Mapping[str, Any], figures: str, words: str) -> None:
    label = f"everything on {here.device} ({figures})"
    steps.switch(label, words, lambda: here.backend.put(pipe, here.device), _places(here, models))


def _offload(
    steps: Steps, here: Here, pipe: Any, models: Mapping[str, Any], kind: str, figures: str, words: str
) -> None:
    label = f"{kind} CPU offload to {here.device} ({figures})"
    name = f"enable_{kind}_cpu_offload"
    enable = getattr(pipe, name, None)
    if not callable(enable):
        steps.leave(f"{label}: this pipeline has no {name}()")
        return
    if not _takes_device(enable):
        # diffusers before huggingface/diffusers#3990 took a number, and meant CUDA.
        steps.leave(f"{label}: this pipeline's {name}() takes no device, and means CUDA; update diffusers")
        return
    places, notes = _places(here, models), {note: vars(pipe)[note] for note in NOTES if note in vars(pipe)}

    def on() -> None:
        if "_offload_gpu_id" in notes:
            pipe._offload_gpu_id = here.index  # a number of before would win over a 0 (`gpu_id or device.index or ...`)
        enable(device=here.device)

    def back() -> None:
        pipe.remove_all_hooks()
        for note in NOTES:
            vars(pipe).pop(note, None)
        vars(pipe).update(notes)
        places()

    steps.switch(label, words, on, back)


def _takes_device(enable: Callable[..., object]) -> bool:
    parameters = inspect.signature(enable).parameters.values()
    return any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in parameters)


def _places(here: Here, models: Mapping[str, Any]) -> Callable[[], None]:
    """A way back for every part's weights to where they are now."""
    backend, places = here.backend, []
    for part in {id(p): p for model in models.values() for p in model.modules()}.values():
        first = next(iter((*part.parameters(recurse=False), *part.buffers(recurse=False))), None)
        if first is not None:
            places.append((part, here.device if backend.holds(first, here.device) else first.device))

    def restore() -> None:
        for part, device in places:
            part._apply(lambda t, device=device: backend.move(t, device, t.dtype), recurse=False)

    return restore
