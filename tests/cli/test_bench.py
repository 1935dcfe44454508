"""bench: honest figures, a reason for each that is missing, and nothing measured that could not be told."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from devicekit import host as hosts
from devicekit.bench import cases, plot
from devicekit.bench.cases import KINDS, Case, Settings
from devicekit.bench.results import SCHEMA
from devicekit.bench.rows import FAILED, LEFT_OUT, MEASURED, OUT_OF_MEMORY, Row, measured
from devicekit.bench.stage import TorchStage, stage_for
from devicekit.bench.timing import LEAST, MOST, Timing, timed
from devicekit.bench.transformer import Shape, Transformer
from devicekit.resolve import resolver
from devicekit.testing import FakeHost, simulated_machine
from devicekit.values import MemoryStats
from tests.cli.calling import run, run_process

TINY = ("--batch-sizes", "1", "--seq-lengths", "4", "--hidden-sizes", "64", "--iterations", "2", "--duration", "0.05")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on busy cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine() -> Iterator[FakeHost]:
    """A processor without native 16-bit formats, with a folder of its own."""
    with simulated_machine("cpu") as host:
        yield host


def stage() -> TorchStage:
    decision = resolver().decide("cpu")
    made = stage_for(decision.backend, decision.device, 0)
    assert isinstance(made, TorchStage)
    return made


# -- timing ------------------------------------------------------------------------------------------
class Clock:
    """Measures what the work says that it takes, instead of the time."""

    def __init__(self, *seconds: float, peak: int | None = None) -> None:
        self.seconds = list(seconds)
        self.now = 0.0
        self.peak = peak
        self.blocks: list[int] = []
        self._runs = 0

    def work(self) -> None:
        """One run; the last duration is that of all later ones."""
        self.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self._runs += 1

    @contextlib.contextmanager
    def measure(self) -> Iterator[SimpleNamespace]:
        told, start, self._runs = SimpleNamespace(seconds=None, peak_memory=self.peak), self.now, 0
        yield told
        told.seconds = self.now - start
        self.blocks.append(self._runs)


def test_the_first_run_does_not_count() -> None:
    """What is set up once is in no sample, and the median is of the rest."""
    clock = Clock(9.0, 1.0)
    timing = timed(clock.work, clock.measure, samples=3)
    assert timing.samples == pytest.approx((1.0, 1.0, 1.0))
    assert timing.seconds == pytest.approx(1.0)
    assert (timing.repeats, timing.cold) == (1, False)


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 0.019])
def test_short_work_is_repeated(seconds: float) -> None:
    """Every sample takes long enough for a clock, and is given for one run."""
    clock = Clock(seconds)
    timing = timed(clock.work, clock.measure, samples=4)
    assert timing.repeats * seconds >= LEAST
    assert timing.samples == pytest.approx((seconds,) * 4)
    assert timing.repeats * seconds < 20 * LEAST


def test_the_median_is_not_moved_by_one_disturbance() -> None:
    """One sample that took ten times as long changes nothing."""
    clock = Clock(1.0, 1.0, 10.0, 1.0)
    timing = timed(clock.work, clock.measure, samples=5)
    assert timing.seconds == pytest.approx(1.0)
    assert max(timing.samples) == pytest.approx(10.0)


@pytest.mark.parametrize("duration", [2.0, 3.5, 10.0])
def test_nothing_begins_that_would_end_too_late(duration: float) -> None:
    """The runs together stay within the time, the first one included."""
    clock = Clock(1.0)
    timing = timed(clock.work, clock.measure, samples=100, duration=duration)
    assert clock.now <= duration
    assert len(timing.samples) == math.floor(duration) - 1


def test_work_that_takes_all_its_time_is_run_once() -> None:
    """One run is better than no answer, and it is called cold."""
    clock = Clock(7.0)
    timing = timed(clock.work, clock.measure, samples=10, duration=5.0)
    assert (timing.samples, timing.cold) == (pytest.approx((7.0,)), True)
    assert clock.blocks == [1]


@pytest.mark.parametrize("peak", [5, None])
def test_the_highest_peak_counts(peak: int | None) -> None:
    """And where the runtime tells none, none is told."""
    clock = Clock(1.0, peak=peak)
    assert timed(clock.work, clock.measure, samples=2).peak_memory == peak


def test_a_clock_that_stands_still_does_not_keep_us() -> None:
    """Work that takes no time at all is not repeated for ever."""
    clock = Clock(0.0)
    assert timed(clock.work, clock.measure, samples=1).repeats == MOST


# -- cases -------------------------------------------------------------------------------------------
def all_cases() -> list[Case]:
    return [
        cases.copy("float32", 1 << 26),
        cases.matmul("float32", 4096),
        cases.attention("float32", 8, 512, 1024),
        cases.convolution("float32", 32),
        cases.model("float32", 32, 128, Shape()),
    ]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.kind)
def test_smaller_needs_less_until_there_is_none(case: Case) -> None:
    """Each step takes less memory, is of the same kind, and the steps come to an end."""
    steps = 0
    smaller = case.smaller()
    while smaller is not None:
        assert smaller.nbytes < case.nbytes
        assert (smaller.kind, smaller.dtype) == (case.kind, case.dtype)
        case, smaller, steps = smaller, smaller.smaller(), steps + 1
    assert 1 <= steps < 40


def test_the_model_has_about_350_million_parameters() -> None:
    """The default is GPT-2's medium size, and the count is that of its tensors."""
    assert 340e6 < Shape().parameters < 360e6
    shape, count = Shape(hidden=64, layers=3, vocabulary=11, positions=7), 0

    def normal(sides: tuple[int, ...], deviation: float) -> torch.Tensor:
        nonlocal count
        count += math.prod(sides)
        return torch.randn(sides) * deviation

    made = Transformer(torch, shape, normal)
    assert count == shape.parameters
    assert made(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 11)


