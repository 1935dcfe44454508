"""Packages that are made for CUDA: where one is not installed, its import says what to use instead.

Those that are installed are left alone, and so is the question whether one is (``importlib.util.find_spec``). The
error is the one that Python would raise, so a program that provides for it goes on in silence.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from devicekit.redirect import shims
from devicekit.redirect.recording import place_of
from devicekit.redirect.redirect import Redirect, inside

__all__ = ["Missing", "advice", "install"]

ATTENTION = "torch.nn.functional.scaled_dot_product_attention"
PLAIN = "the same in plain torch"
MORE = {"triton": "torch.compile, which generates kernels for the device, or the same in plain torch"} | dict.fromkeys(
    (
        "causal_conv1d_cuda", "cuda", "cudf", "cuml", "deep_ep", "deep_gemm", "exllamav2", "fast_hadamard_transform",
        "flash_mla", "flashinfer", "fused_dense_lib", "gsplat", "kaolin", "nvidia", "rotary_emb", "selective_scan_cuda",
        "simple_knn", "tensorrt_llm", "torchsparse", "diff_gaussian_rasterization",
    ),
    PLAIN,
) | dict.fromkeys(("flash_attn_2_cuda", "flash_attn_3", "flash_attn_cuda"), ATTENTION)  # fmt: skip
"""Beyond those that ``devicekit scan`` knows: mostly the compiled halves of packages, imported by themselves."""
LEFT_ALONE = ("bitsandbytes", "pynvml")
"""The one computes on processors as well; the other asks the driver, and says itself that there is none."""


def install(redirect: Redirect) -> None:
    """Be asked last of all finders, and have the door from tensors to such packages closed in good words."""
    layer = redirect.layer
    layer.insert(sys.meta_path, len(sys.meta_path), Missing(redirect))
    _close(redirect)


def advice(package: str) -> tuple[str, str] | None:
    """Why a package is not here, and what to try; None for packages that are not made for CUDA."""
    from devicekit.codemod.rules import vendor_package as known  # not before one is missing

    table = {name: told for name, told in known.PACKAGES.items() if name not in (*known.ELSEWHERE, *LEFT_ALONE)} | MORE
    if package not in table:
        return None
    shim = shims.package_of(package)
    instead = f"devicekit run --shim {shim}, which computes it in plain torch; or {table[package]}" if shim else ""
    return f"{package} {known.SAID.get(package, 'is made for CUDA')}", instead or table[package]


class Missing(importlib.abc.MetaPathFinder):
    """Asked for what no other finder has."""

    def __init__(self, redirect: Redirect) -> None:
        self._redirect = redirect
        self._layer = redirect.layer

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """What a finder behind this one has, else nothing.

        Raises:
            ModuleNotFoundError: the program imports a package that is made for CUDA.
        """
        importer = _importer(sys._getframe(1))
        if importer is None or not self._layer.on or inside(str(importer.f_globals.get("__name__", ""))):
            return None  # torch and we import to know whether it is there
        told = self._told(name)
        if told is None:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        why, try_ = told
        self._redirect.note(f"import {name}: not here", refused=True)
        _, file, line, _ = place_of("", importer)
        where = f" ({file}:{line})" if file else ""
        raise ModuleNotFoundError(f"No module named {name!r}{where}\n  why: {why}\n  try: {try_}", name=name)

    def _told(self, name: str) -> tuple[str, str] | None:
        package, _, part = name.partition(".")
        device = self._redirect.target.device_type
        if not part:
            found = advice(package)
            return None if found is None else (f'{found[0]}, and "cuda" is {device} here', found[1])
        shim = shims.package_of(package)
        if shim in self._redirect.shims:
            return f"the stand-in for {shim} has not all of it", f"{PLAIN}; or without --shim, if it can go on without"
        return None


def _importer(frame: FrameType | None) -> FrameType | None:
    """The frame that imports; None: somebody only asks whether there is such a module."""
    if frame is None or frame.f_back is None or frame.f_back.f_code.co_name != "_find_and_load_unlocked":
        return None
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "importlib":
        frame = frame.f_back
    return frame


def _close(redirect: Redirect) -> None:
    """``__cuda_array_interface__``, by which cupy and numba take a tensor's memory: torch's words advise .cuda()."""
    tensor, layer = redirect.torch.Tensor, redirect.layer
    real = vars(tensor)["__cuda_array_interface__"]

    def interface(self: Any) -> Any:
        if not layer.on:
            return real.__get__(self)
        redirect.note("Tensor.__cuda_array_interface__", refused=True)
        why = f'"cuda" is {redirect.target.device_type} here, and there is no memory of CUDA that could be handed over'
        raise AttributeError(
            f"a tensor has no __cuda_array_interface__ here.\n  why: {why}\n  try: x.cpu().numpy()",
            name="__cuda_array_interface__",
            obj=self,
        )

    layer.replace(tensor, "__cuda_array_interface__", property(interface, doc=real.__doc__))
