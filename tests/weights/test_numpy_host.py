"""Loading weights as arrays: NumPy's side of it, and a host where torch is not installed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

import devicekit as dk
from devicekit import host
from devicekit.weights.formats import FORMATS, Format
from devicekit.weights.loading import SMALL
from devicekit.weights.reading import PIECE
from tests.test_without_torch import _run as run
from tests.test_without_torch import interpreter as interpreter
from tests.weights.comparing import DTYPES, drawn, saved
from tests.weights.test_loading import by_hand, in_threads, is_mapped, linux

OF_TORCH = {getattr(torch, known.torch): known for known in FORMATS.values() if hasattr(torch, known.torch or "-")}


@pytest.fixture(scope="module")
def dm() -> dk.DeviceManager:
    """NumPy."""
    return dk.DeviceManager("numpy")


class Without(host.Host):
    """This host without some modules."""

    def __init__(self, *missing: str) -> None:
        super().__init__()
        self._missing = missing

    def module(self, name: str) -> Any | None:
        return None if name in self._missing else super().module(name)


@pytest.fixture
def without_ml_dtypes() -> Iterator[dk.DeviceManager]:
    """NumPy alone."""
    with host.use(Without("ml_dtypes")):
        yield dk.DeviceManager("numpy")


def dtype_of(known: Format) -> np.dtype[Any]:
    """NumPy's, or ml_dtypes' for it."""
    return np.dtype(known.numpy or getattr(ml_dtypes, known.ml_dtypes))


IN_NUMPY = [dtype for dtype in DTYPES if OF_TORCH[dtype].numpy or OF_TORCH[dtype].ml_dtypes]
FLOATS = [dtype_of(known) for known in FORMATS.values() if known.floating]


@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "owned"])
@pytest.mark.parametrize("dtype", IN_NUMPY, ids=str)
def test_every_dtype_comes_bit_by_bit(tmp_path: Path, dm: dk.DeviceManager, dtype: torch.dtype, copy: bool) -> None:
    """Arrays of any dtype that NumPy or ml_dtypes has, of any shape, hold the file's bytes."""
    held = {str(shape): drawn(dtype, shape) for shape in [(3, 4), (), (1,), (0, 2), (1, 1, 8)]}
    loaded = dm.load_safetensors(saved(tmp_path, held), copy=copy)
    assert loaded.keys() == held.keys()
    for name, array in loaded.items():
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (dtype_of(OF_TORCH[dtype]), tuple(held[name].shape))
        assert array.tobytes() == held[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert array.flags.writeable
        assert array.flags.aligned


def test_it_is_what_safetensors_gives(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """The arrays are those of ``safetensors.numpy.load_file``, and they can be saved again."""
    held = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3), "c": np.ones((), "float16")}
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(held, path, metadata={"author": "somebody"})
    loaded = dm.load_safetensors(path, copy=True)
    theirs = safetensors.numpy.load_file(path)
    assert loaded.keys() == theirs.keys()
    assert all((loaded[name] == theirs[name]).all() and loaded[name].dtype == theirs[name].dtype for name in theirs)
    assert loaded.metadata == {"author": "somebody"}
    assert safetensors.numpy.load(safetensors.numpy.save(loaded)).keys() == held.keys()


