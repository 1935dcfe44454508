"""Tensors that are made on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.redirect.battery.checking import MIXED, Raises, Skipped, check, group

group("factories")
HOST_64 = Skipped("an npu has no float64")
SPARSE = Skipped("the simulated npu has no sparse tensors")


def _there(*tensors: Any) -> bool:
    """All lie where a tensor of "cuda" lies."""
    device = torch.ones(1, device="cuda").device
    return all(t.device == device for t in tensors)


@check("zeros, ones, empty, full, rand, randn, eye with device='cuda'")
def _() -> Any:
    d = {"device": "cuda"}
    return _there(
        torch.zeros(2, **d), torch.ones(2, **d), torch.empty(2, **d), torch.full((2,), 3.0, **d), torch.rand(2, **d),
        torch.randn(2, **d), torch.eye(2, **d),
    )  # fmt: skip


@check("arange, linspace, logspace, randint, randperm with device='cuda'")
def _() -> Any:
    d = {"device": "cuda"}
    return _there(
        torch.arange(3, **d), torch.linspace(0, 1, 3, **d), torch.logspace(0, 1, 3, **d),
        torch.randint(0, 9, (2,), **d), torch.randperm(4, **d),
    )  # fmt: skip


@check("tril_indices, triu_indices, empty_strided with device='cuda'")
def _() -> Any:
    d = {"device": "cuda"}
    return _there(torch.tril_indices(2, 2, **d), torch.triu_indices(2, 2, **d), torch.empty_strided((2,), (1,), **d))


@check("tensor, as_tensor, asarray of lists with device='cuda'", [[1, 2]] * 3)
def _() -> Any:
    made = [f([1, 2], device="cuda") for f in (torch.tensor, torch.as_tensor, torch.asarray)]
    return [x.tolist() for x in made] if _there(*made) else "elsewhere"


@check("tensor and as_tensor of numpy arrays copy", [1.0, 1.0])
def _() -> Any:
    array = np.ones(2, dtype=np.float32)
    for make in (torch.tensor, torch.as_tensor, torch.asarray):
        make(array, device="cuda").add_(1)
    return array.tolist()


@check("torch.from_numpy(a).cuda() copies", [1.0, 1.0])
def _() -> Any:
    array = np.ones(2, dtype=np.float32)
    torch.from_numpy(array).cuda().add_(1)
    return array.tolist()


@check("torch.as_tensor of a tensor that is there is that tensor")
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return torch.as_tensor(x, device="cuda").data_ptr() == x.data_ptr()


@check(
    "torch.tensor of a list of numbers on the device",
    [1.0, 2.0],
    npu=Skipped("the simulated npu cannot read a number there"),
)
def _() -> Any:
    x = torch.tensor([1.0, 2.0], device="cuda")
    return torch.tensor([x[0], x[1]], device="cuda").tolist()


@check("device as a torch.device, with an index, as a number")
def _() -> Any:
    return _there(*(torch.ones(2, device=d) for d in (torch.device("cuda"), torch.device("cuda", 0), "cuda:0", 0)))


@check("zeros_like, ones_like, rand_like, full_like with device='cuda' of a host tensor")
def _() -> Any:
    x = torch.ones(2)
    made = [
        f(x, device="cuda")
        for f in (torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.empty_like)
    ]
    return _there(*made, torch.full_like(x, 2.0, device="cuda"), torch.randint_like(x, 3, device="cuda"))


@check("zeros_like(x, device='cpu') of a device tensor", "cpu")
def _() -> Any:
    return str(torch.zeros_like(torch.ones(2, device="cuda"), device="cpu").device)


@check("x.new_zeros, new_ones, new_full, new_empty, new_tensor with and without a device")
def _() -> Any:
    x, h = torch.ones(2, device="cuda"), torch.ones(2)
    made = [x.new_zeros(2), x.new_ones(2), x.new_full((2,), 1.0), x.new_empty(2), x.new_tensor([1.0])]
    return _there(*made, h.new_zeros(2, device="cuda"), h.new_tensor([1.0], device="cuda"))


@check("x.new(2) of a device tensor")
def _() -> Any:
    return _there(torch.ones(1, device="cuda").new(2))


@check("requires_grad=True, dtype= and device= together", [True, "torch.float16"])
def _() -> Any:
    x = torch.ones(2, dtype=torch.float16, device="cuda", requires_grad=True)
    return [x.requires_grad and x.is_leaf, str(x.dtype)]


@check("float64 on the device", "torch.float64", npu=HOST_64)
def _() -> Any:
    return str(torch.zeros(2, dtype=torch.float64, device="cuda").dtype)


@check("bfloat16, float16, int8, bool on the device", ["torch.bfloat16", "torch.float16", "torch.int8", "torch.bool"])
def _() -> Any:
    return [
        str(torch.zeros(2, dtype=d, device="cuda").dtype)
        for d in (torch.bfloat16, torch.float16, torch.int8, torch.bool)
    ]


@check("torch.hann_window, fft.fftfreq, bartlett_window with device='cuda'")
def _() -> Any:
    return _there(
        torch.hann_window(4, device="cuda"),
        torch.fft.fftfreq(4, device="cuda"),
        torch.bartlett_window(4, device="cuda"),
    )


@check("torch.normal with a size and a device")
def _() -> Any:
    return _there(torch.normal(0.0, 1.0, (2,), device="cuda"))


@check("torch.normal of tensors on the device")
def _() -> Any:
    return _there(torch.normal(torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")))


@check("torch.bernoulli, multinomial, poisson on the device")
def _() -> Any:
    p = torch.full((4,), 0.5, device="cuda")
    return _there(torch.bernoulli(p), torch.multinomial(p, 2), torch.poisson(p))


@check("torch.sparse_coo_tensor(device='cuda').to_dense()", [0.0, 2.0], npu=SPARSE)
def _() -> Any:
    return torch.sparse_coo_tensor([[1]], [2.0], (2,), device="cuda", check_invariants=True).to_dense().tolist()


@check(
    "torch.sparse_csr_tensor(device='cuda') @ v",
    [3.0, 4.0],
    npu=SPARSE,
    warns="Sparse CSR tensor support is in beta|Sparse invariant",
)
def _() -> Any:
    m = torch.sparse_csr_tensor([0, 1, 2], [0, 1], [3.0, 4.0], (2, 2), device="cuda", check_invariants=True)
    return (m @ torch.ones(2, device="cuda")).tolist()


@check("a sparse tensor says it is on CUDA", translated=False, npu=SPARSE)
def _() -> Any:
    return torch.eye(2, device="cuda").to_sparse().is_cuda


@check("torch.nested.nested_tensor(device='cuda')", [2, 3], npu=Skipped("the simulated npu has no nested tensors"))
def _() -> Any:
    made = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], device="cuda", layout=torch.jagged)
    return [len(part) for part in made.unbind()]


@check("out= on the device", [2.0, 2.0])
def _() -> Any:
    out = torch.empty(2, device="cuda")
    torch.add(torch.ones(2, device="cuda"), 1, out=out)
    return out.tolist()


@check("out= on the host of an operation on the device", MIXED, translated=[2.0, 2.0], npu=MIXED)
def _() -> Any:
    out = torch.empty(2)
    return torch.add(torch.ones(2, device="cuda"), torch.ones(2, device="cuda"), out=out).tolist()


@check(
    "torch.zeros(pin_memory=True, device='cuda')",
    Raises(RuntimeError, "only dense CPU tensors can be pinned"),
    npu=Raises((RuntimeError, NotImplementedError)),
)
def _() -> Any:
    return torch.zeros(2, device="cuda", pin_memory=True)


@check("torch.empty(0, device='cuda')", [0])
def _() -> Any:
    return list(torch.empty(0, device="cuda").shape)


@check("torch.meshgrid, cartesian_prod, block_diag on the device")
def _() -> Any:
    x = torch.arange(2, device="cuda")
    return _there(*torch.meshgrid(x, x, indexing="ij"), torch.cartesian_prod(x, x), torch.block_diag(x, x))
