"""Files under a redirect: what was saved on a card comes to the target, and what is saved is an ordinary file."""

from __future__ import annotations

import copy
import importlib.util
import io
import multiprocessing.reduction
import multiprocessing.resource_sharer
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devicekit.redirect.marks import mark_of
from devicekit.redirect.recording import Record
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.simulated import SimulatedTarget
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
needs_safetensors = pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="needs safetensors")


def saved_on(place: str, value: Any, **options: Any) -> bytes:
    """What a machine with a card writes.

    It differs from a file of the processor in one thing: the word for the place, which torch asks its table of
    locations for. So the table says another word while this is saved.
    """
    registry = torch.serialization._package_registry
    entry = (-1, lambda storage: place, lambda storage, location: None)
    registry.insert(0, entry)
    try:
        file = io.BytesIO()
        torch.save(value, file, **options)
    finally:
        registry.remove(entry)
    return file.getvalue()


def scripted_on(place: str, module: Any, path: Path) -> Path:
    """An archive of torch.jit.save, whose pickles say another place: C++ wrote them, so the words are exchanged."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    torch.jit.save(torch.jit.script(module), str(path))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in records.items():
        _, _, name = name.partition("/")
        if name not in ("version", ".data/serialization_id"):
            data = data.replace(text("cpu"), text(place)) if name.endswith(".pkl") else data
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return path


def load(data: bytes, *args: Any, **kwargs: Any) -> Any:
    return torch.load(io.BytesIO(data), *args, **kwargs)


# -- where it comes to -------------------------------------------------------------------------------
LOCATIONS: dict[str, Any] = {
    "none": None,
    "cuda": "cuda",
    "cuda:1": "cuda:1",
    "device": torch.device("cuda", 0),
    "dict": {"cuda:1": "cuda:0"},
    "function": lambda storage, location: storage.cuda(1),
    "function that leaves it": lambda storage, location: None,
}
FORMATS: dict[str, dict[str, Any]] = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("where", LOCATIONS.values(), ids=LOCATIONS)
@pytest.mark.parametrize("weights_only", [True, False])
def test_saved_on_a_card(form: dict[str, Any], where: Any, weights_only: bool) -> None:
    """It comes to the target, which is known: it is not copied again on its way to the same device."""
    data = saved_on("cuda:1", {"w": torch.arange(4.0), "n": 3}, **form)
    loaded = load(data, map_location=where, weights_only=weights_only)
    assert loaded["w"].tolist() == [0, 1, 2, 3]
    assert loaded["w"].device.type == "cpu"
    number = mark_of(loaded["w"])
    assert number == (1 if where in (None, "cuda:1") or callable(where) else 0)
    assert loaded["w"].cuda(number).data_ptr() == loaded["w"].data_ptr()


@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("where", ["cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, location: storage])
def test_onto_the_host(where: Any) -> None:
    """It is no tensor of the card, so ``.cuda()`` copies it."""
    loaded = load(saved_on("cuda:0", torch.ones(3)), map_location=where)
    assert mark_of(loaded) is None
    loaded.cuda().add_(1)
    assert loaded.tolist() == [1, 1, 1]


@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("where", ["cuda", {"cpu": "cuda:0"}, lambda storage, location: storage.cuda()])
def test_from_the_processor_to_the_card(where: Any) -> None:
    file = io.BytesIO()
    torch.save(torch.ones(3), file)
    assert mark_of(load(file.getvalue(), map_location=where)) == 0


@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_mapped_files(tmp_path: Path, place: str) -> None:
    """The memory stays that of the file: nothing is copied on a processor."""
    (tmp_path / "w.pt").write_bytes(saved_on(place, {"a": torch.arange(5000.0), "b": torch.ones(3)}))
    loaded = torch.load(tmp_path / "w.pt", mmap=True, map_location="cuda")
    assert loaded["a"].sum() == 5000 * 4999 / 2
    assert [mark_of(tensor) for tensor in loaded.values()] == [0, 0]


@pytest.mark.usefixtures("redirect")
def test_a_number_is_no_map_location() -> None:
    """Torch does not take one, on no machine."""
    with pytest.raises(TypeError, match="not callable"):
        load(saved_on("cuda:0", torch.ones(1)), map_location=0)


@pytest.mark.usefixtures("redirect")
def test_other_places_are_torchs_matter() -> None:
    assert load(saved_on("cpu", torch.ones(1)), map_location="meta").is_meta
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        load(saved_on("nowhere", torch.ones(1)))


@pytest.mark.usefixtures("redirect")
def test_views_and_parameters() -> None:
    """What shared memory shares it again, and parameters are some."""
    base = torch.arange(6.0)
    loaded = load(saved_on("cuda:0", {"all": base, "part": base[2:], "p": torch.nn.Parameter(torch.ones(2))}))
    loaded["part"][0] = 9
    assert loaded["all"].tolist() == [0, 1, 9, 3, 4, 5]
    assert isinstance(loaded["p"], torch.nn.Parameter)
    assert mark_of(loaded["p"]) == 0


@pytest.mark.usefixtures("redirect")
def test_training_goes_on() -> None:
    """A model and an optimizer that were saved on a card."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    data = saved_on("cuda:0", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    again = torch.nn.Linear(3, 2).cuda()
    other = torch.optim.AdamW(again.parameters())
    loaded = load(data)
    again.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["optimizer"])
    again(torch.ones(1, 3, device="cuda")).sum().backward()
    other.step()
    assert torch.equal(loaded["model"]["weight"], model.weight)


