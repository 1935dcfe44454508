"""A simulated Ascend ``npu``, registered with torch itself, so that device code runs for real.

    from devicekit.testing.simulated_npu import install

    install(memory="2GiB", soc="Ascend910B3")
    torch.nn.Linear(4, 4).to("npu")

It needs a CPU build of torch, and neither CANN nor torch_npu. torch knows one such device per
process and cannot forget it, so a test that wants one runs in a process of its own.

What it is for: the device's *rules*. Tensors of the device and of the host do not mix, a CPU
generator is refused, float64 is refused, memory runs out, bfloat16 depends on the chip. The numbers
are computed by the CPU; nothing here says how fast or how exact a real NPU is.

Where it ends
-------------
- Tensors are a subclass: ``type(t) is torch.Tensor`` is False, and so is ``type(p) is
  torch.nn.Parameter``, while ``isinstance`` holds.
- An operator on CPU tensors accepts an npu generator; a real one refuses it.
- One device at most. ``torch.Event("npu").elapsed_time`` raises; ``torch.npu.Event`` measures.
- Pinned memory raises NotImplementedError in the whole process, also for CPU tensors
  (``pin_memory()``, ``DataLoader(pin_memory=True)``): torch asks the accelerator for it.
- ``torch.compile`` fails; LSTM and GRU raise NotImplementedError (torch picks fused kernels that
  no Python backend can have); sparse, quantised and nested tensors and DLPack are refused.
- bfloat16 *tensors* are accepted on every chip; only the questions about it are answered by chip.
- ``storage.resize_()`` is not counted against the memory; ``tensor.resize_()`` is.
- The first operator makes torch import torch.distributed and sympy, as for any tensor subclass; so
  a test of what is imported cannot run here.
- Kernels take no time, nothing is asynchronous, and memory does not fragment.

Three things that kill a process on a bare Python backend are answered here instead:
``torch.UntypedStorage(n, device="npu")``, hence ``torch.load(map_location="npu")``, and
``torch.accelerator.empty_host_cache()``.
"""

from __future__ import annotations

from devicekit.testing.simulated_npu.settings import Settings, bytes_from

__all__ = ["install"]


def install(
    memory: str | int = "2GiB",
    soc: str = "Ascend910B3",
    count: int = 1,
    *,
    float64: bool = False,
    fail_memory_query: bool = False,
) -> None:
    """Give this process an npu, for good.

    Args:
        memory: of the device, in bytes or as in ``"512MiB"``; beyond it operators raise torch.OutOfMemoryError with
            torch_npu's text.
        soc: the chip, a key of ``settings.SOC_VERSIONS``.
        count: 1, or 0 for a machine with torch_npu and no device.
        float64: accept float64 and complex128, which the AI core does not have.
        fail_memory_query: ``torch.npu.mem_get_info`` raises RuntimeError.

    Raises:
        RuntimeError: an npu is installed in this process already, or PrivateUse1 is taken by another backend, or torch
            is built for an accelerator.
        ValueError: an option is none of the above.
    """
    settings = Settings(bytes_from(memory), soc, count, float64, fail_memory_query)
    # Here, because torch takes seconds to import and this package is imported by test collectors.
    from devicekit.testing.simulated_npu.registration import register

    register(settings)
