"""What CUDA refuses: tensors of the host and of the device in one operation, in its own words.

A processor computes these, so under translate they only say that. An npu refuses them as CUDA does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tests.redirect.battery.checking import MIXED, Raises, check, group

group("mixing")
COMPUTES = "computed"
INDICES = r"indices should be either on cpu or on the same device as the indexed tensor \(cpu\)"
NPU_SAYS = Raises(RuntimeError, "Expected all tensors to be on the same device")


def _refused(name: str, expected: Raises = MIXED, **options: Any) -> Callable[..., Any]:
    options = {"translated": COMPUTES, "npu": NPU_SAYS, **options}

    def made(program: Callable[[Any, Any], Any]) -> Any:
        def both() -> str:
            program(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))
            return COMPUTES

        return check(name, expected, **options)(both)

    return made


def _argument(name: str, kernel: str) -> Raises:
    words = rf"(but got {name} is on|for argument {name}).*in method wrapper_CUDA_{kernel}"
    return Raises(RuntimeError, "Expected all tensors to be on the same device.*" + words)


_refused("x + host")(lambda x, h: x + h)
_refused("host + x")(lambda x, h: h + x)
_refused("x * host")(lambda x, h: x * h)
_refused("x > host")(lambda x, h: x > h)
_refused("x.add_(host)")(lambda x, h: x.add_(h))
_refused("host.add_(x)")(lambda x, h: h.add_(x))
_refused("torch.maximum(x, host)")(lambda x, h: torch.maximum(x, h))
_refused("host + a scalar on the device")(lambda x, h: h + x.sum())
_refused("torch.where(x > 0, x, host)")(lambda x, h: torch.where(x > 0, x, h))
_refused("torch.where(host mask, x, x)")(lambda x, h: torch.where(h > 0, x, x))
_refused("torch.lerp(x, x, host)")(lambda x, h: torch.lerp(x, x, h))
_refused("torch.addcmul(x, x, host)")(lambda x, h: torch.addcmul(x, x, h))
_refused("torch.allclose(x, host)", text_unverified=True)(lambda x, h: torch.allclose(x, h))
_refused("x @ host", _argument("mat2", "mm"))(lambda x, h: x @ h)
_refused("host @ x", _argument("(mat2|self)", "mm"))(lambda x, h: h @ x)
_refused("torch.mm(x, host)", _argument("mat2", "mm"))(lambda x, h: torch.mm(x, h))
_refused("torch.bmm(x, host)", _argument("mat2", "bmm"))(lambda x, h: torch.bmm(x[None], h[None]))
_refused("torch.addmm(x, x, host)", _argument("mat2", "addmm"))(lambda x, h: torch.addmm(x, x, h))
_refused("torch.mv(x, host)")(lambda x, h: torch.mv(x, h[0]))
_refused("torch.dot(x, host)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: torch.dot(x[0], h[0])
)
_refused("torch.einsum of both", text_unverified=True)(lambda x, h: torch.einsum("ij,jk->ik", x, h))
_refused("F.linear(x, host weight)", text_unverified=True)(lambda x, h: functional.linear(x, h))
_refused("a module on the device, a batch on the host", _argument("mat1", "addmm"))(
    lambda x, h: torch.nn.Linear(2, 2).cuda()(h)
)
_refused("a module on the host, a batch on the device", _argument("mat[12]", "addmm"))(
    lambda x, h: torch.nn.Linear(2, 2)(x)
)
_refused("torch.cat([x, host])", _argument("tensors", "cat"))(lambda x, h: torch.cat([x, h]))
_refused("torch.stack([x, host])", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: torch.stack([x, h])
)
_refused("nn.Embedding on the device, indices on the host", _argument("index", "_index_select"))(
    lambda x, h: torch.nn.Embedding(2, 2).cuda()(torch.tensor([0, 1]))
)
_refused("nn.Embedding on the host, indices on the device", MIXED, text_unverified=True)(
    lambda x, h: torch.nn.Embedding(2, 2)(torch.tensor([0, 1], device="cuda"))
)
_refused("x.index_select(0, host index)", _argument("index", "_index_select"))(
    lambda x, h: x.index_select(0, torch.tensor([0]))
)
_refused("x.gather(1, host index)", _argument("index", "gather"))(
    lambda x, h: x.gather(1, torch.zeros(2, 1, dtype=torch.int64))
)
_refused("x.scatter_(1, host index, 1.0)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: x.scatter_(1, torch.zeros(2, 1, dtype=torch.int64), 1.0)
)
_refused("x.scatter_add_(0, index, host source)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: x.scatter_add_(0, torch.zeros(2, 2, dtype=torch.int64, device="cuda"), h)
)
_refused("host[device index]", Raises(RuntimeError, INDICES))(lambda x, h: h[torch.tensor([0], device="cuda")])
_refused("host[device mask]", Raises(RuntimeError, INDICES))(lambda x, h: h[x > 0])
_refused("host[device index] = 1.0", Raises(RuntimeError, INDICES), text_unverified=True)(
    lambda x, h: h.__setitem__(torch.tensor([0], device="cuda"), 1.0)
)
_refused("x[device index] = host tensor", Raises(RuntimeError, "same device|values"), text_unverified=True)(
    lambda x, h: x.__setitem__(torch.tensor([0, 1], device="cuda"), h)
)
_refused(
    "x.masked_fill(host mask, 0)",
    Raises(RuntimeError, "expected self and mask to be on the same device, but got mask on cpu"),
)(lambda x, h: x.masked_fill(h > 0, 0.0))
_refused("x.masked_scatter_(host mask, x)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: x.masked_scatter_(h > 0, x)
)
_refused(
    "F.conv2d(host, device weight)",
    Raises(
        RuntimeError, r"Input type \(torch.FloatTensor\) and weight type \(torch.cuda.FloatTensor\) should be the same"
    ),
)(lambda x, h: functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2, device="cuda")))
_refused(
    "F.conv2d(device, host weight)",
    Raises(
        RuntimeError, r"Input type \(torch.cuda.FloatTensor\) and weight type \(torch.FloatTensor\) should be the same"
    ),
)(lambda x, h: functional.conv2d(torch.ones(1, 1, 3, 3, device="cuda"), torch.ones(1, 1, 2, 2)))
_refused("F.cross_entropy(x, host target)", _argument("target", "nll_loss_forward"))(
    lambda x, h: functional.cross_entropy(x, torch.tensor([0, 1]))
)
_refused("F.mse_loss(x, host target)")(lambda x, h: functional.mse_loss(x, h))
_refused("F.binary_cross_entropy_with_logits(x, host target)")(
    lambda x, h: functional.binary_cross_entropy_with_logits(x, h)
)
_refused("F.layer_norm(x, host weight)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: functional.layer_norm(x, (2,), h[0])
)
_refused("nn.BatchNorm1d on the host, x on the device", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: torch.nn.BatchNorm1d(2)(x)
)
_refused(
    "F.scaled_dot_product_attention with a key on the host",
    Raises(RuntimeError, "to have the same device type, but got query.device: cuda:0 key.device: cpu"),
    npu=Raises(RuntimeError, "Expected query, key, and value to have the same device type"),
)(lambda x, h: functional.scaled_dot_product_attention(x[None, None], h[None, None], x[None, None]))
_refused(
    "F.grid_sample with a grid on the host",
    Raises(
        RuntimeError,
        r"grid_sampler\(\): expected input and grid to be on same device, but input is on cuda:0 and grid is on cpu",
    ),
)(lambda x, h: functional.grid_sample(x[None, None], torch.zeros(1, 1, 1, 2), align_corners=False))
_refused("torch.searchsorted(x, host)", Raises(RuntimeError, "should have same device type"), text_unverified=True)(
    lambda x, h: torch.searchsorted(x[0].contiguous(), h[0])
)
_refused(
    "an LSTM on the device, a batch on the host",
    Raises(RuntimeError, "same device|at the same device"),
    npu=Raises((RuntimeError, NotImplementedError)),
    text_unverified=True,
)(lambda x, h: torch.nn.LSTM(2, 2).cuda()(torch.ones(1, 1, 2)))
_refused(
    "parameter.grad = host tensor",
    Raises(RuntimeError, "attempting to assign a gradient with device type 'cpu' to a tensor with device type 'cuda'"),
    npu=Raises(RuntimeError, "attempting to assign a gradient with device type 'cpu'"),
)(lambda x, h: setattr(x, "grad", h))
_refused("torch.autograd.grad with grad_outputs on the host", Raises(RuntimeError), npu=COMPUTES, text_unverified=True)(
    lambda x, h: torch.autograd.grad(x.requires_grad_() * 2, x, h)
)
_refused(
    "tensors of two devices",
    Raises(RuntimeError, "cuda:0 and cuda:1|cuda:1 and cuda:0"),
    npu=Raises(RuntimeError),
    needs_devices=2,
)(lambda x, h: x + torch.ones(2, 2, device="cuda:1"))
_refused(
    "a scalar of another device",
    Raises(RuntimeError, "cuda:0 and cuda:1|cuda:1 and cuda:0"),
    npu=Raises(RuntimeError),
    needs_devices=2,
)(lambda x, h: x + torch.tensor(1.0, device="cuda:1"))
_refused("the default device is CUDA, a tensor is on the host")(lambda x, h: _default(h))


def _default(h: Any) -> Any:
    with torch.device("cuda"):
        return h + torch.ones(2, 2)


_refused("a position made on the host inside a module on the device")(lambda x, h: x + torch.arange(2.0))
_refused(
    "a generator of the host for a tensor of the device",
    Raises(RuntimeError, "Expected a 'cuda' device type for generator but found 'cpu'"),
    npu=Raises(RuntimeError, "Expected a 'npu' device type for generator but found 'cpu'"),
)(lambda x, h: torch.randn(2, generator=torch.Generator(), device="cuda"))
_refused(
    "a generator of the device for a tensor of the host",
    Raises(RuntimeError, "Expected a 'cpu' device type for generator but found 'cuda'"),
    npu=COMPUTES,
)(lambda x, h: torch.randn(2, generator=torch.Generator("cuda")))
_refused(
    "torch.quantile(x, host q)",
    Raises(RuntimeError, r"quantile\(\) q tensor must be on the same device as the input tensor"),
    npu=Raises(RuntimeError),
)(lambda x, h: torch.quantile(x, torch.tensor([0.5])))
_refused("torch.isin(x, host)", Raises(RuntimeError), npu=Raises(RuntimeError), text_unverified=True)(
    lambda x, h: torch.isin(x, h)
)
_refused("x.index_copy_(0, index, host source)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: x.index_copy_(0, torch.tensor([0, 1], device="cuda"), h)
)
_refused("x.index_add_(0, host index, x)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: x.index_add_(0, torch.tensor([0, 1]), x.clone())
)
_refused("torch.linalg.solve(x, host)", Raises(RuntimeError, "same device"), text_unverified=True)(
    lambda x, h: torch.linalg.solve(torch.eye(2, device="cuda"), h)
)
_refused("torch.outer(x, host)")(lambda x, h: torch.outer(x[0], h[0]))
_refused("torch.cdist(x, host)", Raises(RuntimeError), npu=Raises(RuntimeError), text_unverified=True)(
    lambda x, h: torch.cdist(x, h)
)
_refused("torch.tensordot(x, host)", text_unverified=True)(lambda x, h: torch.tensordot(x, h, 1))
_refused(
    "nn.DataParallel of a module on the host",
    Raises(
        RuntimeError,
        r"module must have its parameters and buffers on device cuda:0 \(device_ids\[0\]\) but found one of them on",
    ),
    npu=COMPUTES,
    needs_devices=2,
)(lambda x, h: torch.nn.DataParallel(torch.nn.Linear(2, 2), device_ids=[0, 1])(h))