@pytest.mark.parametrize("stored", [dtype for dtype in IN_NUMPY if OF_TORCH[dtype].floating], ids=str)
def test_a_cast_is_numpys(tmp_path: Path, dm: dk.DeviceManager, stored: torch.dtype) -> None:
    """``dtype=`` gives the numbers of ``array.astype``, from any float to any other, and warns of no infinity."""
    sizes = [0, 1, 7, SMALL // stored.itemsize, SMALL // stored.itemsize + 1]
    path = saved(tmp_path, {str(size): drawn(stored, (size,), size) for size in sizes})
    asis = dm.load_safetensors(path)
    for wanted in FLOATS:
        loaded = dm.load_safetensors(path, dtype=wanted)
        for name, array in loaded.items():
            assert array.dtype == wanted
            with np.errstate(all="ignore"):
                ours, theirs = (numbers.astype("float64") for numbers in (array, asis[name].astype(wanted)))
            np.testing.assert_array_equal(ours, theirs)
            assert (np.signbit(ours) == np.signbit(theirs))[~np.isnan(ours)].all()


def test_a_cast_over_several_pieces_is_numpys(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Around the size of a piece every number is cast once and lies where it belongs, with any number of threads."""
    path = saved(tmp_path, {str(n): drawn(torch.bfloat16, (PIECE + n,), n) for n in (-1, 0, 1)})
    asis = dm.load_safetensors(path)
    for workers in (1, 3):
        loaded = dm.load_safetensors(path, dtype="float32", workers=workers)
        for name, array in loaded.items():
            np.testing.assert_array_equal(array, asis[name].astype("float32"))


def test_only_floats_are_cast(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """``dtype=`` leaves whole numbers, bools, complex numbers and scales as they are."""
    held = {str(dtype): drawn(dtype) for dtype in IN_NUMPY}
    loaded = dm.load_safetensors(saved(tmp_path, held), dtype=np.float16)
    for dtype in IN_NUMPY:
        known = OF_TORCH[dtype]
        assert loaded[str(dtype)].dtype == (np.float16 if known.floating else dtype_of(known))


def test_a_function_chooses_dtypes(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A function is given NumPy's dtypes, and may answer in any of NumPy's words."""
    asked: dict[str, Any] = {}

    def choose(name: str, stored: Any) -> Any:
        asked[name] = stored
        return {"a": "float64", "b": np.float16, "c": None}[name]

    held = {"a": drawn(torch.bfloat16), "b": drawn(torch.float32), "c": drawn(torch.float16), "d": drawn(torch.int8)}
    loaded = dm.load_safetensors(saved(tmp_path, held), dtype=choose)  # type: ignore[call-overload]
    assert asked == {"a": np.dtype(ml_dtypes.bfloat16), "b": np.dtype("float32"), "c": np.dtype("float16")}
    assert {name: str(array.dtype) for name, array in loaded.items()} == {
        "a": "float64",
        "b": "float16",
        "c": "float16",
        "d": "int8",
    }


@pytest.mark.parametrize("dtype", ["int8", np.bool_, np.complex64, "<U3", np.dtype([("a", "float32")])])
def test_a_dtype_that_is_no_float_is_refused(tmp_path: Path, dm: dk.DeviceManager, dtype: Any) -> None:
    """A dtype of whole or complex numbers, of text or of records is an error."""
    with pytest.raises(dk.WeightsError, match="cannot be cast to"):
        dm.load_safetensors(saved(tmp_path, {"w": torch.ones(2)}), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, "flaot16", object()])
def test_a_dtype_that_is_none_is_refused(tmp_path: Path, dm: dk.DeviceManager, dtype: Any) -> None:
    """Another framework's dtype or a typo is an error that shows NumPy's."""
    with pytest.raises(dk.DeviceKitError, match="is no dtype of NumPy") as told:
        dm.load_safetensors(saved(tmp_path, {"w": torch.ones(2)}), dtype=dtype)
    assert "float32" in told.value.try_


def test_tied_arrays_come_back_as_one(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Both names of a tied array hold the same object."""
    path = saved(tmp_path, {"embed": torch.ones(2, 3)}, metadata={"head": "embed", "format": "pt"})
    loaded = dm.load_safetensors(path)
    assert loaded["head"] is loaded["embed"]


@linux
def test_what_keeps_its_dtype_is_mapped(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Without copy= an array is the file's pages, and writing to it spares the file; with copy= it is not."""
    path = saved(tmp_path, {"w": torch.ones(5, 4)})
    before = path.read_bytes()
    for copy in (False, True):
        array = dm.load_safetensors(path, copy=copy)["w"]
        assert is_mapped(torch.from_numpy(array), path) is not copy
        array[:] = 0
        assert path.read_bytes() == before


def test_numbers_that_lie_across_their_boundaries_are_copied(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """In a file whose arrays begin anywhere, numbers are right, and their memory is aligned."""
    path = tmp_path / "odd.safetensors"
    path.write_bytes(by_hand({"a": ("F32", [3], 12), "b": ("F64", [2], 16)}, 3))
    loaded = dm.load_safetensors(path)
    raw = bytes(range(28))
    assert (loaded["a"].tobytes(), loaded["b"].tobytes()) == (raw[:12], raw[12:])
    assert all(array.flags.aligned for array in loaded.values())


def test_threads_and_progress(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Threads that load at once get the same arrays, and each is told of its own progress to the end."""
    path = saved(tmp_path, {"w": torch.arange(3 * PIECE // 4, dtype=torch.float32)})

    def load(_: int) -> tuple[Any, list[int]]:
        told: list[int] = []
        loaded = dm.load_safetensors(path, dtype="float64", workers=2, progress=lambda done, total: told.append(done))
        return loaded["w"], told

    before = set(threading.enumerate())
    for array, told in in_threads(4, load):
        np.testing.assert_array_equal(array, np.arange(3 * PIECE // 4))
        assert told == [PIECE, 2 * PIECE, 3 * PIECE]
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("word", ["BF16", "F8_E4M3", "F8_E8M0"])
def test_without_ml_dtypes_the_error_says_what_to_install(
    tmp_path: Path, without_ml_dtypes: dk.DeviceManager, word: str
) -> None:
    """A format that NumPy lacks is an error with the file, the tensor, the format and ``pip install ml_dtypes``."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(by_hand({"plain": ("F32", [1], 4), "rare": (word, [1], FORMATS[word].bits // 8)}))
    with pytest.raises(dk.WeightsError) as told:
        without_ml_dtypes.load_safetensors(path)
    assert str(path) in told.value.what
    assert told.value.why == f"NumPy has no dtype for {word}, the format of 'rare'"
    assert told.value.try_ == "pip install ml_dtypes"
    assert without_ml_dtypes.load_safetensors(path, keys="plain")["plain"].shape == (1,)


@pytest.mark.parametrize("word", ["F4", "F6_E2M3"])
def test_what_nobody_has_a_dtype_for_can_be_left_out(tmp_path: Path, dm: dk.DeviceManager, word: str) -> None:
    """Packed numbers, which ml_dtypes lacks as well, are an error that says how to load the rest."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(by_hand({"rare": (word, [4], FORMATS[word].bits // 2)}))
    with pytest.raises(dk.WeightsError, match="the format of 'rare'\n  try: keys= to leave them out"):
        dm.load_safetensors(path)


class Old(Without):
    """This host with an ml_dtypes from before float8_e8m0fnu."""

    def module(self, name: str) -> Any | None:
        return object() if name == "ml_dtypes" else super().module(name)


def test_an_old_ml_dtypes_is_to_be_renewed(tmp_path: Path) -> None:
    """Where ml_dtypes is there and lacks the dtype, the error says to renew it."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(by_hand({"scale": ("F8_E8M0", [1], 1)}))
    with host.use(Old()), pytest.raises(dk.WeightsError, match="try: pip install --upgrade ml_dtypes"):
        dk.DeviceManager("numpy").load_safetensors(path)


def test_a_module_is_refused(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """``into=`` on the numpy backend is an error, also with a module of torch."""
    path = saved(tmp_path, {"weight": torch.ones(1)})
    with pytest.raises(dk.WeightsError, match=r"takes a torch\.nn\.Module, and the numpy backend has none"):
        dm.load_safetensors(path, into=torch.nn.PReLU(1))


def test_a_host_without_torch_loads(tmp_path: Path, interpreter: dict[str, str]) -> None:
    """Where torch and safetensors are not installed, files load, cast, tie and fail as here."""
    path = saved(tmp_path, {"a": torch.arange(4.0), "n": torch.arange(3)}, metadata={"b": "a"})
    half = saved(tmp_path, {"h": torch.ones(2, dtype=torch.bfloat16)}, "half.safetensors")
    run(
        interpreter,
        "-c",
        "import os, sys, numpy as np, devicekit as dk\n"
        "path, half = sys.argv[1:]\n"
        "dm = dk.DeviceManager()\n"
        "loaded = dm.load_safetensors(path, dtype='float64', progress=False)\n"
        "assert set(loaded) == {'a', 'b', 'n'} and loaded['a'] is loaded['b'] and loaded.metadata == {'b': 'a'}\n"
        "assert loaded['a'].dtype == np.float64 and loaded['n'].dtype == np.int64\n"
        "assert loaded['a'].tolist() == [0, 1, 2, 3]\n"
        "assert dm.load_safetensors(open(path, 'rb').read(), copy=True)['n'].tolist() == [0, 1, 2]\n"
        "for options, what in (({}, 'pip install ml_dtypes'), ({'into': object()}, 'numpy backend has none')):\n"
        "    try: dm.load_safetensors(half, **options)\n"
        "    except dk.WeightsError as error: assert what in str(error), error\n"
        "    else: raise SystemExit('it was not refused')\n"
        "assert not {'torch', 'safetensors', 'ml_dtypes'} & set(sys.modules)\n",
        os.fspath(path),
        os.fspath(half),
    )
