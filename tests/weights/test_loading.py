"""Loading weights as a dict: what can be given, what comes out, and what is left behind."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import devicekit as dk
from devicekit.staging import ALONE
from devicekit.weights.loading import SMALL
from devicekit.weights.progress import PATIENCE, following
from devicekit.weights.reading import PIECE
from tests.weights.comparing import DTYPES, FLOATS, drawn, same, same_dicts, same_numbers, saved

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

TENSORS = {
    "embed.weight": drawn(torch.float32, (6, 4), 1),
    "layers.0.bias": drawn(torch.float16, (5,), 2),
    "layers.0.weight": drawn(torch.float32, (5, 4), 3),
    "layers.1.weight": drawn(torch.int64, (2, 2), 4),
    "scale": drawn(torch.float64, (), 5),
    "void": drawn(torch.float32, (0, 3)),
}


@pytest.fixture(scope="module")
def dm() -> dk.DeviceManager:
    """The CPU."""
    return dk.DeviceManager("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One file with all of TENSORS."""
    return saved(tmp_path, TENSORS, metadata={"format": "pt", "author": "somebody"})


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of six pieces and a bit."""
    return saved(tmp_path_factory.mktemp("long"), {"w": torch.arange(6 * PIECE // 4 + 10, dtype=torch.float32)})


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Its memory is the file's pages, says the system."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.endswith(str(path))
    return False


def sharded(folder: Path) -> Path:
    """TENSORS in two shards, and their index."""
    places = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(TENSORS)}
    for n, shard in enumerate(sorted(set(places.values()))):
        held = {name: tensor for name, tensor in TENSORS.items() if places[name] == shard}
        saved(folder, held, shard, metadata={"format": "pt", "author": "somebody" if n == 0 else "somebody else"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


# -- what can be given ---------------------------------------------------------------------------
SOURCES: dict[str, Callable[[Path], Any]] = {
    "a path": lambda path: path,
    "a name": str,
    "bytes": lambda path: path.read_bytes(),
    "a bytearray": lambda path: bytearray(path.read_bytes()),
    "a memoryview": lambda path: memoryview(path.read_bytes()),
    "a stream": lambda path: io.BytesIO(path.read_bytes()),
    "its folder": lambda path: path.parent,
    "an index": lambda path: sharded(path.parent),
    "a folder with an index": lambda path: (sharded(path.parent), path.unlink())[0].parent,
    "several files": lambda path: sorted((sharded(path.parent).parent).glob("model-*.safetensors")),
}


@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "owned"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_what_safetensors_gives(path: Path, dm: dk.DeviceManager, source: str, copy: bool) -> None:
    """A file, its name, bytes, a stream, a folder, an index and a list of files give the tensors of ``load_file``."""
    loaded = dm.load_safetensors(SOURCES[source](path), copy=copy)
    assert same_dicts(loaded, TENSORS)
    assert loaded.metadata == {"format": "pt", "author": "somebody"}


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path, dm: dk.DeviceManager, dtype: Any) -> None:
    """Weights behind other bytes of an open file are loaded, and the file is open afterwards where it was."""
    file = tmp_path / "embedded"
    file.write_bytes(b"preface" + safetensors.torch.save(TENSORS))
    with file.open("rb") as opened:
        opened.seek(7)
        loaded = dm.load_safetensors(opened, dtype=dtype)
        assert opened.tell() == 7
    assert same(loaded["embed.weight"], TENSORS["embed.weight"].to(dtype))


def test_the_order_is_the_files(path: Path, dm: dk.DeviceManager) -> None:
    """Names come in the order of the file, whichever of the tensors are mapped and which are cast."""
    order = list(safetensors.torch.load_file(path))
    assert list(dm.load_safetensors(path, dtype=torch.float32)) == order


# -- which of them -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("layers.*", {"layers.0.bias", "layers.0.weight", "layers.1.weight"}),
        ("*.weight", {"embed.weight", "layers.0.weight", "layers.1.weight"}),
        ("scale", {"scale"}),
        ("layers.[01].weight", {"layers.0.weight", "layers.1.weight"}),
        (["scale", "embed.*"], {"scale", "embed.weight"}),
        ((name for name in ("void", "*.bias")), {"void", "layers.0.bias"}),
        (lambda name: name.startswith("v"), {"void"}),
        (lambda name: name.count("0"), {"layers.0.bias", "layers.0.weight"}),
    ],
)
def test_keys_choose(path: Path, dm: dk.DeviceManager, keys: Any, expected: set[str]) -> None:
    """A name, a glob, a list, an iterator of them or a predicate loads exactly the names that it describes."""
    assert set(dm.load_safetensors(path, keys=keys)) == expected


def test_a_name_with_brackets_is_itself(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A name that a glob would read as a class of characters is found by that name."""
    path = saved(tmp_path, {"w[0]": torch.ones(1), "w0": torch.zeros(1)})
    assert set(dm.load_safetensors(path, keys=["w[0]"])) == {"w[0]", "w0"}
    assert set(dm.load_safetensors(path, keys="w[[]0]")) == {"w[0]"}


