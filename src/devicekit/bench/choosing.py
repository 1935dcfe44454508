"""Find what is best on a device by measuring it: threads, dtype, attention kernel, layout of images, allocator.

A choice has to be faster by ``MARGIN`` than the one that stands before it, and all are measured in turn, twice, so that
noise changes little: fewer threads stand before more, the backend's dtype before others, torch's choices before ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from devicekit.bench.allocation import Figures, Question, ask_child
from devicekit.bench.reasons import in_one_line
from devicekit.bench.sizes import Size, tuning_size
from devicekit.bench.stage import Run, TorchStage
from devicekit.bench.timing import timed
from devicekit.bench.transformer import HEAD
from devicekit.container import usable_cpus
from devicekit.errors import DeviceKitError
from devicekit.formats import NATIVE
from devicekit.memory import is_out_of_memory
from devicekit.tuning import THREAD_PINS
from devicekit.tuning.value import DTYPES, Tuning, fingerprint_of
from devicekit.values import AttentionCase

__all__ = ["ALIKE", "MARGIN", "QUESTIONS", "Trial", "Tuner", "best", "thread_counts"]

MARGIN = 0.05
ROUNDS = 2
ALIKE = 0.999
"""The cosine between a dtype's answers and float32's has to be above."""
LESS_MEMORY = 0.9
"""An allocator that holds less than this part and is not slower is better too."""

QUESTIONS = ("threads", "dtype", "attention", "convolution", "allocator")
AUTOMATIC, CONTIGUOUS, CHANNELS_LAST, AS_IT_IS = "automatic", "contiguous", "channels_last", "as it is"

Clock = Callable[[str, str, Run], float]
"""Question, choice and work, to seconds of one run."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice, and what it took or why it is out."""

    choice: str
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Option:
    """One choice before it is tried."""

    choice: str
    prepare: Callable[[], Run]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes the context in which it is prepared and run."""
    problem: str = ""
    """Why it is out already."""
    note: str = ""


def best(trials: Iterable[Trial], margin: float = MARGIN) -> str | None:
    """The first choice that is about as fast as the fastest; None: nothing ran."""
    ran = {trial.choice: trial.seconds for trial in trials if trial.seconds is not None}
    limit = min(ran.values(), default=0.0) * (1 + margin)
    return next((choice for choice, seconds in ran.items() if seconds <= limit), None)


def thread_counts(cpus: int, own: int) -> list[int]:
    """The numbers of threads worth trying: powers of two, all that the container gives, and torch's own."""
    powers = {1 << power for power in range(cpus.bit_length()) if 1 << power <= cpus}
    return sorted(powers | {cpus} | ({own} if 1 <= own <= cpus else set()))


