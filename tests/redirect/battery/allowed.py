"""What CUDA allows though not all tensors are on the device: indices and scalars of the host, and more."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tests.redirect.battery.checking import Raises, Skipped, check, group

group("allowed")
RNN = Skipped("the simulated npu has no recurrent kernels")


@check("x[host index]", [2.0, 0.0])
def _() -> Any:
    return torch.arange(3.0, device="cuda")[torch.tensor([2, 0])].tolist()


@check("x[host mask]", [1.0, 2.0])
def _() -> Any:
    return torch.arange(3.0, device="cuda")[torch.tensor([False, True, True])].tolist()


@check("x[host index] = 5", [5.0, 1.0, 5.0])
def _() -> Any:
    x = torch.arange(3.0, device="cuda")
    x[torch.tensor([0, 2])] = 5
    return x.tolist()


@check("x[0] = host tensor", [[1.0, 1.0], [0.0, 0.0]])
def _() -> Any:
    x = torch.zeros(2, 2, device="cuda")
    x[0] = torch.ones(2)
    return x.tolist()


@check("x[:, 1] = host tensor of another dtype", [[0.0, 1.0], [0.0, 1.0]])
def _() -> Any:
    x = torch.zeros(2, 2, device="cuda")
    x[:, 1] = torch.ones(2, dtype=torch.int64)
    return x.tolist()


@check("x[mask] = host scalar tensor", [7.0, 7.0])
def _() -> Any:
    x = torch.zeros(2, device="cuda")
    x[x == 0] = torch.tensor(7.0)
    return x.tolist()


@check("host[0] = number on the device", [1.0, 0.0])
def _() -> Any:
    h = torch.zeros(2)
    h[0] = torch.tensor(1.0, device="cuda")
    return h.tolist()


@check("x + torch.tensor(2.0) of the host", [3.0, 3.0])
def _() -> Any:
    return (torch.ones(2, device="cuda") + torch.tensor(2.0)).tolist()


@check("torch.tensor(2.0) * x", [2.0, 2.0])
def _() -> Any:
    return (torch.tensor(2.0) * torch.ones(2, device="cuda")).tolist()


@check("the result with a host scalar is on the device", translated=False)
def _() -> Any:
    return (torch.tensor(2.0) * torch.ones(2, device="cuda")).is_cuda


@check("torch.where(mask, x, host scalar)", [1.0, 0.0])
def _() -> Any:
    x = torch.tensor([1.0, -1.0], device="cuda")
    return torch.where(x > 0, x, torch.tensor(0.0)).tolist()


@check("x.masked_fill(mask, host scalar tensor)", [9.0, 9.0])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return x.masked_fill(x > 0, torch.tensor(9.0)).tolist()


@check("x.add_(host scalar), x.mul_(host scalar)", [4.0, 4.0])
def _() -> Any:
    return torch.ones(2, device="cuda").add_(torch.tensor(1.0)).mul_(torch.tensor(2.0)).tolist()


@check("x.clamp(min=host scalar)", [2.0, 2.0])
def _() -> Any:
    return torch.ones(2, device="cuda").clamp(min=torch.tensor(2.0)).tolist()


@check("two scalars, one of the host", 3.0)
def _() -> Any:
    return (torch.tensor(1.0, device="cuda") + torch.tensor(2.0)).item()


@check("x.to(h), h.to(x), x.expand_as(h), x.view_as(h)", [True, True])
def _() -> Any:
    x, h = torch.ones(2, device="cuda"), torch.ones(2)
    return [list(x.expand_as(h).shape) == [2], list(x.view_as(h).shape) == [2]]


@check("torch.repeat_interleave, tensor_split with host numbers", [2, 2])
def _() -> Any:
    x = torch.ones(4, device="cuda")
    return [len(part) for part in torch.tensor_split(x, torch.tensor([2]))]


@check("pack_padded_sequence wants lengths on the host", [3, 1], npu=RNN)
def _() -> Any:
    x = torch.ones(2, 2, 1, device="cuda")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 1]), batch_first=True)
    return [packed.data.shape[0], packed.data.shape[1]]


@check(
    "pack_padded_sequence refuses lengths on the device",
    Raises(RuntimeError, "'lengths' argument should be a 1D CPU int64 tensor"),
    translated=3,
    npu=RNN,
)
def _() -> Any:
    x = torch.ones(2, 2, 1, device="cuda")
    lengths = torch.tensor([2, 1], device="cuda")
    return torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True).data.shape[0]


@check("F.ctc_loss with lengths on the host", True, npu=Skipped("the simulated npu has no such kernel"))
def _() -> Any:
    logs = torch.randn(4, 1, 3, device="cuda").log_softmax(2)
    targets = torch.tensor([[1, 2]], device="cuda")
    return functional.ctc_loss(logs, targets, torch.tensor([4]), torch.tensor([2])).item() > 0


@check("torch.equal, torch.testing.assert_close after cpu()")
def _() -> Any:
    x = torch.ones(2, device="cuda")
    torch.testing.assert_close(x.cpu(), torch.ones(2))
    return torch.equal(x.cpu(), torch.ones(2))


@check(
    "torch.testing.assert_close of two devices",
    Raises(AssertionError, "The values for attribute 'device' do not match: cuda:0 != cpu"),
    translated=None,
    npu=Raises(AssertionError, "The values for attribute 'device' do not match: npu:0 != cpu"),
)
def _() -> Any:
    return torch.testing.assert_close(torch.ones(2, device="cuda"), torch.ones(2))


@check("torch.nn.utils.parameters_to_vector of parameters on the device", 6)
def _() -> Any:
    return len(torch.nn.utils.parameters_to_vector(torch.nn.Linear(2, 2).cuda().parameters()))


@check("torch.promote_types, result_type of both", "torch.float32")
def _() -> Any:
    return str(torch.result_type(torch.ones(2, device="cuda"), torch.ones(2)))


@check("an LSTM's hidden state made by the program on the device", [1, 1, 2], npu=RNN)
def _() -> Any:
    net = torch.nn.LSTM(2, 2).cuda()
    state = (torch.zeros(1, 1, 2).cuda(), torch.zeros(1, 1, 2, device="cuda"))
    return list(net(torch.ones(1, 1, 2, device="cuda"), state)[0].shape)
