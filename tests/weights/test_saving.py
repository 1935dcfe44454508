"""Saving weights: exactly, once, in bounded memory, and never at the cost of what was there before."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from devicekit.errors import WeightsError
from devicekit.weights.formats import FORMATS, Format
from devicekit.weights.header import Header, read_header
from devicekit.weights.outgoing import PART, in_parts
from devicekit.weights.replacing import Replacement
from devicekit.weights.saving import save_safetensors
from devicekit.weights.source import FileSource

OF_TORCH = [known for known in FORMATS.values() if hasattr(torch, known.torch or "-")]
OF_NUMPY = [known for known in FORMATS.values() if known.numpy]
OF_ML_DTYPES = [known for known in FORMATS.values() if known.ml_dtypes]


def header_of(path: Path) -> Header:
    """As our own, strict reader sees it."""
    source = FileSource(str(path))
    try:
        return read_header(source)
    finally:
        source.close()


def bytes_of(path: Path, name: str) -> bytes:
    """A tensor's bytes, as the header says where they are."""
    entry = header_of(path).entries[name]
    return path.read_bytes()[entry.begin : entry.begin + entry.nbytes]


def raw(known: Format, count: int, seed: int = 0) -> bytes:
    """Bytes for so many elements, of all the patterns that there are; a bool has two."""
    drawn = np.random.default_rng(seed).integers(0, 2 if known.name == "BOOL" else 256, count * max(known.bits, 8) // 8)
    return drawn.astype(np.uint8).tobytes()


def tensor_of(known: Format, shape: tuple[int, ...], seed: int = 0) -> Any:
    """A tensor of torch."""
    held = torch.frombuffer(bytearray(raw(known, math.prod(shape), seed) or b"\0"), dtype=torch.uint8)
    return held[: math.prod(shape) * max(known.bits, 8) // 8].view(getattr(torch, known.torch)).reshape(shape)


def array_of(known: Format, shape: tuple[int, ...], seed: int = 0) -> Any:
    """An array of NumPy."""
    if known.numpy:
        dtype = np.dtype(known.numpy)
    else:
        dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), known.ml_dtypes))
    return np.frombuffer(bytearray(raw(known, math.prod(shape), seed)), dtype=np.uint8).view(dtype).reshape(shape)


