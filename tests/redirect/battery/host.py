"""What only the host has: numpy arrays, Python numbers, printing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.redirect.battery.checking import Differs, Raises, Skipped, check, group

group("host")
NO_NUMPY = Raises(
    TypeError, r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\) to copy the tensor to host"
)
NPU_NUMPY = Raises(TypeError, "can't convert npu:0 device type tensor to numpy")


@check("x.numpy()", NO_NUMPY, translated=[1.0, 1.0], npu=NPU_NUMPY)
def _() -> Any:
    return torch.ones(2, device="cuda").numpy().tolist()


@check("np.asarray(x)", NO_NUMPY, translated=[1.0, 1.0], npu=NPU_NUMPY)
def _() -> Any:
    return np.asarray(torch.ones(2, device="cuda")).tolist()


@check("np.array(x)", NO_NUMPY, translated=[1.0, 1.0], npu=NPU_NUMPY)
def _() -> Any:
    return np.array(torch.ones(2, device="cuda")).tolist()


@check("np.mean([x, x]) of device tensors", NO_NUMPY, translated=1.0, npu=NPU_NUMPY)
def _() -> Any:
    return float(np.mean([torch.ones(1, device="cuda"), torch.ones(1, device="cuda")]))


@check("np.sqrt(x) of a device tensor", NO_NUMPY, translated=[2.0], npu=NPU_NUMPY)
def _() -> Any:
    return np.sqrt(torch.full((1,), 4.0, device="cuda")).tolist()


@check("x.numpy() of a result", NO_NUMPY, translated=[2.0, 2.0], npu=NPU_NUMPY)
def _() -> Any:
    return (torch.ones(2, device="cuda") + 1).numpy().tolist()


@check(
    "parameter.numpy() of a parameter on the device",
    NO_NUMPY,
    translated=Raises(RuntimeError, "requires grad"),
    npu=NPU_NUMPY,
)
def _() -> Any:
    return torch.nn.Linear(1, 1).cuda().weight.numpy()


@check("parameter.detach().numpy() of a parameter on the device", NO_NUMPY, translated=[[0.0]], npu=NPU_NUMPY)
def _() -> Any:
    net = torch.nn.Linear(1, 1).cuda()
    torch.nn.init.zeros_(net.weight)
    return net.weight.detach().numpy().tolist()


@check(
    "parameter.cpu().numpy() still requires grad",
    Raises(RuntimeError, "Can't call numpy\\(\\) on Tensor that requires grad"),
)
def _() -> Any:
    return torch.nn.Linear(1, 1).cuda().weight.cpu().numpy()


@check("x.cpu().numpy()", [1.0, 1.0])
def _() -> Any:
    return torch.ones(2, device="cuda").cpu().numpy().tolist()


@check("x.detach().cpu().numpy() is a copy", [1.0, 1.0])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    array = x.detach().cpu().numpy()
    x.add_(1)
    return array.tolist()


@check("x.numpy(force=True)", [1.0, 1.0])
def _() -> Any:
    return torch.ones(2, device="cuda", requires_grad=True).numpy(force=True).tolist()


@check("x.item(), float(x), int(x), bool(x)", [2.0, 2.0, 2, True])
def _() -> Any:
    x = torch.tensor(2.0, device="cuda")
    return [x.item(), float(x), int(x), bool(x)]


@check("x.tolist(), list(x), len(x)", [[1.0, 1.0], [1.0, 1.0], 2])
def _() -> Any:
    x = torch.ones(2, device="cuda")
    return [x.tolist(), [y.item() for y in x], len(x)]


@check("if x.sum() > 0", "yes")
def _() -> Any:
    return "yes" if torch.ones(2, device="cuda").sum() > 0 else "no"


@check("range(x) and a list indexed by x", [3, "b"])
def _() -> Any:
    x = torch.tensor(3, device="cuda")
    return [len(range(x)), ["a", "b"][torch.tensor(1, device="cuda")]]


@check("an array of numpy indexed by x.cpu()", 2.0)
def _() -> Any:
    return np.array([1.0, 2.0])[torch.tensor(1, device="cuda").cpu()].item()


@check("a host number in an operation", [3.0, 3.0])
def _() -> Any:
    return (torch.ones(2, device="cuda") + np.float32(2)).tolist()


@check("str and f-string of a tensor name the device", translated=False)
def _() -> Any:
    x = torch.ones(1, device="cuda")
    return "cuda:0" in str(x) and "cuda:0" in f"{x}"


@check(
    "x.__cuda_array_interface__",
    ["data", "shape", "strides", "typestr", "version"],
    translated=Raises(AttributeError),
    masqueraded=Differs(Raises(AttributeError), "there is no memory of CUDA"),
)
def _() -> Any:
    return sorted(torch.ones(1, device="cuda").__cuda_array_interface__)


@check("hasattr(x, '__cuda_array_interface__') of a host tensor", False)
def _() -> Any:
    return hasattr(torch.ones(1), "__cuda_array_interface__")


@check("torch.from_dlpack(x)", [1.0, 1.0], npu=Skipped("the simulated npu refuses DLPack"))
def _() -> Any:
    return torch.from_dlpack(torch.ones(2, device="cuda")).tolist()


@check("x.__dlpack_device__()", (2, 0), translated=(1, 0), npu=Skipped("the simulated npu refuses DLPack"))
def _() -> Any:
    kind, index = torch.ones(1, device="cuda").__dlpack_device__()
    return int(kind), index
