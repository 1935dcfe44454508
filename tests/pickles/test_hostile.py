"""Nothing in a file is executed, imported or believed: each attack ends in an error that says what it is."""

from __future__ import annotations

import io
import os
import pickle
import runpy
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from devicekit.errors import DeviceKitError
from devicekit.pickles.opening import UntrustedError
from tests.pickles.making import (
    FOUR,
    GOOD,
    archive,
    converted,
    loaded,
    of_torch,
    op_dict,
    op_int,
    op_ints,
    op_name,
    op_storage,
    op_tensor,
    op_text,
    program,
    refused,
    same,
    saved,
)

MARK = "it-ran"


class Call:
    """Pickled as a call of a function."""

    def __init__(self, what: Callable[..., Any], *args: Any) -> None:
        self.call = what, args

    def __reduce__(self) -> Any:
        return self.call


ATTACKS: dict[str, Call] = {
    "os.system": Call(os.system, f"touch {MARK}"),
    "exec": Call(exec, f"open({MARK!r}, 'w')"),
    "eval": Call(eval, f"open({MARK!r}, 'w')"),
    "open": Call(open, MARK, "w"),
    "Popen": Call(subprocess.Popen, ["touch", MARK]),
    "getattr": Call(getattr, Call(__import__, "os"), "system"),
    "__import__": Call(__import__, "antigravity"),
    "runpy": Call(runpy.run_path, MARK),
    "numpy.load": Call(np.load, MARK),
    "torch.load": Call(torch.load, MARK),
    "torch.hub": Call(torch.hub.load, "a/b", "c"),
    "torch.jit": Call(torch.jit.load, MARK),
    "map": Call(list, Call(map, os.system, [f"touch {MARK}"])),
}
WRAPPED: dict[str, Callable[[Any], bytes]] = {
    "alone": saved,
    "in a state dict": lambda attack: saved({"w": torch.ones(2), "nested": {"x": [attack]}}),
    "legacy": lambda attack: saved({"w": torch.ones(2), "x": attack}, _use_new_zipfile_serialization=False),
    "pickle 0": lambda attack: pickle.dumps({"w": np.ones(2), "x": attack}, 0),
    "pickle 2": lambda attack: pickle.dumps({"w": np.ones(2), "x": attack}, 2),
    "pickle 4": lambda attack: pickle.dumps({"w": np.ones(2), "x": attack}, 4),
}