def test_keys_that_fit_nothing_are_an_error(path: Path, dm: dk.DeviceManager) -> None:
    """Keys that fit no tensor name the file and some of the names that there are."""
    with pytest.raises(dk.WeightsError, match=r"keys= fits none of its 6 tensors, such as '\w") as told:
        dm.load_safetensors(path, keys="leyers.*")
    assert str(path) in str(told.value)


def test_an_empty_file_gives_an_empty_dict(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """No tensors are no error, with keys or without, cast or not."""
    path = saved(tmp_path, {}, metadata={"note": "empty"})
    for options in ({}, {"keys": "*"}, {"dtype": torch.float16}, {"copy": True}):
        loaded = dm.load_safetensors(path, **options)
        assert (loaded, loaded.metadata) == ({}, {"note": "empty"})


@pytest.mark.parametrize(
    "rename", [{"scale": "gain"}, lambda name: "gain" if name == "scale" else name], ids=["dict", "function"]
)
def test_renaming(path: Path, dm: dk.DeviceManager, rename: Any) -> None:
    """A dict or a function gives new names; the names that it does not speak of stay."""
    expected = {name.replace("scale", "gain"): tensor for name, tensor in TENSORS.items()}
    assert same_dicts(dm.load_safetensors(path, rename=rename), expected)


def test_keys_are_the_files_names(path: Path, dm: dk.DeviceManager) -> None:
    """With keys and rename, keys speak of the old names."""
    loaded = dm.load_safetensors(path, keys="layers.*", rename=lambda name: name.removeprefix("layers."))
    assert set(loaded) == {"0.bias", "0.weight", "1.weight"}


def test_two_tensors_with_one_name_are_refused(path: Path, dm: dk.DeviceManager) -> None:
    """A renaming that would lose a tensor is an error that names both and the file."""
    with pytest.raises(dk.WeightsError, match=r"'\S+weight' and '\S+weight' would both be called 'w'") as told:
        dm.load_safetensors(path, keys="*.weight", rename=lambda name: "w")
    assert str(path) in str(told.value)


def test_a_new_name_that_is_none_is_refused(path: Path, dm: dk.DeviceManager) -> None:
    """A renaming that gives no text is an error that names the tensor."""
    with pytest.raises(dk.WeightsError, match="rename= gives None for 'scale', which is no name"):
        dm.load_safetensors(path, keys="scale", rename=lambda name: None)  # type: ignore[arg-type,return-value]


# -- tied tensors --------------------------------------------------------------------------------
@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A file of ``save_model``, which writes a tied tensor once and its other name into the metadata."""
    module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(4, 3), "head": torch.nn.Linear(3, 4)})
    module["head"].weight = module["embed"].weight  # type: ignore[assignment]
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_model(module, str(path))
    return path


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.float16}], ids=str)
def test_tied_tensors_come_back_as_one(tied: Path, dm: dk.DeviceManager, options: Any) -> None:
    """Both names of a tied tensor hold the same object."""
    loaded = dm.load_safetensors(tied, **options)
    assert set(loaded) == {"embed.weight", "head.weight", "head.bias"}
    assert loaded["embed.weight"] is loaded["head.weight"]


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_either_name_of_a_tied_tensor_is_a_key(tied: Path, dm: dk.DeviceManager, name: str) -> None:
    """Who asks for one name of a tied tensor gets it under that name, whichever the file keeps."""
    assert list(dm.load_safetensors(tied, keys=[name])) == [name]


def test_tied_tensors_are_renamed(tied: Path, dm: dk.DeviceManager) -> None:
    """A renaming sees both names; it may make one of them, but not the name of another tensor."""
    loaded = dm.load_safetensors(tied, rename=lambda name: "my." + name)
    assert loaded["my.embed.weight"] is loaded["my.head.weight"]
    assert set(dm.load_safetensors(tied, rename={"embed.weight": "w", "head.weight": "w"})) == {"w", "head.bias"}
    with pytest.raises(dk.WeightsError, match=r"would both be called 'head.bias'"):
        dm.load_safetensors(tied, rename=lambda name: "head.bias")


def test_metadata_is_not_mistaken_for_a_tie(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A tensor called ``pt`` does not become one called ``format``, which is what the metadata says of it."""
    path = saved(tmp_path, {"pt": torch.ones(2)}, metadata={"format": "pt"})
    assert set(dm.load_safetensors(path)) == {"pt"}


# -- dtypes --------------------------------------------------------------------------------------
@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "owned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_bit_by_bit(tmp_path: Path, dm: dk.DeviceManager, dtype: torch.dtype, copy: bool) -> None:
    """Tensors of any dtype and shape have the dtype, shape and bytes that ``load_file`` gives them."""
    shapes = [(3, 4), (1,), (0, 2), (2, 0, 3), (1, 1, 1, 8), (40, 50)]
    shapes += [] if "x2" in str(dtype) else [()]
    held = {f"{shape}": drawn(dtype, shape) for shape in shapes}
    path = saved(tmp_path, held)
    loaded = dm.load_safetensors(path, copy=copy)
    assert same_dicts(loaded, safetensors.torch.load_file(path))
    assert same_dicts(loaded, held)


SIZES = [1, 7, 64, SMALL - 1, SMALL, SMALL + 1, *(ALONE + n for n in (-1, 0, 1)), 2 * ALONE + 5]


@pytest.mark.parametrize("stored", FLOATS, ids=str)
def test_a_cast_is_torchs(tmp_path: Path, dm: dk.DeviceManager, stored: torch.dtype) -> None:
    """``dtype=`` gives the numbers of ``tensor.to``, NaN and infinity included, from any float to any other.

    At the sizes where tensors are read one by one instead of together, and cast in pieces instead of at once.
    """
    sizes = sorted({size if size < 100 else size // scale for size in SIZES for scale in (1, stored.itemsize)})
    path = saved(tmp_path, {str(size): drawn(stored, (size,), size) for size in [*sizes, 3]} | {"": drawn(stored, ())})
    theirs = safetensors.torch.load_file(path)
    for wanted in FLOATS:
        ours = dm.load_safetensors(path, dtype=wanted)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert same_numbers(ours[name], theirs[name].to(wanted)), (wanted, name)


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float8_e5m2, torch.float32], ids=str)
def test_a_cast_over_several_pieces_is_torchs(tmp_path: Path, dm: dk.DeviceManager, wanted: torch.dtype) -> None:
    """Around the size of a piece every number is cast once and lies where it belongs, with any number of threads."""
    sizes = {str(n): drawn(torch.bfloat16, (PIECE // 2 + n,), n) for n in (-1, 0, 1)}
    path = saved(tmp_path, {**sizes, "three": drawn(torch.bfloat16, (3 * PIECE // 2 + 9, 1), 5)})
    theirs = safetensors.torch.load_file(path)
    for workers in (1, 3):
        ours = dm.load_safetensors(path, dtype=wanted, copy=True, workers=workers)
        assert all(same_numbers(ours[name], theirs[name].to(wanted)) for name in theirs)


def test_small_tensors_beside_each_other_do_not_mix(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """Thousands of small tensors, which are read together, each hold their own numbers."""
    held = {f"{n:04}": drawn(torch.bfloat16, (n % 67, 3), n) for n in range(3000)}
    path = saved(tmp_path, held)
    for wanted in (torch.float32, torch.bfloat16):
        loaded = dm.load_safetensors(path, dtype=wanted, copy=True)
        assert all(same_numbers(loaded[name], held[name].to(wanted)) for name in held)


def test_only_floats_are_cast(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """``dtype=`` leaves whole numbers, bools, complex numbers, scales and packed values as they are."""
    held = {str(dtype): drawn(dtype) for dtype in DTYPES if dtype not in FLOATS}
    held["float"] = torch.ones(3)
    loaded = dm.load_safetensors(saved(tmp_path, held), dtype=torch.float16)
    assert loaded.pop("float").dtype is torch.float16
    held.pop("float")
    assert same_dicts(loaded, held)


def test_the_devices_dtype_is_a_dtype(path: Path, dm: dk.DeviceManager) -> None:
    """``dtype=dm.dtype`` casts the floating-point tensors to it."""
    loaded = dm.load_safetensors(path, dtype=dm.dtype)
    assert {name: t.dtype for name, t in loaded.items() if name != "layers.1.weight"} == dict.fromkeys(
        set(TENSORS) - {"layers.1.weight"}, dm.dtype
    )


def test_a_function_chooses_dtypes(path: Path, dm: dk.DeviceManager) -> None:
    """A function is asked of each floating-point tensor with its new name and its dtype in the file; None keeps it."""
    asked: dict[str, torch.dtype] = {}

    def choose(name: str, stored: torch.dtype) -> torch.dtype | None:
        asked[name] = stored
        return torch.bfloat16 if name == "gain" else None

    loaded = dm.load_safetensors(path, dtype=choose, rename={"scale": "gain"})
    floats = {name.replace("scale", "gain"): t.dtype for name, t in TENSORS.items() if t.is_floating_point()}
    assert asked == floats
    assert {name: t.dtype for name, t in loaded.items() if name in floats} == {**floats, "gain": torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64], ids=str)
def test_a_dtype_that_is_no_float_is_refused(path: Path, dm: dk.DeviceManager, dtype: torch.dtype) -> None:
    """A dtype of whole or complex numbers is an error, given at once or by a function, which then names the tensor."""
    with pytest.raises(dk.WeightsError, match=f"cannot be cast to {dtype}"):
        dm.load_safetensors(path, dtype=dtype)
    with pytest.raises(dk.WeightsError, match=f"dtype= gives {dtype} for 'scale'"):
        dm.load_safetensors(path, keys="scale", dtype=lambda name, stored: dtype)


@pytest.mark.parametrize("dtype", ["float17", "nn", 16, float, object()])
def test_a_dtype_that_is_none_is_refused(path: Path, dm: dk.DeviceManager, dtype: Any) -> None:
    """A word, a number or a type is an error that says what torch's are; a function's answer names the tensor."""
    with pytest.raises(dk.DeviceKitError, match=r"is no dtype of torch\.\n  try: torch.float32"):
        dm.load_safetensors(path, dtype=dtype)
    with pytest.raises(dk.WeightsError, match=r"for 'scale'\.\n  why: .* is no dtype of torch"):
        dm.load_safetensors(path, keys="scale", dtype=lambda name, stored: dtype)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
def test_a_cast_that_torch_cannot_do_is_refused(path: Path, dm: dk.DeviceManager) -> None:
    """A dtype to which torch has no cast is an error that names the file and the tensor, before anything is read."""
    told: list[int] = []
    with pytest.raises(
        dk.WeightsError, match=r"'embed.weight' cannot be cast from torch.float32 to torch.float4"
    ) as error:
        dm.load_safetensors(
            path, keys="embed.weight", dtype=torch.float4_e2m1fn_x2, progress=lambda done, total: told.append(done)
        )
    assert str(path) in str(error.value)
    assert told == []


def test_a_format_without_a_dtype_is_refused(tmp_path: Path, dm: dk.DeviceManager) -> None:
    """A tensor of a format that torch has no dtype for is an error with file, tensor and format; others load."""
    path = tmp_path / "f6.safetensors"
    path.write_bytes(by_hand({"six": ("F6_E2M3", [4], 3), "ok": ("U8", [2], 2)}))
    with pytest.raises(dk.WeightsError, match=r"torch .* has no dtype for F6_E2M3, the format of 'six'") as told:
        dm.load_safetensors(path)
    assert str(path) in str(told.value)
    assert dm.load_safetensors(path, keys="ok")["ok"].shape == (2,)


def by_hand(described: dict[str, tuple[str, list[int], int]], align: int = 8) -> bytes:
    """A file with a header of our own, from dtype, shape and bytes; its tensors' bytes count up."""
    nbytes = sum(nbytes for _, _, nbytes in described.values())
    return header_by_hand(described, align) + bytes(n % 256 for n in range(nbytes))


def header_by_hand(described: dict[str, tuple[str, list[int], int]], align: int = 8) -> bytes:
    """All that comes before the tensors' bytes."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, nbytes) in described.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + align % 8)
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("align", [1, 2, 4, 7])
def test_numbers_that_lie_across_their_boundaries_are_copied(tmp_path: Path, dm: dk.DeviceManager, align: int) -> None:
    """In a file whose tensors begin anywhere, numbers are right, and their memory is aligned."""
    path = tmp_path / "odd.safetensors"
    described = {"a": ("F32", [3], 12), "b": ("F64", [2], 16), "c": ("U8", [1], 1), "d": ("I16", [2], 4)}
    path.write_bytes(by_hand(described, align))
    raw = torch.arange(33, dtype=torch.uint8)
    loaded = dm.load_safetensors(path)
    for name, begin, dtype in (("a", 0, torch.float32), ("b", 12, torch.float64), ("d", 29, torch.int16)):
        assert same(loaded[name], raw[begin:][: loaded[name].nbytes].clone().view(dtype))
        assert loaded[name].data_ptr() % dtype.itemsize == 0


# -- whose memory --------------------------------------------------------------------------------
@linux
def test_what_keeps_its_dtype_is_mapped(path: Path, dm: dk.DeviceManager) -> None:
    """Without copy= a tensor is the file's pages, in its own dtype and only then; writing to it spares the file."""
    before = path.read_bytes()
    loaded = dm.load_safetensors(path, dtype=torch.float32)
    assert is_mapped(loaded["embed.weight"], path)
    assert is_mapped(loaded["layers.1.weight"], path)
    assert not is_mapped(loaded["layers.0.bias"], path)
    for tensor in loaded.values():
        tensor.zero_()
    assert not loaded["embed.weight"].any()
    assert path.read_bytes() == before


@linux
def test_what_is_owned_does_not_know_the_file(path: Path, dm: dk.DeviceManager) -> None:
    """With copy= nothing is the file's pages, and what becomes of the file changes nothing."""
    loaded = dm.load_safetensors(path, copy=True)
    assert not any(is_mapped(tensor, path) for tensor in loaded.values() if tensor.numel())
    path.write_bytes(bytes(path.stat().st_size))
    assert same_dicts(loaded, TENSORS)


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_each_owned_tensor_has_a_storage_of_its_own(tmp_path: Path, dm: dk.DeviceManager, dtype: Any) -> None:
    """safetensors saves what was loaded, no storage is larger than its tensor, and torch.save of one is small."""
    held = {f"{n}": torch.full((n % 40, 5), float(n)) for n in range(200)}
    loaded = dm.load_safetensors(saved(tmp_path, held), copy=True, dtype=dtype)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in loaded.values())
    assert same_dicts(safetensors.torch.load(safetensors.torch.save(loaded)), loaded)
    stream = io.BytesIO()
    torch.save(loaded["7"], stream)
    assert len(stream.getvalue()) < 4096


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.float32, "keys": ["scale", "layers.0.bias"]}])
def test_tensors_are_ordinary(path: Path, dm: dk.DeviceManager, options: Any) -> None:
    """What was loaded can be changed in place, trained, and changed in place by what wants a gradient."""
    for name, tensor in dm.load_safetensors(path, **options).items():
        assert (tensor.is_leaf, tensor.requires_grad, tensor.is_inference()) == (True, False, False)
        assert tensor.is_contiguous()
        if not tensor.is_floating_point():
            continue
        factor = torch.ones((), dtype=tensor.dtype, requires_grad=True)
        tensor.mul_(factor)
        tensor.sum().backward()
        assert factor.grad is not None, name


CALLERS: dict[str, Callable[[], Any]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "the meta device": lambda: torch.device("meta"),
    "float64": lambda: _default(torch.set_default_dtype, torch.float64, torch.float32),
    "default device meta": lambda: _default(torch.set_default_device, "meta", None),
}


@contextlib.contextmanager
def _default(setting: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    setting(value)
    try:
        yield
    finally:
        setting(before)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.float32}], ids=str)
def test_the_callers_modes_do_not_matter(path: Path, dm: dk.DeviceManager, caller: str, options: Any) -> None:
    """Inside torch's modes and with other defaults the same ordinary tensors on the CPU come, and the mode stays."""
    expected = dm.load_safetensors(path, **options)
    with CALLERS[caller]():
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.empty(0)
        loaded = dm.load_safetensors(path, **options)
        again = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.empty(0)
    assert same_dicts(loaded, expected)
    assert all(t.device.type == "cpu" and not t.is_inference() for t in loaded.values())
    assert (modes[:3], modes[3].device) == (again[:3], again[3].device)
    for tensor in loaded.values():
        tensor.zero_()


# -- threads -------------------------------------------------------------------------------------
def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What the work gives in each of so many threads, which begin together; their failures are raised."""
    got: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(n: int) -> None:
        barrier.wait(30)
        try:
            got[n] = work(n)
        except BaseException as exc:
            got[n] = exc

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for each in got:
        if isinstance(each, BaseException):
            raise each
    return got


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.float16, "workers": 3}], ids=str)
def test_threads_load_at_once(tmp_path: Path, long_path: Path, dm: dk.DeviceManager, options: Any) -> None:
    """Threads that load one file and several files at once with one manager get what each of them holds."""
    files = [saved(tmp_path, {"w": drawn(torch.float32, (300, 70), n)}, f"{n}.safetensors") for n in range(3)]
    files.append(long_path)
    expected = [
        dm.load_safetensors(path, workers=1, **{k: v for k, v in options.items() if k != "workers"}) for path in files
    ]
    loaded = in_threads(8, lambda n: [dm.load_safetensors(files[(n + k) % 4], **options) for k in range(4)])
    for n, each in enumerate(loaded):
        for k in range(4):
            assert same_dicts(each[k], expected[(n + k) % 4])
    assert gc.isenabled()


@pytest.mark.parametrize(("workers", "helpers"), [(1, 0), (3, 2), (100, 6)])
def test_workers_are_threads(long_path: Path, dm: dk.DeviceManager, workers: int, helpers: int) -> None:
    """The calling thread reads, and as many more as make up ``workers``, but never more than there are pieces."""
    assert threads_during(dm, long_path, workers, helpers) == helpers
    assert threads_during(dm, saved(long_path.parent, TENSORS, "short"), workers, 0) == 0


def threads_during(dm: dk.DeviceManager, path: Path, workers: int, expected: int) -> int:
    """The most threads that there are more than before; nobody goes on until there are as many as expected."""
    before = set(threading.enumerate())
    counts: list[int] = []

    def progress(done: int, total: int) -> None:
        deadline = time.monotonic() + 5
        while not counts or (max(counts) < expected and time.monotonic() < deadline):
            counts.append(len(set(threading.enumerate()) - before))

    dm.load_safetensors(path, copy=True, workers=workers, progress=progress)
    return max(counts)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True], ids=str)
def test_workers_are_checked(dm: dk.DeviceManager, workers: Any) -> None:
    """A number of threads that is none is refused, before the file is looked for."""
    with pytest.raises(dk.WeightsError, match="workers= is a whole number from 1 on"):
        dm.load_safetensors("nowhere.safetensors", workers=workers)


def test_torchs_own_threads_are_left_alone(long_path: Path, dm: dk.DeviceManager) -> None:
    """``torch.get_num_threads`` says the same before, during and after, in old threads and in one that starts then."""
    said: dict[str, int] = {"before": torch.get_num_threads()}
    go, done = threading.Event(), threading.Event()

    def old() -> None:
        said["old, before"] = torch.get_num_threads()
        done.set()
        go.wait(30)
        said["old, after"] = torch.get_num_threads()

    def told(_: int, __: int) -> None:
        said["during"] = torch.get_num_threads()
        new = threading.Thread(target=lambda: said.update({"new": torch.get_num_threads()}))
        new.start()
        new.join()

    elder = threading.Thread(target=old)
    elder.start()
    done.wait(30)
    dm.load_safetensors(long_path, dtype=torch.float16, progress=told, workers=3)
    go.set()
    elder.join()
    said["after"] = torch.get_num_threads()
    assert set(said) == {"before", "old, before", "old, after", "during", "new", "after"}
    assert len(set(said.values())) == 1, said


# -- progress ------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("options", [{"copy": True}, {"dtype": torch.float16}], ids=str)
def test_progress_rises_to_the_total(long_path: Path, dm: dk.DeviceManager, options: Any, workers: int) -> None:
    """The callback is told rising numbers that end at the total, the bytes that are read, by one thread at a time."""
    told: list[tuple[int, int]] = []
    alone = threading.Lock()

    def progress(done: int, total: int) -> None:
        assert alone.acquire(blocking=False)
        told.append((done, total))
        alone.release()

    loaded = dm.load_safetensors(long_path, progress=progress, workers=workers, **options)
    nbytes = loaded["w"].numel() * 4
    assert [total for _, total in told] == [nbytes] * 7
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (nbytes, nbytes)


def test_what_is_mapped_is_no_progress(long_path: Path, dm: dk.DeviceManager) -> None:
    """Where nothing is read, the callback is not called."""
    told: list[int] = []
    dm.load_safetensors(long_path, progress=lambda done, total: told.append(done))
    assert told == []


class _ChangedItsMindError(Exception):
    """Of the user's callback."""


@pytest.mark.parametrize("failure", [_ChangedItsMindError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_callback_can_end_it(
    long_path: Path, dm: dk.DeviceManager, failure: type[BaseException], workers: int
) -> None:
    """What the callback raises comes through as it is; it is not called again, and no thread is left."""
    before = set(threading.enumerate())
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 2:
            raise failure("enough")

    with pytest.raises(failure, match="enough") as raised:
        dm.load_safetensors(long_path, copy=True, workers=workers, progress=progress)
    assert type(raised.value) is failure
    assert len(told) == 2
    assert set(threading.enumerate()) == before
    assert gc.isenabled()


def left_of(now: list[threading.Thread], before: set[threading.Thread]) -> list[threading.Thread]:
    """New threads that are alive after a moment; rich tells its own to end and does not wait for it."""
    new = [thread for thread in now if thread not in before]
    for thread in new:
        thread.join(5)
    return [thread for thread in new if thread.is_alive()]


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A watch that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def drawing(progress: bool | None, stderr: Any, seconds: float, stop_after: int = 8) -> str:
    """What a load that takes so long, in eight steps, writes to stderr."""
    clock = Clock()
    with contextlib.redirect_stderr(stderr):
        with following(progress, 800, clock) as tell:
            for step in range(8):
                if step == stop_after:
                    raise _ChangedItsMindError
                clock.now += seconds / 8
                tell(100)
    return str(stderr.getvalue())


@pytest.mark.skipif(os.environ.get("TERM") in ("dumb", "unknown"), reason="rich draws nothing on such a terminal")
@pytest.mark.parametrize("progress", [None, True])
def test_a_long_load_draws_a_bar(progress: bool | None) -> None:
    """On a terminal a load of more than a second is drawn, asked or not, and ends with the line cleared."""
    before = set(threading.enumerate())
    drawn = drawing(progress, Terminal(), 3 * PATIENCE)
    assert "loading weights" in drawn
    assert "/800 bytes" in drawn
    assert drawn.endswith("\x1b[2K")
    assert not left_of(threading.enumerate(), before)


@pytest.mark.parametrize(
    ("progress", "stderr", "seconds"),
    [
        (None, Terminal, 0.9 * PATIENCE),
        (True, Terminal, 0.9 * PATIENCE),
        (False, Terminal, 3 * PATIENCE),
        (None, io.StringIO, 3 * PATIENCE),
    ],
)
def test_nothing_else_is_drawn(progress: bool | None, stderr: Any, seconds: float) -> None:
    """A short load, progress=False, and a stderr that nobody watches: not one character."""
    assert drawing(progress, stderr(), seconds) == ""


def test_a_failure_takes_the_bar_away() -> None:
    """An exception in the middle of a long load ends the drawing, and its thread."""
    before = set(threading.enumerate())
    terminal = Terminal()
    with pytest.raises(_ChangedItsMindError):
        drawing(True, terminal, 3 * PATIENCE, stop_after=6)
    assert terminal.getvalue().endswith("\x1b[2K")
    assert not left_of(threading.enumerate(), before)


def test_without_a_stderr_nobody_watches(long_path: Path, dm: dk.DeviceManager) -> None:
    """A process whose stderr is closed, or that has none, loads as any other."""
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed):
        with contextlib.redirect_stderr(stderr):  # type: ignore[type-var]
            assert len(dm.load_safetensors(long_path, copy=True)) == 1


def test_a_short_load_is_silent(long_path: Path, dm: dk.DeviceManager, capfd: pytest.CaptureFixture[str]) -> None:
    """A load that is over at once writes nothing to either stream, with progress=True as well."""
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        dm.load_safetensors(long_path, copy=True, progress=True)
        dm.load_safetensors(long_path, copy=True)
    assert terminal.getvalue() == ""
    assert capfd.readouterr() == ("", "")


# -- what is left behind -------------------------------------------------------------------------
@contextlib.contextmanager
def collecting(on: bool) -> Iterator[None]:
    """With garbage collection on or off."""
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collection_is_as_it_was(path: Path, long_path: Path, dm: dk.DeviceManager, on: bool) -> None:
    """After success, after failure and while the tensors are read, it is on or off as the user wanted it."""
    during: list[bool] = []
    with collecting(on):
        dm.load_safetensors(path)
        assert gc.isenabled() is on
        dm.load_safetensors(long_path, copy=True, progress=lambda *_: during.append(gc.isenabled()))
        assert gc.isenabled() is on
        for wrong in ({"keys": "nothing"}, {"dtype": torch.int8}, {"rename": lambda name: "w"}):
            with pytest.raises(dk.WeightsError):
                dm.load_safetensors(path, **wrong)
            assert gc.isenabled() is on
    assert set(during) == {on}


def test_garbage_collection_that_is_switched_off_meanwhile_stays_off(long_path: Path, dm: dk.DeviceManager) -> None:
    """Who switches it off while the tensors are read finds it off afterwards."""
    with collecting(True):
        dm.load_safetensors(long_path, copy=True, progress=lambda *_: gc.disable())
        assert not gc.isenabled()


def open_files() -> set[str]:
    """The descriptors of this process."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@linux
def test_no_descriptor_is_left(tmp_path: Path, path: Path, long_path: Path, dm: dk.DeviceManager) -> None:
    """Once the tensors are gone no file of a load is open, whether it succeeded, failed or was ended."""
    index = sharded(path.parent)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-1])

    def stop(done: int, total: int) -> None:
        raise _ChangedItsMindError

    gc.collect()
    before = open_files()
    for options in ({}, {"copy": True}, {"dtype": torch.float16}):
        for source in (path, index, path.read_bytes()):
            loaded = dm.load_safetensors(source, **options)
            del loaded
    for wrong, options in (
        ([path, broken], {}),
        ([path, path], {}),
        (path, {"keys": "nothing"}),
        (path, {"dtype": torch.int8}),
        (path, {"dtype": lambda name, stored: "nonsense"}),
        (long_path, {"copy": True, "progress": stop}),
    ):
        with pytest.raises((dk.WeightsError, _ChangedItsMindError)):
            dm.load_safetensors(wrong, **options)
    assert open_files() == before


@linux
def test_what_is_owned_holds_no_file_open(path: Path, dm: dk.DeviceManager) -> None:
    """While owned tensors live, the file they came from is closed."""
    gc.collect()
    before = open_files()
    loaded = dm.load_safetensors(path, copy=True)
    assert open_files() == before
    assert loaded


# -- all of it -----------------------------------------------------------------------------------
@st.composite
def _tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text(max_size=6).filter(lambda name: name != "__metadata__"), unique=True, max_size=6))
    made = {}
    for n, name in enumerate(names):
        dtype = draw(st.sampled_from(DTYPES))
        least = 1 if "x2" in str(dtype) else 0
        shape = draw(st.lists(st.integers(0, 4), min_size=least, max_size=3))
        made[name] = drawn(dtype, tuple(shape), n)
    return made


@given(
    held=_tensors(),
    copy=st.booleans(),
    dtype=st.sampled_from([None, *FLOATS]),
    some=st.none() | st.sets(st.integers(0, 5)),
    workers=st.none() | st.integers(1, 3),
    from_file=st.booleans(),
)
def test_any_load_is_load_file_and_to(
    held: dict[str, torch.Tensor], copy: bool, dtype: Any, some: set[int] | None, workers: Any, from_file: bool
) -> None:
    """Any tensors, with any options, are what ``load_file`` gives, chosen by name and cast by ``to``."""
    dm = dk.DeviceManager("cpu")
    names = [name for n, name in enumerate(held) if some is None or n in some]
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder), held)
        theirs = safetensors.torch.load_file(path)
        if some is not None and held and not names:
            with pytest.raises(dk.WeightsError, match="keys= fits none"):
                dm.load_safetensors(path, keys=lambda name: name in names)
            return
        ours = dm.load_safetensors(
            path if from_file else path.read_bytes(),
            copy=copy,
            dtype=dtype,
            keys=None if some is None else lambda name: name in names,
            workers=workers,
        )
        assert set(ours) == set(names)
        for name in names:
            wanted = dtype if dtype is not None and theirs[name].dtype in FLOATS else theirs[name].dtype
            assert same_numbers(ours[name], theirs[name].to(wanted)), name
