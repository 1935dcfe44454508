"""Random numbers of ``torch.cuda``: generators of the target. A processor's is torch's default generator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.answering import Answers, answer
from devicekit.redirect.target import Target

__all__ = ["install"]


def install(redirect: Redirect) -> None:
    """Replace the functions, the default generators, and the class."""
    cuda, layer = redirect.torch.cuda, redirect.layer
    answer(redirect, cuda, Random(redirect)._all())
    layer.replace(cuda, "default_generators", Generators(redirect.target))
    layer.stand_in(redirect.torch, "Generator", _generator(redirect))


class Random(Answers):
    """As torch.cuda.random has it, with the target's generators."""

    def get_rng_state(self, device: Any = "cuda") -> Any:
        """A byte tensor on the host. How long it is depends on the device."""
        return self._target.generator(self._at(device)).get_state()

    def set_rng_state(self, new_state: Any, device: Any = "cuda") -> None:
        """Bring it back."""
        self._target.generator(self._at(device)).set_state(new_state)

    def get_rng_state_all(self) -> list[Any]:
        """Of all devices."""
        return [self.get_rng_state(index) for index in range(self._target.count)]

    def set_rng_state_all(self, new_states: Iterable[Any]) -> None:
        """Bring them back."""
        for index, state in enumerate(new_states):
            self.set_rng_state(state, index)

    def manual_seed(self, seed: int) -> None:
        """The current device's."""
        self._target.manual_seed(int(seed), every=False)

    def manual_seed_all(self, seed: int) -> None:
        """All devices'."""
        self._target.manual_seed(int(seed), every=True)

    def seed(self) -> None:
        """From the system's entropy."""
        self._target.generator(self._target.current).seed()

    def seed_all(self) -> None:
        """The same for all devices."""
        self.seed()
        self.manual_seed_all(self.initial_seed())

    def initial_seed(self) -> int:
        """The current device's."""
        return int(self._target.generator(self._target.current).initial_seed())


class Generators(Sequence[Any]):
    """``torch.cuda.default_generators``. They are asked for one by one, because that may start the runtime."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __len__(self) -> int:
        return self._target.count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        found = range(len(self))[index]
        return tuple(map(self._target.generator, found)) if isinstance(found, range) else self._target.generator(found)


def _generator(redirect: Redirect) -> Any:
    """torch.Generator, which makes the target's for CUDA; the program's own subclasses of it do so as well."""
    layer, real, posing = redirect.layer, redirect.torch.Generator, _posing(redirect)

    def index_of(device: Any) -> int | None:
        return redirect.index(device) if layer.on else None

    class Meta(type(real)):  # type: ignore[misc]
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is not Generator:
                return super().__call__(*args, **kwargs)
            index = index_of(args[0] if args else kwargs.get("device"))
            if index is None:
                return real(*args, **kwargs)
            redirect.note("torch.Generator")
            return posing(index) if redirect.strict else real(redirect.target.real(index))

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real) if cls is Generator else super().__instancecheck__(instance)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real) if cls is Generator else super().__subclasscheck__(subclass)

    class Generator(real, metaclass=Meta):  # type: ignore[misc, valid-type]
        __module__, __qualname__, __doc__ = "torch", "Generator", real.__doc__

        def __new__(cls, device: Any = "cpu") -> Any:
            index = index_of(device)
            return real.__new__(cls, device if index is None else redirect.target.real(index))

    return Generator


def _posing(redirect: Redirect) -> Any:
    """A class of generators that say, as tensors do then, that they are on CUDA."""
    layer, torch, real = redirect.layer, redirect.torch, redirect.torch.Generator

    class Posing(real):  # type: ignore[misc, valid-type]
        def __new__(cls, index: int) -> Any:
            made = real.__new__(cls, redirect.target.real(index))
            made.posing = torch.device("cuda", index)
            return made

        def __init__(self, index: int) -> None:
            """All is done by ``__new__``."""

        @property
        def device(self) -> Any:
            return self.posing if layer.on else super().device

        def clone_state(self) -> Any:
            made = type(self)(self.posing.index)
            made.set_state(self.get_state())
            return made

        def __reduce__(self) -> Any:
            return torch.Generator, (self.device,), (self.initial_seed(), None, self.get_state())

    return Posing