class Tuner:
    """Asks a device all questions, one after the other; each is measured with the answers before it.

    Args:
        stage: the device.
        label: how one asks for it.
        duration: seconds for one choice.
        size: of the work; by default what suits the device.
        clock: measures a piece of work.
        child: measures an allocator's settings.
        watch: is told of each choice that is measured.
    """

    def __init__(
        self,
        stage: TorchStage,
        label: str,
        *,
        duration: float = 2.0,
        size: Size | None = None,
        clock: Clock | None = None,
        child: Callable[[Question, Mapping[str, str]], Figures] | None = None,
        watch: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.stage = stage
        self.label = label
        self.duration = duration
        self.size = size or tuning_size(stage)
        self.trials: dict[str, list[Trial]] = {}
        """What was measured: question, to choices."""
        self._clock = clock or self._timed
        self._child = child or functools.partial(ask_child, stage.backend.host)
        self._watch = watch
        self._host = stage.backend.host
        self._torch = stage.torch

    def tune(self) -> Tuning:
        """All answers. The number of torch's threads is afterwards what it was.

        Raises:
            DeviceKitError: the device cannot even run a small model in float32.
        """
        own = int(self._torch.get_num_threads())
        with self._threads_set(own):
            with self.stage.backend.keeping_free(0.0, self.stage.device, self.stage.index), self.stage.quiet():
                threads = self._threads(own)
                self._torch.set_num_threads(threads or own)
                dtype = self._dtype()
                attention = self._attention(dtype)
                channels_last = self._channels_last(dtype)
            allocator = self._allocator(dtype, threads)
        return Tuning(
            fingerprint=fingerprint_of(self.stage.backend, self.stage.index),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            dtype=dtype,
            threads=threads,
            own_threads=None if threads is None else own,
            attention=attention,
            channels_last=channels_last,
            allocator=allocator,
            seconds={
                question: {trial.choice: trial.seconds for trial in trials if trial.seconds}
                for question, trials in self.trials.items()
            },
        )

    # -- the questions -------------------------------------------------------------------------
    def _threads(self, own: int) -> int | None:
        """Not asked where a variable decides, or where the work is not the processor's."""
        pinned = [name for name in THREAD_PINS if name in self._host.env]
        if self.stage.backend.accelerator or pinned:
            note = f"{pinned[0]} is set, and decides" if pinned else "the work is not the processor's"
            self.trials["threads"] = [Trial(str(own), None, note)]
            return None
        with _told_as_ours(self.label):
            run = self.stage.model("float32", self.size.batch, self.size.seq, self.size.shape)
        counts = thread_counts(usable_cpus(self._host.cgroup()), own)
        chosen = self._ask(
            "threads",
            [_Option(str(count), lambda: run, functools.partial(self._threads_set, count)) for count in counts],
        )
        return None if chosen is None else int(chosen)

    @contextmanager
    def _threads_set(self, count: int) -> Iterator[None]:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(count)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _dtype(self) -> str:
        """float32 is what the others are compared with."""
        native = (name for name, word in self.stage.claims().items() if word == NATIVE and name in DTYPES)
        names = dict.fromkeys((self.stage.preferred, *native, "float32"))
        with _told_as_ours(self.label):
            exact = self.size.transformer(self.stage, "float32")
            tokens = self.stage.tokens(self.size.batch, self.size.seq, self.size.shape.vocabulary)
            expected = exact(tokens)

        def prepare(name: str) -> Run:
            made = exact.cast(getattr(self._torch, name))
            self._check_alike(made(tokens), expected)
            return lambda: made(tokens)

        return self._ask("dtype", [_Option(name, functools.partial(prepare, name)) for name in names]) or "float32"

    def _check_alike(self, got: Any, expected: Any) -> None:
        first, second = (answer.flatten().cpu().double() for answer in (got, expected))
        cosine = float(self._torch.nn.functional.cosine_similarity(first, second, dim=0))
        if not cosine > ALIKE:  # so that NaN is out, too
            raise DeviceKitError(
                "it computes something else.", why=f"a cosine of {cosine:.6f} to float32's answers, not above {ALIKE}"
            )

    def _attention(self, dtype: str) -> str | None:
        """Torch's own choice first: by the backend's account it is the first kernel that takes the case."""
        backend, size = self.stage.backend, self.size
        prepare = functools.partial(self.stage.attention, dtype, size.batch, 2 * size.seq, size.shape.hidden)
        kernels = backend.attention_kernels(AttentionCase(getattr(self._torch, dtype), HEAD), self.stage.index)
        own = next((name for name, problem in kernels.items() if not problem), "none")
        chosen = self._ask(
            "attention",
            [
                _Option(AUTOMATIC, prepare, note=f"which is {own}"),
                *(
                    _Option(name, prepare, functools.partial(backend.select_attention, (name,)), problem)
                    for name, problem in kernels.items()
                    if name != own
                ),
            ],
        )
        return None if chosen == AUTOMATIC else chosen

    def _channels_last(self, dtype: str) -> bool | None:
        prepare = functools.partial(self.stage.convolution, dtype, self.size.batch)
        chosen = self._ask(
            "convolution",
            [
                _Option(CONTIGUOUS, prepare),
                _Option(CHANNELS_LAST, functools.partial(prepare, channels_last=True)),
            ],
        )
        return None if chosen is None else chosen == CHANNELS_LAST

    def _allocator(self, dtype: str, threads: int | None) -> Mapping[str, str]:
        """Faster, or as fast and with less memory. Not asked where a variable is set already."""
        backend = self.stage.backend
        candidates = backend.allocator_settings()
        names = [*backend.expandable_segments().variables, *(name for settings in candidates for name in settings)]
        already = [name for name in names if name in self._host.env]
        if not candidates or already:
            note = f"{already[0]} is set, and decides" if already else "no settings of its allocator are known"
            self.trials["allocator"] = [Trial(AS_IT_IS, None, note)]
            return {}
        question = Question(self.label, dtype, threads, self.duration)
        settings = {" ".join(f"{k}={v}" for k, v in s.items()) or AS_IT_IS: s for s in ({}, *candidates)}
        figures, problems = self._ask_children(question, settings)
        self.trials["allocator"] = [
            Trial(choice, figures[choice].seconds, _held(figures[choice]))
            if choice in figures
            else Trial(choice, None, problems[choice])
            for choice in settings
        ]
        chosen = AS_IT_IS
        for choice, found in figures.items():
            if AS_IT_IS in figures and _is_better(found, figures[chosen]):
                chosen = choice
        return settings[chosen]

    def _ask_children(
        self, question: Question, settings: Mapping[str, Mapping[str, str]]
    ) -> tuple[dict[str, Figures], dict[str, str]]:
        """Choice, to its best figures or to why there are none."""
        figures: dict[str, Figures] = {}
        problems: dict[str, str] = {}
        for choice in [*settings] * ROUNDS:
            if choice in problems:
                continue
            self._watch(f"allocator: {choice}")
            try:
                found = self._child(question, settings[choice])
            except DeviceKitError as error:
                problems[choice] = error.why or error.what
                figures.pop(choice, None)
            else:
                figures[choice] = min(found, figures.get(choice, found), key=lambda each: each.seconds)
        return figures, problems

    # -- one question --------------------------------------------------------------------------
    def _ask(self, question: str, options: Sequence[_Option]) -> str | None:
        """The best choice; what cannot run is out, with the reason."""
        runs: dict[str, Run] = {}
        seconds: dict[str, float] = {}
        problems = {option.choice: option.problem for option in options if option.problem}
        for option in [*options] * ROUNDS:
            choice = option.choice
            if choice in problems:
                continue
            self._watch(f"{question}: {choice}")
            try:
                with option.around():
                    if choice not in runs:
                        runs[choice] = option.prepare()
                    took = self._clock(question, choice, runs[choice])
            except (RuntimeError, TypeError, DeviceKitError) as exc:
                problems[choice] = "out of memory" if is_out_of_memory(exc) else in_one_line(exc)
                seconds.pop(choice, None)
            else:
                seconds[choice] = min(took, seconds.get(choice, took))
        found = [Trial(o.choice, seconds.get(o.choice), problems.get(o.choice) or o.note) for o in options]
        self.trials[question] = found
        return best(found)

    def _timed(self, question: str, choice: str, run: Run) -> float:
        """The fastest sample: what disturbs only adds."""
        return min(timed(run, self.stage.measure, samples=7, duration=self.duration / ROUNDS).samples)


def _is_better(new: Figures, old: Figures) -> bool:
    if new.seconds < old.seconds * (1 - MARGIN):
        return True
    if new.reserved is None or old.reserved is None:
        return False
    return new.reserved < old.reserved * LESS_MEMORY and new.seconds <= old.seconds * (1 + MARGIN)


def _held(figures: Figures) -> str:
    return "" if figures.reserved is None else f"holds {figures.reserved / 2**20:.0f} MiB"


@contextmanager
def _told_as_ours(label: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError) as exc:
        raise DeviceKitError(
            f"{label} cannot be tuned.", why=in_one_line(exc), try_=f"devicekit doctor --device {label} --verify"
        ) from exc