def test_the_model_looks_back_only() -> None:
    """Other tokens in front change the last token's logits, and a batch changes no row of it."""
    torch.manual_seed(0)
    made = Transformer(torch, Shape(64, 2, 11, 7), lambda sides, deviation: torch.randn(sides) * deviation)
    first, second = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 2, 3]])
    together = made(torch.cat([first, second]))
    assert torch.allclose(together[0], made(first)[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_flops_are_counted_as_torch_counts_them() -> None:
    """Against the counter that comes with torch, which sees every product."""
    counting = pytest.importorskip("torch.utils.flop_counter")
    shape = Shape(64, 2, 11, 16)
    made = Transformer(torch, shape, lambda sides, deviation: torch.randn(sides) * deviation)
    with counting.FlopCounterMode(display=False) as counter:
        made(torch.zeros(3, 16, dtype=torch.int64))
    found = counter.get_total_flops()
    attention = 2 * 4 * 3 * 16 * 16 * 64  # the processor's fused kernel is not in torch's table
    assert shape.flops(3, 16) in (found, found + attention)


# -- rows --------------------------------------------------------------------------------------------
class Paper:
    """A stage on which everything takes a second and nothing takes memory; what it is asked for is written down."""

    device, index, preferred = "paper", 0, "float32"

    def __init__(self, available: int | None = None, failure: BaseException | None = None) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.cleaned = 0
        self.available = available
        self.failure = failure
        self.backend = self

    accelerator = True

    def memory_stats(self, index: int) -> MemoryStats:
        return MemoryStats(available=self.available)

    def empty_cache(self, index: int) -> None:
        self.cleaned += 1

    def keeping_free(self, *_: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    measure = quiet

    def claims(self) -> dict[str, str]:
        return {"float32": "native", "bfloat16": "emulated", "float16": "native", "float64": "no", "int8": "native"}

    def _prepare(self, *sizes: Any) -> Callable[[], None]:
        if self.failure is not None:
            raise self.failure
        self.asked.append(sizes)
        return lambda: None

    copy = matmul = attention = convolution = model = _prepare


def a_second(*_: Any, **__: Any) -> Timing:
    return Timing((0.5, 1.0, 1.5), 4, 1 << 20)


def test_rates_are_amounts_by_seconds() -> None:
    """Bytes read and written, operations and tokens, each by the median."""
    by_kind = {case.kind: measured("x", Paper(), case, Settings(), a_second) for case in all_cases()}
    assert by_kind["bandwidth"].rates == {"gigabytes_per_second": 2 * 4 * 2**26 / 1e9}
    assert by_kind["matmul"].rates == {"teraflops_per_second": 2 * 4096**3 / 1e12}
    assert by_kind["model"].rates["tokens_per_second"] == 32 * 128
    row = by_kind["model"]
    assert (row.status, row.seconds, row.fastest, row.slowest) == (MEASURED, 1.0, 0.5, 1.5)
    assert (row.samples, row.repeats, row.peak_memory) == (3, 4, 1 << 20)


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.kind)
def test_what_nobody_asked_for_shrinks_to_the_memory(case: Case) -> None:
    """It takes half of what is free at most, and the row says what was made smaller and why."""
    paper = Paper(available=case.nbytes)
    row = measured("x", paper, case, Settings(), a_second)
    assert row.words != case.words
    assert row.notes[0].startswith(f"made smaller: {case.words} needs about ")
    assert "are free" in row.notes[0]
    assert len(paper.asked) == 1


@pytest.mark.parametrize(
    ("paper", "settings"),
    [(Paper(1 << 20), Settings(batch_sizes=(32,))), (Paper(None), Settings()), (Paper(1 << 50), Settings())],
    ids=["asked for", "unknown", "enough"],
)
def test_other_sizes_stay(paper: Paper, settings: Settings) -> None:
    """An explicit size wins, unknown memory is not small, and where there is room nothing shrinks."""
    case = cases.attention("float32", 32, 512, 1024)
    row = measured("x", paper, case, settings, a_second)
    assert (row.words, row.notes) == (case.words, ())


def test_a_size_that_was_asked_for_keeps_no_other_row_large() -> None:
    """Batch sizes are not about products, so those shrink all the same."""
    row = measured("x", Paper(1 << 20), cases.matmul("float32", 4096), Settings(batch_sizes=(32,)), a_second)
    assert row.sizes["side"] < 4096


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"), OUT_OF_MEMORY),
        (MemoryError("no room"), OUT_OF_MEMORY),
        (RuntimeError("\"addmm\" not implemented for\n'Half'"), FAILED),
        (TypeError("Cannot convert a MPS Tensor to float64"), FAILED),
        (RuntimeError(), FAILED),
    ],
)
def test_what_fails_is_a_row_with_the_reason(failure: Exception, status: str) -> None:
    """One line of what was raised, no figure, and the memory is cleaned up behind it."""
    paper = Paper(failure=failure)
    row = measured("x", paper, cases.matmul("float32", 8), Settings(), a_second)
    assert (row.status, row.seconds, row.rates) == (status, None, {})
    assert row.reason == (str(failure).splitlines() or [type(failure).__name__])[0]
    assert paper.cleaned == 1


