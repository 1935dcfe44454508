"""What may be given as weights, and which files are meant: paths, folders, indices, lists, bytes, open files."""

from __future__ import annotations

import array
import bz2
import gzip
import io
import json
import lzma
import mmap
import os
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devicekit.weights.checkpoint import LONGEST_INDEX, opened_checkpoint
from tests.weights.files import GOOD, child, file_of, index_of, numbers, on_numpy, put, refused, shard

INDEX = "model.safetensors.index.json"
ONE, TWO = shard("a", 1, 2), shard("b", 3)
OUTSIDE = shard("secret", 7)

linux = pytest.mark.skipif(sys.platform != "linux", reason="files of /proc and /dev as Linux has them")
posix = pytest.mark.skipif(os.name == "nt", reason="files that only POSIX has")


def load(what: Any) -> dict[str, list[float]]:
    """The values by name, through the facade; copied, so that nothing stays mapped."""
    return {name: value.tolist() for name, value in on_numpy().load_safetensors(what, copy=True).items()}


def whence(what: Any) -> dict[str, str]:
    """The name of the file in which each tensor was found."""
    with opened_checkpoint(what) as found:
        return {name: Path(stored.source.label).name for name, stored in found.tensors.items()}


# -- folders -------------------------------------------------------------------------------------
CHOICES: dict[str, tuple[dict[str, bytes | str], dict[str, str]]] = {
    "the only file": ({"adapter.safetensors": ONE, "readme.md": b"x"}, {"a": "adapter.safetensors"}),
    "model before all others": (
        {"model.safetensors": ONE, "other.safetensors": TWO, INDEX: index_of({"b": "other.safetensors"})},
        {"a": "model.safetensors"},
    ),
    "the only index before its files": (
        {"m-1.safetensors": ONE, "m-2.safetensors": TWO, INDEX: index_of({"b": "m-2.safetensors"})},
        {"b": "m-2.safetensors"},
    ),
    "an index of another name": (
        {"m-1.safetensors": ONE, "diffusion.safetensors.index.json": index_of({"a": "m-1.safetensors"})},
        {"a": "m-1.safetensors"},
    ),
    "a link that stays": ({"model.safetensors": "real/w", "real/w": ONE}, {"a": "model.safetensors"}),
    "a link in a chain": (
        {"model.safetensors": "one", "one": "sub/two", "sub/two": "../w", "w": ONE},
        {"a": "model.safetensors"},
    ),
    "shards in a folder below": (
        {INDEX: index_of({"a": "parts/1.safetensors"}), "parts/1.safetensors": ONE},
        {"a": "1.safetensors"},
    ),
}

NO_CHOICE: dict[str, tuple[dict[str, bytes | str], str]] = {
    "empty": ({}, "no name there ends in .safetensors or .safetensors.index.json"),
    "pickles": ({"pytorch_model.bin": b"x", "model.safetensors.bak": ONE}, "holds no weights"),
    "several files": ({"a.safetensors": ONE, "b.safetensors": TWO}, "several files of weights: a.safetensors, b.s"),
    "very many files": ({f"{i}.safetensors": ONE for i in range(9)}, "5.safetensors, ..."),
    "several indices": (
        {"x" + INDEX: index_of({}), "y" + INDEX: index_of({}), "a.safetensors": ONE},
        f"several indices of shards: x{INDEX}, y{INDEX}",
    ),
    "names that a terminal obeys": ({"\x1b[2J.safetensors": ONE, "b.safetensors": TWO}, r"\x1b[2J.safetensors"),
    "a link out": ({"model.safetensors": "../outside.safetensors"}, "'model.safetensors', which lies outside"),
    "a link out in a chain": ({"model.safetensors": "x", "x": "../outside.safetensors"}, "lies outside of the folder"),
    "an index that is a link out": ({INDEX: "../outside.json"}, "lies outside of the folder"),
    "a link to nothing": ({"model.safetensors": "nothing"}, "No such file"),
    "a link in a circle": ({"model.safetensors": "x", "x": "model.safetensors"}, "model.safetensors"),
    "a folder of that name": ({"model.safetensors/x": ONE}, "it is no regular file"),
}


