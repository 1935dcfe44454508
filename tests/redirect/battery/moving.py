"""Between the host and the device: every spelling, and that a copy is a copy."""

from __future__ import annotations

from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Raises, Skipped, check, group

group("moving")
NO_PINNING = Skipped("the simulated npu refuses pinned memory in the whole process")


def _home(x: Any) -> bool:
    return x.device == torch.ones(1, device="cuda").device


@check("x.cuda()")
def _() -> Any:
    return _home(torch.ones(2).cuda())


@check("x.cuda(0), x.cuda('cuda:0'), x.cuda(torch.device('cuda'))")
def _() -> Any:
    x = torch.ones(2)
    return all(_home(x.cuda(d)) for d in (0, "cuda:0", torch.device("cuda")))


@check("x.cuda(0, non_blocking=True), x.cuda(non_blocking=True), x.cuda(0, True)")
def _() -> Any:
    x = torch.ones(2)
    return _home(x.cuda(0, non_blocking=True)) and _home(x.cuda(non_blocking=True)) and _home(x.cuda(0, True))


@check("x.cuda('cpu')", Raises(RuntimeError, "Invalid device, must be cuda device"))
def _() -> Any:
    return torch.ones(2).cuda("cpu")


@check("x.to('cuda'), 'cuda:0', device, 0, device=")
def _() -> Any:
    x = torch.ones(2)
    return all(map(_home, (x.to("cuda"), x.to("cuda:0"), x.to(torch.device("cuda")), x.to(0), x.to(device="cuda"))))


@check("x.to('cuda', torch.float16, non_blocking=True)", ["torch.float16", True])
def _() -> Any:
    made = torch.ones(2).to("cuda", torch.float16, non_blocking=True)
    return [str(made.dtype), _home(made)]


@check("x.to(device=..., dtype=...)", ["torch.int64", True])
def _() -> Any:
    made = torch.ones(2).to(dtype=torch.int64, device=torch.device("cuda:0"))
    return [str(made.dtype), _home(made)]


@check("x.to(other) takes device and dtype", ["torch.float16", True])
def _() -> Any:
    made = torch.ones(2).to(torch.ones(1, dtype=torch.float16, device="cuda"))
    return [str(made.dtype), _home(made)]


@check("x.to(torch.float16) of a device tensor stays there", ["torch.float16", True])
def _() -> Any:
    made = torch.ones(2, device="cuda").to(torch.float16)
    return [str(made.dtype), _home(made)]


@check("x.to(other.device)")
def _() -> Any:
    return _home(torch.ones(2).to(torch.ones(1, device="cuda").device))


@check("x.half(), float(), long(), bool(), bfloat16() stay there")
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return all(map(_home, (x.half(), x.float(), x.long(), x.bool(), x.bfloat16(), x.int())))


@check("x.type('torch.cuda.FloatTensor')", ["torch.float32", True])
def _() -> Any:
    made = torch.ones(2, dtype=torch.int64).type("torch.cuda.FloatTensor")
    return [str(made.dtype), _home(made)]


@check("x.type(torch.cuda.HalfTensor)", ["torch.float16", True])
def _() -> Any:
    made = torch.ones(2).type(torch.cuda.HalfTensor)
    return [str(made.dtype), _home(made)]


@check("x.type_as(device tensor)")
def _() -> Any:
    return _home(torch.ones(2).type_as(torch.ones(1, device="cuda")))


@check("x.type(torch.float16) of a device tensor", ["torch.float16", True])
def _() -> Any:
    made = torch.ones(2, device="cuda").type(torch.float16)
    return [str(made.dtype), _home(made)]


@check("x.cpu(), x.to('cpu') come to the host", ["cpu"] * 4)
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return [str(y.device) for y in (x.cpu(), x.to("cpu"), x.to(torch.device("cpu")), x.to(device="cpu"))]


@check("x.cuda() of the host is a copy", [1.0, 1.0])
def _() -> Any:
    x = torch.ones(2)
    x.cuda().add_(1)
    x.to("cuda").add_(1)
    x.to(0).add_(1)
    return x.tolist()


@check("x.cpu() is a copy", [1.0, 1.0])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    before = x.cpu()
    x.add_(1)
    return before.tolist()


@check("x.cuda() of what is there is x")
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return x.cuda() is x and x.to("cuda") is x and x.to(0) is x and x.to(x.device) is x and x.to("cuda:0") is x


@check(
    "x.cpu() of what is on the host is x",
    translated=Differs(False, "where a tensor lies that no one has sent is not known"),
    npu=True,
)
def _() -> Any:
    x = torch.ones(2)
    return x.cpu() is x and x.to("cpu") is x


