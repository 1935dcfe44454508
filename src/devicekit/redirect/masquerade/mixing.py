"""Operations on tensors of different devices: which CUDA allows, and what it says about the others."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from devicekit.redirect.marks import WILD

if TYPE_CHECKING:
    from devicekit.redirect.masquerade.mode import Masquerade

__all__ = ["check", "takes_no_number"]

ALLOWED = frozenset({
    # copies across devices, or only the shape or the dtype of the other is wanted
    "copy_", "_foreach_copy_", "data", "set_", "expand_as", "view_as", "reshape_as", "resize_as_", "type_as",
    "broadcast_tensors", "result_type", "promote_types", "is_same_size", "_has_compatible_shallow_copy_type",
    "_use_cudnn_rnn_flatten_weight", "__deepcopy__", "swap_tensors", "is_set_to",
    # arguments that CUDA wants on the host, or takes from there
    "ctc_loss", "tensor_split", "fill_",
    "__setitem__", "index_put_", "index_put", "_index_put_impl_",
    # functions of TorchScript: what they do with which argument is not seen
    "__call__",
})  # fmt: skip
"""By name."""
JOINING = ("cat", "concat", "concatenate", "dstack", "hstack", "stack", "vstack")
"""Single numbers of the host are none to them, but tensors like all others."""
INTO_THEIR_FIRST = tuple(f"__i{name}__" for name in ("add", "and", "mul", "or", "pow", "sub", "truediv", "xor"))
"""Those whose names do not end so that it shows."""
INDEXING = ("__getitem__", "__setitem__", "index_put_", "index_put")
SAME_BY_MODULE = ("torch.optim", "torch.nn.utils.clip_grad", "torch.amp")
"""Parts of torch that bring tensors of several devices together themselves."""

NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "linear": ("wrapper_CUDA_addmm", ("mat1", "mat2", "self")),
    "addmm": ("wrapper_CUDA_addmm", ("self", "mat1", "mat2")),
    "mm": ("wrapper_CUDA_mm", ("self", "mat2")),
    "bmm": ("wrapper_CUDA_bmm", ("self", "mat2")),
    "matmul": ("wrapper_CUDA_mm", ("self", "mat2")),
    "__matmul__": ("wrapper_CUDA_mm", ("self", "mat2")),
    "mv": ("wrapper_CUDA_addmv_", ("mat", "vec")),
    "dot": ("wrapper_CUDA__dot", ("self", "tensor")),
    "embedding": ("wrapper_CUDA__index_select", ("index", "self")),
    "index_select": ("wrapper_CUDA__index_select", ("self", "index")),
    "gather": ("wrapper_CUDA_gather", ("self", "index")),
    "scatter": ("wrapper_CUDA_scatter_src", ("self", "index", "src")),
    "scatter_": ("wrapper_CUDA_scatter__src", ("self", "index", "src")),
    "scatter_add_": ("wrapper_CUDA_scatter_add_", ("self", "index", "src")),
    "nll_loss": ("wrapper_CUDA_nll_loss_forward", ("self", "target")),
    "cross_entropy": ("wrapper_CUDA_nll_loss_forward", ("self", "target")),
    "layer_norm": ("wrapper_CUDA__native_layer_norm", ("input", "weight", "bias")),
    "batch_norm": ("wrapper_CUDA__cudnn_batch_norm", ("input", "weight", "bias")),
    "cat": ("wrapper_CUDA_cat", ("tensors", "tensors")),
    "stack": ("wrapper_CUDA_cat", ("tensors", "tensors")),
}
"""Operations whose kernel checks its arguments one by one (RegisterCUDA.cpp), and what they are called there."""
OWN_WORDS = {
    "masked_fill": "expected self and mask to be on the same device, but got mask on {1} and self on {0}",
    "masked_fill_": "expected self and mask to be on the same device, but got mask on {1} and self on {0}",
    "grid_sample": (
        "grid_sampler(): expected input and grid to be on same device, but input is on {0} and grid is on {1}"
    ),
    "grid_sampler": (
        "grid_sampler(): expected input and grid to be on same device, but input is on {0} and grid is on {1}"
    ),
    "searchsorted": (
        "torch.searchsorted(): boundaries and input value tensors should have same device type, but got boundaries "
        "tensor device type {0} and input value tensor device type {1}"
    ),
    "bucketize": (
        "torch.searchsorted(): boundaries and input value tensors should have same device type, but got boundaries "
        "tensor device type {1} and input value tensor device type {0}"
    ),
    "quantile": "quantile() q tensor must be on the same device as the input tensor",
    "nanquantile": "quantile() q tensor must be on the same device as the input tensor",
    "scaled_dot_product_attention": (
        "Expected query, key, and value to have the same device type, but got query.device: {0} key.device: {1} and "
        "value.device: {2} instead."
    ),
}
"""Those that check by themselves (aten/src/ATen/native), with the places of their tensors in order."""
CONVOLUTIONS = frozenset(f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3))


def check(mode: Masquerade, func: Any, args: tuple[Any, ...], tensors: list[Any]) -> None:
    """Tensors of several places take part.

    Raises:
        RuntimeError: CUDA would not compute this, in its words as far as they are known.
    """
    name = name_of(func)
    if mode.thread.backward is not None and all(mode.places.of(t) is None for t in _others(mode, tensors)):
        return  # what autograd has just made, it made on the device
    places = [mode.places.of(t) for t in tensors]
    if name in INDEXING and tensors and tensors[0] is args[0]:
        _check_index(mode, args, places[0])
        if name != "__getitem__":
            _check_values(mode, args, places[0])
        return
    if name in ALLOWED or _torch_brings_together():
        return
    raise RuntimeError(_words(name, tensors, places))


def takes_no_number(mode: Masquerade, func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a single number of the host, which otherwise may take part (TensorIterator.cpp), is an error as well:
    where it is what is written to, and where there is no such rule.
    """
    name = name_of(func)
    if name in JOINING:
        return True
    writes = name in INTO_THEIR_FIRST or (name.endswith("_") and not name.endswith("__"))
    return writes and isinstance(args[0], torch.Tensor) and mode.places.of(args[0]) is None


