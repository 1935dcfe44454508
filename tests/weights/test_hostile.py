"""Loading from broken and hostile files: the same result as safetensors', or a WeightsError that says enough.

Never another exception, never the end of the process, and never half a module without a word about it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from devicekit.errors import WeightsError
from devicekit.weights.source import FileSource
from tests.weights.files import (
    GOOD,
    PIECE,
    child,
    described,
    facts,
    file_of,
    index_of,
    numbers,
    on_numpy,
    on_torch,
    put,
    refused,
    shard,
    sparse,
)
from tests.weights.test_header import damaged, documented, nearly_right, tensors

linux = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc/self/fd")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows shortens no file that is mapped or open")

MIB = 1 << 20


# -- fuzzed --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], contextlib.AbstractContextManager[Path]]:
    """Makes files that nobody has mapped: each has a name of its own, and is gone afterwards."""
    folder, numbered = tmp_path_factory.mktemp("fuzzed"), itertools.count()

    @contextlib.contextmanager
    def made(data: bytes) -> Iterator[Path]:
        path = folder / f"{next(numbered)}.safetensors"
        path.write_bytes(data)
        yield path
        path.unlink()

    return made


def theirs(load: Callable[[], dict[str, Any]]) -> Any:
    """What safetensors loads; or what it raised, which can be anything: KeyError, TypeError, RuntimeError."""
    try:
        return facts(load())
    except Exception as error:
        return error


def agree(load: Callable[[], Any], other: Any) -> None:
    """We give the same tensors, or both refuse; or the difference is one of those that are documented."""
    try:
        loaded = load()
    except WeightsError as error:
        refusal: WeightsError | None = error
    else:
        refusal = None
    if refusal is not None:
        assert isinstance(other, Exception) or documented(refusal.why), refusal
    elif not isinstance(other, KeyError):  # a dtype that we know, and safetensors' own NumPy side does not
        assert isinstance(other, dict), other
        second = loaded.keys() - other.keys()  # names of tied tensors, which safetensors' load_file leaves out
        assert all(loaded.metadata[name] in other for name in second)
        assert facts({name: value for name, value in loaded.items() if name not in second}) == other


FILES = st.one_of(tensors().map(lambda made: file_of(*made)), damaged(), nearly_right())


@given(data=FILES)
def test_torch_gets_what_safetensors_gives_or_a_reason(
    fresh: Callable[[bytes], contextlib.AbstractContextManager[Path]], data: bytes
) -> None:
    """Mapped, copied, or from bytes: torch gets the same tensors as from safetensors, or a WeightsError."""
    dm = on_torch()
    with fresh(data) as path:
        other = theirs(lambda: safetensors.torch.load_file(path))
        for load in (
            lambda: dm.load_safetensors(path),
            lambda: dm.load_safetensors(path, copy=True),
            lambda: dm.load_safetensors(data),
        ):
            agree(load, other)


@given(data=FILES)
def test_a_cast_fails_for_nothing_but_the_file(data: bytes) -> None:
    """What can be loaded can be cast to the widest dtype too, and what cannot is refused with a WeightsError."""
    dm = on_torch()
    outcomes = []
    for dtype in (None, torch.float64):
        try:
            outcomes.append({name: tuple(held.shape) for name, held in dm.load_safetensors(data, dtype=dtype).items()})
        except WeightsError as error:
            outcomes.append(error.why)
    assert outcomes[0] == outcomes[1]


@given(data=FILES)
def test_numpy_gets_what_safetensors_gives_or_a_reason(
    fresh: Callable[[bytes], contextlib.AbstractContextManager[Path]], data: bytes
) -> None:
    """Mapped, copied, or from bytes: NumPy gets the same arrays as from safetensors, or a WeightsError."""
    dm = on_numpy()
    other = theirs(lambda: safetensors.numpy.load(data))
    with fresh(data) as path:
        for load in (
            lambda: dm.load_safetensors(path),
            lambda: dm.load_safetensors(path, copy=True),
            lambda: dm.load_safetensors(data),
        ):
            agree(load, other)


# -- into a module -------------------------------------------------------------------------------
class Model(torch.nn.Module):
    """A parameter that is filled in place, one that needs a cast, one on the meta device, a buffer, a tied one."""

    def __init__(self, length: int = 2) -> None:
        super().__init__()
        self.same = torch.nn.Parameter(torch.arange(length, dtype=torch.float32))
        self.lower = torch.nn.Parameter(torch.arange(length, dtype=torch.float16), requires_grad=False)
        self.meta = torch.nn.Parameter(torch.empty(length, device="meta"))
        self.register_buffer("steps", torch.arange(length, dtype=torch.float32))
        self.tied = self.same


def state(model: torch.nn.Module) -> list[Any]:
    """All that loading could change: which objects there are, where their memory is, and what is in it."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return [
        (name, id(held), held.requires_grad, held.device, held.dtype)
        + ((held.data_ptr(), held.tolist()) if not held.is_meta else ())
        for name, held in named
    ]