def plain_bytes(value: Any) -> bytes:
    """The values in the order of their elements."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().resolve_conj().resolve_neg().reshape(-1).clone(memory_format=torch.contiguous_format)
        return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return value.tobytes()


def everything(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones as well, with what is in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def child(code: str, *args: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# -- exactly -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("known", "shape"),
    # What is packed along the last dimension needs one.
    [(known, shape) for known in OF_TORCH for shape in [(3, 4), (), (0, 2)] if shape or known.packed == 1],
    ids=lambda value: value.name if isinstance(value, Format) else str(value),
)
def test_every_dtype_of_torch_comes_back_bit_by_bit(tmp_path: Path, known: Format, shape: tuple[int, ...]) -> None:
    """A tensor of any dtype and shape is read back by safetensors with the same dtype, shape and bytes."""
    tensor = tensor_of(known, shape)
    path = save_safetensors({"w": tensor}, tmp_path / "w.safetensors")
    loaded = safetensors.torch.load_file(path)["w"]
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert plain_bytes(loaded) == plain_bytes(tensor) == bytes_of(path, "w")


@pytest.mark.parametrize("known", OF_NUMPY, ids=lambda known: known.name)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)], ids=str)
def test_every_dtype_of_numpy_comes_back_bit_by_bit(tmp_path: Path, known: Format, shape: tuple[int, ...]) -> None:
    """An array of any dtype and shape is read back by safetensors with the same dtype, shape and bytes."""
    array = array_of(known, shape)
    path = save_safetensors({"w": array}, tmp_path / "w.safetensors")
    loaded = safetensors.numpy.load_file(path)["w"]
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert loaded.tobytes() == array.tobytes() == bytes_of(path, "w")


@pytest.mark.parametrize("known", OF_ML_DTYPES, ids=lambda known: known.name)
def test_every_dtype_of_ml_dtypes_is_written_bit_by_bit(tmp_path: Path, known: Format) -> None:
    """An array of a dtype that NumPy itself lacks is written under its own format, and torch reads the same bytes."""
    array = array_of(known, (3, 4))
    path = save_safetensors({"w": array, "turned": array.T}, tmp_path / "w.safetensors")
    assert header_of(path).entries["w"].format == known
    assert plain_bytes(safetensors.torch.load_file(path)["w"]) == array.tobytes()
    assert bytes_of(path, "turned") == array.T.tobytes()


def _views() -> dict[str, torch.Tensor]:
    made = torch.arange(24.0).reshape(2, 3, 4)
    numbers = torch.complex(made, made + 1)
    with torch.inference_mode():
        inferred = torch.ones(2)
    return {
        "transposed": made.transpose(0, 2),
        "sliced": made[:, 1:, ::2],
        "with an offset": made[1],
        "single": made[:, 0, 0][::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugate": numbers.conj(),
        "negative": numbers.conj().imag,
        "wanting gradients": (made * torch.ones(1, requires_grad=True)),
        "parameter": torch.nn.Parameter(made.clone()),
        "subclass": made.clone().as_subclass(type("Sub", (torch.Tensor,), {})),
        "inferred": inferred,
        "four bits, turned": tensor_of(FORMATS["F4"], (4, 6)).T,
    }


@pytest.mark.parametrize("kind", _views())
def test_views_are_saved_by_value(tmp_path: Path, kind: str) -> None:
    """Whatever way a tensor looks at its memory, the file holds its values in order."""
    tensor = _views()[kind]
    path = save_safetensors({"w": tensor}, tmp_path / "w.safetensors")
    assert bytes_of(path, "w") == plain_bytes(tensor)
    assert safetensors.torch.load_file(path)["w"].shape == tensor.shape


def test_arrays_may_lie_in_any_order(tmp_path: Path) -> None:
    """Big-endian, Fortran-ordered, strided, read-only and mapped arrays and matrices are saved by value."""
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    array.tofile(tmp_path / "mapped")
    frozen = array.copy()
    frozen.flags.writeable = False
    arrays = {
        "big": array.astype(">i4"),
        "complex": np.array([1 + 2j, 3 - 4j], dtype=">c8"),
        "fortran": np.asfortranarray(array),
        "strided": array[::2, ::-1],
        "single": array[::4, ::6],
        "frozen": frozen,
        "mapped": np.memmap(tmp_path / "mapped", dtype=np.int32, mode="r", shape=(4, 6)),
        "matrix": np.ones((2, 3)).view(type("Matrix", (np.ndarray,), {})),
    }
    loaded = safetensors.numpy.load_file(save_safetensors(arrays, tmp_path / "w.safetensors"))
    for name, expected in arrays.items():
        np.testing.assert_array_equal(loaded[name], expected)
        assert loaded[name].shape == expected.shape


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@given(
    wishes=st.dictionaries(
        NAMES, st.tuples(st.sampled_from(OF_NUMPY), SHAPES, st.booleans(), st.booleans(), st.integers(0, 2**32))
    ),
    limit=st.none() | st.integers(1, 200),
)
def test_any_mapping_comes_back_as_it_was(wishes: Mapping[str, Any], limit: int | None) -> None:
    """Tensors and arrays of any names, dtypes, shapes and strides come back exactly and in order."""
    values = {}
    for name, (known, shape, of_torch, turned, seed) in wishes.items():
        value = tensor_of(known, shape, seed) if of_torch else array_of(known, shape, seed)
        values[name] = (value.permute(tuple(reversed(range(len(shape))))) if of_torch else value.T) if turned else value
    with tempfile.TemporaryDirectory() as folder:
        path = save_safetensors(values, Path(folder), max_shard_size=limit)
        files = [path]
        if path.suffix == ".json":
            files = sorted(path.parent.glob("*.safetensors"))
        names = [name for file in files for name in header_of(file).entries]
        found = {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}
        assert names == list(values)
        for name, value in values.items():
            assert plain_bytes(found[name]) == plain_bytes(value)
            assert tuple(found[name].shape) == tuple(value.shape)
            assert str(found[name].dtype) == f"torch.{wishes[name][0].torch}"


def test_bytes_lie_by_the_size_of_their_elements(tmp_path: Path) -> None:
    """Every tensor begins at a multiple of its element size, while the names keep the order of the mapping."""
    values = {known.name: tensor_of(known, (3,)) for known in reversed(OF_TORCH)}
    path = save_safetensors(values, tmp_path / "w.safetensors")
    header = header_of(path)
    assert list(header.entries) == list(values)
    assert all(entry.begin % max(1, entry.format.bits // 8) == 0 for entry in header.entries.values())
    assert min(entry.begin for entry in header.entries.values()) % 8 == 0


def test_what_is_packed_is_counted_in_its_own_elements(tmp_path: Path) -> None:
    """A tensor of pairs of four-bit numbers has twice as long a last dimension in the file."""
    path = save_safetensors({"w": tensor_of(FORMATS["F4"], (2, 3))}, tmp_path / "w.safetensors")
    assert header_of(path).entries["w"].shape == (2, 6)


def test_nothing_is_a_file_as_well(tmp_path: Path) -> None:
    """An empty mapping makes a file that safetensors reads as one."""
    assert safetensors.torch.load_file(save_safetensors({}, tmp_path / "w.safetensors")) == {}


def test_a_module_is_its_parameters_and_persistent_buffers(tmp_path: Path) -> None:
    """Buffers that are not persistent stay out, and safetensors' own loader brings the rest back into a module."""
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("scratch", torch.ones(2), persistent=False)
    path = save_safetensors(module, tmp_path / "w.safetensors")
    other = torch.nn.BatchNorm1d(3)
    torch.nn.init.normal_(other.weight)
    safetensors.torch.load_model(other, path)
    assert torch.equal(other.weight, module.weight)
    assert list(header_of(path).entries) == list(module.state_dict())