def name_of(func: Any) -> str:
    """The operation's name; for a property's, the property's."""
    name = getattr(func, "__name__", "")
    return str(getattr(func.__self__, "__name__", name)) if name in ("__get__", "__set__") else str(name)


def _others(mode: Masquerade, tensors: list[Any]) -> list[Any]:
    first = next((p for p in map(mode.places.of, tensors) if isinstance(p, int)), None)
    return [t for t in tensors if mode.places.of(t) not in (first, WILD)]


def _check_index(mode: Masquerade, args: tuple[Any, ...], place: Any) -> None:
    """A tensor of the device may be indexed by one of the host, and not the other way round; by a single number of
    the device as by any number (python_variable_indexing.cpp).
    """
    from devicekit.redirect.masquerade.mode import gathered

    for index in gathered(args[1:2]):
        where = mode.places.index(index)
        is_number = index.dim() == 0 and index.dtype not in (torch.bool, torch.uint8)
        if where is not None and where != place and not is_number:
            own = "cpu" if place is None else f"cuda:{place}"
            raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({own})")


def _check_values(mode: Masquerade, args: tuple[Any, ...], place: Any) -> None:
    """What is put at indices lies where they are put, but for single numbers; what is put into a slice is copied there
    (aten/src/ATen/native/TensorAdvancedIndexing.cpp).
    """
    index, values = args[1], args[2] if len(args) > 2 else None
    if not isinstance(values, torch.Tensor) or values.dim() == 0 or not _by_numbers(index):
        return
    other = mode.places.of(values)
    if WILD not in (place, other) and other != place:
        one, two = sorted(("cpu" if where is None else f"cuda:{where}" for where in (place, other)), reverse=True)
        raise RuntimeError(_two_devices(one, two))


def _by_numbers(index: Any) -> bool:
    """The index is no slice, but says which rows, or which are to be taken."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or (isinstance(part, torch.Tensor) and part.dim() > 0) for part in parts)


def _torch_brings_together() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(SAME_BY_MODULE):
            return True
        if module.partition(".")[0] not in ("torch", "devicekit"):
            return False
        frame = frame.f_back
    return False


def _words(name: str, tensors: list[Any], places: list[Any]) -> str:
    told = ["cpu" if place is None else f"cuda:{place}" for place in places]
    if name in CONVOLUTIONS and len(tensors) > 1:
        kinds = [
            t.type() if p is None else t.type().replace("torch.", "torch.cuda.")
            for t, p in zip(tensors, places, strict=True)
        ]
        if kinds[0] != kinds[1]:
            return f"Input type ({kinds[0]}) and weight type ({kinds[1]}) should be the same"
        return f"Input type ({kinds[0]}) and bias type ({kinds[-1]}) should be the same"
    if name in OWN_WORDS:
        return OWN_WORDS[name].format(*told, *told[-1:] * 2)
    kernel, arguments = NAMED.get(name, ("", ()))
    first = next(p for p in places if isinstance(p, int))
    odd = next(i for i, p in enumerate(places) if p != first and p is not WILD)
    if not kernel or odd >= len(arguments):
        one, other, *_ = sorted({t for t, p in zip(told, places, strict=True) if p is not WILD}, reverse=True)
        return _two_devices(one, other)
    argument = arguments[odd]
    if _speaks_briefly():
        return (
            f"Expected all tensors to be on the same device, but got {argument} is on {told[odd]}, different from "
            f"other tensors on cuda:{first} (when checking argument in method {kernel})"
        )
    return (
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:{first} and {told[odd]}! "
        f"(when checking argument for argument {argument} in method {kernel})"
    )


def _two_devices(one: str, other: str) -> str:
    return f"Expected all tensors to be on the same device, but found at least two devices, {one} and {other}!"


def _speaks_briefly() -> bool:
    """Since 2.8 torch has other words (c10/core/impl/..., common_device_check_failure)."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 8)