@check("x.to('cuda', copy=True) is another tensor")
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return x.to("cuda", copy=True).data_ptr() != x.data_ptr()


@check("a snapshot of weights does not change with training")
def _() -> Any:
    net = torch.nn.Linear(2, 2).cuda()
    best = {name: value.cpu() for name, value in net.state_dict().items()}
    before = best["weight"].clone()
    with torch.no_grad():
        net.weight.add_(1)
    return torch.equal(best["weight"], before)


@check("x.copy_(host), host.copy_(x)", [[1.0, 1.0], [2.0, 2.0]])
def _() -> Any:
    x, h = torch.zeros(2, device="cuda"), torch.ones(2)
    x.copy_(h)
    one = x.tolist()
    h.copy_(x + 1, non_blocking=False)
    return [one, h.tolist()]


@check("x.copy_ of another dtype, broadcast", [[1.0, 1.0], [1.0, 1.0]])
def _() -> Any:
    return torch.zeros(2, 2, device="cuda").copy_(torch.ones(2, dtype=torch.int64)).tolist()


@check("a gradient flows through cuda() and cpu()", [2.0, 2.0])
def _() -> Any:
    x = torch.ones(2, requires_grad=True)
    (x.cuda() * 2).cpu().sum().backward()
    return x.grad.tolist()


@check("the gradient of x.cuda() arrives on the host", "cpu")
def _() -> Any:
    x = torch.ones(2, requires_grad=True)
    x.cuda().sum().backward()
    return str(x.grad.device)


@check("x = torch.ones(2, requires_grad=True).cuda() is no leaf", [False, None], warns="is not a leaf Tensor")
def _() -> Any:
    x = torch.ones(2, requires_grad=True).cuda()
    x.sum().backward()
    return [x.is_leaf, x.grad]


@check("views of a device tensor share its memory", [5.0, 1.0, 1.0, 1.0])
def _() -> Any:
    x = torch.ones(4, device="cuda")
    x.view(2, 2)[0, 0] = 5
    return x.tolist()


@check("x.data, x.detach() share its memory", [3.0, 4.0])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    x.data[0] = 3
    x.detach()[1] = 4
    return x.tolist()


@check("x.data = y.cuda()", translated=False, npu=Skipped("the simulated npu's tensors are of another class"))
def _() -> Any:
    x = torch.ones(2)
    x.data = x.data.cuda()
    return x.is_cuda


@check("x.to(memory_format=torch.channels_last) on the device", True)
def _() -> Any:
    x = torch.ones(1, 2, 3, 3).to("cuda", memory_format=torch.channels_last)
    return x.is_contiguous(memory_format=torch.channels_last) and _home(x)


@check("lists, tuples and dicts of tensors, moved by a comprehension", 6.0)
def _() -> Any:
    batch = {"a": torch.ones(2), "b": torch.ones(4)}
    batch = {name: value.to("cuda", non_blocking=True) for name, value in batch.items()}
    return sum(value.sum().item() for value in batch.values())


@check(
    "x.to('cuda:1').to('cuda:0')",
    ["cuda:1", "cuda:0"],
    translated=["cpu", "cpu"],
    npu=Raises(RuntimeError),
    needs_devices=2,
)
def _() -> Any:
    x = torch.ones(2).to("cuda:1")
    return [str(x.device), str(x.to("cuda:0").device)]


@check("x.to('cuda:1') of cuda:0 is a copy", [1.0, 1.0], npu=Raises(RuntimeError), needs_devices=2)
def _() -> Any:
    x = torch.ones(2, device="cuda:0")
    x.to("cuda:1").add_(1)
    return x.tolist()


# -- pinned memory -----------------------------------------------------------------------------------
@check("x.pin_memory().is_pinned()", translated=False, npu=NO_PINNING)
def _() -> Any:
    return torch.ones(2).pin_memory().is_pinned()


@check("torch.ones(2).is_pinned()", False, npu=NO_PINNING)
def _() -> Any:
    return torch.ones(2).is_pinned()


@check("torch.zeros(2, pin_memory=True)", [0.0, 0.0], npu=NO_PINNING)
def _() -> Any:
    return torch.zeros(2, pin_memory=True).tolist()


@check("x.pin_memory().cuda(non_blocking=True)", [1.0, 1.0], npu=NO_PINNING)
def _() -> Any:
    return torch.ones(2).pin_memory().cuda(non_blocking=True).cpu().tolist()


@check(
    "x.pin_memory() of a device tensor",
    Raises(RuntimeError, "only dense CPU tensors can be pinned"),
    translated=[1.0, 1.0],
    npu=NO_PINNING,
)
def _() -> Any:
    return torch.ones(2, device="cuda").pin_memory().tolist()