def test_a_card_that_is_not_there() -> None:
    """Where there are so many and no more, the error is torch's."""
    data = saved_on("cuda:5", torch.ones(1))
    with Redirect(SimulatedTarget(torch, 2, 1 << 30, (8, 6)), strict=True):
        with pytest.raises(RuntimeError, match=r"CUDA device 5 but torch.cuda.device_count\(\) is 2"):
            load(data)
        assert load(data, map_location="cuda:1").device == torch.device("cuda", 1)


def test_the_simulated_cards_memory_is_taken() -> None:
    target = SimulatedTarget(torch, 1, 1 << 20, (8, 6))
    data = saved_on("cuda:0", torch.zeros(1 << 17))
    with Redirect(target, strict=True):
        loaded = load(data)
        assert loaded.is_cuda
        assert target.memory[0].allocated == 1 << 19
        with pytest.raises(torch.OutOfMemoryError):
            load(saved_on("cuda:0", torch.zeros(1 << 18)))


def test_it_is_counted_once_a_file() -> None:
    record = Record()
    data = saved_on("cuda:0", [torch.ones(1), torch.ones(2)])
    with Redirect(DecidedTarget(resolver().decide("cpu")), record=record):
        load(data)
        load(data, map_location="cpu")
    assert [(place.what, count) for place, count in record.counts.items()] == [("torch.load", 1)]


def test_torch_forgets_it_at_the_end() -> None:
    registry = torch.serialization._package_registry
    before = list(registry)
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        assert len(registry) == len(before) + 1
        own = (15, lambda storage: None, lambda storage, location: None)
        torch.serialization.register_package(*own)
    assert registry == sorted([*before, own], key=lambda entry: entry[0])
    registry.remove(own)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
            load(saved_on("cuda:0", torch.ones(1)))


# -- what is saved -----------------------------------------------------------------------------------
SAVES: dict[str, Callable[[Any], bytes]] = {
    "torch.save": lambda x: saved(x),
    "legacy": lambda x: saved(x, _use_new_zipfile_serialization=False),
    "pickle": pickle.dumps,
    "multiprocessing": lambda x: sent(x),
    "module": lambda x: saved(torch.nn.Linear(2, 2).cuda()),
    "state dict": lambda x: saved(torch.nn.Linear(2, 2).cuda().state_dict()),
    "module, pickled": lambda x: pickle.dumps(torch.nn.DataParallel(torch.nn.Linear(2, 2).cuda())),
    "device": lambda x: pickle.dumps((x.device, torch.device("cuda", 1), torch.device)),
    "storage": lambda x: pickle.dumps(x.untyped_storage()),
}


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def sent(value: Any) -> bytes:
    """What goes through a queue; the memory itself waits for the other process in a thread, which is ended."""
    assert torch.multiprocessing.reductions is not None  # by it tensors are known
    data = bytes(multiprocessing.reduction.ForkingPickler.dumps(value))
    multiprocessing.resource_sharer.stop(timeout=5)
    return data


