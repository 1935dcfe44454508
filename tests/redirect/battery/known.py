"""Checks that are still red, and why; each goes when its cause goes."""

from __future__ import annotations

__all__ = ["KNOWN"]

_EVERYWHERE = {
    "a lazy module on the device": "a parameter that is not made yet has no storage, and goes nowhere",
    "torch.Stream('cuda'), torch.Event('cuda')": "torch.Stream and torch.Event are not redirected",
}
_WORDS = "it is refused, in the words of another operation"
_TOO_LENIENT = "it is computed, where CUDA refuses it"

KNOWN: dict[str, dict[str, str]] = {
    "native": {},
    "translate": {
        **_EVERYWHERE,
    },
    "masquerade": {
        **_EVERYWHERE,
        "torch.nested.nested_tensor(device='cuda')": "torch.nested makes its parts on the host",
        "x[device index] = host tensor": _TOO_LENIENT,
        "torch.autograd.grad with grad_outputs on the host": _TOO_LENIENT,
        "nn.DataParallel of a module on the host": _TOO_LENIENT,
        "vmap of a tensor of the host with one of the device": _TOO_LENIENT,
        "x.masked_fill(host mask, 0)": _WORDS,
        "F.scaled_dot_product_attention with a key on the host": _WORDS,
        "F.grid_sample with a grid on the host": _WORDS,
        "torch.searchsorted(x, host)": _WORDS,
        "torch.quantile(x, host q)": _WORDS,
        "parameter.grad = host tensor": _WORDS,
        "torch.testing.assert_close of two devices": "torch.testing is told where the tensors really are",
        "an optimizer's state_dict, saved and loaded from the host": "torch.optim moves the state to the real device",
        "batches of DataLoader(pin_memory=True) are pinned": "the loader's batches are not marked as pinned",
        "torch.export.export of a module on the device": "export's own tensors carry no mark",
    },
    "npu": {
        **_EVERYWHERE,
        "torch.cuda.Stream(device='cuda:0', priority=-1)": "the npu's own class has no priority",
        "stream.cuda_stream is a number, stream.device a device": "the npu's own class has no cuda_stream",
    },
}