# -- the file's own texts ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "given_", "expected"),
    [
        ({"w": torch.ones(1)}, None, {"format": "pt"}),
        ({"w": np.ones(1)}, None, {"format": "np"}),
        ({"w": np.ones(1), "v": torch.ones(1)}, {"by": "ß"}, {"by": "ß", "format": "pt"}),
        ({"w": torch.ones(1)}, {"format": "mlx"}, {"format": "mlx"}),
    ],
)
def test_the_file_says_whose_tensors_it_holds(
    tmp_path: Path, values: Any, given_: dict[str, str] | None, expected: dict[str, str]
) -> None:
    """The format is added where the caller says none, and all other texts are the caller's."""
    path = save_safetensors(values, tmp_path / "w.safetensors", metadata=given_)
    with safe_open(path, "pt") as file:
        assert file.metadata() == expected


@pytest.mark.parametrize("metadata", [{"epoch": 3}, {3: "epoch"}, "epoch", {"a": "\ud800"}], ids=repr)
def test_metadata_is_texts_by_text(tmp_path: Path, metadata: Any) -> None:
    """Metadata that no file could hold is refused, and no file is made."""
    with pytest.raises(WeightsError):
        save_safetensors({}, tmp_path / "w.safetensors", metadata=metadata)
    assert everything(tmp_path) == {}


def test_a_header_that_nobody_would_read_is_not_written(tmp_path: Path) -> None:
    """More texts than the format allows are an error, and no file is made."""
    with pytest.raises(WeightsError, match="no reader takes more than 100000000"):
        save_safetensors({}, tmp_path / "w.safetensors", metadata={"a": "b" * 100_000_000})
    assert everything(tmp_path) == {}


# -- tied tensors --------------------------------------------------------------------------------
def _tied() -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    return module


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    """The first name holds the bytes, the second is in the metadata, and safetensors' own loader accepts it."""
    module, other = _tied(), _tied()
    path = save_safetensors(module, tmp_path / "w.safetensors")
    header = header_of(path)
    assert list(header.entries) == ["0.weight"]
    assert header.metadata == {"format": "pt", "1.weight": "0.weight"}
    safetensors.torch.load_model(other, path)
    assert torch.equal(other[1].weight, module[0].weight)


def test_an_array_and_a_tensor_over_it_are_tied(tmp_path: Path) -> None:
    """Two arrays, or an array and a tensor, that are one in memory are written once."""
    array = np.arange(6.0).reshape(2, 3)
    values = {"a": array, "b": array[:], "c": torch.from_numpy(array)}
    header = header_of(save_safetensors(values, tmp_path / "w.safetensors"))
    assert list(header.entries) == ["a"]
    assert header.metadata == {"format": "pt", "b": "a", "c": "a"}