def whole(**changed: Any) -> bytes:
    """A file that fits the model, but for what is changed."""
    names = ("same", "lower", "meta", "steps")
    header = {name: described(offsets=[8 * i, 8 * i + 8]) for i, name in enumerate(names)}
    return file_of({**header, **changed}, numbers(*range(9, 17)))


FITS_NOT: dict[str, tuple[Any, str]] = {
    "cut off": (whole()[:-1], "it was cut off"),
    "a hole": (whole(lower=described(offsets=[8, 12], shape=[1])), "'meta' leaves a hole after 'lower'"),
    "overlapping": (whole(lower=described(offsets=[4, 12])), "'lower' overlaps 'same'"),
    "twice": (whole().replace(b'"lower"', b'"same"'), "names 'same' twice"),
    "an unknown dtype": (whole(lower=described("F17", offsets=[8, 16])), "'lower' has the dtype 'F17'"),
    "a dtype that torch lacks": (whole(lower=described("F6_E2M3", [8], [8, 14])), "'lower'"),
    "another shape": (whole(steps=described(shape=[1, 2], offsets=[24, 32])), "'steps' has the shape [1, 2]"),
    "a lost tensor": (file_of({"same": described()}, numbers(1, 2)), "the file lacks 'lower', 'meta', 'steps'"),
    "a name too many": (whole(extra=described(shape=[0], offsets=[32, 32])), "the module has no 'extra'"),
    "a name that a terminal obeys": (whole(**{"\x1b[2J": described("I8", [0], [32, 32])}), r"no '\x1b[2J'"),
    "empty": (b"", "it has 0 bytes"),
    "a pickle": (pickle.dumps({"same": [1.0] * 99}), "it is a pickle"),
}


@pytest.mark.parametrize(("data", "words"), FITS_NOT.values(), ids=FITS_NOT)
@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "copied"])
def test_what_does_not_fit_leaves_a_module_untouched(tmp_path: Path, data: bytes, words: str, copy: bool) -> None:
    """After any failure before the reading a module has the same objects with the same memory and values as before."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    model = Model()
    before = state(model)
    refused(lambda: on_torch().load_safetensors(path, into=model, copy=copy), str(path), words)
    assert state(model) == before


def test_what_fits_fills_the_same_module(tmp_path: Path) -> None:
    """The file that the table above is made from fits: all of it is filled, and the parameters are the same objects."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole())
    model = Model()
    same = model.same
    on_torch().load_safetensors(path, into=model)
    held = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    assert held == {"same": [9, 10], "tied": [9, 10], "lower": [11, 12], "meta": [13, 14], "steps": [15, 16]}
    assert model.same is model.tied is same


def test_a_failing_shard_leaves_a_module_untouched(tmp_path: Path) -> None:
    """Of several files one that is broken is enough, and all of them are looked at before anything is changed."""
    index = index_of({"same": "1.safetensors", "lower": "2.safetensors"})
    good, broken = shard("same", 1, 2), shard("lower", 1, 2)[:-1]
    put(tmp_path, {"m.safetensors.index.json": index, "1.safetensors": good, "2.safetensors": broken})
    model = Model()
    before = state(model)
    refused(lambda: on_torch().load_safetensors(tmp_path, into=model, strict=False), "2.safetensors", "cut off")
    assert state(model) == before


# -- files that change while they are read -------------------------------------------------------
def cutting(path: Path, to: int = MIB) -> Callable[[int, int], None]:
    """For ``progress``: when the first piece is there, the file is shortened."""

    def progress(done: int, total: int) -> None:
        os.truncate(path, to)

    return progress


def before_reading(path: Path, to: int) -> Callable[[str], bool]:
    """For ``keys``: the header is read and checked when they are asked."""

    def keys(name: str) -> bool:
        os.truncate(path, to)
        return True

    return keys


