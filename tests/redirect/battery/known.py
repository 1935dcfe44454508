"""Checks that are still red, and why; each goes when its cause goes."""

from __future__ import annotations

__all__ = ["KNOWN"]

KNOWN: dict[str, dict[str, str]] = {
    "native": {},
    "translate": {},
    "masquerade": {
        "a lazy module on the device": "a parameter that is not made yet has no storage, and goes nowhere",
        "torch.nested.nested_tensor(device='cuda')": "torch.nested makes its parts on the host",
        "vmap of a tensor of the host with one of the device": "it is computed, where CUDA refuses it",
        "torch.export.export of a module on the device": "export's own tensors carry no mark",
    },
    "npu": {
        "a lazy module on the device": "the simulated npu makes an ordinary parameter of it, redirected or not",
        "torch.cuda.Stream(device='cuda:0', priority=-1)": "the npu's own class has no priority",
        "stream.cuda_stream is a number, stream.device a device": "the npu's own class has no cuda_stream",
    },
}