@pytest.mark.parametrize(("files", "expected"), CHOICES.values(), ids=CHOICES)
def test_a_folder_means_one_checkpoint(
    tmp_path: Path, files: Mapping[str, bytes | str], expected: dict[str, str]
) -> None:
    """In a folder the file called model is meant, else the only index, else the only file of weights."""
    folder = put(tmp_path / "folder", files)
    assert whence(folder) == whence(str(folder)) == whence(f"{folder}/") == expected


@pytest.mark.parametrize(("files", "words"), NO_CHOICE.values(), ids=NO_CHOICE)
def test_a_folder_that_does_not_say_what_is_meant_is_refused(
    tmp_path: Path, files: Mapping[str, bytes | str], words: str
) -> None:
    """A folder with several checkpoints, with none, or with a link out of it is refused, and the error names it."""
    (tmp_path / "outside.safetensors").write_bytes(OUTSIDE)
    (tmp_path / "outside.json").write_bytes(index_of({}))
    folder = put(tmp_path / "folder", files)
    folder.mkdir(exist_ok=True)
    refused(lambda: load(folder), str(folder), words)


# -- links ---------------------------------------------------------------------------------------
def hub_cache(root: Path, folder: str = "") -> Path:
    """A snapshot as huggingface_hub lays it out: links to blobs beside it; the weights in a folder of the snapshot."""
    up = "../" * (2 + bool(folder))
    snapshot = "models--me--it/snapshots/4d7a"
    put(
        root,
        {
            "models--me--it/blobs/111": ONE,
            "models--me--it/blobs/222": TWO,
            "models--me--it/blobs/333": index_of({"a": "m-1.safetensors", "b": "m-2.safetensors"}),
            f"{snapshot}/{folder}/m-1.safetensors": up + "blobs/111",
            f"{snapshot}/{folder}/m-2.safetensors": up + "blobs/222",
            f"{snapshot}/{folder}/{INDEX}": up + "blobs/333",
        },
    )
    return root / snapshot / folder


@pytest.mark.parametrize("folder", ["", "unet"])
def test_the_cache_of_the_hub_is_loaded(tmp_path: Path, folder: str) -> None:
    """Links from a snapshot into the blobs beside all snapshots work: of a folder in it, its index and its files."""
    snapshot = hub_cache(tmp_path / "hub", folder)
    expected = {"a": [1.0, 2.0], "b": [3.0]}
    assert load(snapshot) == load(snapshot / INDEX) == expected
    assert load(snapshot / "m-2.safetensors") == {"b": [3.0]}
    (tmp_path / "short").symlink_to(snapshot)
    assert load(tmp_path / "short") == load(tmp_path / "short" / INDEX) == expected


def test_the_cache_of_the_hub_opens_no_other_way_out(tmp_path: Path) -> None:
    """A snapshot may not lead into another model's blobs, through a blob that is a link, or through linked blobs."""
    put(tmp_path / "hub", {"models--other/blobs/999": OUTSIDE, "models--me--it/blobs/444": "../../../outside"})
    (tmp_path / "outside").write_bytes(OUTSIDE)
    snapshot = hub_cache(tmp_path / "hub")
    for target in ("../../../models--other/blobs/999", "../../blobs/444", "../../blobs/../../../outside"):
        (snapshot / "m-2.safetensors").unlink()
        (snapshot / "m-2.safetensors").symlink_to(target)
        refused(lambda: load(snapshot), "'m-2.safetensors', which lies outside of the folder")
    shutil.rmtree(tmp_path / "hub/models--me--it/blobs")
    (tmp_path / "hub/models--me--it/blobs").symlink_to(tmp_path)
    (snapshot / "m-2.safetensors").unlink()
    (snapshot / "m-2.safetensors").symlink_to("../../blobs/outside")
    refused(lambda: load(snapshot / INDEX))


@pytest.mark.parametrize("folder", ["snapshots", "deep/snapshots/r/x", "my snapshots/r"])
def test_a_folder_is_no_cache_just_for_its_name(tmp_path: Path, folder: str) -> None:
    """A link out of a folder is refused wherever the folder lies, unless it leads into the blobs of its own cache."""
    (tmp_path / "outside.safetensors").write_bytes(OUTSIDE)
    where = put(tmp_path / folder, {"model.safetensors": str(tmp_path / "outside.safetensors")})
    refused(lambda: load(where), "lies outside of the folder")


