"""Huawei Ascend NPUs, through torch_npu, which registers itself with torch as ``npu``.

torch_npu changes a lot when it is imported (facts read from its 2.13.0 wheel), kills the process beside a torch built
for CUDA, and fails to load without CANN. So it is looked at from outside first.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from devicekit.backends import _visible
from devicekit.backends._cudalike import FORK_FIX, FORKED, CudaLike
from devicekit.errors import DeviceKitError
from devicekit.host import compiled_accelerator
from devicekit.values import AllocatorOption, AttentionCase, Availability, DeviceInfo

MASK = "ASCEND_RT_VISIBLE_DEVICES"
PLUGIN = "torch_npu"
CANN_FIX = "install CANN, then `source /usr/local/Ascend/ascend-toolkit/set_env.sh` in the shell that starts Python"

# torch_npu/csrc/core/npu/NpuVariables.h: 104 is Ascend910B of the old 910 generation, without bfloat16; what everyone
# calls "910B" is 910B1 = 220 and up (IsBF16Supported: soc >= Ascend910B1). 310B (240 to 243) says yes as well.
FIRST_SOC_WITH_BFLOAT16 = 220
ATLAS_A2_A3 = (*range(220, 226), *range(250, 257))


class NpuBackend(CudaLike):
    """The NPUs that CANN shows."""

    name = "npu"
    driver_source = "aclrtGetMemInfo (the whole NPU)"
    masks = (MASK,)
    collective = "hccl"

    def probe(self) -> Availability:
        """torch_npu there and loadable, CANN complete, an NPU left visible."""
        blocked = self._plugin_problem()
        if blocked is not None:
            return blocked
        if self.forked():
            return Availability.no(FORKED, FORK_FIX)
        mask = self.host.env.get(MASK)
        if _visible.hides_all(mask):
            return Availability.no(f"{MASK}={mask!r} hides every NPU", f"unset {MASK}, or correct it")
        count = int(self.runtime.device_count())
        if count == 0:
            return self._no_device(mask)
        if self.runtime.is_initialized():
            return Availability.yes(self.describe(i) for i in range(count))
        return Availability.yes(DeviceInfo(i, "Ascend NPU") for i in range(count))

    def _plugin_problem(self) -> Availability | None:
        torch = self.torch
        if hasattr(torch, self.name):
            return None
        if not self.host.installed(PLUGIN):
            return Availability.absent(
                f"{PLUGIN} is not installed", 'pip install -r requirements-npu.txt, or device="auto"'
            )
        other = compiled_accelerator(torch)
        if other:
            return Availability.no(
                f"{PLUGIN} beside a torch built for {other} aborts the process, so it is not imported",
                "install the CPU build of torch of the same version: pip install -r requirements-npu.txt",
            )
        failure = self.host.plugin_failures.get(PLUGIN) or self._load_plugin()
        return _explain(failure) if failure else None

    def _load_plugin(self) -> str | None:
        """Import torch_npu, as torch does when it starts; the reason where that fails."""
        try:
            # It warns on stdout about ASCEND_HOME_PATH, and leaves torch's switch at "0" for children when it fails.
            with self.host.autoload_off(), contextlib.redirect_stdout(io.StringIO()):
                self.host.import_module(PLUGIN)
        except (Exception, SystemExit) as exc:
            failure = f"{type(exc).__name__}: {exc}"
            self.host.plugin_failures[PLUGIN] = failure
            return failure
        return None

    def _no_device(self, mask: str | None) -> Availability:
        if mask is not None:
            return Availability.no(
                f"CANN shows no NPU under {MASK}={mask!r}; the numbers must exist and ascend", f"unset {MASK}"
            )
        return Availability.no(
            "CANN shows no NPU", "npu-smi info; in a container add --device=/dev/davinci0 and its peers"
        )

    def describe(self, index: int = 0) -> DeviceInfo:
        """All of it; starts CANN."""
        props = self.runtime.get_device_properties(index)
        return DeviceInfo(
            index,
            props.name,
            architecture=props.name,
            total_memory=int(props.total_memory),
            integrated=False,
            bfloat16=self._has_bfloat16(),
        )

    def _has_bfloat16(self) -> bool:
        number = int(self.runtime.get_soc_version())
        return number >= FIRST_SOC_WITH_BFLOAT16

    def storable(self, dtype: Any) -> Any:
        """float64 has no unit in the AI core, so it is kept as float32 (as diffusers does on this device)."""
        return self.torch.float32 if dtype is self.torch.float64 else dtype

    def versions(self) -> dict[str, str]:
        """torch_npu's version, which must pair with torch's."""
        plugin = self.host.loaded(PLUGIN)
        return {PLUGIN: str(plugin.__version__)} if plugin is not None else {}

    def preferred_dtype(self, index: int = 0) -> Any:
        """bfloat16 from 910B1 on, float16 before."""
        return self.torch.bfloat16 if self._has_bfloat16() else self.torch.float16

    def precisions(self, index: int = 0) -> Mapping[str, str]:
        """What torch_npu tells. Whether it has kernels for float8, int8 and int4 it does not; HF32 is not TF32."""
        told = {"float64": "no", "float32": "native", "tf32": "no", "float16": "native"}
        told["bfloat16"] = "native" if self._has_bfloat16() else "no"
        return told

    def traits(self, index: int = 0) -> Mapping[str, str]:
        """The chip's number, and in what float32 is really computed unless one says otherwise.

        Sources: torch_npu/npu/npu_config.py and torch_npu/csrc/framework/LazyInitAclops.cpp, 2.13.0.
        """
        number = int(self.runtime.get_soc_version())
        told = {"SoC": str(number)}
        if number >= FIRST_SOC_WITH_BFLOAT16:
            told["float32"] = "convolutions may compute it in HF32, products not, until one says otherwise"
        else:
            told["warning"] = "products of float32 may be computed in float16, until one says otherwise"
        return told

    def expandable_segments(self) -> AllocatorOption:
        """torch_npu/csrc/core/npu/NPUAllocatorConfig.cpp: it raises at its start where the excluded stand beside it."""
        return AllocatorOption(
            ("PYTORCH_NPU_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
            "expandable_segments:True",
            excludes=("max_split_size_mb:", "garbage_collection_threshold:"),
            late=self.runtime.is_initialized(),
        )

    def attention_kernels(self, case: AttentionCase, index: int = 0) -> dict[str, str]:
        """torch_npu's own, on Atlas A2 and A3, with boolean masks (its docs, torch-nn-functional.md)."""
        torch = self.torch
        number = int(self.runtime.get_soc_version())
        other = "" if number in ATLAS_A2_A3 else "torch_npu has it for Atlas A2 and A3"
        fused = other or case.against((torch.float16, torch.bfloat16, torch.float32), head_dim=512)
        return {"npu-fused": fused, "math": ""}

    def select_attention(self, names: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
        """torch_npu takes its own kernel, and listens to nobody unless it was told to be compatible."""
        if "npu-fused" in names:
            return contextlib.nullcontext()
        asked = getattr(self.runtime, "are_compatible_impl_enabled", None)
        if asked is not None and asked():
            return super().select_attention(names)
        why = f"{PLUGIN} does not listen to a choice of kernels"
        try_ = f"{PLUGIN}.npu.use_compatible_impl(True) before"
        raise DeviceKitError(f"Attention cannot be limited to {', '.join(names)} here.", why=why, try_=try_)


def _explain(failure: str) -> Availability:
    missing = re.search(r"(lib[\w.]+\.so[\w.]*): cannot open shared object file", failure)
    if missing:
        lost = f"{PLUGIN} is installed, but {missing.group(1)} is missing"
        return Availability.no(f"{lost}: CANN is not installed, or its environment is not set", CANN_FIX)
    if "ASCEND_" in failure:
        return Availability.no(f"CANN's environment is incomplete: {failure}", CANN_FIX)
    return Availability.no(f"{PLUGIN} is installed, but cannot be loaded: {failure}", "devicekit doctor; " + CANN_FIX)
