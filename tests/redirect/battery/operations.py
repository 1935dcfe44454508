"""Operations on the device: in place, views, masks, indices, complex, sparse, linear algebra."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch.nn import functional

from tests.redirect.battery.checking import Differs, Skipped, check, group

group("operations")
NO_KERNEL = Skipped("the simulated npu has no such kernel, or no such dtype")


def _arange(*shape: int) -> Any:
    return torch.arange(float(torch.Size(shape).numel()), device="cuda").reshape(shape)


@check("in place: add_, mul_, zero_, fill_, clamp_, +=", [[3.0, 3.0], [0.0, 0.0], [7.0, 7.0]])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    x += 2
    first = x.tolist()
    x.mul_(2).zero_()
    return [first, x.tolist(), x.fill_(9).clamp_(max=7).tolist()]


@check("slices, ellipsis, None, negative steps by flip", [[1.0], [3.0, 2.0, 1.0, 0.0]])
def _() -> Any:
    x = _arange(4)
    return [x[..., 1:2].tolist(), x.flip(0).tolist()]


@check("permute, transpose, reshape, expand, squeeze, unsqueeze", [[3, 2], [1, 2, 3], [6], [2, 2, 3]])
def _() -> Any:
    x = _arange(2, 3)
    return [list(y.shape) for y in (x.T, x.unsqueeze(0), x.permute(1, 0).reshape(-1), x.expand(2, 2, 3))]


@check("sum, mean, max, argmax, std, norm", [15.0, 2.5, 5.0, 5, True])
def _() -> Any:
    x = _arange(6)
    return [
        x.sum().item(),
        x.mean().item(),
        x.max().item(),
        x.argmax().item(),
        (x.std() > 0).item() and (x.norm() > 0).item(),
    ]


@check("a mask: x[x > 1], masked_select, nonzero", [[2.0, 3.0], [2.0, 3.0], [[2], [3]]])
def _() -> Any:
    x = _arange(4)
    return [x[x > 1].tolist(), x.masked_select(x > 1).tolist(), (x > 1).nonzero().tolist()]


@check("gather, scatter_, scatter_add_, index_add_", [[1.0], [0.0, 1.0], [0.0, 2.0], [0.0, 1.0]])
def _() -> Any:
    x, i = _arange(2), torch.tensor([1], device="cuda")
    z, one = torch.zeros(2, device="cuda"), torch.ones(1, device="cuda")
    return [
        x.gather(0, i).tolist(), z.clone().scatter_(0, i, 1.0).tolist(),
        z.clone().scatter_add_(0, torch.tensor([1, 1], device="cuda"), torch.ones(2, device="cuda")).tolist(),
        z.clone().index_add_(0, i, one).tolist(),
    ]  # fmt: skip


@check("index_put_ with accumulate", [2.0, 0.0])
def _() -> Any:
    i = torch.tensor([0, 0], device="cuda")
    return torch.zeros(2, device="cuda").index_put_((i,), torch.ones(2, device="cuda"), accumulate=True).tolist()


@check("sort, topk, unique, cumsum", [[0.0, 1.0, 2.0], [2.0], [0, 1, 2], [0.0, 1.0, 3.0]])
def _() -> Any:
    x = _arange(3)
    return [
        x.flip(0).sort().values.tolist(),
        x.topk(1).values.tolist(),
        x.long().unique().tolist(),
        x.cumsum(0).tolist(),
    ]


@check("cat, stack, split, chunk, unbind, pad", [6, [2, 3], [1, 2], [1, 1], 3, [5]])
def _() -> Any:
    x = _arange(3)
    return [
        len(torch.cat([x, x])), list(torch.stack([x, x]).shape), [len(p) for p in x.split([1, 2])],
        [len(p) for p in _arange(2).chunk(2)], len(x.unbind()), list(functional.pad(x, (1, 1)).shape),
    ]  # fmt: skip


@check("einsum, matmul, bmm, outer", [[[5.0]], 5.0, [1, 1, 1], [2, 2]])
def _() -> Any:
    x = torch.tensor([[1.0, 2.0]], device="cuda")
    return [
        torch.einsum("ij,kj->ik", x, x).tolist(), (x @ x.T).item(), list(torch.bmm(x[None], x.T[None]).shape),
        list(torch.outer(x[0], x[0]).shape),
    ]  # fmt: skip


@check("float16 and bfloat16 matrix products", ["torch.float16", "torch.bfloat16"])
def _() -> Any:
    return [
        str((torch.ones(2, 2, dtype=d, device="cuda") @ torch.ones(2, 2, dtype=d, device="cuda")).dtype)
        for d in (torch.float16, torch.bfloat16)
    ]


@check("linalg: inv, svd, qr, cholesky, solve, det", True, npu=NO_KERNEL)
def _() -> Any:
    x = torch.eye(2, device="cuda") * 2
    ok = torch.allclose(torch.linalg.inv(x) @ x, torch.eye(2, device="cuda")) and torch.linalg.det(x).item() == 4
    return (
        ok
        and len(torch.linalg.svd(x)) == 3
        and len(torch.linalg.qr(x)) == 2
        and torch.linalg.cholesky(x).shape == (2, 2)
    )


@check("fft, ifft, rfft", True, npu=NO_KERNEL)
def _() -> Any:
    x = _arange(4)
    return torch.allclose(torch.fft.ifft(torch.fft.fft(x)).real, x, atol=1e-6) and torch.fft.rfft(x).shape == (3,)


@check("stft with a window on the device", 3, npu=NO_KERNEL)
def _() -> Any:
    found = torch.stft(_arange(8), 4, window=torch.hann_window(4, device="cuda"), return_complex=True)
    return found.shape[0]


@check("complex numbers: view_as_complex, polar, abs, real", [5.0, 3.0], npu=NO_KERNEL)
def _() -> Any:
    z = torch.view_as_complex(torch.tensor([3.0, 4.0], device="cuda"))
    return [z.abs().item(), z.real.item()]


@check("a sparse matrix times a dense one", [[2.0], [0.0]], npu=NO_KERNEL)
def _() -> Any:
    m = torch.tensor([[2.0, 0.0], [0.0, 0.0]], device="cuda").to_sparse()
    return torch.sparse.mm(m, torch.ones(2, 1, device="cuda")).tolist()


@check("coalesce, indices and values of a sparse tensor", [[[0, 1]], [1.0, 1.0]], npu=NO_KERNEL)
def _() -> Any:
    m = torch.ones(2).to_sparse().cuda().coalesce()
    return [m.indices().tolist(), m.values().tolist()]


@check("quantile, histc, bincount, searchsorted", [1.0, [1.0, 1.0], [1, 2], 1], npu=NO_KERNEL)
def _() -> Any:
    x = _arange(3)
    return [
        x.quantile(0.5).item(), _arange(2).histc(2).tolist(),
        torch.bincount(torch.tensor([0, 1, 1], device="cuda")).tolist(),
        torch.searchsorted(x, torch.tensor(1.0, device="cuda")).item(),
    ]  # fmt: skip


@check("F.interpolate, grid_sample, pixel_shuffle", [[1, 1, 4, 4], [1, 1, 2, 2], [1, 1, 4, 4]])
def _() -> Any:
    x = _arange(1, 1, 2, 2)
    grid = functional.affine_grid(torch.eye(2, 3, device="cuda")[None], [1, 1, 2, 2], align_corners=False)
    return [
        list(functional.interpolate(x, scale_factor=2, mode="bilinear").shape),
        list(functional.grid_sample(x, grid, align_corners=False).shape),
        list(functional.pixel_shuffle(_arange(1, 4, 2, 2), 2).shape),
    ]  # fmt: skip


@check("F.one_hot, embedding, dropout, softmax, gelu", [[0, 1], [2, 3], 2, 1.0, True])
def _() -> Any:
    x = _arange(2)
    return [
        functional.one_hot(torch.tensor(1, device="cuda"), 2).tolist(),
        list(functional.embedding(torch.tensor([0, 1], device="cuda"), torch.ones(2, 3, device="cuda")).shape),
        len(functional.dropout(x, 0.5)), round(x.softmax(0).sum().item(), 3), (functional.gelu(x) >= 0).all().item(),
    ]  # fmt: skip


@check("copy.deepcopy of a tensor stays on the device", [1.0, 1.0])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    y = copy.deepcopy(x)
    x.add_(1)
    return y.tolist() if y.device == x.device else "elsewhere"


@check("copy.deepcopy of a tensor is on CUDA", translated=False)
def _() -> Any:
    return copy.deepcopy(torch.ones(2, device="cuda")).is_cuda


@check(
    "pickle of a tensor keeps the device",
    translated=False,
    masqueraded=Differs(False, "what is pickled is an ordinary tensor of the processor"),
)
def _() -> Any:
    return pickle.loads(pickle.dumps(torch.ones(2, device="cuda"))).is_cuda


@check("pickle of a tensor keeps the numbers", [1.0, 1.0])
def _() -> Any:
    return pickle.loads(pickle.dumps(torch.ones(2, device="cuda"))).tolist()


@check("x.untyped_storage().device", "cuda", translated=lambda device: device.type)
def _() -> Any:
    return torch.ones(2, device="cuda").untyped_storage().device.type


@check("x.untyped_storage().nbytes(), x.nbytes, element_size", [8, 8, 4])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return [x.untyped_storage().nbytes(), x.nbytes, x.element_size()]


@check("x.resize_, x.set_", [[3], [2.0, 2.0]])
def _() -> Any:
    x, y = torch.ones(2, device="cuda"), torch.full((2,), 2.0, device="cuda")
    shape = list(torch.empty(2, device="cuda").resize_(3).shape)
    return [shape, x.set_(y).tolist()]


@check("torch.no_grad, inference_mode", [False, True])
def _() -> Any:
    x = torch.ones(2, device="cuda", requires_grad=True)
    with torch.no_grad():
        first = (x * 2).requires_grad
    with torch.inference_mode():
        return [first, (x * 2).is_inference()]


@check("torch._foreach_add_ on the device", [[2.0], [2.0, 2.0]])
def _() -> Any:
    tensors = [torch.ones(1, device="cuda"), torch.ones(2, device="cuda")]
    torch._foreach_add_(tensors, 1)
    return [t.tolist() for t in tensors]


@check("isnan, isfinite, nan_to_num", [True, False, 0.0])
def _() -> Any:
    x = torch.tensor(float("nan"), device="cuda")
    return [x.isnan().item(), x.isfinite().item(), x.nan_to_num(0.0).item()]