@pytest.mark.parametrize("ignore", [False, True], ids=["", "unknown ones ignored"])
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_in_a_pickle_does_not_run(
    attack: str, wrapped: str, ignore: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with the name of what it would have called, also where unknown classes are ignored."""
    monkeypatch.chdir(tmp_path)
    error = refused(WRAPPED[wrapped](ATTACKS[attack]), tmp_path, "it would run what is no part", ignore_unknown=ignore)
    assert isinstance(error, UntrustedError)
    time.sleep(0.05 if attack == "Popen" else 0)
    assert not (tmp_path / MARK).exists()
    assert "antigravity" not in sys.modules


def test_the_attacks_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual way of loading runs them: the tests above would see it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(ATTACKS["os.system"]))
    assert (tmp_path / MARK).exists()


def _call(name: bytes) -> bytes:
    return name + op_text(f"touch {MARK}") + pickle.TUPLE1 + pickle.REDUCE


OTHER_WAYS: dict[str, tuple[bytes, str]] = {
    "INST": (pickle.MARK + op_text(f"touch {MARK}") + b"ios\nsystem\n", "os.system"),
    "OBJ": (pickle.MARK + op_name("os", "system") + op_text(f"touch {MARK}") + pickle.OBJ, "os.system"),
    "NEWOBJ": (op_name("os", "system") + op_text("x") + pickle.TUPLE1 + pickle.NEWOBJ, "os.system"),
    "NEWOBJ_EX": (op_name("os", "system") + b")" + pickle.EMPTY_DICT + pickle.NEWOBJ_EX, "os.system"),
    "STACK_GLOBAL": (_call(op_text("os") + op_text("system") + pickle.STACK_GLOBAL), "os.system"),
    "a name with dots": (_call(op_name("collections", "OrderedDict.__init__.__globals__")), "OrderedDict.__init__"),
    "torch's own imports": (_call(op_name("torch.nn.modules.module", "torch.os.system")), "torch.os.system"),
    "a module of layers": (_call(op_name("torch.nn.modules.module", "warnings")), "module.warnings"),
    "copyreg": (op_name("copyreg", "__newobj__") + op_name("os", "system") + pickle.TUPLE1 + b"R", "os.system"),
    "a name that is not called": (op_name("os", "system"), "os.system"),
    "a tensor rebuilt by another": (
        op_name("torch._tensor", "_rebuild_from_type_v2")
        + pickle.MARK + op_name("os", "system") + op_name("torch", "Tensor") + b")}" + pickle.TUPLE + b"R",
        "os.system",
    ),
    "a state for a class": (op_name("os", "environ") + op_dict(x=op_text("y")) + pickle.BUILD, "os.environ"),
    "a default factory": (op_name("collections", "defaultdict") + op_name("os", "getcwd") + b"\x85R", "os.getcwd"),
    "letters that move the cursor": (op_name("os\x1b[2J", "sys\x07tem"), "os\\x1b[2J"),
}  # fmt: skip


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_no_instruction_calls(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instruction that calls or looks up elsewhere only names here, and the name is refused."""
    monkeypatch.chdir(tmp_path)
    code, name = OTHER_WAYS[way]
    for data in (of_torch(program(op_dict(w=GOOD, x=code)), _0=FOUR), program(op_dict(x=code))):
        refused(data, tmp_path, name)
    assert not (tmp_path / MARK).exists()


def test_registered_extensions_are_not_looked_up(tmp_path: Path) -> None:
    """EXT1 would name what this process has registered with copyreg."""
    import copyreg

    copyreg.add_extension("os", "system", 77)
    try:
        refused(program(pickle.EXT1 + b"\x4d" + op_text("x") + b"\x85R"), tmp_path, "is no instruction for weights")
    finally:
        copyreg.remove_extension("os", "system", 77)


def test_a_second_pickle_is_not_overlooked(tmp_path: Path) -> None:
    """What follows after the end is told, in each format."""
    second = pickle.dumps(ATTACKS["os.system"])
    refused(pickle.dumps({"w": np.ones(2)}) + second, tmp_path, "bytes follow after its end")
    legacy = saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    refused(legacy + second, tmp_path, "bytes follow after its end")
    refused(of_torch(program(op_dict(w=GOOD)) + second, _0=FOUR), tmp_path, "bytes follow after the end of its pickle")


class Config:
    """A class of somebody's program."""

    def __init__(self, weight: Any = None) -> None:
        self.weight = weight


def test_an_unknown_class(tmp_path: Path) -> None:
    """It is refused with its name and its place; ignored on demand, and then what is lost with it is told."""
    data = saved({"w": torch.ones(2), "a": Config(), "b": Config(torch.ones(3))})
    error = refused(data, tmp_path, "tests.pickles.test_hostile.Config", "at byte", "--ignore-unknown")
    assert isinstance(error, UntrustedError)
    assert [(name, count) for name, count, _ in error.names] == [("tests.pickles.test_hostile.Config", 1)]
    done = converted(data, tmp_path, ignore_unknown=True)
    same(loaded(tmp_path), {"w": torch.ones(2)})
    assert done.left_out == {
        "an object of the class 'tests.pickles.test_hostile.Config'": 2,
        "a tensor in an object that is left out": 1,
    }


class Net(torch.nn.Module):
    """A model of somebody's program."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
        self.register_buffer("mean", torch.ones(2))


def test_a_model_of_an_unknown_class(tmp_path: Path) -> None:
    """With --ignore-unknown its parameters are read as in its state dict, and its class is not imported."""
    net = Net()
    with zipfile.ZipFile(io.BytesIO(saved({"model": net}))) as old:
        held = {n: old.read(n).replace(b"test_hostile", b"nowhere_test") for n in old.namelist()}
    data = archive(held)
    refused(data, tmp_path, "tests.pickles.nowhere_test.Net")
    converted(data, tmp_path, ignore_unknown=True)
    same(loaded(tmp_path), {f"model.{name}": tensor for name, tensor in net.state_dict().items()})
    assert "tests.pickles.nowhere_test" not in sys.modules


# -- resources -------------------------------------------------------------------------------------
def _doubled(levels: int) -> bytes:
    """Each tuple holds the one before twice; the last one stays in the memo."""
    return b")q\0" + b"0h\0h\0\x86q\0" * levels


def _lists(levels: int) -> bytes:
    return b"]q\0" + b"]q\1(h\0h\0eq\0" * levels


EXPENSIVE: dict[str, tuple[bytes, str]] = {
    "tuples of tuples": (_doubled(60), "unfold to many times"),
    "lists of lists": (_lists(60), "unfold to many times"),
    "a key of tuples": (_doubled(60) + b"0" + op_dict(w=GOOD, x=b"}h\0Ns"), ""),
    "a device of tuples": (_doubled(60) + b"q\0ctorch\ndevice\nh\0\x85R", "makes no sense"),
    "a list in itself": (b"]q\0h\0a", "in themselves"),
    "a dictionary in itself": (b"}q\0X\1\0\0\0ah\0s", "in themselves"),
    "deep": (b"]" * 100_000 + b"a" * 99_999, "more than 100 deep"),
    "deep tuples as a key": (op_dict(w=GOOD, x=b"})" + b"\x85" * 200_000 + b"Ns"), ""),
    "bytes that are not there": (
        pickle.BINBYTES8 + (1 << 62).to_bytes(8, "little") + b"x",
        "in the middle of something",
    ),
    "a text that is not there": (pickle.BINUNICODE8 + (1 << 40).to_bytes(8, "little") + b"x", "longer than"),
    "a frame that is not there": (pickle.FRAME + (1 << 62).to_bytes(8, "little") + b"N", "holds no tensors"),
    "a number of a million digits": (pickle.LONG + b"9" * 1_000_000 + b"L\n", "1000000 digits"),
    "a number of a megabyte": (pickle.LONG4 + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20), "1048576 bytes"),
    "copies of a list": (
        op_name("builtins", "list") + b"q\0(" + b"N" * 100_000 + b"tq\1" + b"0h\0h\1\x85R" * 100_000,
        "more than 20000000 instructions",
    ),
    "copies of a text": (
        op_name("_codecs", "encode")
        + b"q\0"
        + op_text("x" * 1_000_000)
        + op_text("ascii")
        + b"\x86q\1("
        + b"h\0h\1R" * 10_000
        + b"t",
        "copies many times what it holds",
    ),
    "a long name many times": (
        op_text("x" * 1_000_000) + b"q\0]q\1](" + b"h\0h\0\x93" * 100_000 + b"e",
        "more than 1000 letters",
    ),
    "a long key many times": (
        op_text("x" * 1_000_000) + b"q\0](" + b"}h\0Ns" * 10_000 + b"e",
        "its names have more than",
    ),
    "a long text many times": (
        op_dict(w=GOOD, x=op_text("x" * 1_000_000) + b"q\0](" + b"h\0" * 10_000 + b"e\x86"),
        "",
    ),
    "a place in the memory of pickle": (b"Nr\xff\xff\xff\x7f", "holds no tensors"),
    "a bytearray of a terabyte": (op_name("builtins", "bytearray") + op_int(1 << 40) + b"\x85R", "holds no tensors"),
}


@pytest.mark.parametrize("case", EXPENSIVE)
def test_a_small_file_takes_little(case: str, tmp_path: Path) -> None:
    """What would take an age or all memory is refused at once, or read for what it is."""
    code, words = EXPENSIVE[case]
    data = of_torch(program(code), _0=FOUR)
    began = time.process_time()
    if words:
        refused(data, tmp_path, words)
    else:
        converted(data, tmp_path)
        assert list(loaded(tmp_path)) == ["w"]
    assert time.process_time() - began < 60


def test_a_view_that_repeats_its_elements_without_end(tmp_path: Path) -> None:
    """Four numbers that would become terabytes are refused; shapes beyond 64 bits too."""
    data = of_torch(program(op_dict(w=op_tensor(op_ints(1 << 20, 1 << 20), op_ints(0, 0)))), _0=FOUR)
    refused(data, tmp_path, "repeat their elements")
    data = of_torch(program(op_dict(w=op_tensor(op_ints(*[1 << 62] * 40), op_ints(*[0] * 40)))), _0=FOUR)
    refused(data, tmp_path, "repeat their elements")


def test_a_zip_bomb(tmp_path: Path) -> None:
    """A compressed array may say that it is large, and is refused where it is enormous."""
    head = b"\x93NUMPY\1\0" + (118).to_bytes(2, "little")
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296,), }"
    inner = head + text.ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made, made.open("a.npy", "w", force_zip64=True) as file:
        file.write(inner + bytes(1000))
    made_up = bytearray(buffer.getvalue())
    refused(bytes(made_up), tmp_path, "do not fit its shape")
    where = made_up.rindex(b"PK\1\2")
    made_up[where + 24 : where + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    refused(bytes(made_up), tmp_path, "cannot be converted")


# -- broken files ----------------------------------------------------------------------------------
WHOLE = of_torch(program(op_dict(w=GOOD)), _0=FOUR)
LEGACY = saved({"w": torch.ones(4)}, _use_new_zipfile_serialization=False)


def _of(tensor: bytes, data: bytes = FOUR) -> bytes:
    return of_torch(program(op_dict(w=tensor)), _0=data)


def _stored(storage: bytes) -> bytes:
    return _of(op_tensor(op_ints(4), op_ints(1), storage=storage))


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be converted"),
    "one byte": (b"\x80", "cannot be converted"),
    "cut off": (WHOLE[:-30], "ZIP archive is broken"),
    "a pickle that is cut off": (of_torch(program(op_dict(w=GOOD))[:-9], _0=FOUR), "in the middle of something"),
    "legacy, cut off": (LEGACY[:-1], "in the middle of something"),
    "legacy, another version": (LEGACY.replace(b"M\xe9\x03.", b"M\xe8\x03."), "its version is none"),
    "legacy, another list": (LEGACY[: LEGACY.rindex(b"]")] + b"]." + FOUR, "does not name those"),
    "no storage": (of_torch(program(op_dict(w=GOOD))), "lacks 'x/data/0'"),
    "a short storage": (_of(GOOD, FOUR[:-1]), "would have 16 bytes, and 15 are there"),
    "a tensor beyond its storage": (_of(op_tensor(op_ints(2, 2), op_ints(2, 2))), "needs 20 bytes of a storage of 16"),
    "an offset beyond it": (_of(op_tensor(op_ints(4), op_ints(1), 1)), "needs 20 bytes of a storage of 16"),
    "an offset before it": (_of(op_tensor(op_ints(2), op_ints(1), -1)), "do not fit each other"),
    "negative strides": (_of(op_tensor(op_ints(2), op_ints(-1), 1)), "no whole numbers from 0 on"),
    "a negative shape": (_of(op_tensor(op_ints(-1), op_ints(1))), "no whole numbers from 0 on"),
    "a shape of truth": (_of(op_tensor(b"\x88\x85", op_ints(1))), "no whole numbers from 0 on"),
    "fewer strides": (_of(op_tensor(op_ints(2, 2), op_ints(1))), "do not fit each other"),
    "65 dimensions": (_of(op_tensor(op_ints(*[1] * 65), op_ints(*[1] * 65))), "without a shape"),
    "too large without its zeros": (_of(op_tensor(op_ints(0, 1 << 62), op_ints(1, 1))), "even without its zeros"),
    "no storage in a tensor": (_of(op_tensor(op_ints(4), op_ints(1), storage=b"N")), "a tensor without a storage"),
    "a storage of an unknown class": (_stored(op_storage(kind="Storage")), "'torch.Storage' at byte"),
    "a storage with a negative count": (_stored(op_storage(count=-1)), "that cannot be"),
    "a storage under a path": (_stored(op_storage("../../data.pkl")), "lacks 'x/data/../../data.pkl'"),
    "a persistent text": (of_torch(program(b"Pstorage\n")), "no instruction for weights"),
    "another persistent id": (of_torch(program(op_text("x") + b"Q")), "that is no storage"),
    "a persistent id in a plain pickle": (program(op_text("x") + b"Q"), "something outside of it"),
    "a buffer outside of the file": (program(b"\x97"), "no instruction for weights"),
    "protocol 200": (b"\x80\xc8N.", "of protocol 200"),
    "no order of bytes": (archive({"x/data.pkl": program(b"N"), "x/byteorder": b"middle"}), "in which order"),
    "two archives in one": (archive({"x/data.pkl": b"N.", "y/data.pkl": b"N."}), "none that torch.save"),
    "a stack that is empty": (program(b"0"), "takes more than it has put down"),
    "a value under a mark": (program(b"N(R"), "takes more than it has put down"),
    "an unknown place": (program(b"h\5"), "makes no sense"),
    "a call of a text": (program(op_text("os") + b")R"), "calls what is no class"),
    "a call without a tuple": (program(op_name("torch", "Size") + b"]R"), "calls what is no class"),
    "the wrong arguments": (program(op_name("torch", "device") + b")R"), "makes no sense"),
    "items of a text": (program(op_text("a") + b"(e"), "appends to what is no list"),
    "a key without a value": (program(b"}(Nu"), "a key without a value"),
    "state for a number": (program(b"K\1}b"), "gives a state to what has none"),
    "a text that is none": (program(b"X\1\0\0\0\xff"), "makes no sense"),
    "an array of too few bytes": (
        pickle.dumps(np.arange(4.0), 2).replace(b"K\4\x85", b"K\5\x85"),
        "do not fit its shape",
    ),
    "two names that read the same": (program(b"}(K\1NX\1\0\0\0001Nu"), "two keys that both read '1'"),
    "no tensors": (saved({"a": 1}), "holds no tensors"),
    "a name without Unicode": (_of(GOOD).replace(b"X\1\0\0\0w", b"V\\ud800\n"), "cannot be converted"),
    "safetensors": ((2).to_bytes(8, "little") + b"{}", "safetensors already"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip"),
    "joblib, compressed": (b"\x78\x9c\0\0\0\0\0", "joblib"),
    "joblib": (program(op_name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"), "joblib wrote it"),
    "the tar of 0.1": (b"sys_info".ljust(257, b"\0") + b"ustar" + bytes(300), "tar archive"),
    "a web page": (b"<!doctype html><html></html>", "a web page"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "GGUF": (b"GGUF\3\0\0\0\0\0\0\0\0\0\0\0", "GGUF"),
    ".npy, cut off": (b"\x93NUMPY\1\0\x76\0{", "its array was cut off"),
    ".npy of objects": (
        b"\x93NUMPY\1\0\x3b\0{'descr':'|O','fortran_order':False,'shape':(1,)}          \n" + pickle.dumps([1]),
        "holds no tensors",
    ),
    ".npy with a program": (b"\x93NUMPY\1\0\x20\0" + b"__import__('os').system('true')\n", "is no description of one"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file(case: str, tmp_path: Path) -> None:
    """It is refused with the reason."""
    data, words = BROKEN[case]
    refused(data, tmp_path, words)


def test_an_archive_whose_entries_are_not_where_it_says(tmp_path: Path) -> None:
    """The name in the list and the name at the place must agree, and no name may come twice."""
    begin = WHOLE.index(b"x/data/0")
    refused(WHOLE[:begin] + b"x/data/1" + WHOLE[begin + 8 :], tmp_path, "not where its ZIP archive says")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("x/data/0", FOUR)
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("x/data/0", FOUR[::-1])
    refused(buffer.getvalue(), tmp_path, "two entries of one name")


def test_no_file_at_all(tmp_path: Path) -> None:
    """A file that is not there, a folder without weights and one with too many are told."""
    refused(tmp_path / "none.pt", tmp_path, "No such file")
    refused(tmp_path, tmp_path, "does not say which weights")
    for name in ("a.pt", "b.bin"):
        (tmp_path / name).write_bytes(WHOLE)
    refused(tmp_path, tmp_path, "a.pt, b.bin")


# -- anything --------------------------------------------------------------------------------------
STATE = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.arange(6.0).reshape(2, 3).t(), "epoch": 3, "n": np.arange(3)}
VALID = {
    "zip": saved(STATE),
    "legacy": saved(STATE, _use_new_zipfile_serialization=False),
    **{f"pickle {protocol}": pickle.dumps(STATE, protocol) for protocol in range(6)},
    "npz": (lambda b: (np.savez_compressed(b, a=np.arange(50), b=np.ones((2, 3))), b.getvalue())[1])(io.BytesIO()),
}


@pytest.mark.parametrize("form", VALID)
@given(data=st.data())
def test_mutations(form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file with a few bytes changed, lost or added is converted or refused; nothing else ever happens."""
    made = bytearray(VALID[form])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(made) - 1))
        count = data.draw(st.integers(0, 3))
        made[at : at + count] = data.draw(st.binary(max_size=4))
    _one_or_the_other(bytes(made), tmp_path_factory.mktemp("x"))


@given(
    code=st.lists(
        st.sampled_from([*b"(.0123456789:;BCDFGIJKLMNPQRSTUVXabcdeghijlopqrstu}])\x80\x81\x82\x85\x86\x87\x88"])
    )
)
@example(code=[*b"N."])
def test_any_instructions(code: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Instructions in any order are a pickle or none."""
    _one_or_the_other(bytes(code) + b".", tmp_path_factory.mktemp("x"))


def _one_or_the_other(data: bytes, folder: Path) -> None:
    try:
        converted(data, folder, ignore_unknown=True)
    except DeviceKitError:
        assert list(folder.glob("*new*")) == []
    else:
        loaded(folder)
