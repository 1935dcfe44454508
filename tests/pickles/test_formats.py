"""Every format and dtype that is converted holds the same tensors as torch.load and NumPy read."""

from __future__ import annotations

import argparse
import collections
import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from devicekit.pickles.conversion import VALUES
from tests.pickles.making import (
    FOUR,
    archive,
    converted,
    loaded,
    metadata,
    of_torch,
    op_dict,
    op_int,
    op_ints,
    op_storage,
    op_tensor,
    op_text,
    program,
    refused,
    same,
    saved,
)

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]
NEWER = {torch.uint64, torch.uint32, torch.uint16, *DTYPES[-5:]}
"""Those without a class of storages. torch 2.13 writes them in the legacy format and cannot read them back."""
FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


def model() -> torch.nn.Module:
    """Parameters, buffers, whole numbers."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    """A tensor of each dtype is the same, bit by bit, and so is a scalar and one without elements."""
    raw = torch.randint(0, 2, (6 * dtype.itemsize,), dtype=torch.uint8)
    whole = raw.view(dtype).reshape(2, 3)
    state = {"whole": whole, "scalar": whole[0, 0].clone(), "empty": whole[:0].clone()}
    converted(saved(state, **FORMATS[form]), tmp_path)
    same(loaded(tmp_path), state)
    if form == "zip" or dtype not in NEWER:
        same(loaded(tmp_path), torch.load(tmp_path / "old.pt", weights_only=True))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, form: str, tmp_path: Path) -> None:
    """A state dict saved in protocols 2 to 5 is the same."""
    state = model().state_dict()
    converted(saved(state, pickle_protocol=protocol, **FORMATS[form]), tmp_path)
    same(loaded(tmp_path), state)


@pytest.mark.parametrize("form", FORMATS)
def test_views(form: str, tmp_path: Path) -> None:
    """Views with offsets, strides, repeated and single elements become what they show."""
    base = torch.randn(6, 8)
    state = {
        "transposed": base.t(),
        "row": base[3],
        "block": base[1:4, 2:7:2],
        "repeated": base[:1, :1].expand(5, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "single": base[2:3, 4:5].t(),
        "bytes": torch.arange(24, dtype=torch.uint8).reshape(4, 6).t(),
        "eight": torch.randn(4, 6).to(torch.float8_e5m2).t(),
    }
    converted(saved(state, **FORMATS[form]), tmp_path)
    same(loaded(tmp_path), {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()})


@pytest.mark.parametrize("form", FORMATS)
def test_tied_tensors_are_written_once(form: str, tmp_path: Path) -> None:
    """A second name of the same tensor goes into the metadata, from where safetensors' load_model and ours tie it."""
    from devicekit import DeviceManager

    weight = torch.nn.Parameter(torch.randn(3, 4))
    done = converted(saved({"embed": weight, "head": weight, "part": weight[:2]}, **FORMATS[form]), tmp_path)
    assert done.tied == {"head": "embed"}
    assert metadata(tmp_path)["head"] == "embed"
    same(loaded(tmp_path), {"embed": weight.data, "part": weight.data[:2]})
    assert torch.equal(DeviceManager("cpu").load_safetensors(tmp_path / "new.safetensors")["head"], weight)


def test_a_tied_model_loads_with_safetensors(tmp_path: Path) -> None:
    """safetensors.torch.load_model takes the new file of a model with tied weights, strictly."""
    from safetensors.torch import load_model

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    old, new = Tied(), Tied()
    converted(saved(old.state_dict()), tmp_path)
    missing, unexpected = load_model(new, tmp_path / "new.safetensors")
    assert (set(missing), list(unexpected)) == (set(), [])
    assert torch.equal(new.head.weight, old.embed.weight)


