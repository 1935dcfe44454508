"""Act: one facade that is right on every backend. It delegates; what it knows itself is which device was chosen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from devicekit import numbering, placement, rng
from devicekit import tuning as _tuning
from devicekit.backend import whole_seed
from devicekit.resolve import Decision, resolver, warn
from devicekit.values import LoadResult, MemoryStats, RngState, Weights

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO, TypeAlias

    import torch
    from typing_extensions import Self

    from devicekit.attention import Attention, AttentionChoice
    from devicekit.batch import Watch
    from devicekit.compiling import Compilation
    from devicekit.distributed import Processes
    from devicekit.efficient.mode import EfficientMode
    from devicekit.measuring import Measurement
    from devicekit.precision import Autocast
    from devicekit.tuning.value import Tuning
    from devicekit.weights.progress import Progress
    from devicekit.weights.selection import Keys, Rename

    Checkpoint: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | bytes | BinaryIO
    Dtype: TypeAlias = torch.dtype | str
    Wanted: TypeAlias = Dtype | Callable[[str, torch.dtype], torch.dtype | None] | None

__all__ = ["DeviceManager"]

log = logging.getLogger("devicekit")

DECIDED = ("_backend", "_decision", "_dtype", "_strict", "backend", "device", "index", "warning")
"""What a manager knows once its device is chosen."""


class DeviceManager:
    """A device that was decided on once, and all that model code does with it.

    Safe to share between threads and to send to another process: there the same device is taken if it can be used.

    Args:
        preferred_device: as for :func:`devicekit.resolve_device`.
        dtype: the dtype to run models in, or its name; by default the one of this machine's :attr:`tuning`, else the
            fastest that the device computes natively.
        strict: raise :class:`~devicekit.DeviceUnavailableError` instead of taking another device.

    Raises:
        UnknownDeviceError: the word, or the pin that stands in for it, is no device.
        DeviceUnavailableError: only with ``strict``.
        DeviceKitError: ``dtype`` is no dtype of the framework.
    """

    __slots__ = ("__weakref__", "_wanted_dtype", *DECIDED)

    device: torch.device
    """Where tensors go. On a host without torch the string ``"cpu"``."""
    backend: str
    """``cuda``, ``rocm``, ``xpu``, ``npu``, ``mps``, ``cpu``, ``numpy``, or a third party's name."""
    index: int | None
    """The device's number among the visible ones; None where there is only one, and of :meth:`current`."""
    warning: str | None
    """None, or why this is not the device that was asked for."""

    _wanted_dtype: Any
    """Of :meth:`current`, until something is asked."""

    def __init__(self, preferred_device: object = None, *, dtype: Dtype | None = None, strict: bool = False) -> None:
        self._adopt(_announced(resolver().decide(preferred_device, strict=strict)), dtype, strict)

    @classmethod
    def current(cls, *, dtype: Dtype | None = None) -> Self:
        """The manager for code that says ``"cuda"`` without a number: it means the runtime's current device.

        Its ``device`` has no index, ``torch.device("cuda")``, and its ``index`` is None. Where tensors go, and what
        ``memory_stats``, ``synchronize`` and all the others are about, follows :meth:`set_device`,
        :meth:`device_index` and torch's own functions for that; as in torch, each thread has a current device of its
        own. ``LOCAL_RANK`` does not matter. Only a pin with an index (``KRONOS_DEVICE=cuda:1``) fixes the device.

        It is chosen as without an argument, starts no runtime, and stays what it is when it is pickled. It is chosen
        when something is first asked of it, and not when it is made: programs import their modules first, and set
        ``CUDA_VISIBLE_DEVICES`` or a pin later.

        Args:
            dtype: as for the constructor. The default goes by the device that is current when it is first asked for.

        Raises:
            UnknownDeviceError: when first asked: the pin is no device.
            DeviceKitError: when first asked: ``dtype`` is no dtype of the framework.
        """
        made = cls.__new__(cls)
        made._wanted_dtype = dtype
        return made

    if not TYPE_CHECKING:  # for mypy a name that is not there stays one

        def __getattr__(self, name: str) -> Any:
            """What is not decided yet is decided now."""
            if name not in DECIDED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            self._adopt(_announced(resolver().decide(current=True)), self._wanted_dtype, strict=False)
            return getattr(self, name)

    def _adopt(self, decision: Decision, dtype: Any, strict: bool) -> None:
        self._decision = decision
        self._backend = decision.backend
        self._dtype = decision.backend.as_dtype(dtype)
        self._strict = strict
        self.device = decision.device
        self.backend = decision.name
        self.index = decision.index
        self.warning = decision.warning
        _tuning.begin(decision.backend)

    @property
    def _follows(self) -> bool:
        """There are numbers, and none was chosen: the runtime's current device is meant."""
        return self.index is None and self._backend.indexed

    @property
    def _at(self) -> int:
        return (self._backend.current_index() if self._follows else self.index) or 0

    @property
    def _here(self) -> Any:
        """``device``, with its number: whoever works in threads must not ask for theirs, which start with device 0."""
        return self._backend.device(self._at) if self._follows else self.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to run models in. Asking may start the device's runtime, so it is asked on first use."""
        if self._dtype is None:
            tuned, backend = self.tuning, self._backend
            self._dtype = backend.preferred_dtype(self._at) if tuned is None else getattr(backend.torch, tuned.dtype)
        return self._dtype  # type: ignore[no-any-return]

    @property
    def tuning(self) -> Tuning | None:
        """What ``devicekit tune`` measured to be best for this device on this machine; None where nothing counts.

        The default of ``dtype`` goes by it. On the processor it also sets torch's threads, once a process, unless
        ``OMP_NUM_THREADS``, ``MKL_NUM_THREADS`` or ``torch.set_num_threads`` did. ``DEVICEKIT_TUNING=off`` ignores it.
        Where something is saved, asking may start the device's runtime.
        """
        return _tuning.of(self._backend, self._at)

    def __repr__(self) -> str:
        aside = f", warning={self.warning!r}" if self.warning else ""
        return f"DeviceManager({str(self.device)!r}, backend={self.backend!r}{aside})"

    # -- between processes -----------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        place = self.backend if self.index is None else f"{self.backend}:{self.index}"
        told = {"place": place, "current": self._follows, "dtype": self._dtype, "strict": self._strict}
        return {**told, "warning": self.warning}

    def __setstate__(self, state: dict[str, Any]) -> None:
        decision = resolver().decide(state["place"], strict=state["strict"], current=state["current"])
        self._adopt(decision, state["dtype"], state["strict"])
        self.warning = decision.warning or state["warning"]

    # -- which one, of how many --------------------------------------------------------------
    @property
    def is_accelerator(self) -> bool:
        """The device is a GPU or an NPU, and not the host's processor."""
        return self._backend.accelerator

    @property
    def device_count(self) -> int:
        """How many devices of this backend can be used here, as the probe found them; 0 on the CPU and with NumPy.

        No runtime is started. With the same meaning as ``torch.accelerator.device_count()``.
        """
        return numbering.count(self._decision)

    @property
    def current_index(self) -> int:
        """The number of the device that this manager means now, as ``torch.cuda.current_device()`` has it; 0 where
        devices have no numbers. It starts no runtime.
        """
        return self._at

    @property
    def name(self) -> str:
        """The product's name, for logs: ``NVIDIA H100 80GB HBM3``.

        What can be told without starting the runtime: for some only ``Ascend NPU``, ``CPU``, or the device's type.
        """
        try:
            return numbering.name_of(self._decision, self._at)
        except Exception:  # a word for a log is no reason to fall
            log.warning("%s cannot tell its current device", self.backend, exc_info=True)
            return self._backend.device_type

    def device_at(self, index: object = None) -> torch.device:
        """The device that a number means here: for ``.cuda(rank)`` and ``torch.device(f"cuda:{rank}")``.

        Args:
            index: a whole number, also as text; or a ``torch.device`` or its text: ``"cpu"`` stays the CPU, another
                type with an index (``"cuda:1"``) means that index here. Without an index, or where devices have none
                (cpu, mps), it is ``device``.

        Raises:
            UnknownDeviceError: a negative number, or no device at all. That there is none of a number shows on use.
        """
        return numbering.device_at(self._decision, index)  # type: ignore[no-any-return]

    def set_device(self, index: object) -> None:
        """Make it the runtime's current device in this thread, as ``torch.cuda.set_device`` does.

        A manager made by :meth:`current` follows. Nothing happens where devices have no numbers, and for a negative
        number. It starts the runtime.

        Args:
            index: as for :meth:`device_at`, but not the CPU of a machine whose device is another one.

        Raises:
            UnknownDeviceError: it is no device of this backend.
            DeviceUnavailableError: there is no device of this number.
        """
        numbering.make_current(self._decision, index)

    def device_index(self, index: object) -> AbstractContextManager[None]:
        """A context in which it is the runtime's current device; afterwards the former one is again.

        As ``torch.cuda.device`` and ``torch.accelerator.device_index``. For None nothing is changed; else all is as
        for :meth:`set_device`.
        """
        return numbering.while_current(self._decision, index)

    # -- streams -----------------------------------------------------------------------------
    def create_stream(self, priority: int = 0, *, device: object = None) -> Any:
        """A queue of work beside the others, as ``torch.cuda.Stream``; it starts the runtime.

        Streams and events are the runtime's own: ``torch.cuda.Stream``, ``torch.xpu.Event``. Where work is done in one
        queue (cpu, numpy, mps) stand-ins have the methods that are common to all: ``wait_stream``, ``wait_event``,
        ``record_event``, ``synchronize`` and ``query``; of events ``record``, ``wait``, ``synchronize``, ``query`` and
        ``elapsed_time``. What changes the current stream does so in this thread.

        Args:
            priority: lower numbers come first.
            device: by default this one; else as for :meth:`set_device`.

        Raises:
            UnknownDeviceError: it is no device of this backend.
            DeviceUnavailableError: there is no device of this number.
        """
        at = self.index if device is None else numbering.number(self._decision, device, "given a stream")
        return self._backend.streams().Stream(at, priority)

    def create_event(self, enable_timing: bool = False, blocking: bool = False) -> Any:
        """A mark in a stream, as ``torch.cuda.Event``; it belongs to the device in whose stream it is recorded first.

        Args:
            enable_timing: ``start.elapsed_time(end)`` is wanted, in milliseconds. On the stand-ins it is read off the
                host's clock, for which ``record`` waits for the device.
            blocking: waiting for it lets the processor sleep, where the runtime can choose.
        """
        return self._backend.streams().Event(enable_timing, blocking)

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which a stream is the current one, as ``torch.cuda.stream``; for None nothing is changed.

        Raises:
            DeviceKitError: it is none of this device, where streams are stand-ins; elsewhere the error is torch's.
        """
        return self._backend.streams().stream(stream)  # type: ignore[no-any-return]

    def current_stream(self) -> Any:
        """The stream that this device's work goes to, as ``torch.cuda.current_stream``."""
        return self._backend.streams().current_stream(self.index)

    def default_stream(self) -> Any:
        """The stream that this device's work goes to where no other was chosen, as ``torch.cuda.default_stream``."""
        return self._backend.streams().default_stream(self.index)

    def set_stream(self, stream: Any) -> None:
        """Make a stream the current one, as ``torch.cuda.set_stream``: with its device. For None nothing is changed.

        Raises:
            DeviceKitError: as for :meth:`stream`.
        """
        self._backend.streams().set_stream(stream)

    # -- moving ------------------------------------------------------------------------------
    def to(self, x: Any, dtype: Dtype | None = None) -> Any:
        """Put a tensor, module, array or pipeline on this device, or a dict, list, tuple or dataclass of them.

        The dtype stays, unless one is given (then for floating-point values only), or the device cannot hold it
        (float64 on MPS and NPU becomes float32, with one warning). Modules are moved in place, as in torch; containers
        come back new; what is no tensor comes back as it is.

        Raises:
            DeviceKitError: an object has a ``to`` method that takes no device, or ``dtype`` is no dtype.
        """
        return placement.place(self._backend, x, self.device, self._backend.as_dtype(dtype))

    # -- weights ---------------------------------------------------------------------------------
    @overload
    def load_safetensors(
        self,
        path: Checkpoint,
        *,
        dtype: Wanted = None,
        into: None = None,
        copy: bool = False,
        direct: bool = False,
        strict: bool = True,
        keys: Keys = None,
        rename: Rename = None,
        workers: int | None = None,
        progress: Progress = None,
    ) -> Weights: ...
    @overload
    def load_safetensors(
        self,
        path: Checkpoint,
        *,
        into: torch.nn.Module,
        dtype: Wanted = None,
        copy: bool = False,
        direct: bool = False,
        strict: bool = True,
        keys: Keys = None,
        rename: Rename = None,
        workers: int | None = None,
        progress: Progress = None,
    ) -> LoadResult: ...
    def load_safetensors(
        self,
        path: Checkpoint,
        *,
        dtype: Wanted = None,
        into: torch.nn.Module | None = None,
        copy: bool = False,
        direct: bool = False,
        strict: bool = True,
        keys: Keys = None,
        rename: Rename = None,
        workers: int | None = None,
        progress: Progress = None,
    ) -> Weights | LoadResult:
        """Bring weights onto this device: as a dict of tensors, or straight into a module.

        At no time is more memory used than the result takes and 64 MiB. On the CPU a tensor that keeps its dtype is a
        view of the mapped file: it costs nothing until it is touched, writing to it does not reach the file, and who
        overwrites the file in place changes it too (shortened: SIGBUS when touched; replaced by renaming: safe).

        Args:
            path: a ``.safetensors`` file, an index of shards, a folder with either, several files, bytes, an open file.
            dtype: for floats; by default as in the file or ``into``. Or a function of name and dtype in the file.
            into: a module to fill, in place where device and dtype are right; its parameters stay the same objects. All
                of it is on this device afterwards. One with hooks or lazy layers takes the file's size of memory more.
            copy: read into memory of its own; with False a tensor may be a view of the mapped file.
            direct: the same, past the page cache if the system can: faster from a fast disk, but so is no second load.
            strict: with ``into``, raise when names are missing or unexpected. With ``keys`` it is about the part.
            keys: load a part: a name in the file, a glob pattern such as ``"*.lora_A.*"``, several, or a predicate.
            rename: new names: a dict or a function of the name.
            workers: threads that read; by default one for each usable CPU, 8 at most; with ``direct`` 24 or 8.
            progress: called with bytes done and in all, one thread at a time; or whether to draw a bar: by default
                where a person watches stderr and it takes more than a second.

        Returns:
            A dict with ``.metadata``; or with ``into`` what was missing and unexpected. Tied tensors that
            ``save_safetensors`` or safetensors' ``save_model`` wrote once have all their names again.

        Raises:
            WeightsError: a file is missing, broken, hostile, does not fit, or shrinks; with file, tensor, and what of
                ``into`` was filled, if anything.
        """
        from devicekit.weights import loading, module  # what only loading needs costs a tenth of this package's import

        loader = loading.Loader(
            self._backend, self._here, dtype=dtype, copy=copy, direct=direct, workers=workers, progress=progress
        )
        if into is not None:
            return module.load_into(loader, into, path, strict=strict, keys=keys, rename=rename)
        return loading.load(loader, path, keys=keys, rename=rename)

    def save_safetensors(
        self,
        obj: torch.nn.Module | Mapping[str, Any],
        path: str | os.PathLike[str],
        *,
        metadata: Mapping[str, str] | None = None,
        max_shard_size: int | str | None = None,
        progress: Progress = None,
    ) -> Path:
        """:func:`devicekit.save_safetensors`; it needs no device, and is here beside its other half."""
        from devicekit.weights import saving

        return saving.save_safetensors(obj, path, metadata=metadata, max_shard_size=max_shard_size, progress=progress)

    # -- random numbers ------------------------------------------------------------------------
    def manual_seed(self, seed: int) -> None:
        """Seed the default generators of all devices of this backend, as ``torch.cuda.manual_seed_all`` does.

        The CPU's is left alone, for code written for CUDA seeds it with ``torch.manual_seed``; so on the CPU and with
        NumPy nothing happens. A runtime that has not started yet is seeded when it starts.

        Raises:
            TypeError: the seed is no number.
            ValueError: it lies outside -2**63 to 2**64 - 1.
        """
        self._backend.manual_seed(whole_seed(int(seed)))

    def create_generator(self, seed: int | None = None) -> torch.Generator:
        """A generator that this device's factories accept; seeded from the system's entropy without a seed.

        Raises:
            TypeError: the seed is no whole number.
            ValueError: it lies outside -2**63 to 2**64 - 1.
        """
        return self._backend.create_generator(seed, self._at)  # type: ignore[no-any-return]

    def randn(self, shape: Sequence[int] | int, seed: int | None = None, *, dtype: Dtype | None = None) -> torch.Tensor:
        """Standard normal numbers of this shape, the same on every backend for the same seed.

        Drawn on the CPU, the whole shape at once, in float32, and then moved: device generators differ, and even on one
        CPU the numbers depend on how many are drawn at once. Without a seed from the CPU's global generator.

        Args:
            shape: the dimensions.
            seed: as for :meth:`create_generator`.
            dtype: of the result; float32 by default.
        """
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._backend.draw_normal(dims, seed, self.device, self._backend.as_dtype(dtype))  # type: ignore[no-any-return]

    def rng_state(self) -> RngState:
        """The state of Python's, NumPy's, torch's and this device's random numbers, as one picklable object."""
        return rng.state(self._backend, self._at)

    def set_rng_state(self, state: RngState) -> None:
        """Bring such a state back.

        Raises:
            DeviceKitError: it was taken on a device of another type; nothing is changed then.
        """
        rng.set_state(self._backend, self._at, state)

    # -- precision -------------------------------------------------------------------------------
    def autocast(self, dtype: Dtype | None = None, *, enabled: bool = True) -> Autocast:
        """A context, or a decorator, in which matrix products and convolutions run in 16 bits where that is native.

        Where it would change nothing, or would be emulated, it does nothing, and its ``enabled`` and ``reason`` say so.

        Args:
            dtype: bfloat16 or float16; by default this manager's ``dtype``, which is float32 where neither is native.
            enabled: False: the block is computed without autocast, also inside of one, whatever the dtype.

        Raises:
            DeviceKitError: there is no autocast to this dtype.
        """
        from devicekit import precision

        if not enabled:
            return precision.switched_off(self._backend)
        wanted = self.dtype if dtype is None else self._backend.as_dtype(dtype)
        return precision.autocast(self._backend, self._at, wanted, asked=dtype is not None)

    def grad_scaler(self, dtype: Dtype | None = None, **options: Any) -> torch.amp.GradScaler:
        """Torch's gradient scaler: enabled for float16, whose small gradients would vanish; passing through for others.

        Args:
            dtype: what autocast computes in; by default this manager's ``dtype``.
            options: of ``torch.amp.GradScaler``; with ``enabled=False`` it passes everything through.
        """
        from devicekit import precision

        wanted = self.dtype if dtype is None else self._backend.as_dtype(dtype)
        return precision.grad_scaler(self._backend, self._at, wanted, options)  # type: ignore[no-any-return]

    # -- attention and compiling -----------------------------------------------------------------
    def attention_backend(
        self,
        *,
        head_dim: int | None = None,
        dtype: Dtype | None = None,
        mask: bool = False,
        dropout: float = 0.0,
        training: bool = False,
    ) -> Attention:
        """The kernel that ``scaled_dot_product_attention`` will use on this device, and why not a faster one.

        It goes by torch's rules for the device and by its switches (``sdpa_kernel``, ``enable_flash_sdp``); no tensor
        is made. Rules about more than this, such as lengths or strides, are not asked.

        Args:
            head_dim: the last dimension of query, key and value; by default one that every kernel takes.
            dtype: theirs; by default this manager's ``dtype``.
            mask: an ``attn_mask`` is given; ``is_causal`` is none.
            dropout: ``dropout_p``, 0 to 1.
            training: gradients will be asked for.

        Raises:
            DeviceKitError: an argument makes no sense.
        """
        from devicekit import attention

        wanted = self.dtype if dtype is None else self._backend.as_dtype(dtype)
        case = attention.as_case(wanted, head_dim=head_dim, mask=mask, dropout=dropout, training=training)
        return attention.attention(self._backend, self._at, case)

    def attention(self, name: str | None = None) -> AttentionChoice:
        """A context, or a decorator, in which ``scaled_dot_product_attention`` uses this kernel and no other.

        Torch keeps this for the whole process, so other threads see it too. A diffusers pipeline inside uses its
        ``native`` backend, if a name is given, or if the one that ``DIFFUSERS_ATTN_BACKEND`` names cannot run here.
        What the kernel does not take, such as a mask, is torch's error when it is called.

        Args:
            name: as ``str(dm.attention_backend())`` has it: ``"flash"``, ``"math"``; None: the best one for each call.

        Raises:
            DeviceKitError: this device, in this manager's ``dtype``, does not have the kernel; at once, not inside.
        """
        from devicekit import attention

        case = attention.as_case(self.dtype, head_dim=None, mask=False, dropout=0.0, training=False)
        return attention.choose(self._backend, self._at, case, name)

    def compile(self, fn_or_module: Any = None, **options: Any) -> Any:
        """``torch.compile`` where it can generate code for this device; else, and where it fails, all runs plainly.

        A function becomes another one with ``compiled`` and ``reason``. A module is compiled in place and comes back as
        itself, with its class, parameters and names; ask :meth:`compilation` about it. Copies and pickles of a module
        are plain ones.

        When the compiler fails, one warning says so, and what it failed on runs as it is, once. From the next call on
        all runs plainly, whatever the shapes. Errors of the function itself come through. In the backward pass, which
        may be compiled later, a failure of the compiler is raised by ``backward()``.

        Args:
            fn_or_module: what to compile; without it a decorator.
            options: of ``torch.compile``. With a ``backend`` of your own the device need not be one that torch's
                generates code for.

        Raises:
            DeviceKitError: it is neither a function nor a module, or ``options`` has both a mode and options.
        """
        from devicekit import compiling

        if fn_or_module is None:
            return lambda thing: compiling.compiled(self._backend, self._at, thing, options)
        return compiling.compiled(self._backend, self._at, fn_or_module, options)

    def compilation(self, fn_or_module: Any) -> Compilation:
        """Whether what :meth:`compile` gave is compiled, and why not."""
        from devicekit import compiling

        return compiling.compilation(fn_or_module)

    def supports(self, dtype: Dtype) -> str:
        """How this device computes matrix products in a dtype: ``native``, ``emulated`` or ``no``.

        ``native``: on its own units for it. ``emulated``: through another format, or, though narrower than float32, far
        slower than it. ``no``: they raise, the values cannot be stored, or the backend does not say that they can.
        Other dtypes (int64, bool, complex64 and the like) are ``native`` where they can be stored.

        The float8 types are told apart: MI300 has only the ``fnuz`` ones, other GPUs float8_e4m3fn and float8_e5m2.
        Asking may start the device's runtime. ``devicekit doctor --verify`` tries every format.

        Args:
            dtype: a dtype, or one of float64, float32, tf32 (for float32 products), bfloat16, float16, float8 (of any
                kind), int8, int4 (for weights).

        Raises:
            DeviceKitError: it is neither.
        """
        from devicekit import formats

        return formats.supports(self._backend, self._at, dtype)

    # -- time ------------------------------------------------------------------------------------
    def measure(self, name: str | None = None) -> Measurement:
        """A context that gives the block's ``seconds``, waiting for the device before and after, and ``peak_memory``.

        The runtime keeps one peak for everybody, which this starts anew.
        """
        from devicekit.measuring import Measurement

        return Measurement(self._backend, self._at, name)

    # -- memory ----------------------------------------------------------------------------------
    def memory_stats(self) -> MemoryStats:
        """Bytes, and who said so; None for what this runtime cannot tell. On the CPU the container's limit counts."""
        try:
            stats = self._backend.memory_stats(self._at)
        except Exception as exc:  # a figure for a log or a page is no reason to fall
            log.warning("%s cannot tell its memory", self.backend, exc_info=True)
            return MemoryStats(source=f"unknown: {type(exc).__name__}: {exc}")
        return (
            stats
            if isinstance(stats, MemoryStats)
            else MemoryStats(source=f"nonsense from {self.backend}: {stats!r:.80}")
        )

    def empty_cache(self) -> None:
        """Give this device's cached memory back; nothing happens where there is none."""
        self._backend.empty_cache(self._at)

    def synchronize(self) -> None:
        """Wait until this device has done its work; nothing happens where there is nothing to wait for."""
        self._backend.synchronize(self._at)

    def reset_peak_memory(self) -> None:
        """Start ``memory_stats().peak`` anew, where the runtime keeps a peak that can be reset."""
        self._backend.reset_peak_memory(self._at)

    def set_memory_efficient_mode(self, target: object = None) -> EfficientMode:
        """Switch on what saves memory on this device, and say in words what was done, what was not, and why.

        A pipeline of diffusers is moved here where it fits, and offloaded to the CPU where it does not, as its bytes
        and ``memory_stats().available`` tell; its VAE decodes in slices and tiles. Where torch has no fused kernel,
        attention is computed in slices. A module gets gradient checkpointing, which only training uses. Nothing is
        switched on twice, and what fails is told, not raised.

        Args:
            target: a pipeline, a ``torch.nn.Module``, or None: the process, whose allocator is set while its runtime
                has not started.

        Returns:
            ``done`` and ``not_done``, sentences; true when something was switched on; ``undo()`` brings all of it back.

        Raises:
            DeviceKitError: the target is none of these.
        """
        from devicekit.efficient.mode import Here
        from devicekit.efficient.switching import switch_on

        return switch_on(Here(self._backend, self._here, self._at, self.memory_stats), target)

    @overload
    def find_batch_size(
        self,
        step: Callable[[int], object],
        *,
        start: int = 1,
        limit: int | None = None,
        headroom: float = 0.0,
        progress: Watch = None,
    ) -> int: ...
    @overload
    def find_batch_size(
        self,
        step: None = None,
        *,
        start: int = 1,
        limit: int | None = None,
        headroom: float = 0.0,
        progress: Watch = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...
    def find_batch_size(
        self,
        step: Callable[[int], object] | None = None,
        *,
        start: int = 1,
        limit: int | None = None,
        headroom: float = 0.0,
        progress: Watch = None,
    ) -> Any:
        """The largest batch size with which ``step`` runs on this device, found by running it.

        Doubles from ``start`` until memory runs out, then halves the distance: about 2 log2(size) attempts. After each
        one all that it left is dropped and the cache is emptied. Other errors than out of memory pass through.

        Without ``step`` a decorator for a function whose first argument is the size: the first call finds it, then runs
        the function with it; later calls use it again (``function.batch_size``; set it to None to search anew).

        On the CPU who goes over the container's limit is killed, so there an attempt fails when it comes within 5 % of
        it (Linux only).

        Args:
            step: called with a size.
            start: the first attempt.
            limit: the largest attempt; 2**20 by default.
            headroom: the part of the memory that has to stay free, 0 to 1.
            progress: called after each attempt with the size and whether it fitted; True: lines on stderr; False:
                nothing. By default lines where a person watches.

        Raises:
            BatchSizeError: not even 1 fits.
            DeviceKitError: an argument makes no sense, or headroom cannot be kept on this device.
        """
        from devicekit.batch import Finder

        finder = Finder(self._backend, self._here, self._at, start, limit, headroom, progress)
        return finder.decorate if step is None else finder.largest(step)

    # -- several processes -----------------------------------------------------------------------
    @property
    def distributed_backend(self) -> str | None:
        """The library that moves this device's tensors between processes, as torch calls it: ``nccl`` (cuda, rocm),
        ``xccl`` (xpu), ``hccl`` (npu), ``gloo`` (cpu, mps). None where this torch does not have it, and without torch.
        """
        from devicekit import distributed

        return distributed.collective(self._backend)

    def init_distributed(self, backend: str | None = None, *, timeout: float = 600.0) -> Processes:
        """Join the other processes that torchrun has started, each with its own device; alone, do nothing.

        Under torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set) this device becomes the
        runtime's current one, and torch's process group is made. A process group that is there already is kept, and is
        not taken down here. Without torchrun this is rank 0 of 1, and no process group is made.

        Use the result as a context, or keep it: the process group is taken down once, also when the process ends
        without an error. On a GPU each process needs one of its own: ask for ``"cuda"``, not for ``"cuda:0"``.

        Args:
            backend: the collective library; by default ``distributed_backend``.
            timeout: seconds to wait for the others to come, and in each collective after that.

        Raises:
            DeviceKitError: the environment is incomplete or makes no sense; the library is missing; or, in all of them
                alike: one does not come, has another library, or shares a device that cannot be shared.
        """
        from devicekit import distributed

        index = self._at if self._backend.indexed else None
        return distributed.start(self._backend, self._here, index, backend, timeout)

    # -- telling ---------------------------------------------------------------------------------
    def report(self) -> dict[str, Any]:
        """A JSON-able summary for a health page or a log: device, dtype, backend, warning, memory, versions."""
        from devicekit import reporting  # importlib.metadata behind it takes 20 ms

        return {
            "device": str(self.device),
            "backend": self.backend,
            "index": self.index,
            "dtype": str(self.dtype).removeprefix("torch."),
            "requested": self._decision.request.text,
            "source": self._decision.request.source,
            "warning": self.warning,
            "memory": self.memory_stats().to_dict(),
            "versions": reporting.versions(self._backend),
        }


def _announced(decision: Decision) -> Decision:
    if decision.warning is not None:
        warn(decision.warning)
    return decision
