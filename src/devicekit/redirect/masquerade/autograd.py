"""The backward pass: the mode stays on in it, and gradients are where their tensors are."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from devicekit.redirect.marks import WILD
from devicekit.redirect.masquerade.mode import Masquerade, gathered

__all__ = ["install"]


def install(mode: Masquerade) -> None:
    """While a mode handles a call it is off, and a backward pass is one call: hooks, custom functions and
    checkpoints run in it, so that one is called with the mode on.
    """
    backward = Backward(mode)
    mode.handle(torch.Tensor.backward, backward.of_tensor)
    mode.handle(torch.Tensor.register_hook, backward.hook)
    mode.layer.wrap(torch.autograd, "backward", backward.into_leaves)
    mode.layer.wrap(torch.autograd, "grad", backward.of_inputs)


class Backward:
    """Handlers and replacements."""

    def __init__(self, mode: Masquerade) -> None:
        self.mode = mode

    def of_tensor(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """``Tensor.backward``, without asking for modes once more."""
        names = ("gradient", "retain_graph", "create_graph", "inputs")
        given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
        gradient = given.pop("gradient", None)
        with self.mode:
            torch.autograd.backward(args[0], gradient, **given)

    def into_leaves(self, real: Any) -> Callable[..., Any]:
        """``torch.autograd.backward``."""
        layer, twin = self.mode.layer, unasking(real)

        def run(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not layer.on:
                return real(tensors, *args, **kwargs)
            tensors = _listed(tensors)
            self._check(tensors, args[0] if args else kwargs.get("grad_tensors"))
            with self.on_device_of(tensors):
                return twin(tensors, *args, **kwargs)

        return run

    def of_inputs(self, real: Any) -> Callable[..., Any]:
        """``torch.autograd.grad``: each gradient is where its input is."""
        layer, places, twin = self.mode.layer, self.mode.places, unasking(real)

        def run(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not layer.on:
                return real(outputs, inputs, *args, **kwargs)
            outputs, inputs = _listed(outputs), _listed(inputs)
            self._check(outputs, args[0] if args else kwargs.get("grad_outputs"))
            with self.on_device_of(outputs):
                found = twin(outputs, inputs, *args, **kwargs)
            for gradient, of in zip(found, (inputs,) if len(found) == 1 else inputs, strict=True):
                index = self._index(of)
                if index is not None:
                    places.settle_all(gradient, index)
            return found

        return run

    def hook(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``Tensor.register_hook``: the gradient that the hook is given is where the tensor is."""
        tensor, hook = args[0], args[1] if len(args) > 1 else kwargs["hook"]
        places = self.mode.places
        index = places.index(tensor)

        @functools.wraps(hook)
        def marked(grad: Any) -> Any:
            return hook(grad if index is None else places.settle(grad, index))

        return func(tensor, marked)

    @contextmanager
    def on_device_of(self, tensors: Any) -> Iterator[None]:
        """What has no mark inside is taken for a gradient, if this pass starts on a device."""
        thread = self.mode.thread
        before, index = thread.backward, self._index(tensors)
        thread.backward = before if index is None else index
        try:
            yield
        finally:
            thread.backward = before

    def _check(self, outputs: Any, gradients: Any) -> None:
        """A gradient that the program gives lies where its output is; torch moves single numbers there.

        Raises:
            RuntimeError: it does not, in the words of the engine (torch/csrc/autograd/engine.cpp, validate_outputs).
        """
        of = self.mode.places.of
        for number, (output, gradient) in enumerate(zip(_several(outputs), _several(gradients), strict=False)):
            if not isinstance(gradient, torch.Tensor) or gradient.dim() == 0:
                continue
            expected, got = of(output), of(gradient)
            if expected != got and WILD not in (expected, got):
                told = ("cpu" if place is None else f"cuda:{place}" for place in (expected, got))
                raise RuntimeError("invalid gradient at index {} - expected device {} but got {}".format(number, *told))

    def _index(self, tensors: Any) -> int | None:
        found = gathered((tensors,))
        return next((i for i in map(self.mode.places.index, found) if i is not None), None)


def _several(tensors: Any) -> tuple[Any, ...]:
    return tuple(tensors) if isinstance(tensors, (tuple, list)) else (tensors,)


def _listed(tensors: Any) -> Any:
    """A generator, as ``module.parameters()`` gives one, can be gone through only once."""
    return tensors if isinstance(tensors, (torch.Tensor, tuple, list)) else tuple(tensors)


def unasking(real: Any) -> Callable[..., Any]:
    """The same function, but it does not ask for modes: with one in force it would hand itself over to it."""
    original = inspect.unwrap(real)
    apart = {**original.__globals__, "has_torch_function": lambda *_: False}
    twin = types.FunctionType(original.__code__, apart, original.__name__, original.__defaults__, original.__closure__)
    twin.__kwdefaults__ = original.__kwdefaults__
    return twin
