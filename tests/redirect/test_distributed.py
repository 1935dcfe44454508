"""Process groups under a redirect, in one process; what takes several is in test_children.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from devicekit.redirect.imports import when_imported
from devicekit.redirect.layer import Layer
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface import distributed as surface

torch = pytest.importorskip("torch")
dist = torch.distributed
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch is built without torch.distributed")

CPU = SimpleNamespace(collective="gloo", device_type="cpu", on_host=True)
NPU = SimpleNamespace(collective="hccl", device_type="npu", on_host=False)


@pytest.fixture
def alone(redirect: Redirect, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a process that is alone says to join a group; afterwards it has left it."""
    hook = sys.excepthook
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "")  # asks no name server
    yield {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if dist.is_initialized():
        time.sleep(0.05)  # torch 2.6 waits for ever where a thread of Gloo still holds a tensor
        dist.destroy_process_group()
    sys.excepthook = hook


@pytest.mark.parametrize(
    ("said", "on_cpu", "on_npu"),
    [
        ("nccl", "gloo", "hccl"),
        ("NCCL", "gloo", "hccl"),
        ("gloo", "gloo", "gloo"),
        ("cuda:nccl", "gloo", "npu:hccl"),
        ("cuda:nccl,cpu:gloo", "gloo", "npu:hccl,cpu:gloo"),
        ("cpu:gloo, cuda:nccl", "gloo", "npu:hccl,cpu:gloo"),
        ("cpu:mpi,cuda:nccl", "mpi", "npu:hccl,cpu:mpi"),  # what is said of the processor itself holds for it
        ("cuda:ucc", "ucc", "npu:ucc"),
    ],
)
def test_names_of_collectives(said: str, on_cpu: str, on_npu: str) -> None:
    assert surface.collective_of(CPU, said) == on_cpu  # type: ignore[arg-type]
    assert surface.collective_of(NPU, said) == on_npu  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "asked",
    [
        ("nccl",),
        {"backend": "nccl"},
        {"backend": "cuda:nccl,cpu:gloo"},
        {"backend": "nccl", "device_id": torch.device("cuda", 0)},
        {"device_id": torch.device("cuda", 0)},
        {"backend": "nccl", "pg_options": "options"},
        {},
        {"backend": "gloo"},
    ],
    ids=str,
)
def test_a_group_of_the_targets_collective(alone: dict[str, Any], asked: Any) -> None:
    """However NCCL is asked for; and it says what it is."""
    if isinstance(asked, tuple):
        dist.init_process_group(*asked, **alone)
    else:
        dist.init_process_group(**asked, **alone)
    assert dist.get_backend() == "gloo"
    x = torch.ones(2, device="cuda")
    dist.all_reduce(x)
    dist.barrier(device_ids=[0])
    dist.barrier(None, False, [0])
    assert x.tolist() == [1, 1]


def test_what_is_available(alone: dict[str, Any]) -> None:
    """The program can have NCCL; and of others the truth."""
    assert dist.is_nccl_available()
    assert dist.is_backend_available("nccl")
    assert dist.is_backend_available(backend="gloo")
    assert not dist.is_backend_available("no such thing")
    torchs = {"__name__": "torch.distributed.somewhere", "ask": dist.is_nccl_available}
    exec("found = ask()", torchs)
    assert torchs["found"] == (torch.cuda.nccl is not None and hasattr(torch._C._distributed_c10d, "ProcessGroupNCCL"))


def test_a_mesh(alone: dict[str, Any]) -> None:
    dist.init_process_group("nccl", **alone)
    for mesh in (
        dist.device_mesh.init_device_mesh("cuda", (1,)),
        dist.device_mesh.init_device_mesh(device_type="cuda", mesh_shape=(1,)),
        dist.device_mesh.DeviceMesh("cuda", [0]),
    ):
        assert mesh.device_type == "cpu"
        assert mesh.get_group().size() == 1


def test_an_average_of_one(alone: dict[str, Any]) -> None:
    """Gloo of older versions has none; those of several processes are looked at elsewhere."""
    dist.init_process_group("nccl", **alone)
    x, part = torch.full((2,), 3.0, device="cuda"), torch.zeros(2, device="cuda")
    dist.all_reduce(x, dist.ReduceOp.AVG)
    dist.reduce(x, 0, dist.ReduceOp.AVG)
    dist.reduce_scatter_tensor(output=part, input=x, op=dist.ReduceOp.AVG)
    dist.reduce_scatter_tensor(part, x, group=None, op=dist.ReduceOp.AVG)
    dist.all_reduce(tensor=x)
    assert x.tolist() == part.tolist() == [3, 3]
    n = torch.tensor([5], device="cuda")
    assert dist.all_reduce(n, dist.ReduceOp.AVG, async_op=True).is_completed()
    assert n.item() == 5


test_an_average_of_one = pytest.mark.filterwarnings("ignore:.*reduce_scatter_tensor:FutureWarning")(
    test_an_average_of_one
)


def test_a_torch_without_it_is_left_alone() -> None:
    """Some builds have no torch.distributed."""
    bare = SimpleNamespace(distributed=SimpleNamespace(is_available=lambda: False))
    surface.install(SimpleNamespace(torch=bare))  # type: ignore[arg-type]


@pytest.mark.slow
def test_nothing_of_it_is_imported() -> None:
    """But for what ``import torch`` has imported anyway."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from devicekit.redirect.entry import redirect_cuda\n"
        "with redirect_cuda('cpu'): pass\n"
        "heavy = ('torch.distributed', 'torch._dynamo', 'torch._inductor', 'safetensors', 'sympy')\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith(heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr[-2000:]


# -- what is done when a module is imported ----------------------------------------------------------
@pytest.fixture
def late(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "imported_late.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "imported_late"
    sys.modules.pop("imported_late", None)


def test_it_is_done_after_the_import(late: str) -> None:
    """Those inside of one another in their order; and all of it is taken back."""
    outer, inner, finders = Layer(), Layer(), list(sys.meta_path)
    outer.enter(lambda: when_imported(outer, late, lambda m: outer.replace(m, "value", m.value + 1)))
    inner.enter(lambda: when_imported(inner, late, lambda m: inner.replace(m, "value", m.value * 10)))
    import imported_late  # type: ignore[import-not-found]

    assert imported_late.value == 20
    assert "exec_module" not in vars(imported_late.__spec__.loader)
    inner.leave()
    assert imported_late.value == 2
    outer.leave()
    assert imported_late.value == 1
    assert sys.meta_path == finders


def test_it_is_done_at_once_where_the_module_is_there(late: str) -> None:
    import imported_late

    layer = Layer()
    layer.enter(lambda: when_imported(layer, late, lambda m: layer.replace(m, "value", 7)))
    assert imported_late.value == 7
    layer.leave()
    assert imported_late.value == 1


def test_it_is_not_done_any_more(late: str) -> None:
    """A finder that looked while the layer was in force, and an import that came afterwards."""
    layer = Layer()
    layer.enter(lambda: when_imported(layer, late, lambda m: layer.replace(m, "value", 7)))
    spec = importlib.util.find_spec(late)
    assert spec is not None
    assert spec.loader is not None
    layer.leave()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.value == 1


def test_a_module_that_is_nowhere(late: str) -> None:
    layer = Layer()
    layer.enter(lambda: when_imported(layer, "nowhere_at_all", lambda m: None))
    try:
        assert importlib.util.find_spec("nowhere_at_all") is None
        with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
            __import__("nowhere_at_all")
    finally:
        layer.leave()
