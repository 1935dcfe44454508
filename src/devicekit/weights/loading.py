"""``load_safetensors``: from names in files to tensors on a device, each byte moved once at most.

On the host a tensor that keeps its dtype is cut out of the mapped file: nothing is read until it is touched. All others
get memory of their own, which is filled in place. On a device all memory is made first, so that what does not fit fails
before anything is read.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from devicekit.backend import Backend
from devicekit.container import usable_cpus
from devicekit.errors import DeviceKitError, WeightsError
from devicekit.values import Weights
from devicekit.weights.arrays import Arrays, NumpyArrays, TorchArrays
from devicekit.weights.checkpoint import Checkpoint, opened_checkpoint
from devicekit.weights.formats import Format
from devicekit.weights.header import shown
from devicekit.weights.pages import LARGE, fresh
from devicekit.weights.progress import Progress, following
from devicekit.weights.reading import (
    PIECE,
    ROOM,
    Filler,
    HostFiller,
    Part,
    Piece,
    Request,
    StagedFiller,
    at,
    fill,
    neighbours,
    pieces,
)
from devicekit.weights.selection import Keys, Rename, Wanted, requests, selected, tied
from devicekit.weights.source import BLOCK

__all__ = ["Loader", "bytes_of", "load", "shape_of"]

MOST_WORKERS = 8
"""Threads, without ``workers``: more than memory needs to be busy, and their buffers stay under 64 MiB."""
MOST_WAITING = 24
"""Threads that wait for a disk and have no buffer: a cold file of 2.9 GB took 1.8 s with 8, 1.25 s with 24."""
SMALL = 64 << 10
"""Bytes of a tensor that gets its memory together with its neighbours."""


Plan: TypeAlias = Callable[[], Iterator[Piece]]
"""Pieces, made when their turn comes: a large checkpoint has very many."""


@dataclass
class Work:
    """What is to be read."""

    parts: list[Plan] = field(default_factory=list)
    total: int = 0
    """Bytes of the files."""
    in_place: bool = True
    """Nothing goes through a buffer."""


class Loader:
    """Brings requests into memory: what is the same for a dict and for a module."""

    def __init__(
        self,
        backend: Backend,
        device: Any,
        *,
        dtype: Any = None,
        copy: bool = False,
        direct: bool = False,
        workers: int | None = None,
        progress: Progress = None,
    ) -> None:
        self.backend = backend
        self.device = device
        self.arrays: Arrays = TorchArrays(backend.torch) if backend.needs_torch else NumpyArrays(backend.host)
        self.dtype = dtype
        self._copy = copy or direct
        self._direct = direct
        self._workers = _checked_workers(workers)
        self._progress = progress
        self._planned: Callable[[], None]
        self._tell: Callable[[int], None]

    # -- dtypes ------------------------------------------------------------------------------------
    def wanted(self, own: Callable[[str], Any] = lambda _: None) -> Wanted:
        """``dtype=`` as a question about each tensor, with what the device can store.

        Args:
            own: the dtype that a tensor of this name has where it goes; None: that is still open.
        """
        chosen = self.dtype if callable(self.dtype) and not isinstance(self.dtype, type) else None
        fixed = None if chosen is not None else self._floating(self.dtype)

        def answer(name: str, held: Format, stored: Any) -> Any:
            there = own(name)
            default = stored if there is None else there
            asked = fixed
            if not held.floating or not self.arrays.is_floating(default):
                asked = None
            elif chosen is not None:
                asked = self._answered(name, chosen(name, stored))
            return self.backend.narrow(default if asked is None else asked)

        return answer

    def _answered(self, name: str, given: Any) -> Any:
        try:
            return self._floating(given)
        except DeviceKitError as error:
            what = f"dtype= gives {given!r:.40} for {shown(name)}."
            raise WeightsError(what, why=error.why or error.what, try_=error.try_) from None

    def _floating(self, dtype: Any) -> Any:
        made = self.backend.as_dtype(dtype)
        if made is None or self.arrays.is_floating(made):
            return made
        raise WeightsError(
            f"Weights cannot be cast to {made}.",
            why="dtype= is for floating-point tensors, which would lose what they hold; others keep theirs",
        )

    def holds(self, tensor: Any) -> bool:
        """The tensor lies on the device already."""
        return self.backend.holds(tensor, self.device)

    # -- memory ------------------------------------------------------------------------------------
    def mapped(self, request: Request) -> Any | None:
        """The tensor over the pages of its file, where that is possible and wanted."""
        if self.backend.accelerator or self._copy or request.wanted != request.dtype:
            return None
        source, entry = request.stored.source, request.stored.entry
        if entry.nbytes == 0 or entry.begin % request.dtype.itemsize:
            return None  # not every instruction takes numbers that lie across their own boundaries
        try:
            pages = source.mapped()
        except WeightsError as error:
            raise at(request.name, error) from error.__cause__
        if pages is None:
            return None
        count = entry.nbytes // request.dtype.itemsize
        return self.arrays.cut(pages, request.dtype, entry.begin, shape_of(request), count)

    def prepare(self, waiting: Iterable[Request]) -> tuple[dict[str, Any], Work]:
        """Tensors of their own for these requests, by name, and what is to be read into them."""
        made: dict[str, Any] = {}
        work = Work()
        for group in neighbours(waiting):
            work.total += bytes_of(group)
            work.in_place &= self._in_place(group)
            work.parts += self._with_memory(group, made)
        return made, work

    def bring(self, waiting: Iterable[Request]) -> dict[str, Any]:
        """Tensors of their own for these requests, filled, by name; inside of ``watched``."""
        made, work = self.prepare(waiting)
        self.read(work)
        return made

    def into(self, placed: Sequence[Request]) -> None:
        """Fill memory that is there already; inside of ``watched``."""
        groups = list(neighbours(placed))
        parts: list[Plan] = [functools.partial(pieces, group) for group in groups]
        in_place = all(len(group) == 1 and self._in_place(group) for group in groups)
        self.read(Work(parts, bytes_of(placed), in_place))

    def _with_memory(self, group: list[Request], made: dict[str, Any]) -> list[Plan]:
        if not self.backend.accelerator and len(group) > 1 and max(r.stored.entry.nbytes for r in group) <= SMALL:
            return [self._together(group, made)]
        placed = [request._replace(flat=self._empty(request)) for request in group]
        made.update({request.name: request.flat.reshape(shape_of(request)) for request in placed})
        if self.backend.accelerator:
            return [functools.partial(pieces, placed)]
        return [functools.partial(pieces, [request]) for request in placed]

    def _empty(self, request: Request) -> Any:
        count = request.stored.entry.nbytes // request.dtype.itemsize
        if self.backend.accelerator:
            return self.backend.allocate(count, request.wanted, self.device)
        flat = self._in_large_pages(request, count) if count * request.wanted.itemsize >= LARGE else None
        return self.arrays.empty(count, request.wanted) if flat is None else flat

    def _in_large_pages(self, request: Request, count: int) -> Any | None:
        """Where the file can be read to past the cache; None: there is no room, which the framework can say better."""
        nbytes = count * request.wanted.itemsize
        try:
            memory = fresh(nbytes + BLOCK if self._direct else nbytes)
        except OSError:
            return None
        start = 0
        if self._direct and request.wanted == request.dtype:
            source, entry = request.stored
            start = source.start(memoryview(memory), entry.begin, request.dtype.itemsize)
        return self.arrays.cut(memory, request.wanted, start, (count,), count)

    def _together(self, group: list[Request], made: dict[str, Any]) -> Plan:
        """One block for many small tensors, each with a storage of its own over its part."""
        first = group[0]
        size, wide = sum(request.stored.entry.nbytes for request in group), first.wanted.itemsize
        length = size // first.dtype.itemsize
        block = bytearray(length * wide)
        at = 0
        for request in group:
            count = request.stored.entry.nbytes // request.dtype.itemsize
            shape = shape_of(request)
            made[request.name] = (
                self.arrays.cut(block, request.wanted, at * wide, shape, count)
                if count
                else self.arrays.empty(0, request.wanted).reshape(shape)
            )
            at += count
        if length == 0:
            return lambda: iter(())
        whole = Part(self.arrays.cut(block, first.wanted, 0, (length,), length), 0, length)
        begin = first.stored.entry.begin
        return lambda: iter([Piece(first.name, first.stored.source, begin, size, first.dtype, (whole,))])

    # -- reading -----------------------------------------------------------------------------------
    @contextlib.contextmanager
    def opened(self, path: Any) -> Iterator[Checkpoint]:
        """The files to read from. Outside of the caller's modes of torch, and uncollected until ``watched``."""
        with uncollected() as self._planned, opened_checkpoint(path) as found, self.arrays.plain():
            if self._direct:
                for source in {stored.source for stored in found.tensors.values()}:
                    source.bypass_cache()
            yield found

    @contextlib.contextmanager
    def watched(self, total: int) -> Iterator[None]:
        """Progress over all that is read inside, which may be more than one ``read``; planning is over."""
        self._planned()
        with following(self._progress, total) as self._tell:
            yield

    def read(self, work: Work) -> None:
        """Do it; inside of ``watched``."""
        queued = itertools.chain.from_iterable(plan() for plan in work.parts)
        workers = self._workers or self._usual_workers(work)
        crew = [self._filler() for _ in range(min(workers, -(-work.total // PIECE)) or 1)]
        fill(queued, crew, self.arrays, self._tell)

    def _usual_workers(self, work: Work) -> int:
        if not self._direct:
            return min(usable_cpus(), MOST_WORKERS)
        return MOST_WAITING if work.in_place else MOST_WORKERS  # those who wait for a disk need no CPU

    def _in_place(self, group: Sequence[Request]) -> bool:
        return not self.backend.accelerator and all(request.wanted == request.dtype for request in group)

    def _filler(self) -> Filler:
        if self.backend.accelerator:
            return StagedFiller(self.arrays, self.backend.staging(self.device, ROOM))
        return HostFiller(self.arrays)


def shape_of(request: Request) -> tuple[int, ...]:
    """In elements of the framework's dtype: torch holds two numbers of four bits in one."""
    shape, packed = request.stored.entry.shape, request.stored.entry.format.packed
    return shape if packed == 1 else (*shape[:-1], shape[-1] // packed)


def bytes_of(requests: Iterable[Request]) -> int:
    """In the files."""
    return sum(request.stored.entry.nbytes for request in requests)


def _checked_workers(workers: int | None) -> int | None:
    if workers is None or (type(workers) is int and workers >= 1):
        return workers
    raise WeightsError(f"Weights cannot be loaded by {workers!r} threads.", why="workers= is a whole number from 1 on")


@contextlib.contextmanager
def uncollected() -> Iterator[Callable[[], None]]:
    """No garbage collection until the end, or until the function it gives is called.

    Names and shapes of 10,000 tensors are enough new objects to start a full one, which looks at all that importing
    torch has left and finds nothing: it took 110 of 190 ms. Not for the reading itself, which may take minutes.
    """
    was_on = gc.isenabled()
    gc.disable()

    def over() -> None:
        nonlocal was_on
        if was_on:
            gc.enable()
        was_on = False

    try:
        yield over
    finally:
        over()


def load(loader: Loader, path: Any, *, keys: Keys = None, rename: Rename = None) -> Weights:
    """A checkpoint as a dict of tensors on the device.

    Raises:
        WeightsError: it cannot be read, or is not what it claims to be.
    """
    with loader.opened(path) as found:
        chosen = selected(found, keys, rename)
        again = tied(chosen)
        once = {name: stored for name, stored in chosen.items() if name not in again}
        wishes = requests(once, loader.arrays, loader.wanted())
        tensors = {name: loader.mapped(request) for name, request in wishes.items()}
        made, work = loader.prepare(wishes[name] for name, tensor in tensors.items() if tensor is None)
        with loader.watched(work.total):
            loader.read(work)
        tensors.update(made)
        tensors.update({name: tensors[kept] for name, kept in again.items()})
        return Weights(tensors, metadata=found.metadata)