def test_what_only_overlaps_is_written_apart(tmp_path: Path) -> None:
    """Views of one memory that differ in shape, offset, order, dtype or sign all have bytes of their own."""
    numbers = torch.complex(torch.arange(4.0), torch.ones(4))
    values: dict[str, Any] = {
        "all": numbers,
        "part": numbers[:2],
        "later": numbers[2:],
        "square": numbers.reshape(2, 2),
        "turned": numbers.reshape(2, 2).T,
        "conjugate": numbers.conj(),
        "as integers": numbers.view(torch.int64),
        "big": numbers.numpy().view(">i8"),
        "nothing": numbers[:0],
        "nothing else": numbers[:0],
    }
    path = save_safetensors(values, tmp_path / "w.safetensors")
    assert list(header_of(path).entries) == list(values)
    assert bytes_of(path, "big") == values["big"].byteswap().tobytes()


def test_a_tie_is_not_lost_to_the_callers_metadata(tmp_path: Path) -> None:
    """Metadata under the name of a tied tensor is an error, unless it says the same."""
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"1\.weight"):
        save_safetensors(_tied(), path, metadata={"1.weight": "mine"})
    assert everything(tmp_path) == {}
    save_safetensors(_tied(), path, metadata={"1.weight": "0.weight"})
    assert header_of(path).metadata["1.weight"] == "0.weight"


def test_a_tie_is_told_in_the_shard_of_its_tensor(tmp_path: Path) -> None:
    """Of several shards only the one with the bytes knows the second name, and the index does not."""
    shared = torch.ones(4)
    values = {"a": torch.zeros(4), "b": shared, "c": torch.zeros(4), "d": shared}
    index = json.loads(save_safetensors(values, tmp_path, max_shard_size=16).read_text())
    told = [header_of(path).metadata for path in sorted(tmp_path.glob("*.safetensors"))]
    assert told == [{"format": "pt"}, {"format": "pt", "d": "b"}, {"format": "pt"}]
    assert list(index["weight_map"]) == ["a", "b", "c"]


# -- where it goes -------------------------------------------------------------------------------
def test_a_folder_gets_the_name_that_readers_look_for(tmp_path: Path) -> None:
    """A folder is made where it is missing, and the file in it is model.safetensors."""
    path = save_safetensors({"w": np.ones(2)}, tmp_path / "new" / "model-v1.5")
    assert path == tmp_path / "new" / "model-v1.5" / "model.safetensors"
    assert path.is_file()
    assert save_safetensors({"w": np.ones(2)}, str(path.parent)) == path


