"""Files: what is loaded to the device, and checkpoints that were saved on one."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Raises, check, group

group("saving")


def _saved(thing: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return buffer


def _saved_on(location: str) -> io.BytesIO:
    """A file as a machine with CUDA writes it: the location is a text in the pickle inside the archive."""
    plain, made = zipfile.ZipFile(_saved({"w": torch.ones(2)})), io.BytesIO()
    old, new = _text("cpu"), _text(location)
    with zipfile.ZipFile(made, "w") as archive:
        for item in plain.infolist():
            data = plain.read(item)
            if item.filename.endswith("data.pkl"):
                assert data.count(old) == 1
                data = data.replace(old, new)
            archive.writestr(item.filename, data)
    made.seek(0)
    return made


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()  # pickle's BINUNICODE


def _home(x: Any) -> bool:
    return x.device == torch.ones(1, device="cuda").device


@check("torch.load(map_location='cuda')", translated=False)
def _() -> Any:
    return torch.load(_saved({"w": torch.ones(2)}), map_location="cuda")["w"].is_cuda


@check("torch.load(map_location=): text, index, device, torch.device(0)", [True] * 4)
def _() -> Any:
    ways = ("cuda", "cuda:0", torch.device("cuda"), torch.device(0))
    return [_home(torch.load(_saved(torch.ones(2)), map_location=w)) for w in ways]


@check("torch.load(map_location=lambda storage, location: storage.cuda(0))", True)
def _() -> Any:
    return _home(torch.load(_saved(torch.ones(2)), map_location=lambda storage, location: storage.cuda(0)))


@check("torch.load(map_location=lambda storage, location: storage)", ["cpu", "cpu"])
def _() -> Any:
    return [
        str(torch.load(f, map_location=lambda s, _: s, weights_only=False)["w"].device)
        for f in (_saved({"w": torch.ones(2)}), _saved_on("cuda:0"))
    ]


@check("a checkpoint saved on cuda:0, no map_location", translated=False)
def _() -> Any:
    return torch.load(_saved_on("cuda:0"))["w"].is_cuda


@check("a checkpoint saved on cuda:0: its numbers", [1.0, 1.0])
def _() -> Any:
    return torch.load(_saved_on("cuda:0"))["w"].tolist()


@check("a checkpoint saved on cuda:0, weights_only=False", [1.0, 1.0])
def _() -> Any:
    return torch.load(_saved_on("cuda:0"), weights_only=False)["w"].tolist()


@check("a checkpoint saved on cuda:0, map_location='cpu'", "cpu")
def _() -> Any:
    return str(torch.load(_saved_on("cuda:0"), map_location="cpu")["w"].device)


@check("a checkpoint saved on cuda:0, map_location={'cuda:0': 'cpu'}", "cpu")
def _() -> Any:
    return str(torch.load(_saved_on("cuda:0"), map_location={"cuda:0": "cpu"})["w"].device)


@check("a checkpoint saved on cuda:1, map_location={'cuda:1': 'cuda:0'}", True)
def _() -> Any:
    return _home(torch.load(_saved_on("cuda:1"), map_location={"cuda:1": "cuda:0"})["w"])


@check(
    "a checkpoint saved on cuda:1, on a machine that has it",
    "cuda:1",
    translated="cpu",
    npu=Raises(RuntimeError),
    needs_devices=2,
)
def _() -> Any:
    return str(torch.load(_saved_on("cuda:1"))["w"].device)


@check(
    "a checkpoint saved on a device that is not there",
    Raises(RuntimeError, r"Attempting to deserialize object on CUDA device 97 but torch.cuda.device_count\(\) is \d+"),
    translated=[1.0, 1.0], npu=Raises(RuntimeError),
)  # fmt: skip
def _() -> Any:
    return torch.load(_saved_on("cuda:97"))["w"].tolist()


@check(
    "what is saved from the device is loaded there again",
    translated=False,
    masqueraded=Differs(False, "what is saved is an ordinary file of the processor"),
)
def _() -> Any:
    return torch.load(_saved(torch.ones(2, device="cuda"))).is_cuda


@check(
    "a file saved from the device says cuda:0",
    translated=False,
    masqueraded=Differs(False, "what is saved is an ordinary file of the processor"),
)
def _() -> Any:
    with zipfile.ZipFile(_saved(torch.ones(2, device="cuda"))) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        return b"cuda:0" in archive.read(name)


@check("a file holds torch's own things only", False)
def _() -> Any:
    with zipfile.ZipFile(_saved(torch.nn.Linear(1, 1).cuda().state_dict())) as archive:
        return any(b"devicekit" in archive.read(name) for name in archive.namelist())


@check("torch.save of a model, an optimizer and a state of the generator", 3)
def _() -> Any:
    net = torch.nn.Linear(2, 2).cuda()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.cuda.get_rng_state()}
    loaded = torch.load(_saved(state), map_location="cuda")
    net.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    torch.cuda.set_rng_state(loaded["rng"].cpu())
    return len(loaded)


@check("torch.load(map_location='cuda') twice gives two tensors", [1.0, 1.0])
def _() -> Any:
    file = _saved(torch.ones(2))
    first = torch.load(file, map_location="cuda")
    file.seek(0)
    torch.load(file, map_location="cuda").add_(1)
    return first.tolist()


@check("tensors that share memory share it after loading", [5.0, 1.0])
def _() -> Any:
    x = torch.ones(2)
    loaded = torch.load(_saved([x, x.view(2)]), map_location="cuda")
    loaded[0][0] = 5
    return loaded[1].tolist()


@check("torch.load(mmap=True, map_location='cuda')", True)
def _() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        torch.save({"w": torch.ones(2)}, path)
        return _home(torch.load(path, mmap=True, map_location="cuda")["w"].clone())


@check("the old file format, map_location='cuda'", True)
def _() -> Any:
    buffer = io.BytesIO()
    torch.save(torch.ones(2), buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    return _home(torch.load(buffer, map_location="cuda"))


@check("safetensors.torch.load_file(device='cuda')", translated=False)
def _() -> Any:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file({"w": torch.ones(2)}, path)
        return load_file(path, device="cuda")["w"].is_cuda


@check("safetensors load_file(device='cuda:0'), (device=0)", [[1.0, 1.0], [1.0, 1.0]])
def _() -> Any:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file({"w": torch.ones(2)}, path)
        return [load_file(path, device=d)["w"].cpu().tolist() for d in ("cuda:0", 0)]


@check("safetensors.safe_open(device='cuda')", [1.0, 1.0])
def _() -> Any:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file({"w": torch.ones(2)}, path)
        with safe_open(path, framework="pt", device="cuda") as file:
            return file.get_tensor("w").cpu().tolist()


@check("safetensors.torch.save_file of tensors on the device", [1.0, 1.0])
def _() -> Any:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file({"w": torch.ones(2, device="cuda")}, path)
        return load_file(path)["w"].tolist()


@check("pickle of a list of tensors on the device", [[1.0], [2.0]])
def _() -> Any:
    return [
        x.tolist() for x in pickle.loads(pickle.dumps([torch.ones(1).cuda(), torch.full((1,), 2.0, device="cuda")]))
    ]


@check("untyped_storage().cuda(), .cpu()", ["cuda", "cpu"], translated=lambda device: [device.type, "cpu"])
def _() -> Any:
    storage = torch.ones(2).untyped_storage().cuda()
    return [storage.device.type, storage.cpu().device.type]