def test_a_link_that_the_caller_names_is_followed(tmp_path: Path) -> None:
    """Whoever names a file gets it, wherever a link leads; only what came with the download is not trusted."""
    put(tmp_path, {"outside/w": ONE, "here/model.safetensors": "../outside/w"})
    assert load(tmp_path / "here/model.safetensors") == {"a": [1.0, 2.0]}
    (tmp_path / "folder").symlink_to(tmp_path / "outside")
    assert load(tmp_path / "folder/w") == {"a": [1.0, 2.0]}


# -- the index of shards -------------------------------------------------------------------------
PLACES: dict[str, tuple[Any, str]] = {
    "one up": ("../outside.safetensors", "'../outside.safetensors', which lies outside"),
    "down and up": ("sub/../../outside.safetensors", "lies outside"),
    "up and in again": ("../folder/m-1.safetensors", "lies outside"),
    "absolute": ("/etc/passwd", "'/etc/passwd', which lies outside"),
    "absolute, and in the folder": ("{folder}/m-1.safetensors", "lies outside"),
    "a link out": ("link.safetensors", "'link.safetensors', which lies outside"),
    "through a folder that is a link out": ("away/outside.safetensors", "lies outside"),
    "a zero in it": ("m-1.safetensors\0", r"'m-1.safetensors\x00', which lies outside"),
    "not there": ("m-9.safetensors", "m-9.safetensors cannot be read"),
    "not there, and a terminal would obey it": ("\x1b[2J\n", r"\x1b[2J\n cannot be read"),
    "too long for a file": ("x" * 100_000, "cannot be read"),
    "the folder itself": (".", "it is no regular file"),
    "nothing": ("", "it is no regular file"),
    "a folder below": ("sub", "it is no regular file"),
    "the index itself": (INDEX, "it is JSON"),
    "a circle of links": ("round", "round cannot be read"),
    "a broken shard": ("broken.safetensors", "broken.safetensors cannot be read as safetensors"),
    "a shard without it": ("m-2.safetensors", "it says that 'a' is in 'm-2.safetensors', which holds no such tensor"),
    "a number": (1, "its weight_map is not a map of names to files"),
    "null": (None, "its weight_map is not a map of names to files"),
    "a list": (["m-1.safetensors"], "its weight_map is not a map of names to files"),
}


@pytest.mark.parametrize(("place", "words"), PLACES.values(), ids=PLACES)
def test_an_index_that_names_a_wrong_file_is_refused(tmp_path: Path, place: Any, words: str) -> None:
    """A shard is a regular file of weights in the index's folder that holds the tensor, or nothing is loaded."""
    folder = tmp_path / "folder"
    if isinstance(place, str):
        place = place.replace("{folder}", str(folder))
    put(tmp_path, {"outside.safetensors": OUTSIDE})
    put(
        folder,
        {
            INDEX: index_of({"b": "m-2.safetensors", "a": place}),
            "m-1.safetensors": ONE,
            "m-2.safetensors": TWO,
            "broken.safetensors": ONE[:-1],
            "sub/x": b"",
            "link.safetensors": "../outside.safetensors",
            "away": "..",
            "round": "dnuor",
            "dnuor": "round",
        },
    )
    for what in (folder, folder / INDEX):
        refused(lambda what=what: load(what), str(folder), words)  # type: ignore[misc]


INDICES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "no JSON": (b"weight_map: {}", "is not JSON"),
    "cut off": (index_of({"a": "m-1.safetensors"})[:-3], "is not JSON"),
    "not UTF-8": (b'{"weight_map":{"\xff":""}}', "is not UTF-8"),
    "half of a surrogate pair": (rb'{"weight_map":{"a":"\ud800"}}', "half of a surrogate pair"),
    "a list": (b"[]", "it has no weight_map"),
    "a text": (b'"weight_map"', "it has no weight_map"),
    "a number": (b"1", "it has no weight_map"),
    "another object": (b'{"metadata":{}}', "it has no weight_map"),
    "a map of null": (b'{"weight_map":null}', "it has no weight_map"),
    "a map that is a list": (b'{"weight_map":["a"]}', "its weight_map is not a map of names to files"),
    "a map that is a text": (b'{"weight_map":"a"}', "its weight_map is not a map of names to files"),
    "two maps": (b'{"weight_map":{},"weight_map":{}}', "names 'weight_map' twice"),
    "a tensor in two shards": (b'{"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}}', "names 'a' twice"),
    "too deep": (b'{"weight_map":' + b'{"a":' * 100_000, "nests more than"),
    "a bomb": (b'{"weight_map":[' + b"[]," * 500_000 + b"0]}", "nests more than"),
    "weights": (GOOD, "cannot be read as an index"),
}