@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("way", SAVES.values(), ids=SAVES)
def test_nothing_of_ours_is_saved(way: Callable[[Any], bytes]) -> None:
    data = way(load(saved_on("cuda:0", torch.ones(3))))
    assert b"devicekit" not in data


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("weights_only", [True, False])
def test_what_was_saved_is_an_ordinary_file(form: dict[str, Any], weights_only: bool) -> None:
    """A torch that knows nothing of this reads it."""
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        model = torch.nn.Linear(2, 2).cuda()
        data = saved({"model": model.state_dict(), "x": torch.ones(2, device="cuda:0")}, **form)
    loaded = load(data, weights_only=weights_only)
    assert torch.equal(loaded["model"]["weight"], model.weight)
    assert mark_of(loaded["x"]) is None


@pytest.mark.usefixtures("redirect")
def test_copies_are_new() -> None:
    tensor = load(saved_on("cuda:0", torch.ones(3)))
    for made in (copy.deepcopy(tensor), copy.copy(tensor).clone(), pickle.loads(pickle.dumps(tensor))):
        assert made.data_ptr() != tensor.data_ptr()
        assert torch.equal(made, tensor)


def test_functions_are_sent_by_their_names() -> None:
    """To a pool of processes, as ``pool.map(torch.load, files)``."""
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        for function in (torch.load, torch.jit.load, torch.distributed.all_reduce, torch.nn.parallel.data_parallel):
            data = pickle.dumps(function)
            assert b"devicekit" not in data
            assert pickle.loads(data) is function


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("where", [None, "cuda:0"])
def test_packages(where: str | None) -> None:
    """torch.package asks the same table."""
    from torch.package import PackageExporter, PackageImporter

    file = io.BytesIO()
    entry = (-1, lambda storage: "cuda:0", lambda storage, location: None)
    torch.serialization._package_registry.insert(0, entry)
    try:
        with PackageExporter(file) as exporter:
            exporter.save_pickle("weights", "w.pkl", torch.arange(3.0))
    finally:
        torch.serialization._package_registry.remove(entry)
    file.seek(0)
    loaded = PackageImporter(file).load_pickle("weights", "w.pkl", map_location=where)
    assert loaded.tolist() == [0, 1, 2]
    assert mark_of(loaded) == 0


# -- TorchScript -------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
@pytest.mark.parametrize("where", [None, "cuda", "cuda:1", torch.device("cuda"), "cpu"])
def test_torchscript(tmp_path: Path, place: str, where: Any) -> None:
    path = scripted_on(place, torch.nn.Linear(3, 2), tmp_path / "m.pt")
    loaded = torch.jit.load(str(path)) if where is None else torch.jit.load(str(path), map_location=where)
    assert loaded(torch.ones(1, 3, device="cuda")).shape == (1, 2)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    on_card = where not in (None, "cpu")
    assert {mark_of(p) is not None for p in loaded.parameters()} == {on_card}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("redirect")
def test_torchscript_through_torch_load(tmp_path: Path) -> None:
    path = scripted_on("cuda:0", torch.nn.Linear(3, 2), tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="TorchScript archive"):
        loaded = torch.load(path, map_location="cuda", weights_only=False)
    assert mark_of(next(loaded.parameters())) == 0


