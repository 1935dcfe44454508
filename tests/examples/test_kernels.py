"""The kernel graph: refused while it is built, or right on every backend that is here; and so is its plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import devicekit as dk
from devicekit.testing import simulated_machine

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

TINY = "2x16x64"
PLAIN = {"TORCH_COMPILE_DISABLE": "1"}


@pytest.fixture
def kernels(examples: Path) -> Any:
    """The package's graph module, with all operations."""
    from kernels import graph

    return graph


@pytest.fixture
def plain() -> Iterator[None]:
    """Nothing is compiled, which would take seconds for each graph."""
    with torch._dynamo.config.patch(disable=True):
        yield


def ran(
    user: Mapping[str, str], *words: str, code: str = "", warnings: str = "error", **env: str
) -> subprocess.CompletedProcess[str]:
    """A process as a user starts it, with warnings as errors."""
    command = [sys.executable, "-W", warnings, *(["-c", code] if code else ["-m", "kernels.run"]), *words]
    full = {**user, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(command, env=full, capture_output=True, text=True, timeout=300, check=False)


# -- as a user runs it ---------------------------------------------------------------------------
def test_every_backend_has_a_row(user: dict[str, str]) -> None:
    """Without a name, those that can be used here ran, and the others say why not, in devicekit's order."""
    done = ran(user, "--size", TINY, "--repeat", "2", "--json", **PLAIN)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    rows = {row["backend"]: row for row in told["rows"]}
    assert list(rows) == [verdict.backend for verdict in dk.explain().verdicts]
    for name, row in rows.items():
        assert row["reason"]
        assert row["status"] == ("ran" if name in dk.available_backends() else "not usable")
    assert told["graph"] == {"operations": 26, "steps": 24, "fused": ["add+silu+multiply"]}
    assert rows["cpu"]["reason"] == "it is switched off (TORCH_COMPILE_DISABLE)"
    assert rows["numpy"]["reason"] == "numpy has no compiler"
    assert rows["numpy"]["difference"] < 1e-5
    for row in (rows["cpu"], rows["numpy"]):
        assert 0 < row["seconds"] < 60
        assert row["peak_memory"] > 2**20
        assert row["plan"]["workers"]["value"] >= 1


def test_it_is_compiled_and_right(user: dict[str, str]) -> None:
    """The processor's compiler takes the whole graph, and what it makes is within float32's rounding."""
    words = ("--backend", "cpu", "--size", TINY, "--dtype", "float32", "--repeat", "1", "--json")
    done = ran(user, *words, warnings="default")  # torch's compiler warns of itself when it is imported
    assert done.returncode == 0, done.stderr
    assert "runs plainly" not in done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    if row["reason"].startswith("there is no C++ compiler"):
        pytest.skip(row["reason"])
    assert (row["status"], row["compiled"], row["reason"], row["dtype"]) == ("ran", True, "", "float32")
    assert row["difference"] < 1e-5


def test_people_get_a_table(user: dict[str, str]) -> None:
    """Device, dtype, time and the reason against the compiler stand in one line, the plan with its reasons below."""
    done = ran(user, "--backend", "numpy", "--size", TINY, "--no-fuse")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"A block of {TINY}: 26 operations in 26 steps"
    (row,) = [line for line in lines if line.startswith("numpy ")]
    assert row.split()[1:3] == ["cpu", "float32"]
    assert "no: numpy has no compiler" in row
    assert any("CPUs are usable" in line or "_NUM_THREADS says so" in line for line in lines)


def test_it_runs_without_torch(user: dict[str, str]) -> None:
    """On a host without torch NumPy alone computes the graph, and torch is not imported."""
    code = "import sys; sys.modules['torch'] = None; from kernels.run import main; sys.exit(main(sys.argv[1:]))"
    done = ran(user, "--size", TINY, "--json", code=code)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["backend"]: row for row in json.loads(done.stdout)["rows"]}
    assert [name for name, row in rows.items() if row["status"] == "ran"] == ["numpy"]
    assert rows["cpu"]["status"] == "not usable"