def test_an_interruption_is_no_row() -> None:
    """Whoever presses ctrl-c wants the end."""
    with pytest.raises(KeyboardInterrupt):
        measured("x", Paper(failure=KeyboardInterrupt()), cases.matmul("float32", 8), Settings(), a_second)


def test_a_cold_figure_says_so() -> None:
    """A row that had time for one run only is measured, with a note."""
    row = measured(
        "x", Paper(), cases.matmul("float32", 8), Settings(duration=3), lambda *_, **__: Timing((4.0,), 1, None, True)
    )
    assert row.status == MEASURED
    assert "one run took all of its 3 s" in row.notes[0]


def _planned(settings: Settings) -> list[tuple[str, str, str]]:
    return [(case.kind, case.dtype, why) for case, why in cases.cases(Paper(), settings)]  # type: ignore[arg-type]


def test_products_are_measured_in_what_the_device_computes() -> None:
    """Native formats are measured, emulated ones are left out with a way to measure them, others are not there."""
    found = _planned(Settings(only=("matmul",)))
    assert [dtype for _, dtype, why in found if not why] == ["float32", "float16", "int8"]
    [(_, dtype, why)] = [each for each in found if each[2]]
    assert dtype == "bfloat16"
    assert "--dtype bfloat16" in why


def test_dtypes_that_are_asked_for_are_measured() -> None:
    """Native or not; those of products only are left out elsewhere, with the reason."""
    found = _planned(Settings(only=("matmul", "model"), dtypes=("bfloat16", "int8")))
    assert [(kind, dtype) for kind, dtype, why in found if not why] == [
        ("matmul", "bfloat16"), ("matmul", "int8"), ("model", "bfloat16"),
    ]  # fmt: skip
    assert found[-1] == ("model", "int8", "in int8 there are only products")