# -- storages ----------------------------------------------------------------------------------------
TO_CARD: dict[str, Callable[[Any], Any]] = {
    "cuda": lambda s: s.cuda(),
    "cuda(1)": lambda s: s.cuda(1),
    "to": lambda s: s.to(device="cuda:1"),
    "to(device)": lambda s: s.to(device=torch.device("cuda")),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.usefixtures("redirect")
@pytest.mark.parametrize("kind", ["untyped_storage", "storage"])
@pytest.mark.parametrize("way", TO_CARD.values(), ids=TO_CARD)
def test_storages(kind: str, way: Callable[[Any], Any]) -> None:
    """To the card and back are copies; what is there already stays."""
    host = getattr(torch.full((2,), 7, dtype=torch.uint8), kind)()
    there = way(host)
    assert type(there) is type(host)
    assert not there.is_cuda
    there[0] = 0
    assert list(host) == [7, 7]
    assert way(there).data_ptr() == there.data_ptr()
    back = there.cpu()
    there[1] = 0
    assert list(back) == [0, 7]
    assert list(host.cpu()) == [7, 7]


@pytest.mark.usefixtures("redirect")
def test_a_storage_that_stays() -> None:
    storage = torch.ones(2).untyped_storage()
    assert storage.to(device="cpu") is storage
    with pytest.raises(RuntimeError, match="device"):
        storage.to(device="cuda:x")


# -- safetensors -------------------------------------------------------------------------------------
@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"w": torch.arange(4.0).view(2, 2), "b": torch.ones(2).half()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@needs_safetensors
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1", 0, 1])
def test_safetensors(redirect: Redirect, weights: Path, device: Any) -> None:
    """``load_file`` and ``safe_open``, whole and in slices."""
    import safetensors
    import safetensors.torch

    number = redirect.index(device)
    for loaded in safetensors.torch.load_file(weights, device=device), torch_load(weights, device):
        assert loaded["w"].tolist() == [[0, 1], [2, 3]]
        assert loaded["b"].dtype is torch.float16
        assert {mark_of(tensor) for tensor in loaded.values()} == {number}
    with safetensors.safe_open(weights, framework="pt", device=device) as file:
        assert sorted(file.keys()) == ["b", "w"]
        assert mark_of(file.get_tensor("w")) == number
        part = file.get_slice("w")
        assert part.get_shape() == [2, 2]
        assert part[1:].tolist() == [[2, 3]]
        assert mark_of(part[:, 0]) == number


def torch_load(path: Path, device: Any) -> Any:
    """Newer versions of ``torch.load`` read these files as well, for a device that is no number."""
    from safetensors.torch import load_file

    if torch.__version__ < "2.10" or not isinstance(device, str):
        return load_file(path, device)
    return torch.load(path, map_location=device)


@needs_safetensors
@pytest.mark.usefixtures("redirect")
def test_safetensors_into_a_model(weights: Path) -> None:
    import safetensors.torch

    saved, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).cuda()
    safetensors.torch.save_model(saved, weights)
    safetensors.torch.load_model(model, weights, device="cuda")
    assert torch.equal(model.weight, saved.weight)


@needs_safetensors
@pytest.mark.usefixtures("redirect")
def test_safetensors_onto_the_host(weights: Path) -> None:
    import safetensors.torch

    assert mark_of(safetensors.torch.load_file(weights)["w"]) is None
    assert mark_of(safetensors.torch.load_file(weights, device="cpu")["w"]) is None
    with safetensors.safe_open(weights, "np") as file:
        assert file.get_tensor("w").tolist() == [[0, 1], [2, 3]]
    with pytest.raises(safetensors.SafetensorError, match="invalid"):
        safetensors.safe_open(weights, "pt", device=torch.device("cuda"))  # it takes words and numbers only


@needs_safetensors
def test_safetensors_on_simulated_cards(weights: Path) -> None:
    import safetensors.torch

    target = SimulatedTarget(torch, 2, 1 << 20, (8, 6))
    with Redirect(target, strict=True):
        loaded = safetensors.torch.load_file(weights, device="cuda:1")
        assert {tensor.device for tensor in loaded.values()} == {torch.device("cuda", 1)}
        assert target.memory[1].allocated > 0
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            safetensors.torch.load_file(weights, device="cuda:2")


@needs_safetensors
def test_safetensors_imported_while_redirected(weights: Path) -> None:
    """A program imports it when it needs it; what it holds at the end is the package's own again, in its effect."""
    names = [name for name in sys.modules if name.partition(".")[0] == "safetensors" and "rust" not in name]
    held = {name: sys.modules.pop(name) for name in names}
    finders = list(sys.meta_path)
    try:
        with Redirect(DecidedTarget(resolver().decide("cpu"))):
            from safetensors import safe_open
            from safetensors.torch import load_file

            assert mark_of(load_file(weights, device="cuda")["w"]) == 0
            assert "exec_module" not in vars(sys.modules["safetensors.torch"].__spec__.loader)
        assert sys.modules["safetensors"].safe_open is held["safetensors"].safe_open
        assert mark_of(load_file(weights)["w"]) is None
        with safe_open(weights, "pt") as file:
            assert sorted(file.keys()) == ["b", "w"]
    finally:
        sys.modules.update(held)
    assert sys.meta_path == finders


@needs_safetensors
def test_safetensors_is_not_imported_for_it() -> None:
    names = [name for name in sys.modules if name.partition(".")[0] == "safetensors"]
    held = {name: sys.modules.pop(name) for name in names}
    try:
        with Redirect(DecidedTarget(resolver().decide("cpu"))):
            assert not [name for name in sys.modules if name.partition(".")[0] == "safetensors"]
            assert importlib.util.find_spec("safetensors") is not None
    finally:
        sys.modules.update(held)
