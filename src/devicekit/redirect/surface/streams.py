"""Streams and events of ``torch.cuda``: the target's own, as classes that programs can ask about and build on."""

from __future__ import annotations

import functools
import threading
from typing import Any

from devicekit.errors import DeviceUnavailableError
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import Answers, answer, in_place_of, stand_in_everywhere
from devicekit.streams import OneQueue, PlainEvent, PlainStream

__all__ = ["install"]

CUDA = 1
"""kCUDA of c10/core/DeviceType.h."""


def install(redirect: Redirect) -> None:
    """Replace the classes, and the functions that give and take streams."""
    torch, layer = redirect.torch, redirect.layer
    answers = Streams(redirect)
    for name, kind in (("Stream", answers._stream), ("Event", answers._event)):
        stand_in_everywhere(redirect, torch.cuda, name, kind)
        real = getattr(torch, name)
        layer.stand_in(torch, name, in_place_of(real, _of_any_device(redirect, real, kind), kind))
    answer(redirect, torch.cuda, answers._all())
    layer.wrap(torch.cuda.StreamContext, "__init__", functools.partial(_holds, redirect))
    layer.wrap(torch.cuda.StreamContext, "__enter__", functools.partial(_enters, redirect, answers))
    layer.wrap(torch.cuda.StreamContext, "__exit__", _exits)
    if answers._one_queue:
        layer.wrap(torch.Tensor, "record_stream", functools.partial(_remembers_nothing, redirect))


class Streams(Answers):
    """Of a runtime with streams of its own these are its; else they are names for one queue of work."""

    def __init__(self, redirect: Redirect) -> None:
        super().__init__(redirect)
        own = self._target.streams
        self._one_queue = isinstance(own, OneQueue)
        self._own: Any = Queue(self) if self._one_queue else own
        kinds = (QueueStream, QueueEvent) if self._one_queue else (own.Stream, own.Event)
        self._stream, self._event = (
            _kind(self, kind, name) for kind, name in zip(kinds, ("Stream", "Event"), strict=True)
        )

    def current_stream(self, device: Any = None) -> Any:
        """Of the device."""
        return self._own.current_stream(self._at(device))

    def default_stream(self, device: Any = None) -> Any:
        """Of the device."""
        return self._own.default_stream(self._at(device))

    def set_stream(self, stream: Any) -> None:
        """With its device; nothing for None."""
        if stream is not None:
            self._own.set_stream(stream)
            if self._one_queue:
                self._target.make_current(stream.index)


def _kind(answers: Streams, base: Any, name: str) -> Any:
    """The target's class, made with torch.cuda's arguments. Whatever the target makes is an instance of it."""
    redirect = answers._redirect
    layer, real = redirect.layer, getattr(redirect.torch.cuda, name)

    class Meta(type(base)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, base) if cls is kind else super().__instancecheck__(instance)

    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if not layer.on:
            return real(*args, **kwargs)
        if cls is kind:
            redirect.note(f"torch.cuda.{name}")
        if answers._one_queue:
            made = base.__new__(cls)
            made.answers = answers
            return made
        if name == "Stream":
            device = args[0] if args else kwargs.pop("device", None)
            args = (answers._at(device), *args[1:])
        return base.__new__(cls, *args, **kwargs)

    kind: Any = Meta(name, (base,), {"__new__": __new__, "__module__": real.__module__, "__doc__": real.__doc__})
    return kind


def _of_any_device(redirect: Redirect, real: Any, kind: Any) -> Any:
    """``torch.Stream`` or ``torch.Event``, which take the device first: for CUDA it is torch.cuda's."""
    layer = redirect.layer

    def made(*args: Any, **kwargs: Any) -> Any:
        device = args[0] if args else kwargs.get("device")
        if not layer.on or redirect.index(device) is None:
            return real(*args, **kwargs)
        given = {"device": device, **{name: value for name, value in kwargs.items() if name != "device"}}
        if kind.__name__ == "Event":  # of the current device, which is told when it is recorded
            del given["device"]
        return kind(*args[1:], **given)

    return made