def test_a_place_that_cannot_be_is_said_so(tmp_path: Path) -> None:
    """A folder in the way of the file, a file in the way of the folder, an index and a missing folder are errors."""
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file.bin").write_text("mine")
    for name, reason in (
        ("folder.safetensors", "it is a folder"),
        ("file.bin", "a file whose name ends in .safetensors"),
        ("model.safetensors.index.json", "an index of shards comes by itself"),
        ("missing/w.safetensors", "make the folder first"),
    ):
        with pytest.raises(WeightsError, match=reason) as caught:
            save_safetensors({"w": np.ones(2)}, tmp_path / name)
        assert name in caught.value.what
    assert everything(tmp_path) == {"file.bin": b"mine"}
    assert not (tmp_path / "missing").exists()


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Saving over a symbolic link leaves alone what it leads to."""
    blob, link = tmp_path / "blob", tmp_path / "w.safetensors"
    blob.write_bytes(b"a shared blob")
    link.symlink_to(blob)
    save_safetensors({"w": np.ones(2)}, link)
    assert blob.read_bytes() == b"a shared blob"
    assert not link.is_symlink()


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    """The file has the mode that any file has that is newly made here."""
    (tmp_path / "any").touch()
    path = save_safetensors({"w": np.ones(2)}, tmp_path / "w.safetensors")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


# -- shards --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, ["abcd"]),
        (112, ["abcd"]),
        (111, ["abc", "d"]),
        (48, ["ab", "c", "d"]),
        ("0.032kB", ["a", "b", "c", "d"]),
        (1, ["a", "b", "c", "d"]),
    ],
)
def test_shards_take_what_fits_in_order(tmp_path: Path, limit: Any, expected: list[str]) -> None:
    """Tensors of 16, 32, 48 and 16 bytes fill one shard after another; what fits in none has one of its own."""
    values = {name: torch.ones(count) for name, count in zip("abcd", (4, 8, 12, 4), strict=True)}
    path = save_safetensors(values, tmp_path / "w.safetensors", max_shard_size=limit)
    if len(expected) == 1:
        assert sorted(everything(tmp_path)) == ["w.safetensors"]
        return
    count = len(expected)
    files = {f"w-{number:05}-of-{count:05}.safetensors": names for number, names in enumerate(expected, 1)}
    assert sorted(everything(tmp_path)) == sorted([*files, "w.safetensors.index.json"])
    assert path == tmp_path / "w.safetensors.index.json"
    index = json.loads(path.read_text())
    assert index["metadata"] == {"total_size": 112}
    assert index["weight_map"] == {name: file for file, names in files.items() for name in names}
    for file, names in files.items():
        assert sorted(safetensors.torch.load_file(tmp_path / file)) == sorted(names)


@pytest.mark.parametrize(
    ("size", "fits"),
    [("1KB", 1000), ("1 kib", 1024), ("1k", 1000), ("0.001 MB", 1000), ("1000", 1000), ("1024B", 1024)],
)
def test_sizes_are_decimal_or_binary(tmp_path: Path, size: str, fits: int) -> None:
    """A unit with an i counts in 1024, one without it in 1000, and a bare number is bytes."""
    for more, count in ((0, 1), (1, 3)):
        values = {"a": np.zeros(fits - 8 + more, np.uint8), "b": np.zeros(8, np.uint8)}
        save_safetensors(values, tmp_path / str(more), max_shard_size=size)
        assert len(everything(tmp_path / str(more))) == count


@pytest.mark.parametrize(
    "size", ["", "GB", "5 bananas", "-1GB", "5XB", "5iB", "0", "0.1B", 0, -1, True, 1.5, [5], "9" * 400]
)
def test_what_is_no_size_is_refused(tmp_path: Path, size: Any) -> None:
    """A limit that is no positive number of bytes is an error that says what one looks like."""
    with pytest.raises(WeightsError, match="5GiB"):
        save_safetensors({}, tmp_path / "w.safetensors", max_shard_size=size)


SMALL = {name: np.full(4, number, np.int32) for number, name in enumerate("abcdef")}


def test_a_file_takes_the_place_of_shards_and_they_of_it(tmp_path: Path) -> None:
    """What a save supersedes under its own name is gone afterwards, and files of other names stay."""
    for name in ("w-00001-of-00009.safetensors", "other.safetensors", "v-00001-of-00002.safetensors"):
        (tmp_path / name).write_bytes(b"of somebody else")
    before = set(everything(tmp_path))
    path = tmp_path / "w.safetensors"
    for limit, expected in (
        (32, ["index.json", "00001-of-00003", "00002-of-00003", "00003-of-00003"]),
        (64, ["index.json", "00001-of-00002", "00002-of-00002"]),
        (None, ["w.safetensors"]),
        (64, ["index.json", "00001-of-00002", "00002-of-00002"]),
        (64, ["index.json", "00001-of-00002", "00002-of-00002"]),
    ):
        save_safetensors(SMALL, path, max_shard_size=limit)
        found = set(everything(tmp_path)) - before
        assert len(found) == len(expected)
        assert all(any(part in name for name in found) for part in expected)
        assert before <= set(everything(tmp_path))


def test_only_what_could_be_a_shard_is_removed(tmp_path: Path) -> None:
    """Files that an old index names rightly or wrongly outside of the pattern, or of the folder, are never touched."""
    inside = tmp_path / "model"
    inside.mkdir()
    keep = [tmp_path / "w-00001-of-00002.safetensors", inside / "notes.txt", inside / "w-1-of-2.safetensors"]
    for path in keep:
        path.write_bytes(b"mine")
    gone = inside / "w-00002-of-00002.safetensors"
    gone.write_bytes(b"old")
    (inside / "w-00001-of-00002.safetensors").mkdir()
    names = [os.path.relpath(path, inside) for path in [*keep, gone]] + [str(keep[0]), "w-00001-of-00002.safetensors"]
    index = inside / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(number): name for number, name in enumerate([*names, 3])}}))
    save_safetensors(SMALL, inside / "w.safetensors")
    assert all(path.read_bytes() == b"mine" for path in keep)
    assert not gone.exists()
    assert not index.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": []}}', "[" * 100_000])
def test_an_old_index_may_be_broken(tmp_path: Path, text: str) -> None:
    """An index that cannot be read is replaced like any other."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    save_safetensors(SMALL, tmp_path)
    assert sorted(everything(tmp_path)) == ["model.safetensors"]