def test_it_runs_on_a_device_of_its_own(user: dict[str, str]) -> None:
    """On a simulated accelerator no tensor is left behind on the host, and the plan leaves the work to the device."""
    code = (
        "import sys; from devicekit.testing.simulated_npu import install; install()\n"
        "from kernels.run import main; sys.exit(main(sys.argv[1:]))"
    )
    done = ran(user, "--backend", "gpu", "--size", TINY, "--json", code=code)
    if "cannot be installed: torch " in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["backend"], row["device"], row["status"], row["compiled"]) == ("npu", "npu:0", "ran", False)
    assert "generates no code for npu" in row["reason"]
    assert row["plan"]["workers"]["value"] is None
    assert row["plan"]["schedulers"]["value"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "4x128"), "'4x128' is no size: BATCHxLENGTHxWIDTH, such as 4x128x256"),
        (("--size", "4x128x100"), "the width 100 is no multiple of 64, the size of a head"),
        (("--repeat", "0"), "'0' is no number from 1 on"),
        (("--seed", "-1"), "'-1' is no whole number"),
        (("--dtype", "float8"), "invalid choice: 'float8'"),
        (("--backend", "nunpy", "--size", TINY), "'nunpy' is no device."),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_words_that_make_no_sense_are_told(
    examples: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    """Exit code 2, the reason on stderr, nothing on stdout."""
    from kernels.run import main

    try:
        code = main(list(words))
    except SystemExit as ended:  # how argparse ends
        code = ended.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert said in told.err
    assert "Traceback" not in told.err


def test_a_size_beyond_all_memory_is_told(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What NumPy cannot even hold ends with 2 and one line."""
    from kernels.run import main

    assert main(["--size", f"{2**20}x{2**20}x4096", "--backend", "numpy"]) == 2
    assert "does not fit into this machine's memory" in capsys.readouterr().err


def test_a_backend_that_was_asked_for_and_is_not_usable_ends_with_1(
    examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row says why and what to try; without its name the same machine is fine."""
    from kernels.run import main

    with simulated_machine("no-torch"):
        assert main(["--size", TINY, "--backend", "xpu", "--json"]) == 1
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["status"] == "not usable"
        assert "torch is not installed; try: pip install" in row["reason"]
        assert main(["--size", TINY, "--json"]) == 0


# -- the five verbs of a backend manager -----------------------------------------------------------
def devicekit(user: Mapping[str, str], *words: str) -> str:
    """What the command line says to a user."""
    command = [sys.executable, "-m", "devicekit", *words]
    done = subprocess.run(command, env=dict(user), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_info_says_what_is_here(user: dict[str, str]) -> None:
    """`info`: devices, memory and number formats as data."""
    told = json.loads(devicekit(user, "info", "--json"))
    assert {"cpu", "numpy"} <= {backend["name"] for backend in told["backends"] if backend["usable"]}
    assert told["machine"]["usable_cpus"] >= 1


def test_optimize_is_tune(user: dict[str, str]) -> None:
    """What `tune` has measured is what `tune --show` tells and a program's manager goes by: here nothing, so far."""
    own = {**user, "DEVICEKIT_TUNING": "on"}
    assert json.loads(devicekit(own, "tune", "--device", "cpu", "--show", "--json"))["tuning"] is None
    assert ran(own, code="import devicekit as dk; print(dk.DeviceManager('cpu').tuning)").stdout.strip() == "None"


def test_benchmark_is_bench(user: dict[str, str]) -> None:
    """`bench` measures a product on the backend that is named."""
    words = ("--device", "numpy", "--only", "matmul", "--dtype", "float32", "--duration", "0.01", "--json")
    (row,) = json.loads(devicekit(user, "bench", *words))["rows"]
    assert (row["status"], row["kind"]) == ("measured", "matmul")


def test_set_is_use_and_counts_for_the_next_program(user: dict[str, str]) -> None:
    """`use` keeps a choice in this user's folder: the next program that asks for nothing gets it."""
    devicekit(user, "use", "numpy")
    done = ran(user, code="import devicekit as dk; print(dk.DeviceManager().backend, dk.explain().source)")
    assert done.stdout.strip() == "numpy saved choice"
    assert json.loads(devicekit(user, "use", "--show", "--json"))["file"].startswith(user["XDG_CONFIG_HOME"])


def test_test_is_doctor_with_verify(user: dict[str, str]) -> None:
    """`doctor --verify` runs a kernel on every usable device and compares what it gives."""
    told = devicekit(user, "doctor", "--verify")
    assert "cpu" in told
    assert "native, ran" in told


# -- shapes are checked while the graph is built -----------------------------------------------------
BAD: dict[str, tuple[Callable[[Any], object], str]] = {
    "inner sizes": (lambda g: ph(g, 2, 3) @ ph(g, 4, 5), "matmul: (2, 3) @ (4, 5): the inner sizes 3 and 4 differ"),
    "one axis": (lambda g: ph(g, 3) @ ph(g, 3, 2), "matmul: (3,) @ (3, 2): both need two axes at least"),
    "leading": (lambda g: ph(g, 2, 3, 3) @ ph(g, 4, 3, 3), "matmul: (2, 3, 3) @ (4, 3, 3): 2 and 4 do not go"),
    "add": (lambda g: ph(g, 2, 3) + ph(g, 2), "add: (2, 3) and (2,): 3 and 2 do not go together"),
    "multiply": (lambda g: ph(g, 4) * ph(g, 5), "multiply: (4,) and (5,): 4 and 5 do not go together"),
    "a number": (lambda g: ph(g, 4) + 1, "add: 1 is no value of a graph; wrap data in placeholder()"),
    "norm": (lambda g: g.rms_norm(ph(g, 2, 3), ph(g, 2)), "rms_norm: (2, 3) needs a weight of (3,), not (2,)"),
    "softmax": (lambda g: g.softmax(g.total(ph(g, 2), 0)), "softmax: () has no axis -1"),
    "axis": (lambda g: g.mean(ph(g, 2, 3), 2), "mean: (2, 3) has no axis 2"),
    "reshape": (lambda g: g.reshape(ph(g, 2, 3), (4, 2)), "reshape: the 6 numbers of (2, 3) do not fill (4, 2)"),
    "signs": (lambda g: g.reshape(ph(g, 2, 3), (-2, -3)), "do not fill (-2, -3)"),
    "transpose": (lambda g: g.transpose(ph(g, 2, 3), (0, 0)), "transpose: (0, 0) is no order of the 2 axes"),
    "few axes": (lambda g: g.attention(ph(g, 3), ph(g, 3), ph(g, 3)), "each needs two axes at least"),
    "batches": (lambda g: g.attention(ph(g, 2, 3, 4), ph(g, 3, 4), ph(g, 3, 4)), "the leading axes differ"),
    "heads": (lambda g: g.attention(ph(g, 3, 4), ph(g, 3, 5), ph(g, 3, 4)), "query has heads of 4, key of 5"),
    "keys": (lambda g: g.attention(ph(g, 3, 4), ph(g, 3, 4), ph(g, 5, 4)), "there are 3 keys and 5 values"),
    "causal": (
        lambda g: g.attention(ph(g, 2, 4), ph(g, 3, 4), ph(g, 3, 4), causal=True),
        "causal needs as many queries as keys",
    ),
    "sizes": (lambda g: g.placeholder("x", (2, 0)), "input 'x': sizes are whole numbers from 1 on, not (2, 0)"),
    "no name": (lambda g: g.placeholder("", (2,)), "input: it needs a name"),
    "no output": (lambda g: g.Graph({}), "a graph needs an output"),
    "no value": (lambda g: g.Graph({"y": 3}), "output: 3 is no value of a graph"),
    "twice": (lambda g: g.Graph({"y": ph(g, 2) + ph(g, 2)}), "two inputs are called 'x'"),
}


def ph(graph: Any, *shape: int) -> Any:
    """An input of this shape."""
    return graph.placeholder("x", shape)


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_at_once(kernels: Any, case: str) -> None:
    """The error names the operation, the shapes, and what does not fit."""
    build, said = BAD[case]
    with pytest.raises(kernels.GraphError) as caught:
        build(kernels)
    assert said in str(caught.value)


def test_a_long_chain_is_no_problem(kernels: Any) -> None:
    """Ten thousand operations, ordered and fused, do not run into Python's limit."""
    from kernels.steps import schedule

    value = ph(kernels, 2)
    for _ in range(10_000):
        value = kernels.silu(value)
    made = schedule(kernels.Graph({"y": value}))
    assert [len(step.links) for step in made.steps] == [10_000]


def test_values_come_after_what_they_need(kernels: Any) -> None:
    """In a graph with branches, every argument stands before its reader, and stands once."""
    from kernels.block import Size, block

    values = block(Size.of(TINY)).values
    assert len(set(values)) == len(values)
    for number, value in enumerate(values):
        assert all(values.index(argument) < number for argument in value.arguments)


# -- steps ---------------------------------------------------------------------------------------------
def steps_of(graph: Any, **options: bool) -> list[str]:
    from kernels.steps import schedule

    return [str(step) for step in schedule(graph, **options).steps]


def test_only_what_feeds_one_reader_is_fused(kernels: Any) -> None:
    """A value with two readers, one that is an output, and one of another shape are steps of their own."""
    x, row = kernels.placeholder("x", (4, 3)), kernels.placeholder("row", (3,))
    once = kernels.gelu(kernels.silu(x) * x + row)
    assert steps_of(kernels.Graph({"y": once})) == ["silu+multiply+add+gelu"]
    assert steps_of(kernels.Graph({"y": once}), fuse=False) == ["silu", "multiply", "add", "gelu"]
    shared = kernels.silu(x)
    assert steps_of(kernels.Graph({"y": kernels.gelu(shared) + shared})) == ["silu", "gelu+add"]
    assert steps_of(kernels.Graph({"y": kernels.gelu(shared), "z": shared})) == ["silu", "gelu"]
    assert steps_of(kernels.Graph({"y": kernels.silu(row) + x})) == ["silu", "add"]
    assert steps_of(kernels.Graph({"y": kernels.silu(x) @ kernels.placeholder("w", (3, 2))})) == ["silu", "matmul"]


def test_memory_is_counted_where_it_is_most(kernels: Any) -> None:
    """A chain of products holds its inputs, one product, and the next; fused, there is no array in between."""
    from kernels.steps import schedule

    x = kernels.placeholder("x", (10, 10))
    assert schedule(kernels.Graph({"y": ((x @ x) @ x) @ x})).most_numbers == 300
    graph = kernels.Graph({"y": kernels.silu(kernels.gelu(x))})
    assert schedule(graph).most_numbers == 200
    assert schedule(graph, fuse=False).most_numbers == 300


# -- numbers -------------------------------------------------------------------------------------------
def everything(g: Any) -> Any:
    """A graph in which every operation occurs, chains with every kind of broadcasting among them."""
    x, row, column = g.placeholder("x", (2, 5, 8)), g.placeholder("row", (8,)), g.placeholder("column", (2, 1, 8))
    chain = g.gelu((g.silu(x + row) * x) * column) * row
    square = g.silu(x) + row
    seen = g.attention(chain, x, x, causal=True) + g.attention(x, chain, x)
    normed = g.rms_norm(seen, row)
    scores = g.softmax(normed @ g.transpose(g.reshape(x, (2, 5, 8)), (0, 2, 1)))
    scalar = g.silu(g.gelu(g.total(g.mean(g.total(scores, -1), 1), 0)))
    return g.Graph({"scores": scores, "chain": chain, "square": square * square, "scalar": scalar})


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_every_operation_agrees_with_the_reference(
    kernels: Any, plain: None, monkeypatch: pytest.MonkeyPatch, backend: str, workers: int, fuse: bool
) -> None:
    """In tiles of one row each, by several threads, in place or not, the numbers are the reference's; none of the
    inputs is written over, and a second run gives the same.
    """
    from kernels import arrays
    from kernels.block import draw
    from kernels.program import Program

    monkeypatch.setattr(arrays, "TILE", 1)
    graph = everything(kernels)
    assert {value.operation for value in graph.values} - {"input"} == kernels.OPERATIONS
    inputs = draw(graph, 0)
    dm = dk.DeviceManager(backend, dtype=None if backend == "numpy" else torch.float32)
    host, before = dk.DeviceManager("numpy"), torch.get_num_threads()
    with Program(graph, dm, workers=workers, fuse=fuse) as program:
        placed = program.place(inputs)
        kept = [array.copy() for array in host.to(placed)]
        outputs, again = program(placed), program(placed)
        assert torch.get_num_threads() == (before if backend == "numpy" else workers)
    assert torch.get_num_threads() == before
    for array, copy in zip(host.to(placed), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    for name, wanted in arrays.reference(graph, inputs).items():
        got, second = host.to([outputs[name], again[name]])
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5, err_msg=name)
        np.testing.assert_array_equal(got, second)


def test_the_reference_is_torchs_float64(kernels: Any) -> None:
    """What all others are held against agrees with torch in float64 to twelve digits."""
    from kernels import arrays, tensors
    from kernels.block import draw

    assert set(arrays.KERNELS) == set(tensors.KERNELS) == kernels.OPERATIONS
    graph = everything(kernels)
    inputs = draw(graph, 1)
    known: dict[Any, Any] = {}
    for value in graph.values:
        if value.operation == "input":
            known[value] = torch.from_numpy(inputs[value.name]).double()
        else:
            arguments = (known[argument] for argument in value.arguments)
            known[value] = tensors.KERNELS[value.operation](*arguments, **value.settings)
    for name, wanted in arrays.reference(graph, inputs).items():
        np.testing.assert_allclose(wanted, known[graph.outputs[name]].numpy(), rtol=1e-12, atol=1e-13)


def test_large_numbers_do_not_overflow(kernels: Any) -> None:
    """A softmax of a thousand, and a silu of minus a thousand, are numbers, without a warning."""
    from kernels.arrays import KERNELS

    assert KERNELS["softmax"](np.float32([[1000, 0]])).tolist() == [[1, 0]]
    assert KERNELS["silu"](np.float32([-1000])).tolist() == [0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_and_no_worse(kernels: Any, plain: None, dtype: str) -> None:
    """A processor's 16 bits are within what rounding explains; NumPy has float16, and says that it has no other."""
    from kernels.block import Size, block, draw
    from kernels.comparison import ALLOWED, Settings, compare

    graph = block(Size.of(TINY))
    rows = {
        row.backend: row
        for row in compare(graph, draw(graph, 0), Settings(dtype=dtype, repeat=1), only=["cpu", "numpy"])
    }
    assert (rows["cpu"].status, rows["cpu"].dtype) == ("ran", dtype)
    assert 1e-5 < rows["cpu"].difference < ALLOWED[dtype]
    if dtype == "float16":
        assert rows["numpy"].status == "ran"
    elif rows["numpy"].status != "ran":  # with ml_dtypes loaded, NumPy knows it
        assert rows["numpy"].reason.startswith("'bfloat16' is no dtype of NumPy.")


def test_a_seed_gives_the_same_numbers(kernels: Any) -> None:
    """Twice the same, and others for another seed."""
    from kernels.block import Size, block, draw

    graph = block(Size.of(TINY))
    assert np.array_equal(draw(graph, 3)["x"], draw(graph, 3)["x"])
    assert not np.array_equal(draw(graph, 3)["x"], draw(graph, 4)["x"])


def test_wrong_numbers_are_told(kernels: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A kernel that is off makes a row `wrong`, and the program ends with 1; so does one that gives no number."""
    from kernels import arrays
    from kernels.run import main

    right = dict(arrays.KERNELS)

    def off(x: Any, axis: int) -> Any:
        return np.mean(x, axis) * (1 if x.dtype == np.float64 else 1.5)

    def nothing(x: Any, axis: int) -> Any:
        return np.mean(x, axis) * (1 if x.dtype == np.float64 else np.float32("nan"))

    for broken in (off, nothing):
        monkeypatch.setattr(arrays, "KERNELS", {**right, "mean": broken})
        assert main(["--size", TINY, "--backend", "numpy", "--repeat", "1", "--json"]) == 1
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["status"] == "wrong"
        assert row["difference"] is None or row["difference"] > 1e-3


@pytest.mark.parametrize(
    ("error", "said"),
    [(MemoryError(), "out of memory"), (RuntimeError("no such kernel\nmore"), "no such kernel")],
)
def test_a_backend_that_fails_says_why(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """What a runtime raises becomes the row's reason, and ends nothing else."""
    from kernels import arrays
    from kernels.block import Size, block, draw
    from kernels.comparison import Settings, compare

    def fails(x: Any, **_: Any) -> Any:
        if x.dtype == np.float64:
            return np.mean(x, 1)
        raise error

    monkeypatch.setattr(arrays, "KERNELS", {**arrays.KERNELS, "mean": fails})
    graph = block(Size.of(TINY))
    (row,) = compare(graph, draw(graph, 0), Settings(repeat=1), only=["numpy"])
    assert (row.status, row.reason) == ("failed", said)


def test_what_is_fed_is_checked(kernels: Any) -> None:
    """A missing input, one too many and one of another shape are refused by name."""
    from kernels.program import Program

    x = kernels.placeholder("x", (2, 2))
    program = Program(kernels.Graph({"y": x + x}), dk.DeviceManager("numpy"))
    good = np.ones((2, 2), dtype="float32")
    for inputs, said in (
        ({}, "the input 'x' is missing"),
        ({"x": good, "z": good}, "the graph has no input 'z'; it has x"),
        ({"x": good[0]}, "the input 'x' has the shape (2, 2), not (2,)"),
    ):
        with pytest.raises(kernels.GraphError) as caught:
            program.place(inputs)
        assert str(caught.value) == said
    assert program(program.place({"x": good}))["y"].tolist() == [[2, 2], [2, 2]]


# -- the plan ----------------------------------------------------------------------------------------
def machine(**changes: Any) -> dict[str, Any]:
    """What `dk.info()` says of a machine with 8 CPUs."""
    facts = {"cpus": 8, "usable_cpus": 8, "cpu_quota": None, **changes}
    return {"machine": facts, "environment": changes.get("environment", {})}


@pytest.mark.parametrize(
    ("changes", "workers", "why", "schedulers"),
    [
        ({}, 8, "8 of 8 CPUs are usable", 1),
        ({"usable_cpus": 2, "cpu_quota": 1.5}, 2, "and the container gives 1.5 CPUs' worth of time", 1),
        ({"usable_cpus": 1}, 1, "1 of 8 CPUs are usable", 0),
        ({"environment": {"OMP_NUM_THREADS": "3"}}, 3, "OMP_NUM_THREADS says so", 1),
        ({"environment": {"OMP_NUM_THREADS": "many"}}, 8, "8 of 8 CPUs are usable", 1),
    ],
)
def test_workers_are_the_cpus_that_one_may_use(
    examples: Path, changes: dict[str, Any], workers: int, why: str, schedulers: int
) -> None:
    """The user's variable, else the CPUs that the container gives; a lone worker needs no scheduler."""
    from kernels.plan import plan

    made = plan(dk.DeviceManager("numpy"), machine(**changes), 2**20)
    assert made.workers.value == workers
    assert why in made.workers.reason
    assert made.schedulers.value == schedulers


def test_an_accelerator_is_left_its_units(examples: Path) -> None:
    """Its own units are not counted; its free memory is, with its source."""
    from kernels.plan import plan

    with simulated_machine(cuda=1, memory="24GiB"):
        dm = dk.DeviceManager()
        made = plan(dm, dk.info(), 2**30)
        free = dm.memory_stats().available
    assert (made.workers.value, made.schedulers.value) == (None, 1)
    assert made.runs.value == int(free * 0.9) // 2**30
    assert "1,024.0 MiB for each run" in made.runs.reason


def test_memory_that_cannot_be_told_is_not_zero(examples: Path) -> None:
    """No figure, and the reason; the graph is tried all the same."""
    from kernels.plan import plan

    with simulated_machine("vulkan"):
        made = plan(dk.DeviceManager("vulkan"), dk.info(), 2**20)
    assert made.runs.value is None
    assert made.runs.reason.startswith("free memory cannot be told (")


def test_what_does_not_fit_is_not_tried(kernels: Any) -> None:
    """On a machine with less memory than one run takes, the row says so in figures."""
    from kernels.block import Size, block, draw
    from kernels.comparison import Settings, compare

    graph = block(Size.of(TINY))
    inputs = draw(graph, 0)
    with simulated_machine(cuda=1, memory="64KiB"):
        (row,) = compare(graph, inputs, Settings(dtype="float32"), only=["cuda"])
    assert row.status == "failed"
    assert row.reason.startswith("it does not fit: ")