# -- one queue of work -----------------------------------------------------------------------------
class Queue(OneQueue):
    """The queue that all streams of torch.cuda are names for; the real ones of the facade are others."""

    def __init__(self, answers: Streams) -> None:
        super().__init__(answers._target.synchronize, lambda: answers._target.current)
        self._answers = answers
        self.outside = _Outside()

    def Event(self, enable_timing: bool = False, blocking: bool = False) -> PlainEvent:  # noqa: N802
        """One of torch.cuda's class."""
        event: PlainEvent = self._answers._event(enable_timing, blocking)
        return event

    def default_stream(self, device: int | None = None) -> PlainStream:
        """One of torch.cuda's class."""
        at = self.at(device)
        if at not in self._default:
            self._default[at] = self._answers._stream(at)
        return self._default[at]


class _Outside(threading.local):
    def __init__(self) -> None:
        self.devices: list[int] = []


class QueueStream(PlainStream):
    """What torch.cuda.Stream is, on one queue. Inside of one its device is the current one."""

    answers: Streams
    device_type = CUDA

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        super().__init__(self.answers._own, self.answers._at(device), priority)

    def __enter__(self) -> QueueStream:
        target = self.answers._target
        self.answers._own.outside.devices.append(target.current)
        target.make_current(self.index)
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.answers._target.make_current(self.answers._own.outside.devices.pop())

    @property
    def device(self) -> Any:
        """Where its tensors are, as the program sees it."""
        answers = self.answers
        if answers._redirect.strict:
            return answers._torch.device("cuda", self.index)
        return answers._target.real(self.index)

    @property
    def device_index(self) -> int:
        """The device's number."""
        return self.index

    @property
    def cuda_stream(self) -> int:
        """No address of CUDA's; as there, it is 0 for the default stream, and another number for each other."""
        return 0 if self.queue._default.get(self.index) is self else id(self)

    stream_id = cuda_stream

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class QueueEvent(PlainEvent):
    """What torch.cuda.Event is, on one queue."""

    answers: Streams
    cuda_event = 0

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, external: bool = False
    ) -> None:
        super().__init__(self.answers._own, enable_timing)

    @property
    def device(self) -> Any:
        """That of the stream in which it was recorded; None before."""
        return None if self._index is None else self.answers._own.default_stream(self._index).device

    def ipc_handle(self) -> Any:
        """Refused."""
        self.answers._redirect.note("torch.cuda.Event.ipc_handle", refused=True)
        why = f"an event of {self.answers._target.device_type} cannot be seen from another process"
        raise DeviceUnavailableError("torch.cuda.Event.ipc_handle cannot work here.", why=why, try_="a barrier")


# -- methods of torch's own classes ----------------------------------------------------------------
def _holds(redirect: Redirect, real: Any) -> Any:
    layer = redirect.layer

    def __init__(self: Any, stream: Any) -> Any:  # noqa: N807
        if not layer.on:
            return real(self, stream)
        self.stream, self.idx, self.within = stream, -1, []  # -1: later, without us, it is nothing
        return None

    return __init__


def _enters(redirect: Redirect, answers: Streams, real: Any) -> Any:
    layer = redirect.layer

    def __enter__(self: Any) -> Any:  # noqa: N807
        if not layer.on or not hasattr(self, "within"):
            return real(self)
        redirect.note("torch.cuda.stream")
        self.within.append(answers._own.stream(self.stream))
        self.within[-1].__enter__()
        return None

    return __enter__


def _exits(real: Any) -> Any:
    def __exit__(self: Any, *exc: Any) -> Any:  # noqa: N807
        if not getattr(self, "within", None):
            return real(self, *exc)
        return self.within.pop().__exit__(*exc)

    return __exit__


def _remembers_nothing(redirect: Redirect, real: Any) -> Any:
    layer = redirect.layer

    def record_stream(self: Any, stream: Any) -> None:
        """Nothing: in one queue memory is used again only after the work before is done."""
        if not layer.on:
            real(self, stream)

    return record_stream
