"""The names that are understood, what stands for their objects, and what is thought of all other names.

A name that is not here is refused, whatever it is: an unknown class may be harmless, and whoever knows that can say so.
The sources: torch/_utils.py and torch/_weights_only_unpickler.py of torch 2.13; numpy/_core/multiarray.py of NumPy 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from devicekit.pickles import arrays, tensors
from devicekit.pickles.stand_ins import Array, Bag, Dtype, Global, Opaque, Refused, keyed
from devicekit.weights.header import UnbelievableError

if TYPE_CHECKING:
    from devicekit.pickles.machine import Notes

__all__ = ["called", "is_executor", "is_known", "is_script", "state_given"]

_Rule = Callable[..., Any]

_NEW_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""What Python 2 called it."""


def _pair(what: Global) -> tuple[str, str]:
    """The name as the tables have it."""
    module = _NEW_NAMES.get(what.module, what.module)
    if module.startswith("numpy._core."):
        module = "numpy.core." + module.removeprefix("numpy._core.")
    return module, what.name


def _in(module: str, names: str) -> set[tuple[str, str]]:
    return {(module, name) for name in names.split()}


# -- what is understood ----------------------------------------------------------------------------
def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict from Python 2 brings its items as a list of pairs."""
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise UnbelievableError("its pickle makes a dictionary of what are no pairs")
    return keyed((key for key, _ in pairs), (value for _, value in pairs))


def _sequence(values: Any = (), *_: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else []


def _encoded(text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnbelievableError("its pickle has bytes as no known text")
    return text.encode(encoding)


def _bytes(data: Any = b"", encoding: str = "") -> Any:
    if isinstance(data, list):
        return bytes(data)
    return _encoded(data, encoding) if isinstance(data, str) else data


def _device(kind: str, index: int | None = None) -> str:
    return f"{kind:.40}" if index is None else f"{kind:.40}:{index:d}"


def _reconstructed(what: Any, _base: Any, state: Any) -> Any:
    return Opaque(_class(what), (), state)


def _class(what: Any) -> Global:
    if not isinstance(what, Global):
        raise UnbelievableError("its pickle makes an object of what is no class")
    return what


_RULES: dict[tuple[str, str], _Rule] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("collections", "defaultdict"): lambda _=None, pairs=(): _mapping(pairs),
    ("collections", "deque"): _sequence,
    ("builtins", "dict"): _mapping,
    ("builtins", "list"): _sequence,
    ("builtins", "tuple"): lambda values=(): tuple(_sequence(values)),
    ("builtins", "set"): lambda values=(): Bag(_sequence(values)),
    ("builtins", "frozenset"): lambda values=(): Bag(_sequence(values)),
    ("builtins", "bytearray"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): lambda real=0.0, imaginary=0.0: complex(real, imaginary),
    ("_codecs", "encode"): _encoded,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("torch", "Size"): lambda shape=(): tuple(shape),
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): lambda name: f"{name:.40}",
    ("torch.jit._pickle", "build_intlist"): _sequence,
    ("torch.jit._pickle", "build_doublelist"): _sequence,
    ("torch.jit._pickle", "build_boollist"): _sequence,
    ("torch.jit._pickle", "build_tensorlist"): _sequence,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
    **tensors.RULES,
    **arrays.RULES,
}
_NAMES_ONLY = {
    *_in("builtins", "object int float bool str"),
    *_in("torch", "contiguous_format channels_last channels_last_3d preserve_format strided sparse_coo sparse_csr"),
    *_in("torch", "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric"),
    *_in("torch", "per_channel_affine_float_qparams"),
    *_in("torch", " ".join(tensors.DTYPES)),
    *tensors.TENSOR_CLASSES,
    *tensors.STORAGES,
    *arrays.CLASSES,
}
"""Understood as names; they make nothing."""
_HARMLESS = {
    *_in("argparse", "Namespace"),
    *_in("types", "SimpleNamespace"),
    *_in("uuid", "UUID"),
    *_in("decimal", "Decimal"),
    *_in("fractions", "Fraction"),
    *_in("pathlib", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath"),
    *_in("pathlib._local", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath"),
    *_in("datetime", "datetime date time timedelta timezone"),
}
"""Classes of settings and plain facts: left out, and told."""
_HARMLESS_CLASSES = re.compile(r"torch\.(nn\.modules|optim)(\.\w+)*\.[A-Z]\w*|__torch__(\.\w+)+")
"""torch's own layers, whose parameters are read; its optimisers; the classes of a TorchScript file."""
_EXECUTORS = frozenset(
    {
        *("os", "posix", "nt", "sys", "builtins", "subprocess", "commands", "popen2", "pty", "shutil", "signal"),
        *("importlib", "imp", "runpy", "pkgutil", "zipimport", "code", "codeop", "ctypes", "_ctypes", "pip", "venv"),
        *("multiprocessing", "threading", "_thread", "asyncio", "socket", "urllib", "http", "requests", "webbrowser"),
        *("ftplib", "smtplib", "telnetlib", "operator", "_operator", "marshal", "pickle", "_pickle", "dill"),
        *("cloudpickle", "copyreg", "pdb", "bdb", "timeit", "cProfile", "profile", "trace", "doctest", "pydoc"),
        *("io", "_io", "atexit", "ensurepip", "distutils", "setuptools", "linecache", "fileinput", "idlelib"),
    }
)
"""Modules that run programs, open files or connections, or lead to what does: no checkpoint means well with them."""
_MORE_EXECUTORS = re.compile(
    r"torch\.(hub|jit|serialization|package|_dynamo|_inductor|ops|classes|multiprocessing|utils\.cpp_extension)\b.*"
    r"|torch\.load|torch\._utils\._import_dotted_name|numpy\.(load|fromfile|memmap|testing|f2py|ctypeslib)\b.*"
    r"|types\.(FunctionType|CodeType|LambdaType|MethodType)|joblib\.load"
)