@pytest.mark.parametrize(("data", "words"), INDICES.values(), ids=INDICES)
def test_an_index_that_is_none_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    """An index is one JSON object with a map of names to files, and the error names it and says what else it is."""
    folder = put(tmp_path, {INDEX: data, "m-1.safetensors": ONE, "m-2.safetensors": TWO})
    refused(lambda: load(folder), f"{folder / INDEX} cannot be read as an index of shards", words)


def test_an_index_larger_than_is_sane_is_not_read(tmp_path: Path) -> None:
    """An index of more than 100 MB is refused by its size alone."""
    (tmp_path / INDEX).touch()
    os.truncate(tmp_path / INDEX, LONGEST_INDEX + 1)
    refused(lambda: load(tmp_path), f"more than {LONGEST_INDEX} is refused")


def test_an_index_of_very_many_shards_fails_at_the_first_that_is_lost(tmp_path: Path) -> None:
    """An index of 20,000 shards that do not exist names the first of them, and looks for no other."""
    put(tmp_path, {INDEX: index_of({str(i): f"m-{i}.safetensors" for i in range(20_000)})})
    refused(lambda: load(tmp_path), str(tmp_path / "m-0.safetensors"), "No such file")


def test_an_index_of_many_lost_tensors_names_one_and_counts_the_rest(tmp_path: Path) -> None:
    """Tensors that no shard holds are an error that names the first and says how many more there are."""
    put(tmp_path, {INDEX: index_of({"x\x1b": "m.safetensors", "y": "m.safetensors"}), "m.safetensors": ONE})
    refused(lambda: load(tmp_path), str(tmp_path / INDEX), r"'x\x1b' is in 'm.safetensors'", "1 more are lost")


def test_an_index_decides_which_tensors_there_are(tmp_path: Path) -> None:
    """What a shard holds beside is not loaded, and tensors come in the index's order."""
    both = file_of(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate("xyz")},
        numbers(1, 2, 3),
    )
    index = index_of({"z": "1.safetensors", "a": "2.safetensors", "x": "1.safetensors"})
    put(tmp_path, {INDEX: index, "1.safetensors": both, "2.safetensors": ONE})
    loaded = load(tmp_path)
    assert loaded == {"z": [3.0], "a": [1.0, 2.0], "x": [1.0]}
    assert list(loaded) == ["z", "a", "x"]


def test_an_empty_index_is_an_empty_checkpoint(tmp_path: Path) -> None:
    """A map of nothing gives nothing, as an empty file does."""
    put(tmp_path, {INDEX: index_of({}), "empty.safetensors": file_of("{}")})
    assert load(tmp_path) == load(tmp_path / "empty.safetensors") == {}


# -- lists ---------------------------------------------------------------------------------------
def test_several_files_are_one_checkpoint(tmp_path: Path) -> None:
    """A list or tuple of paths of any kind gives the tensors of all files."""
    put(tmp_path, {"1.safetensors": ONE, "2.safetensors": TWO})
    one, two = tmp_path / "1.safetensors", str(tmp_path / "2.safetensors")
    assert load([one, two]) == load((two, one)) == {"a": [1.0, 2.0], "b": [3.0]}


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    """Of two tensors with one name none is chosen; the error names the tensor and both files."""
    put(tmp_path, {"1.safetensors": shard("w\x1b", 1), "2.safetensors": shard("w\x1b", 2)})
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    refused(lambda: load(paths), *map(str, paths), r"'w\x1b' is in", "load the files one by one")
    refused(lambda: load([paths[0], paths[0]]), "1.safetensors and 1 more")
    refused(lambda: load([paths[0], tmp_path / "not there"]), str(tmp_path / "not there"))