@pytest.mark.parametrize("form", FORMATS)
def test_parts_and_values(form: str, tmp_path: Path) -> None:
    """Nested tensors are named by their keys; plain values are kept as JSON; what is neither is told."""
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    checkpoint = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": float("nan"),
        "best": np.float32(0.5),
        "names": ["a", None, True],
        "args": argparse.Namespace(seed=1),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
    }
    done = converted(saved(checkpoint, **FORMATS[form]), tmp_path)
    found = loaded(tmp_path)
    assert torch.equal(found["state_dict.0.weight"], net[0].weight)
    assert torch.equal(found["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    values = json.loads(metadata(tmp_path)[VALUES])
    assert values["optimizer"]["param_groups"][0]["lr"] == 0.001
    assert {key: values[key] for key in ("epoch", "loss", "best", "names", "shape", "dtype", "device")} == {
        "epoch": 3,
        "loss": "nan",
        "best": 0.5,
        "names": ["a", None, True],
        "shape": [1, 2],
        "dtype": "torch.float16",
        "device": "cuda:1",
    }
    assert done.left_out["an object of the class 'argparse.Namespace'"] == 1
    assert done.parts == {"state_dict": 9, "optimizer": 18}


def test_one_part_alone(tmp_path: Path) -> None:
    """--key takes what lies under one or several keys, also with dots in them, and --strip-prefix shortens names."""
    net = model()
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    data = saved({"a": {"b.c": state}, "other": torch.ones(2)})
    assert converted(data, tmp_path, key="a.b.c", prefix="module.").parts == {}
    same(loaded(tmp_path), net.state_dict())


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    """The keys that are there are named; so is what the names begin with."""
    data = saved({"model": {"w": torch.ones(2)}})
    refused(data, tmp_path, "has no 'state_dict'", "'model'", key="state_dict")
    refused(data, tmp_path, "has no names with 'module.'", "'model.w'", prefix="module.")


@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16", "float64"])
def test_casts(target: str, tmp_path: Path) -> None:
    """Floating-point tensors are cast as torch casts them, also views; all others stay as they are."""
    dtype = getattr(torch, target)
    state = {"a": torch.randn(5, 3), "b": torch.randn(4, 4).bfloat16().t(), "c": torch.arange(3), "d": torch.ones(0)}
    converted(saved(state), tmp_path, dtype=target)
    same(loaded(tmp_path), {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in state.items()})


def test_a_module_that_was_saved_whole(tmp_path: Path) -> None:
    """Of torch's own layers the parameters and the lasting buffers are read, under the names of the state dict."""
    net = model()
    net.register_buffer("fleeting", torch.ones(2), persistent=False)
    net.seen = [torch.ones(3)]
    done = converted(saved(net), tmp_path)
    same(loaded(tmp_path), net.state_dict())
    assert done.left_out == {
        "the class and the settings of a module, whose tensors are kept": 5,
        "a tensor in an object that is left out": 2,
    }


def test_parameters_with_attributes(tmp_path: Path) -> None:
    """The numbers are kept, and that attributes are not is told."""
    parameter, tensor = torch.nn.Parameter(torch.ones(2)), torch.zeros(3)
    parameter.note, tensor.note = "a", "b"
    done = converted(
        saved(
            {
                "p": parameter,
                "t": tensor,
            }
        ),
        tmp_path,
    )
    same(loaded(tmp_path), {"p": torch.ones(2), "t": torch.zeros(3)})
    assert (done.left_out["attributes of a parameter"], done.left_out["attributes of a tensor"]) == (1, 1)


@pytest.mark.parametrize("value", [torch.arange(3.0), torch.arange(3.0).untyped_storage(), [torch.arange(3.0)]])
def test_a_tensor_alone(value: Any, tmp_path: Path) -> None:
    """A file that holds one tensor, a storage or a list has a name for it."""
    converted(saved(value), tmp_path)
    ((name, found),) = loaded(tmp_path).items()
    assert name == ("0" if isinstance(value, list) else "tensor")
    assert found.numpy().tobytes() == torch.arange(3.0).numpy().tobytes()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    """The parameters and buffers of a TorchScript file are read; its code and its constants are not."""
    net = model().eval()
    torch.jit.save(torch.jit.trace(net, torch.ones(1, 4)), tmp_path / "old.pt")
    assert converted(tmp_path / "old.pt", tmp_path).kind == "TorchScript"
    state = {name: tensor for name, tensor in net.state_dict().items() if tensor.dim()}
    assert {name: loaded(tmp_path)[name].tolist() for name in state} == {n: t.tolist() for n, t in state.items()}


def test_big_endian_storages(tmp_path: Path) -> None:
    """Where the file says so the bytes of every number are turned round, those of complex ones by halves."""
    numbers = [1.5, -2.0, 3.25, 0.125]
    code = op_dict(
        w=op_tensor(op_ints(2, 2), op_ints(1, 2)),
        c=op_tensor(op_ints(2), op_ints(1), storage=op_storage("1", "ComplexFloatStorage", 2)),
        b=op_tensor(op_ints(4), op_ints(1), storage=op_storage("2", "ByteStorage", 4)),
    )
    data = struct.pack(">4f", *numbers)
    files = {
        "x/data.pkl": program(code),
        "x/byteorder": b"big",
        "x/data/0": data,
        "x/data/1": data,
        "x/data/2": b"abcd",
    }
    converted(archive(files), tmp_path)
    c = torch.view_as_complex(torch.tensor(numbers).reshape(2, 2))
    wanted = {
        "w": torch.tensor(numbers).reshape(2, 2).t().contiguous(),
        "c": c,
        "b": torch.tensor(list(b"abcd")).byte(),
    }
    same(loaded(tmp_path), wanted)


def test_views_of_storages_in_the_oldest_files(tmp_path: Path) -> None:
    """A storage that is a part of another, as torch saved them before 0.4, begins where it says."""
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    view = pickle.MARK + op_text("v") + op_int(1) + op_int(2) + pickle.TUPLE
    storage = op_storage()[: -len(pickle.TUPLE + pickle.BINPERSID)] + view + pickle.TUPLE + pickle.BINPERSID
    code = program(op_dict(w=op_tensor(op_ints(2), op_ints(1), storage=storage)))
    heads = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    converted(heads + code + pickle.dumps(["0"], 2) + (4).to_bytes(8, "little") + numbers, tmp_path)
    same(loaded(tmp_path), {"w": torch.tensor([2.0, 3.0])})


def test_a_file_of_python_2(tmp_path: Path) -> None:
    """Names and keys that were texts of Python 2 are read, and a list of pairs makes an ordered dictionary."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    tensor = op_tensor(op_ints(2, 2), op_ints(2, 1), storage=storage)
    code = b"\x80\x02ccollections\nOrderedDict\n](](U\x01w" + tensor + b"ee\x85R."
    converted(of_torch(code, _0=FOUR), tmp_path)
    assert list(loaded(tmp_path)) == ["w"]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_numpy(protocol: int, tmp_path: Path) -> None:
    """Arrays in any order of bytes and elements are the same in every protocol, long and short."""
    arrays = {
        "short": np.arange(6, dtype=np.int16).reshape(2, 3),
        "long": np.random.default_rng(0).normal(size=(50, 60)),
        "columns": np.asfortranarray(np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32)),
        "swapped": np.arange(1000, dtype=">i4"),
        "flags": np.array([[True], [False]]),
        "half": np.ones(3, np.float16),
        "complex": np.ones((2, 2), np.complex64) * 1j,
        "scalar": np.array(3, np.uint8),
        "empty": np.zeros((0, 3)),
        "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
    }
    done = converted(pickle.dumps({**arrays, "step": np.int64(5), "on": np.bool_(True)}, protocol), tmp_path)
    found = loaded(tmp_path)
    assert found.pop("bf16").tolist() == [0, 1, 2, 3]
    del arrays["bf16"]
    assert {name: (array.tolist(), array.shape) for name, array in arrays.items()} == {
        name: (tensor.tolist(), tuple(tensor.shape)) for name, tensor in found.items()
    }
    assert json.loads(metadata(tmp_path)[VALUES]) == {"step": 5, "on": True}
    assert done.kind == "a pickle"
    assert metadata(tmp_path)["format"] == "np"


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_torch(protocol: int, tmp_path: Path) -> None:
    """A state dict that was pickled without torch.save, tied tensors and all."""
    weight = torch.randn(40, 50)
    converted(pickle.dumps({"a": weight, "b": weight.t(), "c": torch.nn.Parameter(weight)}, protocol), tmp_path)
    same(
        loaded(tmp_path),
        {"a": weight, "b": weight.t().contiguous()} | ({"c": weight} if "c" in loaded(tmp_path) else {}),
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Any, tmp_path: Path) -> None:
    """Each array has the name that it has in NumPy, compressed or not."""
    arrays = {"a": np.arange(5000.0).reshape(50, 100), "b.c": np.asfortranarray(np.arange(6).reshape(2, 3))}
    save(tmp_path / "old.npz", **arrays)
    converted(tmp_path / "old.npz", tmp_path)
    assert {n: t.tolist() for n, t in loaded(tmp_path).items()} == {n: a.tolist() for n, a in arrays.items()}


def test_npy(tmp_path: Path) -> None:
    """One array is called tensor."""
    np.save(tmp_path / "old.npy", np.arange(6.0).reshape(2, 3))
    converted(tmp_path / "old.npy", tmp_path)
    assert loaded(tmp_path)["tensor"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_an_array_can_hold_besides_numbers_is_told(tmp_path: Path) -> None:
    """Texts and structures are left out, and said to be."""
    odd = {
        "w": np.ones(2),
        "text": np.array(["a"]),
        "rows": np.zeros(1, [("a", "f4")]),
        "when": np.datetime64("2020-01-01"),
    }
    done = converted(pickle.dumps(odd), tmp_path)
    assert sorted(done.left_out) == [
        "a value of NumPy's of dtype 'M8'",
        "an array of dtype 'U1', which holds no numbers",
        "an array of dtype 'V', which holds no numbers",
    ]


HELD_BY_NONE = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
    "complex128": (lambda: torch.ones(2, dtype=torch.complex128), "no format for ComplexDoubleStorage"),
    "conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
    "meta": (lambda: torch.ones(2, device="meta"), "meta device"),
    "numpy's complex128": (lambda: np.ones(2, np.complex128), "no format for the dtype 'c16'"),
    "masked": (lambda: np.ma.masked_array([1, 2], [0, 1]), "numpy.ma"),
}


@pytest.mark.parametrize("case", HELD_BY_NONE)
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_what_no_file_of_tensors_can_hold(case: str, tmp_path: Path) -> None:
    """It is refused by its name, and nothing is written."""
    make, words = HELD_BY_NONE[case]
    refused(saved({"good": torch.ones(1), "odd": make()}), tmp_path, words)


def test_a_subclass_of_tensor(tmp_path: Path) -> None:
    """Its class is named; it is no plain tensor."""
    refused(saved({"w": Special(torch.ones(2))}), tmp_path, "Special")


class Special(torch.Tensor):
    """What a subclass means by its numbers nobody else knows."""


def test_shards(tmp_path: Path) -> None:
    """A folder of shards becomes a folder of shards and an index, which transformers and we read."""
    from devicekit import DeviceManager, host
    from devicekit.pickles.conversion import Wish, convert

    state = model().state_dict()
    names = list(state)
    files = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    (tmp_path / "old").mkdir()
    for file, held in files.items():
        torch.save({name: state[name] for name in held}, tmp_path / "old" / file)
    places = {name: file for file, held in files.items() for name in held}
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    done = convert(tmp_path / "old", tmp_path / "new", Wish(), host.current())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert done.path == tmp_path / "new" / "model.safetensors.index.json"
    same(DeviceManager("cpu").load_safetensors(tmp_path / "new"), state)
    torch.save({}, tmp_path / "old" / next(iter(files)))
    (tmp_path / "other").mkdir()
    with pytest.raises(RuntimeError, match="does not agree with its shards"):
        convert(tmp_path / "old", tmp_path / "other", Wish(), host.current())


def test_a_counter_and_other_dictionaries(tmp_path: Path) -> None:
    """They are dictionaries here too, and sets are lists."""
    value = {
        "w": torch.ones(1),
        "counter": collections.Counter(a=2),
        "default": collections.defaultdict(list, b=[1]),
        "set": {1},
        "tuple": (1, math.pi),
        "plain": {1: {None: 2}},
    }
    converted(saved(value), tmp_path)
    assert json.loads(metadata(tmp_path)[VALUES]) == {
        "counter": {"a": 2},
        "default": {"b": [1]},
        "set": [1],
        "tuple": [1, math.pi],
        "plain": {"1": {"None": 2}},
    }


def test_what_is_too_long_for_the_metadata_is_told(tmp_path: Path) -> None:
    """A log of a million letters, bytes and enormous numbers are left out, and said to be."""
    value = {
        "w": torch.ones(1),
        "log": "x" * 1_000_000,
        "raw": b"abc",
        "huge": 1 << 5000,
        "odd": {(1, 2): 3},
        "kept": 1,
    }
    done = converted(saved(value), tmp_path)
    assert json.loads(metadata(tmp_path)[VALUES]) == {"kept": 1, "odd": {}}
    assert sorted(done.left_out) == [
        "a number of more than 300 digits",
        "a value of raw bytes",
        "a value under a key that is no text (a value)",
        "the value 'log', which takes 1000011 letters as JSON",
    ]


def test_zipfile_of_anything(tmp_path: Path) -> None:
    """A ZIP that neither torch nor NumPy wrote, and torch's own with compressed entries, are refused."""
    refused(archive({"a.txt": b"hello"}), tmp_path, "none that torch.save or numpy.savez wrote")
    packed = {"x/data.pkl": program(op_dict(w=op_tensor(op_ints(4), op_ints(1)))), "x/data/0": FOUR}
    refused(archive(packed, zipfile.ZIP_DEFLATED), tmp_path, "compressed, which torch.save never does")