def is_known(what: Global) -> bool:
    """It is understood, or known to be harmless."""
    pair = _pair(what)
    if pair in _RULES or pair in _NAMES_ONLY or pair in _HARMLESS or pair == _NESTED:
        return True
    return "." not in what.name and _HARMLESS_CLASSES.fullmatch(str(what)) is not None


def is_executor(what: Global) -> bool:
    """It runs something, or leads there: this is no class that somebody forgot to leave out."""
    module, _ = _pair(what)
    return module.partition(".")[0] in _EXECUTORS or _MORE_EXECUTORS.fullmatch(str(what)) is not None


def is_script(what: Global) -> bool:
    """It is a class of TorchScript, whose objects hold their parameters as plain attributes."""
    return what.module.partition(".")[0] == "__torch__"


# -- what stands for an object ---------------------------------------------------------------------
def called(what: Global, args: tuple[Any, ...], more: Any, notes: Notes) -> Any:
    """What a call would have made; the notes hear what is left out of it.

    Raises:
        UnbelievableError: the arguments are not those that torch, NumPy or Python write.
    """
    pair = _pair(what)
    if pair == tensors.WITH_TYPE:
        return _with_type(notes, *args)
    if pair == _NESTED:
        from devicekit.pickles.legacy import nested_storage  # here, because it runs a machine of its own

        return nested_storage(*args, notes=notes)
    if pair == tensors.WITH_STATE:
        notes.dropped.append("attributes of a parameter")
    rule = _RULES.get(pair)
    if rule is None:
        return Opaque(what, args, more)
    if not isinstance(more, Mapping) or more:
        raise UnbelievableError(f"its pickle gives {what} keywords")
    return rule(*args)


_NESTED = ("torch.storage", "_load_from_bytes")
"""A storage as a pickle without torch.save has it: as the bytes that torch.save makes of it."""


def _with_type(notes: Notes, rebuild: Any, kind: Any, args: Any, state: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2``: a subclass, or a tensor with attributes of its own."""
    if _pair(_class(kind)) not in tensors.TENSOR_CLASSES:
        return Refused(f"it is of the class {_shown(kind)}, which may mean something else by its numbers", _PLAIN)
    if not isinstance(rebuild, Global) or rebuild.module != "torch._utils" or not isinstance(args, tuple):
        raise UnbelievableError("its pickle makes a tensor of nothing")
    if state:
        notes.dropped.append("attributes of a tensor")
    return called(rebuild, args, {}, notes)


_PLAIN = "the plain tensor in it, under the same name"


def _shown(what: Global) -> str:
    return f"{str(what)!a:.80}"


def state_given(target: Any, state: Any, notes: Notes) -> None:
    """What an object is told after it was made.

    Raises:
        UnbelievableError: none of its kind is told that.
    """
    if isinstance(target, Opaque):
        target.given.append(state)
    elif isinstance(target, Array):
        arrays.fill(target, state)
    elif isinstance(target, Dtype):
        arrays.order(target, state)
    elif type(target) is dict:
        notes.dropped.append("attributes of a dictionary, such as the _metadata of a state_dict")
    elif not isinstance(target, list | Refused):
        raise UnbelievableError("its pickle gives a state to what has none")