# -- all or nothing ------------------------------------------------------------------------------
def _stop(done: int, total: int) -> None:
    if done > total // 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [None, 64])
@pytest.mark.parametrize("after", [None, 32])
def test_an_interrupted_save_changes_nothing(tmp_path: Path, before: int | None, after: int | None) -> None:
    """Stopped in the middle, files and shards are what they were before, and no temporary file stays."""
    save_safetensors(SMALL, tmp_path, max_shard_size=before)
    expected = everything(tmp_path)
    changed = {name: value + 1 for name, value in SMALL.items()}
    with pytest.raises(KeyboardInterrupt):
        save_safetensors(changed, tmp_path, max_shard_size=after, progress=_stop)
    assert everything(tmp_path) == expected


class _Broken(torch.Tensor):
    """A tensor that can be looked at and not read."""

    def detach(self) -> Any:
        raise RuntimeError("the device is gone")


def test_a_tensor_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    """The runtime's own error comes through, and the folder is as it was."""
    save_safetensors(SMALL, tmp_path)
    expected = everything(tmp_path)
    with pytest.raises(RuntimeError, match="the device is gone"):
        save_safetensors({"a": torch.ones(2), "b": torch.ones(2).as_subclass(_Broken)}, tmp_path, max_shard_size=4)
    assert everything(tmp_path) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_write_that_the_system_refuses_changes_nothing(tmp_path: Path) -> None:
    """A file that cannot grow is our error with the system's words and the file's name, and the folder is as it was."""
    save_safetensors(SMALL, tmp_path)
    expected = everything(tmp_path)
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from devicekit.weights.saving import save_safetensors, WeightsError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try: save_safetensors({'a': np.ones(10), 'b': np.ones(1 << 16)}, sys.argv[1])\n"
        "except WeightsError as exc: print(exc, type(exc.__cause__).__name__)\n"
        "assert 'torch' not in sys.modules"
    )
    done = child(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors could not be written" in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.endswith("OSError\n")
    assert everything(tmp_path) == expected


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    """What was there before is whole after the saving process ended without a word."""
    save_safetensors(SMALL, tmp_path)
    expected = everything(tmp_path)
    code = (
        "import os, sys, numpy as np\n"
        "from devicekit.weights.saving import save_safetensors\n"
        "save_safetensors({'a': np.ones(10)}, sys.argv[1], progress=lambda done, total: os._exit(7))"
    )
    assert child(code, tmp_path).returncode == 7
    assert expected.items() <= everything(tmp_path).items()


@pytest.mark.parametrize("lost", ["a", "b", "last"])
def test_renames_that_fail_are_taken_back(tmp_path: Path, lost: str) -> None:
    """Where one of several new files cannot take its place, all old ones are back, and no new one stays."""
    old = {"a": b"old a", "last": b"old last", "unrelated": b"mine"}
    for name, data in old.items():
        (tmp_path / name).write_bytes(data)

    def replace_all() -> None:
        with Replacement(tmp_path) as new:
            for name in ("a", "b", "last"):
                with new.file(name) as append:
                    append(b"new")
            for path in tmp_path.glob(f".{lost}.*.tmp"):
                path.unlink()
            new.commit(["unrelated"])

    with pytest.raises(WeightsError, match=f"{lost} could not be written") as caught:
        replace_all()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert everything(tmp_path) == old


class _Watched(Replacement):
    """Looks at the folder whenever what was done so far is on the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seen: list[dict[str, bytes]] = []

    def _sync(self) -> None:
        super()._sync()
        found = everything(self.folder)
        self.seen.append({name: data for name, data in found.items() if not name.startswith(".")})


def test_old_and_new_shards_are_never_indexed_together(tmp_path: Path) -> None:
    """The old index goes before any shard is replaced, and the new one comes when all are."""
    for name in ("a", "b", "index"):
        (tmp_path / name).write_bytes(b"old")
    with _Watched(tmp_path) as new:
        for name in ("a", "b", "index"):
            with new.file(name) as append:
                append(b"new")
        new.commit([])
    assert new.seen == [
        {},
        {"a": b"new", "b": b"new"},
        {"a": b"new", "b": b"new", "index": b"new"},
    ]
    assert everything(tmp_path) == new.seen[-1]


def test_a_single_file_is_always_there(tmp_path: Path) -> None:
    """One new file takes the place of the old one in a single step, and the rest goes after it."""
    for name in ("a", "superseded"):
        (tmp_path / name).write_bytes(b"old")
    with _Watched(tmp_path) as new:
        with new.file("a") as append:
            append(b"new")
        new.commit(["superseded"])
    assert new.seen == [{"a": b"new", "superseded": b"old"}]
    assert everything(tmp_path) == {"a": b"new"}


def test_loaded_tensors_survive_their_file(tmp_path: Path) -> None:
    """Tensors that are mapped from a file keep their values when another version is saved over it."""
    path = save_safetensors({"w": torch.arange(1000.0)}, tmp_path / "w.safetensors")
    loaded = safetensors.torch.load_file(path)
    mapped = np.memmap(path, mode="r")
    before = bytes(mapped)
    save_safetensors({"w": loaded["w"] + 1, "same": loaded["w"]}, path)
    assert bytes(mapped) == before
    assert torch.equal(loaded["w"], torch.arange(1000.0))
    assert torch.equal(safetensors.torch.load_file(path)["w"], torch.arange(1000.0) + 1)


def test_two_savers_leave_one_whole_file(tmp_path: Path) -> None:
    """Threads that save to one path leave the work of one of them, and nothing else."""
    path = tmp_path / "w.safetensors"

    def save(number: int) -> None:
        save_safetensors({"w": np.full(1 << 16, number)}, path)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(everything(tmp_path)) == ["w.safetensors"]
    assert len(np.unique(safetensors.numpy.load_file(path)["w"])) == 1


# -- what cannot be saved ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: 3.5, "float"),
        (lambda: None, "NoneType"),
        (lambda: [torch.ones(2)], "list"),
        (lambda: torch.ones(2, device="meta"), "has no values"),
        (lambda: torch.eye(2).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.ones(2, dtype=torch.complex128), "no format for torch.complex128"),
        (lambda: torch.nn.LazyLinear(2).weight, "has no shape yet"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "nested"),
        (lambda: tensor_of(FORMATS["F4"], (1,)).reshape(()), "packed along the last dimension"),
        (lambda: np.ones(2, dtype=np.complex128), "no format for complex128"),
        (lambda: np.array(["text"]), "no format for <U4"),
        (lambda: np.array([None]), "no format for object"),
        (lambda: np.zeros(2, dtype=[("a", "f4")]), "no format for"),
        (lambda: np.ma.masked_array([1, 2], [True, False]), "its mask would be lost"),
    ],
)
def test_what_no_file_can_hold_is_named(tmp_path: Path, make: Callable[[], Any], reason: str) -> None:
    """The error says which name, why not and what to do, before anything is written."""
    with pytest.raises(WeightsError, match=reason) as caught:
        save_safetensors({"good": np.ones(2), "layer.bad": make()}, tmp_path / "new")
    assert "'layer.bad'" in caught.value.what
    assert caught.value.try_
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning")
def test_quantized_tensors_are_not_saved_without_their_scale(tmp_path: Path) -> None:
    """A quantized tensor is refused with a way to save it."""
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    with pytest.raises(WeightsError, match="its scale would be lost"):
        save_safetensors({"w": quantized}, tmp_path)


def test_tensors_without_memory_of_their_own_are_never_read(tmp_path: Path) -> None:
    """Wrappers and fakes are an error, and not the bytes at address zero."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        fake = torch.ones(2)
    for tensor in (fake, torch.Tensor._make_wrapper_subclass(Wrapper, (2,))):  # type: ignore[attr-defined]
        with pytest.raises(WeightsError, match="keeps its values elsewhere"):
            save_safetensors({"w": tensor}, tmp_path)
    torch.func.vmap(lambda row: _refused(row, tmp_path))(torch.ones(3, 2))


def _refused(tensor: Any, folder: Path) -> Any:
    with pytest.raises(WeightsError, match="keeps its values elsewhere"):
        save_safetensors({"w": tensor}, folder)
    return tensor


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        ([torch.ones(1)], "from a list"),
        (torch.ones(1), "from a Tensor"),
        ({3: np.ones(1)}, "'3' is a int"),
        ({"__metadata__": np.ones(1)}, "keeps its own texts"),
        ({"\ud800": np.ones(1)}, "no Unicode text"),
    ],
)
def test_what_has_no_names_cannot_be_saved(tmp_path: Path, obj: Any, reason: str) -> None:
    """Only modules, and mappings whose names a file can hold, are saved."""
    with pytest.raises(WeightsError, match=reason):
        save_safetensors(obj, tmp_path / "w.safetensors")
    assert everything(tmp_path) == {}