def test_all_sizes_are_combined() -> None:
    """Every batch with every length and every width."""
    settings = Settings(only=("attention",), batch_sizes=(1, 2), seq_lengths=(4, 8), hidden_sizes=(64, 128))
    assert len(_planned(settings)) == 8


@pytest.mark.parametrize("dtype", ["tf32", "float8", "int8", "float64"])
def test_every_format_of_products_is_run(machine: FakeHost, dtype: str) -> None:
    """The kernel runs on the processor, or the row has torch's reason."""
    row = measured("cpu", stage(), cases.matmul(dtype, 64), Settings(iterations=1, duration=0.01))
    assert row.status == MEASURED or row.reason


# -- the command -------------------------------------------------------------------------------------
def bench(*words: str) -> dict[str, Any]:
    code, out, err = run("bench", "--json", *words)
    assert (code, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    return told


def test_json_has_a_stable_schema(machine: FakeHost) -> None:
    """The keys of the document, of a device and of a row are these; who changes them changes the version."""
    told = bench("--only", "attention", *TINY)
    assert told["schema"] == SCHEMA == {"name": "devicekit.bench", "version": 1}
    assert list(told) == ["schema", "created", "machine", "versions", "devices", "settings", "rows"]
    assert list(told["devices"][0]) == [
        "label",
        "backend",
        "name",
        "architecture",
        "memory",
        "dtype",
        "threads",
        "tuning",
    ]
    assert list(told["rows"][0]) == [
        "device", "kind", "dtype", "sizes", "words", "status", "reason", "notes", "seconds", "fastest", "slowest",
        "samples", "repeats", "peak_memory", "rates",
    ]  # fmt: skip
    assert list(told["settings"]) == [
        "only", "batch_sizes", "seq_lengths", "hidden_sizes", "dtypes", "iterations", "duration",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_kind_is_measured_on_the_processor(machine: FakeHost) -> None:
    """With figures above 0, and the peak of the resident set."""
    told = bench("--device", "cpu", *TINY)
    rows = {(row["kind"], row["dtype"]): row for row in told["rows"]}
    assert {kind for kind, _ in rows} == set(KINDS)
    for (kind, _), row in rows.items():
        assert row["status"] in (MEASURED, LEFT_OUT)
        if row["status"] == MEASURED:
            assert row["seconds"] > 0
            assert all(rate > 0 for rate in row["rates"].values())
            assert row["peak_memory"] > 1 << 20
            assert row["device"] == "cpu"
            assert kind in KINDS
    assert rows["matmul", "float16"]["status"] == LEFT_OUT


def test_the_text_says_what_the_json_says(machine: FakeHost) -> None:
    """Device, sizes, rate with its unit, and under the table the reasons."""
    code, out, err = run("bench", "--only", "attention,matmul", "--dtype", "float32", "int8", *TINY)
    assert (code, err) == (0, "")
    assert "cpu: CPU, AVX512, models run in float32" in out
    assert "batch 1, seq 4, hidden 64" in out
    assert "TFLOP/s" in out
    assert "left out" in out
    assert "cpu, attention, int8: in int8 there are only products" in out


@pytest.mark.slow
def test_numpy_is_measured_where_there_is_no_torch() -> None:
    """Bandwidth and products, in NumPy's own formats; the rest is a row with the reason."""
    with simulated_machine("no-torch"):
        told = bench("--iterations", "1", "--duration", "0.01")
    assert [device["backend"] for device in told["devices"]] == ["numpy"]
    status = {(row["kind"], row["dtype"]): row["status"] for row in told["rows"]}
    assert status["bandwidth", "float32"] == status["matmul", "float64"] == MEASURED
    assert status["matmul", "float16"] == LEFT_OUT
    assert {row["reason"] for row in told["rows"] if row["kind"] == "model"} == {"the numpy backend has no transformer"}


def test_numpy_has_no_bfloat16(machine: FakeHost) -> None:
    """Asked for, it is a row with the reason; nothing was measured, so it ends with 1."""
    code, out, _ = run("bench", "--device", "numpy", "--only", "matmul", "--dtype", "bfloat16", "--json")
    [row] = json.loads(out)["rows"]
    assert (code, row["status"]) == (1, FAILED)
    assert "bfloat16" in row["reason"]


def test_running_out_of_memory_is_a_row() -> None:
    """A simulated GPU that fails at a few MiB gives the reason, and the next row is measured."""
    with simulated_machine(cuda=1, faults={"oom_at": "8MiB"}):
        code, out, err = run(
            "bench", "--device", "cuda", "--only", "attention", "--batch-sizes", "65536", "1", "--seq-lengths", "4",
            "--hidden-sizes", "64", "--iterations", "1", "--json",
        )  # fmt: skip
    assert (code, err) == (0, "")
    first, second = json.loads(out)["rows"]
    assert first["status"] == OUT_OF_MEMORY
    assert "out of memory" in first["reason"]
    assert second["status"] == MEASURED


def test_every_usable_device_is_measured() -> None:
    """Both GPUs and the processor, numpy not: it is the same processor."""
    with simulated_machine("two-gpus"):
        told = bench("--only", "attention", "--dtype", "float32", *TINY)
    assert [device["label"] for device in told["devices"]] == ["cuda:0", "cuda:1", "cpu"]
    assert [row["status"] for row in told["rows"]] == [MEASURED] * 3


def test_a_device_that_is_broken_does_not_end_it() -> None:
    """Its runtime fails when it is asked for its properties: rows with the reason, and the processor is measured."""

    class Broken(FakeHost):
        def adopt(self, backend: Any) -> Any:
            made = super().adopt(backend)
            if made.name == "cuda":
                made.describe = self._lost
            return made

        @staticmethod
        def _lost(index: int = 0) -> Any:
            raise RuntimeError("the GPU fell off the bus")

    host = Broken("cuda-laptop")
    try:
        with hosts.use(host):
            told = bench("--only", "attention", "--dtype", "float32", *TINY)
    finally:
        host.close()
    first, second = told["rows"]
    assert (first["status"], first["reason"]) == (FAILED, "RuntimeError: the GPU fell off the bus")
    assert second["status"] == MEASURED
    assert told["devices"][0]["dtype"] is None


def test_a_device_that_cannot_be_had_is_an_error() -> None:
    """Figures of another device would mislead, so there is no fallback."""
    with simulated_machine("cpu"):
        code, out, err = run("bench", "--device", "cuda")
    assert (code, out) == (2, "")
    assert "'cuda' was asked for, but it cannot be used here" in err


def test_where_nothing_computes_nothing_is_measured() -> None:
    """Without torch and NumPy it ends with 2 and a way out."""
    with simulated_machine("no-torch", modules=()):
        code, out, err = run("bench")
    assert (code, out) == (2, "")
    assert "neither torch nor NumPy can be used" in err


# -- wrong words -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--only", "speed"), "--only 'speed' means nothing"),
        (("--only", ","), "--only names nothing"),
        (("--dtype", "int3"), "--dtype 'int3' means nothing"),
        (("--batch-sizes", "0"), "--batch-sizes '0' is no size"),
        (("--batch-sizes", "1", "x"), "--batch-sizes 'x' is no size"),
        (("--batch-sizes", "-1"), "--batch-sizes"),
        (("--seq-lengths", "99999999999"), "--seq-lengths '99999999999' is no size"),
        (("--seq-lengths", ","), "--seq-lengths names nothing"),
        (("--hidden-sizes", "100"), "--hidden-sizes 100 cannot be measured"),
        (("--hidden-sizes", "²"), "is no size"),
        (("--iterations", "0"), "--iterations 0 measures nothing"),
        (("--duration", "0"), "--duration 0 is no time"),
        (("--duration", "nan"), "--duration nan is no time"),
        (("--plot", "out.txt"), "--plot out.txt cannot be drawn"),
    ],
)
def test_wrong_words_are_refused(machine: FakeHost, words: tuple[str, ...], what: str) -> None:
    """Before anything is measured, with 2 and a way out."""
    code, out, err = run("bench", *words)
    assert (code, out) == (2, "")
    assert what in err
    assert "  try: " in err