@posix
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["as it is", "cast"])
def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, dtype: Any) -> None:
    """What is cut off between two pieces is an error that names the file and the tensor, and ends no process."""
    path = sparse(tmp_path / "model.safetensors", {"small": 9, "large": 3 * PIECE // 4})
    dm = on_torch()
    load = lambda: dm.load_safetensors(path, dtype=dtype, copy=True, workers=1, progress=cutting(path))  # noqa: E731
    error = refused(load, str(path), "at 'large': it ended at byte", "although it had", "load it when nobody writes")
    assert str(MIB) in error.why


@posix
def test_a_file_that_shrinks_is_refused_by_every_thread(tmp_path: Path) -> None:
    """With several threads at work the first failure is raised once, and none goes on reading."""
    path = sparse(tmp_path / "model.safetensors", {f"w{i}": PIECE // 4 for i in range(8)})
    refused(
        lambda: on_torch().load_safetensors(path, copy=True, workers=4, progress=cutting(path, 0)),
        str(path),
        "at 'w",
        "it ended at byte",
    )


@posix
@pytest.mark.parametrize("to", [0, 10, MIB])
@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "copied"])
def test_a_file_that_shrinks_before_it_is_read_is_refused(tmp_path: Path, to: int, copy: bool) -> None:
    """What is cut off between the header's check and the reading is an error as well, mapped or not."""
    path = sparse(tmp_path / "model.safetensors", {"w": PIECE})
    for dm in (on_torch(), on_numpy()):
        sparse(path, {"w": PIECE})
        refused(lambda dm=dm: dm.load_safetensors(path, keys=before_reading(path, to), copy=copy), str(path))  # type: ignore[misc]


class Shrinking(FileSource):
    """A file that somebody shortens in the moment in which it is mapped."""

    def _mapping(self) -> Any:
        made = super()._mapping()
        os.truncate(self.label, 10)
        return made


@posix
def test_a_file_that_shrinks_while_it_is_mapped_is_refused(tmp_path: Path) -> None:
    """Its size is looked at again behind the mapping, so that what is too short is never touched; asking again helps
    nobody."""
    source = Shrinking(str(sparse(tmp_path / "w", {"w": MIB})))
    for _ in range(2):
        refused(source.mapped, str(tmp_path / "w"), "cannot be mapped", "has fewer now")
    source.close()


@posix
def test_a_file_that_grows_is_read_as_it_was(tmp_path: Path) -> None:
    """Bytes that come after the header was checked change nothing."""
    path = sparse(tmp_path / "model.safetensors", {"w": PIECE})

    def grow(name: str) -> bool:
        os.truncate(path, 9 * PIECE)
        return True

    for copy in (False, True):
        sparse(path, {"w": PIECE})
        assert on_torch().load_safetensors(path, keys=grow, copy=copy)["w"].shape == (PIECE,)


@posix
def test_shrinking_in_the_middle_of_a_module_says_what_was_filled(tmp_path: Path) -> None:
    """If it fails while a module is filled in place, the error names what may be filled; all else is as it was."""
    length = 3 * PIECE // 4
    path = sparse(tmp_path / "model.safetensors", {"same": length, "lower": 2, "meta": 2, "steps": 2})
    model = Model()
    model.same = model.tied = torch.nn.Parameter(torch.ones(length))
    before = [each[:5] for each in state(model)]
    pointer = model.same.data_ptr()
    load = lambda: on_torch().load_safetensors(path, into=model, workers=1, progress=once(path))  # noqa: E731
    refused(
        load, str(path), "at 'same': it ended at byte", "in the module 'same', 'lower', 'steps' may be filled in part"
    )
    assert [each[:5] for each in state(model)] == before
    assert model.same.data_ptr() == pointer
    assert model.same[0] == 0
    assert model.same[-1] == 1


def once(path: Path) -> Callable[[int, int], None]:
    """Shortens the file while the large tensor is read, not while the small ones are before it."""

    def progress(done: int, total: int) -> None:
        if done >= PIECE:
            os.truncate(path, 2 * MIB)

    return progress


@posix
def test_shrinking_before_a_module_sees_anything_leaves_it_untouched(tmp_path: Path) -> None:
    """Memory that a module does not have yet is filled first, so a failure there leaves the module as it was."""
    length = 3 * PIECE // 4
    path = sparse(tmp_path / "model.safetensors", {"same": 2, "meta": length, "lower": length, "steps": 2})
    model = Model()
    model.lower = torch.nn.Parameter(torch.ones(length, dtype=torch.float16))
    model.meta = torch.nn.Parameter(torch.empty(length, device="meta"))
    before = state(model)
    refused(
        lambda: on_torch().load_safetensors(path, into=model, copy=True, workers=1, progress=cutting(path)),
        str(path),
        "it ended at byte",
    )
    assert state(model) == before


@posix
def test_a_file_that_is_replaced_leaves_what_was_mapped_intact(tmp_path: Path) -> None:
    """Tensors of a mapped file keep their values when another file takes its name."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    loaded = on_torch().load_safetensors(path)
    (tmp_path / "new").write_bytes(bytes(9))
    (tmp_path / "new").replace(path)
    assert loaded["w"].tolist() == [1, 2]
    path.unlink()
    assert loaded["w"].tolist() == [1, 2]


OVERWRITTEN = """
import os, sys
import devicekit
path, copy = sys.argv[1], sys.argv[2] == "True"
for backend in sys.argv[3:]:
    weights = devicekit.DeviceManager(backend).load_safetensors(path, copy=copy)
os.truncate(path, 10)
print("cut", flush=True)
print(float(weights["w"][-1]))
"""


@posix
@pytest.mark.slow
def test_a_copy_survives_what_ends_a_process_with_a_mapping(tmp_path: Path) -> None:
    """With copy=True tensors outlive the shortening of their file; mapped ones end in SIGBUS, as documented."""
    for copy, code in ((True, 0), (False, -signal.SIGBUS)):
        path = sparse(tmp_path / "model.safetensors", {"w": MIB})
        done = child(OVERWRITTEN, path, copy, "cpu")
        assert (done.returncode, done.stdout) == (code, "cut\n0.0\n" if copy else "cut\n"), done.stderr


# -- disks that fail -----------------------------------------------------------------------------
def failing_disk(path: Path) -> Callable[[int, int], None]:
    """For ``progress``: from now on each read of the file is an error of the kernel's, EIO.

    The descriptor that the loader holds is made to be one of this process's own memory, where the first page is never
    mapped.
    """

    def progress(done: int, total: int) -> None:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        for each in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if each.readlink() == path:
                    os.dup2(memory, int(each.name))
        os.close(memory)

    return progress


@linux
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["as it is", "cast"])
def test_a_disk_error_names_file_tensor_and_reason(tmp_path: Path, dtype: Any) -> None:
    """When the kernel cannot read, the error has the file, the tensor and what the kernel said."""
    path = sparse(tmp_path / "model.safetensors", {"w": 3 * PIECE // 4})
    dm = on_torch()
    error = refused(
        lambda: dm.load_safetensors(path, dtype=dtype, copy=True, workers=1, progress=failing_disk(path)),
        f"{path} cannot be read",
        "at 'w': Input/output error (OSError)",
    )
    assert isinstance(error.__cause__, OSError)


@linux
def test_a_disk_error_in_the_middle_of_a_module_says_what_was_filled(tmp_path: Path) -> None:
    """A module that was filled in place when the disk failed is named in the error with the tensor in question."""
    path = sparse(tmp_path / "model.safetensors", {"weight": 3 * PIECE // 4})
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(3 * PIECE // 4))
    refused(
        lambda: on_torch().load_safetensors(path, into=model, workers=1, progress=failing_disk(path)),
        "Input/output error",
        "in the module 'weight' may be filled in part",
    )


class Interrupted(Exception):
    """What a person who watches raises."""


def test_what_progress_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    """An error of the caller's own is not made one of the file, and no thread is left behind."""
    path = sparse(tmp_path / "model.safetensors", {"w": PIECE})

    def progress(done: int, total: int) -> None:
        raise Interrupted

    for workers in (1, 3):
        with pytest.raises(Interrupted):
            on_torch().load_safetensors(path, copy=True, workers=workers, progress=progress)


# -- whatever is done with it --------------------------------------------------------------------
@pytest.mark.parametrize("name", ["\x1b[31mred", "a" * 100_000, "\u202eback", "line\nfeed"])
def test_a_hostile_name_is_harmless_in_every_message(tmp_path: Path, name: str) -> None:
    """A tensor's name is escaped and cut in the errors of keys, rename and modules too."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({name: described(), "b": described(offsets=[8, 16])}, numbers(1, 2, 3, 4)))
    dm = on_torch()
    for options in (
        {"keys": "nothing"},
        {"keys": lambda _: False},
        {"rename": lambda _: name},
        {"rename": lambda _: None},
        {"into": torch.nn.Linear(1, 1)},
    ):
        refused(lambda options=options: dm.load_safetensors(path, **options), str(path))  # type: ignore[misc]
    assert dm.load_safetensors(path, keys=lambda each: each == name)[name].tolist() == [1, 2]


def test_an_error_of_a_file_survives_pickling(tmp_path: Path) -> None:
    """A worker process can send the error to its parent with what, why and try."""
    (tmp_path / "model.safetensors").write_bytes(GOOD[:-1])
    error = refused(lambda: on_torch().load_safetensors(tmp_path))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (WeightsError, str(error))