# -- memory and progress -------------------------------------------------------------------------
@given(
    shape=st.lists(st.integers(1, 5), max_size=5).map(tuple),
    most=st.integers(1, 200),
    axes=st.randoms(use_true_random=False),
)
def test_parts_are_the_whole_in_order(shape: tuple[int, ...], most: int, axes: Any) -> None:
    """Views of at most so many bytes, or of one element, together hold all elements in order, of arrays and tensors."""
    order = axes.sample(range(len(shape)), len(shape))
    array = np.arange(math.prod(shape), dtype=np.int16).reshape(shape).transpose(order)
    for whole in (array, torch.from_numpy(array)):
        parts = list(in_parts(whole, max(2, most)))
        assert all(part.nbytes <= max(2, most) for part in parts)
        assert b"".join(plain_bytes(part) for part in parts) == array.tobytes()


def test_saving_takes_the_memory_of_one_part(tmp_path: Path) -> None:
    """An array out of order is copied part by part, and one in order not at all, however large it is."""
    array = np.zeros((4, PART // 8 + 1000), np.float64)
    for value, most in ((array, 4 << 20), (array.T, PART + (4 << 20))):
        tracemalloc.start()
        try:
            save_safetensors({"w": value}, tmp_path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < most


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    """The callback hears of each tensor, and of each part of a large one, from the thread that saves."""
    told: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.get_ident())

    shared = torch.zeros(PART + 8, dtype=torch.uint8)
    save_safetensors({"a": torch.ones(4), "b": shared, "again": shared}, tmp_path, progress=progress)
    total = 16 + PART + 8
    assert told == [(16, total), (16 + PART, total), (total, total)]
    assert threads == {threading.get_ident()}


# -- hosts and devices ---------------------------------------------------------------------------
def test_arrays_are_saved_without_torch(tmp_path: Path) -> None:
    """A process that only uses NumPy imports no torch to save its arrays."""
    code = (
        "import sys, numpy as np\n"
        "from devicekit.weights.saving import save_safetensors\n"
        "save_safetensors({'a': np.arange(6).reshape(2, 3).T}, sys.argv[1])\n"
        "assert 'torch' not in sys.modules"
    )
    done = child(code, tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert loaded["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.slow
def test_tensors_of_a_device_are_brought_over_in_parts(tmp_path: Path) -> None:
    """Large, turned, tied and conjugate tensors of another device are saved by value, a part at a time."""
    code = (
        "import sys, torch\n"
        "from devicekit.testing.simulated_npu import install\n"
        "install('1GiB')\n"
        "from devicekit.weights.saving import save_safetensors\n"
        "large = torch.arange(18 << 20, dtype=torch.int32, device='npu').reshape(2, -1)\n"
        "values = {'large': large, 'turned': large[:, :100].T, 'tied': large, 'scalar': large[1, 1],\n"
        "          'p': torch.nn.Parameter(large[0, :3] / 2), 'on the host': torch.ones(2)}\n"
        "told = []\n"
        "save_safetensors(values, sys.argv[1], progress=lambda done, total: told.append(done))\n"
        "assert len(told) == 6, told\n"
        "save_safetensors(torch.nn.Linear(2, 3).to('npu'), sys.argv[1] + '/module')\n"
    )
    done = child(code, tmp_path)
    if "cannot be installed: torch " in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    large = torch.arange(18 << 20, dtype=torch.int32).reshape(2, -1)
    assert torch.equal(loaded["large"], large)
    assert torch.equal(loaded["turned"], large[:, :100].T)
    assert torch.equal(loaded["p"], large[0, :3] / 2)
    assert torch.equal(loaded["scalar"], large[1, 1])
    assert torch.equal(loaded["on the host"], torch.ones(2))
    assert header_of(tmp_path / "model.safetensors").metadata == {"format": "pt", "tied": "large"}
    assert set(safetensors.torch.load_file(tmp_path / "module" / "model.safetensors")) == {"weight", "bias"}