# -- files -------------------------------------------------------------------------------------------
def test_results_are_written_whole(machine: FakeHost, tmp_path: Path) -> None:
    """The file holds what `--json` prints, and nothing lies beside it."""
    file = tmp_path / "results.json"
    file.write_text("old")
    told = bench("--only", "attention", "--output", str(file), *TINY)
    assert json.loads(file.read_text()) == told
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["no/such/folder/results.json", ".", "a\0b"])
def test_an_output_that_cannot_be_written_fails_first(machine: FakeHost, tmp_path: Path, name: str) -> None:
    """A default run would take a minute before it failed; this one never makes a stage."""
    code, out, err = run("bench", "--output", f"{tmp_path}/{name}", "--device", "no-device-is-even-asked-for")
    assert (code, out) == (2, "")
    assert err.startswith("devicekit: --output ")
    assert "cannot be written" in err


def test_an_interrupted_run_leaves_the_old_results(machine: FakeHost, tmp_path: Path) -> None:
    """And no draft."""
    file = tmp_path / "results.json"
    file.write_text("old")
    assert run("bench", "--output", str(file), "--device", "cuda").code == 2
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_without_matplotlib_a_plot_is_refused_first(tmp_path: Path) -> None:
    """With the extra that brings it."""

    class Without(FakeHost):
        def installed(self, name: str) -> bool:
            return name != "matplotlib" and super().installed(name)

    host = Without("cpu")
    try:
        with hosts.use(host):
            code, out, err = run("bench", "--plot", str(tmp_path / "out.png"), "--device", "none-is-asked-for")
    finally:
        host.close()
    assert (code, out) == (2, "")
    assert 'pip install "devicekit[plot]"' in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", plot.ENDINGS)