class Odd(os.PathLike[Any]):
    """A path that gives whatever it is told to, and can read, as py.path.local can."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def __fspath__(self) -> Any:
        return self.told

    def read(self) -> str:
        raise AssertionError("a path is a path")


WRONG: dict[str, tuple[Any, str]] = {
    "None": (None, "Weights cannot be loaded from a NoneType"),
    "a number": (3, "Weights cannot be loaded from a int"),
    "a dict": ({}, "Weights cannot be loaded from a dict"),
    "an iterator": (iter(["x"]), "Weights cannot be loaded from a list_iterator"),
    "an empty list": ([], "the list of files is empty"),
    "an empty text": ("", "Weights cannot be loaded from an empty str"),
    "a list with an empty text": ([""], "Weights cannot be loaded from an empty str"),
    "a list of numbers": ([1], "Weights cannot be loaded from a int"),
    "a list of bytes": ([GOOD], "Weights cannot be loaded from a bytes"),
    "a list of lists": ([["x"]], "Weights cannot be loaded from a list"),
    "a path of bytes": (Odd(b"x"), "Weights cannot be loaded from a Odd"),
    "a zero in it": (
        "a\0b",
        r"a\x00b cannot be read",
    ),
    "half of a surrogate pair": ("\ud800", r"\ud800 cannot be read"),
    "not there": ("/nowhere/at\x1b[0m/all", r"/nowhere/at\x1b[0m/all cannot be read"),
    "not there, and very long": ("/nowhere" * 1000, "cannot be read"),
    "a file as a folder": (__file__ + "/model.safetensors", "test_checkpoint.py/model.safetensors cannot be read"),
    "a name too long": ("x" * 300, "cannot be read"),
}


@pytest.mark.parametrize(("what", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_path_to_weights_is_refused(what: Any, words: str) -> None:
    """Whatever is given instead of weights, the error repeats it or its type."""
    refused(lambda: load(what), words)


def test_any_path_is_a_path(tmp_path: Path) -> None:
    """An object with __fspath__ is a path, also if it has a read method of its own."""
    (tmp_path / "w").write_bytes(ONE)
    assert load(Odd(str(tmp_path / "w"))) == {"a": [1.0, 2.0]}


# -- files that are none -------------------------------------------------------------------------
@posix
def test_a_pipe_and_a_socket_are_refused_without_waiting(tmp_path: Path) -> None:
    """What is no regular file is refused at once, although opening it could wait for ever."""
    os.mkfifo(tmp_path / "model.safetensors")
    for what in (tmp_path, tmp_path / "model.safetensors", [tmp_path / "model.safetensors"]):
        refused(lambda what=what: load(what), "model.safetensors cannot be read", "it is no regular file")  # type: ignore[misc]
    here = Path.cwd()
    os.chdir(tmp_path)  # the name of a socket is a hundred characters long at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
            refused(lambda: load(tmp_path / "socket"), "socket cannot be read")
    finally:
        os.chdir(here)


@linux
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem", "/proc/self/maps", "/"])
def test_a_device_is_refused_without_being_read(path: str) -> None:
    """A device gives bytes for ever, and a file of /proc has no size; both are refused."""
    refused(lambda: load(path), path)


FORBIDDEN = """
import os, sys
import devicekit
dm = devicekit.DeviceManager("numpy")
dm.load_safetensors(sys.argv[1])  # everything is imported
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[2:]:
    try:
        dm.load_safetensors(path)
    except devicekit.WeightsError as error:
        print(error)
    else:
        print("loaded", path)