def test_a_plot_is_drawn(machine: FakeHost, tmp_path: Path, ending: str) -> None:
    """In the format of its ending, also of rows that were not measured."""
    pytest.importorskip("matplotlib")
    file = tmp_path / f"out{ending}"
    bench("--only", "attention", "--dtype", "float32", "int8", "--plot", str(file), *TINY)
    assert file.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")
    assert list(tmp_path.iterdir()) == [file]
    plot.draw(machine, [], tmp_path / f"empty{ending}")


def test_what_is_drawn_is_what_was_measured() -> None:
    """One panel for each kind with figures, one bar for each row of it; the rest is left out."""
    drawn: list[Any] = []

    class Axis:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **_: drawn.append((name, *args))

    class Axes(list[Any]):
        def __getitem__(self, key: Any) -> Any:
            return self if isinstance(key, tuple) else super().__getitem__(key)

    class Figure:
        def __init__(self, **_: Any) -> None:
            drawn.append(("figure",))

        def subplots(self, count: int, **_: Any) -> Axes:
            return Axes([Axis()] * count)

        def savefig(self, path: Path) -> None:
            drawn.append(("saved", path))

    class WithFigure(FakeHost):
        def import_module(self, name: str) -> Any:
            return SimpleNamespace(Figure=Figure) if name == "matplotlib.figure" else super().import_module(name)

    rows = [measured("x", Paper(), case, Settings(), a_second) for case in all_cases()[:3]]
    rows.append(Row("x", "model", "float32", {}, "", FAILED, "why"))
    host = WithFigure("no-torch")
    try:
        plot.draw(host, rows, Path("out.png"))
    finally:
        host.close()
    bars = [args[1] for name, *args in drawn if name == "barh"]
    assert bars == [[row.rates[plot.UNITS[row.kind][0]]] for row in rows[:3]]
    assert [args[0] for name, *args in drawn if name == "set_title"] == ["bandwidth", "matmul", "attention"]
    assert drawn[-1] == ("saved", Path("out.png"))


# -- talk --------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Without a person who watches stderr stays empty, and stdout is one document."""
    code, out, err = run_process(
        "bench", "--device", "cpu", "--only", "attention", "--json", *TINY, env={"XDG_CONFIG_HOME": str(tmp_path)}
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["rows"][0]["status"] == MEASURED


def test_a_bar_is_drawn_where_a_person_watches(machine: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with the device that is measured; what has begun is not yet done."""
    import sys

    from devicekit.cli import bench as command

    sys.stderr.isatty = lambda: True  # type: ignore[method-assign]  # pytest's own stream, made anew for each test
    with command.progress(2) as tell:
        tell("measuring cuda:0")
        tell("measuring cpu")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err