"""


@posix
def test_what_may_not_be_read_is_refused() -> None:
    """Without the permission to read a file, its folder, an index or a shard the error names it and says so."""
    with tempfile.TemporaryDirectory() as name:
        root = put(
            Path(name),
            {
                "good.safetensors": ONE,
                "closed.safetensors": ONE,
                "closed/model.safetensors": ONE,
                "index/" + INDEX: index_of({"a": "1.safetensors"}),
                "index/1.safetensors": ONE,
            },
        )
        root.chmod(0o755)
        closed = [root / "closed.safetensors", root / "closed", root / "index/1.safetensors"]
        for path in closed:
            path.chmod(0)
        asked = [closed[0], closed[1], root / "closed/model.safetensors", root / "index"]
        done = child(FORBIDDEN, root / "good.safetensors", *asked)
        closed[1].chmod(0o700)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for path in (*closed[:2], asked[2], closed[2]):
        assert f"{path} cannot be read." in said
    assert said.count("  why: Permission denied (PermissionError)") + said.count("  why: Permission denied") == 4


# -- bytes and open files ------------------------------------------------------------------------
MEMORIES: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of a bytearray": lambda data: memoryview(bytearray(data)),
    "memoryview of numbers": lambda data: memoryview(array.array("H", data)),
    "memoryview of a table": lambda data: memoryview(np.frombuffer(data, np.uint8).reshape(4, -1)),
    "io.BytesIO": io.BytesIO,
}


@pytest.mark.parametrize("made", MEMORIES.values(), ids=MEMORIES)
def test_bytes_in_memory_are_loaded(made: Callable[[bytes], Any]) -> None:
    """Any object of bytes is a file of weights, whatever it counts them in."""
    data = file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  ', numbers(1, 2))
    assert load(made(data)) == {"a": [1.0, 2.0]}


def test_bytes_can_change_after_loading() -> None:
    """A bytearray or BytesIO can be resized and overwritten afterwards, and what was loaded stays."""
    for held in (bytearray(ONE), io.BytesIO(ONE)):
        loaded = on_numpy().load_safetensors(held)
        if isinstance(held, bytearray):
            held[-8:] = bytes(100)
        else:
            held.seek(0)
            held.write(bytes(1000))
            held.truncate(1)
        assert loaded["a"].tolist() == [1.0, 2.0]
    broken = bytearray(ONE[:-1])
    refused(lambda: load(broken), "<bytes> cannot be read as safetensors")
    broken.append(1)


def _released() -> memoryview:
    made = memoryview(ONE)
    made.release()
    return made


BAD_MEMORIES: dict[str, tuple[Any, str]] = {
    "every second byte": (memoryview(ONE)[::2], "<bytes> cannot be read"),
    "released": (_released(), "<bytes> cannot be read"),
    "nothing": (b"", "0 bytes"),
    "a view of nothing": (memoryview(np.empty((0, 3))), "0 bytes"),
    "a path in bytes": (b"/models/model.safetensors", "<bytes> cannot be read as safetensors"),
}


@pytest.mark.parametrize(("what", "words"), BAD_MEMORIES.values(), ids=BAD_MEMORIES)
def test_bytes_that_are_no_file_of_weights_are_refused(what: Any, words: str) -> None:
    """Memory that cannot be read as one row of bytes, or holds no weights, is refused."""
    refused(lambda: load(what), words)


@pytest.mark.parametrize("skip", [0, 1, 5])
@pytest.mark.parametrize("buffering", [0, -1], ids=["unbuffered", "buffered"])
def test_a_real_file_is_loaded_from_its_position_and_keeps_it(tmp_path: Path, skip: int, buffering: int) -> None:
    """An open file is loaded from where it stands to its end; it stays open and stays there."""
    path = tmp_path / "w"
    path.write_bytes(b"x" * skip + ONE)
    with path.open("rb", buffering=buffering) as file:
        file.read(skip)
        assert load(file) == load(file) == {"a": [1.0, 2.0]}
        assert file.tell() == skip
        assert file.read() == ONE


def test_io_bytesio_keeps_its_position() -> None:
    """A BytesIO is loaded from where it stands, and stays there."""
    file = io.BytesIO(b"abc" + ONE)
    file.seek(3)
    assert load(file) == load(file) == {"a": [1.0, 2.0]}
    assert file.tell() == 3


@pytest.mark.parametrize("position", [len(ONE), len(ONE) + 7], ids=["at its end", "behind its end"])
def test_a_file_that_stands_at_its_end_holds_nothing(tmp_path: Path, position: int) -> None:
    """From the end on, or from behind it, a file has no bytes."""
    (tmp_path / "w").write_bytes(ONE)
    with (tmp_path / "w").open("rb") as file:
        memory = io.BytesIO(ONE)
        for each in (file, memory):
            each.seek(position)
            refused(lambda each=each: load(each), "it has 0 bytes")  # type: ignore[misc]


PACKED: dict[str, tuple[Callable[[bytes], bytes], Callable[[Path], Any]]] = {
    "gzip": (gzip.compress, gzip.open),
    "gzip, buffered": (gzip.compress, lambda path: io.BufferedReader(gzip.GzipFile(path))),  # type: ignore[arg-type]
    "bz2": (bz2.compress, bz2.open),
    "lzma": (lzma.compress, lzma.open),
}


@pytest.mark.parametrize(("pack", "unpack"), PACKED.values(), ids=PACKED)
def test_a_compressed_file_is_loaded_as_what_it_gives(
    tmp_path: Path, pack: Callable[[bytes], bytes], unpack: Callable[[Path], Any]
) -> None:
    """A file object that unpacks is read through itself, although it has the descriptor of the packed file."""
    (tmp_path / "w").write_bytes(pack(ONE))
    with unpack(tmp_path / "w") as file:
        assert load(file) == {"a": [1.0, 2.0]}


@posix
def test_other_file_objects_are_loaded(tmp_path: Path) -> None:
    """Temporary files, mappings and pipes are binary files too; what has no place on the disk is read to its end."""
    with tempfile.TemporaryFile() as file, tempfile.NamedTemporaryFile() as named, tempfile.SpooledTemporaryFile() as s:
        for each in (file, named, s):
            each.write(ONE)
            each.seek(0)
            assert load(each) == {"a": [1.0, 2.0]}
        with mmap.mmap(named.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert load(mapped) == {"a": [1.0, 2.0]}
    reader, writer = os.pipe()
    os.write(writer, ONE)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert load(pipe) == {"a": [1.0, 2.0]}


class Reader:
    """A file object that does whatever it is told to."""

    name = "\x1b[2Jmine"

    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def read(self) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


READERS: dict[str, tuple[Any, str]] = {
    "text": ("abc", 'open(path, "rb")'),
    "nothing yet": (None, r"\x1b[2Jmine cannot be read"),
    "a number": (3, r"\x1b[2Jmine cannot be read"),
    "a disk error": (OSError(5, "Input/output error"), "Input/output error"),
    "a broken archive": (zlib.error("invalid \x1b block"), r"invalid \x1b block (error)"),
    "an early end": (EOFError("ended before the end-of-stream marker"), "end-of-stream marker (EOFError)"),
    "its own error": (RuntimeError("connection lost"), "connection lost (RuntimeError)"),
}


@pytest.mark.parametrize(("gives", "words"), READERS.values(), ids=READERS)
def test_a_file_object_that_cannot_be_read_is_refused(gives: Any, words: str) -> None:
    """Whatever a file object raises or gives instead of bytes, the error names the file and keeps the reason."""
    error = refused(lambda: load(Reader(gives)), r"\x1b[2Jmine", words)
    assert error.__cause__ is (gives if isinstance(gives, Exception) else error.__cause__)


def test_a_file_that_is_closed_written_or_text_is_refused(tmp_path: Path) -> None:
    """A file that is not open for reading bytes is refused, and the error names it."""
    path = tmp_path / "w"
    path.write_bytes(ONE + b"\xff")
    with path.open("rb") as file, path.open(encoding="utf-8") as text, path.open("ab") as written:
        refused(lambda: load(text), str(path), "it was opened as text", 'open(path, "rb")')
        refused(lambda: load(io.StringIO("x")), "it was opened as text")
        refused(lambda: load(written), str(path))
    refused(lambda: load(file), str(path), "closed file")
    refused(lambda: load(io.BufferedReader(io.BytesIO(ONE[:-1]))), "<BufferedReader> cannot be read as safetensors")


# -- cleaning up ---------------------------------------------------------------------------------
@linux
def test_no_failure_leaves_a_file_open(tmp_path: Path) -> None:
    """Whatever was refused, none of its files is open afterwards."""
    put(tmp_path, {"1.safetensors": ONE, "2.safetensors": ONE, "3.safetensors": ONE[:-1], "x": b""})
    put(tmp_path / "i", {INDEX: index_of({"a": "1.safetensors", "b": "2.safetensors"}), "1.safetensors": ONE})
    paths = [tmp_path / f"{i}.safetensors" for i in (1, 2, 3)]
    for what in (
        paths[:2],
        paths[::2],
        paths[2],
        tmp_path,
        tmp_path / "i",
        tmp_path / "x",
        "/dev/null",
        [paths[0], ""],
    ):
        refused(lambda what=what: load(what))  # type: ignore[misc]
    with paths[2].open("rb") as file:
        refused(lambda: load(file))
    links = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    assert [link for link in links if link.startswith(str(tmp_path))] == []


def test_metadata_is_the_first_files(tmp_path: Path) -> None:
    """Where the metadata of two files differs, the first file's counts."""
    files = {
        f"{name}.safetensors": file_of(json.dumps({"__metadata__": {"of": name, name: "1"}}).encode()) for name in "xy"
    }
    put(tmp_path, files)
    loaded = on_numpy().load_safetensors([tmp_path / name for name in files])
    assert loaded.metadata == {"of": "x", "x": "1", "y": "1"}
