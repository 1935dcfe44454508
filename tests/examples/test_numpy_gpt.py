"""numpy_gpt: a language model that learns, resumes, writes and serves where torch is not installed."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import devicekit as dk

ROOTS = ("numpy", "packaging", "platformdirs", "psutil", "rich")  # what devicekit needs, and NumPy
SERVING = ("fastapi", "uvicorn")
TINY = ("--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "4")


# -- as its users run it -----------------------------------------------------------------------------
@pytest.fixture
def alone(user: dict[str, str]) -> dict[str, str]:
    """The environment of a user on a busy machine: threads that wait for each other would take most of the time."""
    return {**user, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(alone: dict[str, str], python: str) -> Callable[..., str]:
    """Run a command of the example; what it says on stdout, or with ``fails=True`` on stderr."""

    def command(module: str, *args: object, fails: bool = False) -> str:
        argv = [python, "-W", "error", "-m", f"numpy_gpt.{module}", *map(str, args)]
        done = subprocess.run(argv, env=alone, capture_output=True, text=True, encoding="utf-8", timeout=120)
        assert done.returncode == (2 if fails else 0), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if fails else done.stdout

    return command


def _with_what_they_need(names: tuple[str, ...]) -> set[str]:
    """Distributions and all that they require on this machine."""
    found: set[str] = set()
    ahead = list(names)
    while ahead:
        name = canonicalize_name(ahead.pop())
        if name not in found:
            found.add(name)
            required = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            ahead += [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def _without_torch(folder: Path) -> str:
    """The interpreter of a virtual environment that has what the program needs, and no torch."""
    venv.create(folder, symlinks=os.name != "nt", with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages") if os.name != "nt" else [folder / "Lib" / "site-packages"]
    (site / "devicekit").symlink_to(Path(dk.__file__).parent)
    for name in _with_what_they_need(ROOTS + SERVING):
        installed = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            (site / top).symlink_to(str(installed.locate_file(top)))
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def _posted(url: str, **asked: object) -> tuple[int, dict[str, Any]]:
    sent = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
def test_all_of_it_runs_where_torch_is_not_installed(tmp_path: Path, alone: dict[str, str], examples: Path) -> None:
    """In an environment that cannot import torch it trains, resumes, writes and serves; what it learns are words."""
    for package in SERVING:
        pytest.importorskip(package)
    python = _without_torch(tmp_path / "venv")
    env = {**alone, "PYTHONPATH": str(examples)}

    def ran(*args: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [python, "-W", "error", *map(str, args)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == expect, done.stderr
        return done

    assert "No module named 'torch'" in ran("-c", "import torch", expect=1).stderr
    model = tmp_path / "model"
    told = ran("-m", "numpy_gpt.train", "--out", model, "--steps", 300, "--every", 75, "--device", "auto").stderr
    losses = [float(text) for text in re.findall(r"on held out text ([\d.]+)", told)]
    assert len(losses) == 4
    assert losses[-1] < 0.8 < losses[0] < math.log(27)  # 27 characters: who knows nothing has ln 27
    ran("-m", "numpy_gpt.train", "--out", model, "--steps", 310, "--resume")
    written = ran("-m", "numpy_gpt.generate", "--model", model, "--prompt", "the old fox ", "--temperature", 0).stdout
    known = "from numpy_gpt import corpus, command; print(corpus.read(corpus.BUILT_IN, command.device('numpy')))"
    words = written.split()[:-1]  # the last one may have been cut
    assert len(words) > 20
    assert len(set(words) - set(ran("-c", known).stdout.split())) <= 2
    _serves([python, "-m", "numpy_gpt.service", "--model", str(model), "--port", "0"], env)


def _serves(command: list[str], env: dict[str, str]) -> None:
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            assert line.startswith("serving on "), line + server.stderr.read()
            url = line.split()[-1]
            with urllib.request.urlopen(f"{url}/v1/readyz", timeout=60) as answer:
                ready = json.load(answer)
            assert (ready["ready"], ready["device"]["backend"], ready["device"]["dtype"]) == (True, "numpy", "float32")
            assert "torch" not in ready["device"]["versions"]
            first = _posted(f"{url}/v1/generate", prompt="two ", count=30, seed=4)
            assert first[0] == 200
            assert len(first[1]["text"]) == 30
            assert _posted(f"{url}/v1/generate", prompt="two ", count=30, seed=4)[1]["text"] == first[1]["text"]
            assert _posted(f"{url}/v1/generate", prompt="QQ")[0] == 400
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_file(
    run: Callable[..., str], alone: dict[str, str], python: str, tmp_path: Path
) -> None:
    """After kill -9 and --resume the file is, byte for byte, the one of a run that nobody disturbed."""
    args = ("--steps", 300, "--every", 10, "--dropout", 0.1, "--seed", 5, *TINY)
    path = Path(run("train", "--out", tmp_path / "whole", *args).strip())
    command = [python, "-m", "numpy_gpt.train", "--out", str(tmp_path / "killed"), *map(str, args)]
    with subprocess.Popen(command, env=alone, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        while not killed.stderr.readline().startswith("step "):
            assert killed.poll() is None
        killed.kill()
    assert killed.returncode != 0
    resumed = Path(run("train", "--out", tmp_path / "killed", "--resume", "--every", 1000).strip())
    assert resumed.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_torch_is_never_imported(tmp_path: Path, alone: dict[str, str], python: str) -> None:
    """Where torch is installed, training, loading and writing still do without it."""
    code = (
        "import sys; from numpy_gpt import generate, train\n"
        f"assert train.main(['--out', {str(tmp_path)!r}, '--steps', '2', *{TINY!r}]) == 0\n"
        f"assert generate.main(['--model', {str(tmp_path)!r}, '--prompt', 'a', '--device', 'auto']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([python, "-W", "error", "-c", code], env=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_bad_input_is_told_in_a_line(run: Callable[..., str], tmp_path: Path) -> None:
    """A command ends with code 2 and one line, and not with a traceback; bad devices get devicekit's three lines."""
    told = run("generate", "--model", tmp_path, "--prompt", "a", fails=True)
    assert told == f"there is no model in {tmp_path}: python -m numpy_gpt.train --out {tmp_path} makes one\n"
    told = run("train", "--out", tmp_path, "--device", "nump", fails=True)
    assert told.splitlines()[0] == "'nump' is no device."
    assert "did you mean 'numpy'?" in told


# -- in this process ---------------------------------------------------------------------------------
@pytest.fixture
def dm() -> dk.DeviceManager:
    """What the program asks for."""
    return dk.DeviceManager("numpy")


@pytest.fixture
def exact() -> dk.DeviceManager:
    """The same in float64, for differences."""
    return dk.DeviceManager("numpy", dtype=np.float64)


def _corpus(context: int = 8) -> tuple[Any, Any]:
    from numpy_gpt.tokenizer import Tokenizer
    from numpy_gpt.training import Corpus

    text = "the fox sees the bird.\n" * 20
    tokenizer = Tokenizer.of(text)
    return Corpus(text, tokenizer, context), tokenizer


def _run(dm: dk.DeviceManager, *, steps: int = 20, dropout: float = 0.1, seed: int = 0, tied: bool = True) -> Any:
    """A small run and its alphabet."""
    from numpy_gpt.model import Shape
    from numpy_gpt.training import Run, Settings

    corpus, tokenizer = _corpus()
    shape = Shape(len(tokenizer.characters), 8, layers=2, heads=2, width=8, dropout=dropout, tied=tied)
    return Run(dm, shape, Settings(steps=steps, batch=2, warmup=5, seed=seed), corpus), tokenizer


# -- gradients ---------------------------------------------------------------------------------------
def _agrees(function: Callable[..., Any], *arrays: np.ndarray) -> None:
    """The gradients of a weighted sum of the result, against central differences of float64."""
    from numpy_gpt.tensor import Tensor

    tensors = [Tensor(array, trainable=True) for array in arrays]
    result = function(*tensors)
    weights = np.random.default_rng(0).standard_normal(result.shape)
    result.backward(weights)
    for tensor in tensors:
        expected = np.zeros_like(tensor.data)
        for place in np.ndindex(tensor.shape):
            expected[place] = _difference(lambda: float((function(*tensors).data * weights).sum()), tensor.data, place)
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad, expected, rtol=1e-6, atol=1e-7)


def _difference(value: Callable[[], float], array: np.ndarray, place: tuple[int, ...], h: float = 1e-5) -> float:
    before = array[place]
    array[place] = before + h
    above = value()
    array[place] = before - h
    below = value()
    array[place] = before
    return (above - below) / (2 * h)


def _normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _operations() -> Iterator[tuple[str, Callable[..., Any], tuple[np.ndarray, ...]]]:
    def functions() -> Any:
        from numpy_gpt import functions

        return functions

    ids = np.array([[2, 0, 2], [1, 2, 4]])
    minus = np.where(np.triu(np.ones((3, 3)), 1) > 0, -np.inf, 0.0)
    x = _normal(2, 3, 4)
    yield "negative", lambda a: -a, (x,)
    yield "numbers on both sides", lambda a: (2 - a) * 3 + 1 / (a * a + 2.0) + (a - 0.5) / 4, (x,)
    yield "arrays on both sides", lambda a: x * a + (x - a), (_normal(3, 1),)
    yield "the same twice", lambda a: a * a + a, (x,)
    yield "product", lambda a, b: a @ b, (_normal(3, 4), _normal(4, 2))
    yield "products, batched", lambda a, b: a @ b, (_normal(2, 3, 4), _normal(2, 4, 2))
    yield "products, broadcast left", lambda a, b: a @ b, (_normal(3, 4), _normal(2, 4, 2))
    yield "products, broadcast both", lambda a, b: a @ b, (_normal(2, 1, 3, 4), _normal(3, 4, 2))
    yield "sum", lambda a: a.sum(), (x,)
    yield "sum of some", lambda a: a.sum((0, 2)), (x,)
    yield "sum of the last, kept", lambda a: a.sum(-1, keepdims=True), (x,)
    yield "mean", lambda a: a.mean(), (x,)
    yield "mean of one", lambda a: a.mean(1), (x,)
    yield "reshape", lambda a: a.reshape(-1, 6), (x,)
    yield "transpose", lambda a: a.transpose(), (x,)
    yield "transpose, named", lambda a: a.transpose(1, -1, 0), (x,)
    yield "slice", lambda a: a[:, 1:, ::2], (x,)
    yield "one number", lambda a: a[1, 2, 3], (x,)
    yield "indices that repeat", lambda a: a[[0, 1, 0, 0]], (x,)
    yield "mask", lambda a: a[x > 0], (x,)
    yield "softmax", lambda a: functions().softmax(a), (x,)
    yield "softmax, masked", lambda a: functions().softmax(a + minus), (_normal(2, 3, 3),)
    yield "softmax of large numbers", lambda a: functions().softmax(a + 1e4), (_normal(3),)
    yield "layer norm", lambda a, g, b: functions().layer_norm(a, g, b), (x, _normal(4, seed=2), _normal(4, seed=3))
    yield "gelu", lambda a: functions().gelu(a), (np.linspace(-6, 6, 25),)
    yield "embedding", lambda a: functions().embedding(a, ids), (_normal(5, 3),)
    yield "embedding of nothing", lambda a: functions().embedding(a, ids[:0]), (_normal(5, 3),)
    yield "cross entropy", lambda a: functions().cross_entropy(a, ids), (_normal(2, 3, 5),)
    yield "dropout", lambda a: functions().dropout(a, 0.4, np.random.default_rng(3)), (x,)


OPERATIONS = list(_operations())


@pytest.mark.parametrize(("function", "arrays"), [o[1:] for o in OPERATIONS], ids=[o[0] for o in OPERATIONS])
def test_an_operation_has_the_gradient_of_its_differences(
    function: Callable[..., Any], arrays: tuple[np.ndarray, ...], examples: Path
) -> None:
    """Every operation's gradient is what small changes of its arguments come to."""
    _agrees(function, *(array.copy() for array in arrays))


OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / (b * b + 1.0),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_broadcasting_is_undone_in_the_gradient(operator: str, examples: Path) -> None:
    """Whatever shapes are broadcast, each argument's gradient has its own shape and is right."""

    @settings(max_examples=25, database=None)
    @given(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3), st.integers(0, 99))
    def check(shapes: Any, seed: int) -> None:
        first, second = (_normal(*shape, seed=seed + place) for place, shape in enumerate(shapes.input_shapes))
        _agrees(OPERATORS[operator], np.asarray(first), np.asarray(second))

    check()


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_has_the_gradient_of_its_differences(
    tied: bool, exact: dk.DeviceManager, examples: Path
) -> None:
    """Of every parameter some numbers are tried, with dropout."""
    from numpy_gpt.functions import cross_entropy

    run, _ = _run(exact, tied=tied)
    ids, targets = run.corpus.drawn(2, exact.create_generator(1))
    parameters = run.model.parameters
    for parameter in parameters.values():
        parameter.data += 0.3 * _normal(*parameter.shape)  # further from where it begins, so that nothing is small

    def loss() -> Any:
        return cross_entropy(run.model(ids, exact.create_generator(2)), targets)

    loss().backward()
    random = np.random.default_rng(4)
    for name, parameter in parameters.items():
        for _ in range(3):
            place = tuple(int(random.integers(size)) for size in parameter.shape)
            expected = _difference(lambda: float(loss().data), parameter.data, place)
            assert parameter.grad[place] == pytest.approx(expected, rel=1e-5, abs=1e-8), (name, place)
    assert ("head.weight" in parameters) is not tied


def _torchs(parameters: Any, shape: Any, ids: np.ndarray, targets: np.ndarray) -> tuple[Any, Any, dict[str, Any]]:
    """The same model in torch: scores, loss, and the parameters with their gradients."""
    import torch
    from torch.nn import functional as f

    p = {name: torch.tensor(tensor.data, requires_grad=True) for name, tensor in parameters.items()}

    def norm(x: Any, name: str) -> Any:
        return f.layer_norm(x, (shape.width,), p[f"{name}.gain"], p[f"{name}.bias"])

    def linear(x: Any, name: str) -> Any:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (shape.heads, -1)).transpose(1, 2)

    x = p["tokens"][torch.tensor(ids)] + p["positions"][: ids.shape[1]]
    for block in (f"blocks.{layer}" for layer in range(shape.layers)):
        y = norm(x, f"{block}.before_attention")
        query, key, value = (heads(linear(y, f"{block}.attention.{name}")) for name in ("query", "key", "value"))
        mixed = f.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{block}.attention.out")
        wide = f.gelu(linear(norm(x, f"{block}.before_wide"), f"{block}.wide"), approximate="tanh")
        x = x + linear(wide, f"{block}.back")
    scores = norm(x, "norm") @ p["tokens"].T
    loss = f.cross_entropy(scores.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    return scores, loss, p


def test_the_model_is_the_one_that_torch_computes(exact: dk.DeviceManager, examples: Path) -> None:
    """Scores, loss and all gradients are those of torch's own functions and autograd, in float64."""
    pytest.importorskip("torch")
    from numpy_gpt.functions import cross_entropy

    run, _ = _run(exact)
    ids, targets = run.corpus.drawn(3, exact.create_generator(1))
    mine = run.model(ids)
    loss = cross_entropy(mine, targets)
    loss.backward()
    scores, theirs, parameters = _torchs(run.model.parameters, run.model.shape, ids, targets)
    np.testing.assert_allclose(mine.data, scores.detach().numpy(), rtol=1e-10, atol=1e-12)
    assert float(loss.data) == pytest.approx(float(theirs.detach()), rel=1e-12)
    for name, parameter in run.model.parameters.items():
        np.testing.assert_allclose(parameter.grad, parameters[name].grad.numpy(), rtol=1e-8, atol=1e-12, err_msg=name)


def test_the_optimiser_is_torchs(exact: dk.DeviceManager, examples: Path) -> None:
    """Five steps with clipping and decay of the matrices come to what torch's AdamW comes to."""
    torch = pytest.importorskip("torch")
    from numpy_gpt.optimizer import AdamW, clip
    from numpy_gpt.tensor import Tensor

    start = {"matrix": _normal(3, 4), "vector": _normal(4), "unused": _normal(2, 2)}
    mine = {name: Tensor(array.copy(), trainable=True) for name, array in start.items()}
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    adam = AdamW(mine)
    groups = [{"params": [theirs["matrix"], theirs["unused"]]}, {"params": [theirs["vector"]], "weight_decay": 0.0}]
    judge = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(5):
        gradients = {"matrix": _normal(3, 4, seed=step) * (0.1 + step), "vector": _normal(4, seed=step + 9)}
        for name, gradient in gradients.items():
            mine[name].grad, theirs[name].grad = gradient, torch.tensor(gradient)
        length = clip(mine, 1.5)
        assert length == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.5)))
        adam.step(1e-2)
        judge.step()
    for name in start:
        np.testing.assert_allclose(mine[name].data, theirs[name].detach().numpy(), rtol=1e-5)  # torch adds 1e-6 in clip
    np.testing.assert_array_equal(mine["unused"].data, start["unused"])


def test_gradients_of_two_ways_back_add_up(examples: Path) -> None:
    """backward adds to what is there, and no trainable tensor shares its gradient's memory with another's."""
    from numpy_gpt.tensor import Tensor

    a, b = Tensor(np.ones(2), trainable=True), Tensor(np.ones(2), trainable=True)
    for _ in range(2):
        (a + b).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([2, 2], [2, 2])


def test_a_long_sum_needs_no_deep_stack(examples: Path) -> None:
    """Ten times as many operations as Python has frames."""
    from numpy_gpt.tensor import Tensor

    a = Tensor(np.ones(()), trainable=True)
    total = a
    for _ in range(10 * sys.getrecursionlimit()):
        total = total + a
    total.backward()
    assert a.grad == 10 * sys.getrecursionlimit() + 1


def test_what_cannot_go_back_says_so(examples: Path) -> None:
    """backward needs something trainable, one number or a gradient, and one that fits."""
    from numpy_gpt.tensor import Tensor, forgetting

    a = Tensor(np.ones(2), trainable=True)
    with pytest.raises(ValueError, match="no trainable tensor"):
        Tensor(np.ones(2)).sum().backward()
    with forgetting(), pytest.raises(ValueError, match="no trainable tensor"):
        a.sum().backward()
    with pytest.raises(ValueError, match="a gradient is needed"):
        (a + a).backward()
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        (a + a).backward(np.ones(3))
    with pytest.raises(ValueError, match="two dimensions"):
        a @ a
    (a + a).sum().backward()
    assert a.grad.tolist() == [2, 2]  # after the block gradients are kept again


# -- the model ---------------------------------------------------------------------------------------
def test_nothing_looks_ahead(dm: dk.DeviceManager, examples: Path) -> None:
    """A later character does not change the scores of the earlier ones."""
    run, tokenizer = _run(dm)
    first, second = (
        run.model(tokenizer.encode("the fox ")[None]).data,
        run.model(tokenizer.encode("the bird")[None]).data,
    )
    np.testing.assert_array_equal(first[0, :4], second[0, :4])
    assert not np.array_equal(first[0, 4], second[0, 4])


def test_the_model_is_float32_and_the_same_for_a_seed(dm: dk.DeviceManager, examples: Path) -> None:
    """Parameters and the optimiser's means; the first numbers are those of dm.randn, as on every host."""
    run, _ = _run(dm, seed=7)
    run.advance()
    again, _ = _run(dm, seed=7)
    other, _ = _run(dm, seed=8)
    arrays = [*run.optimizer.means.values(), *run.optimizer.squares.values()]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}
    assert {p.data.dtype for p in run.model.parameters.values()} == {np.dtype("float32")}
    again.advance()
    for name, parameter in run.model.parameters.items():
        np.testing.assert_array_equal(parameter.data, again.model.parameters[name].data)
    assert not np.array_equal(other.model.parameters["tokens"].data, run.model.parameters["tokens"].data)
    fresh = _run(dm, seed=7)[0].model.parameters["tokens"]
    seed = int(dm.create_generator(7).integers(2**32))
    np.testing.assert_array_equal(fresh.data, dm.randn(fresh.shape, seed) * 0.02)


def test_only_matrices_decay(dm: dk.DeviceManager, examples: Path) -> None:
    """With gradients of zero a matrix shrinks by rate times decay, and a vector stays."""
    from numpy_gpt.optimizer import AdamW
    from numpy_gpt.tensor import Tensor

    tensors = {"matrix": Tensor(np.ones((2, 2))), "vector": Tensor(np.ones(2))}
    for tensor in tensors.values():
        tensor.grad = np.zeros_like(tensor.data)
    AdamW(tensors, decay=0.5).step(0.1)
    np.testing.assert_allclose(tensors["matrix"].data, 0.95)
    np.testing.assert_array_equal(tensors["vector"].data, 1)


def test_the_rate_rises_and_falls(examples: Path) -> None:
    """In a line to the peak, then down half a cosine to a tenth of it, and there it stays."""
    from numpy_gpt.optimizer import rate_at

    rates = [rate_at(step, peak=1.0, warmup=10, steps=110) for step in (0, 4, 9, 10, 60, 110, 200)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 3}, "a width of 8 cannot be divided among 3 heads"),
        ({"layers": 0}, "layers must be a whole number from 1, and is 0"),
        ({"width": 8.0}, "width must be a whole number from 1, and is 8.0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, and is 1.0"),
    ],
)
def test_a_model_that_cannot_be_is_refused(change: dict[str, Any], told: str, examples: Path) -> None:
    """Sizes that do not fit together are named."""
    from numpy_gpt.errors import BadInput
    from numpy_gpt.model import Shape

    with pytest.raises(BadInput, match=re.escape(told)):
        Shape(**{"vocabulary": 5, "width": 8, "heads": 2, **change})


def test_a_text_longer_than_the_context_is_refused(dm: dk.DeviceManager, examples: Path) -> None:
    """The model has no places for it."""
    run, _ = _run(dm)
    with pytest.raises(ValueError, match="9 characters are more than the context of 8"):
        run.model(np.zeros((1, 9), np.int64))


# -- training ----------------------------------------------------------------------------------------
def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(
    tmp_path: Path, dm: dk.DeviceManager, examples: Path
) -> None:
    """Losses, parameters, means and the generator, to the last bit, with dropout and in the middle of the warm-up."""
    from numpy_gpt import checkpoint

    whole, tokenizer = _run(dm)
    losses = [whole.advance() for _ in range(20)]
    part, _ = _run(dm)
    for _ in range(3):
        part.advance()
    checkpoint.save(tmp_path, dm, part, tokenizer)
    resumed, again = checkpoint.resume(tmp_path, dm, "the fox sees the bird.\n" * 20)
    assert (resumed.step, again.characters) == (3, tokenizer.characters)
    assert [resumed.advance() for _ in range(17)] == losses[3:]
    assert resumed.generator.bit_generator.state == whole.generator.bit_generator.state
    for mine, theirs in ((resumed, whole), (whole, resumed)):
        for name, parameter in mine.model.parameters.items():
            np.testing.assert_array_equal(parameter.data, theirs.model.parameters[name].data)
            np.testing.assert_array_equal(mine.optimizer.means[name], theirs.optimizer.means[name])
            np.testing.assert_array_equal(mine.optimizer.squares[name], theirs.optimizer.squares[name])
    assert resumed.check() == whole.check()


def test_a_loss_that_is_no_number_ends_the_run(dm: dk.DeviceManager, examples: Path) -> None:
    """It says what to try, and the parameters are not spoilt further."""
    from numpy_gpt.errors import BadInput

    run, _ = _run(dm)
    run.model.parameters["norm.bias"].data[:] = np.nan
    with pytest.raises(BadInput, match=r"the loss is nan after 0 steps: try a smaller --rate"):
        run.advance()
    assert run.step == 0


def _train(*args: object) -> int:
    from numpy_gpt import train

    return train.main([str(arg) for arg in args])


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "no file": (("--data", "{folder}/none.txt"), "none.txt cannot be read: No such file or directory"),
    "a folder": (("--data", "{folder}"), "cannot be read: Is a directory"),
    "a NUL in the name": (("--data", "a\0b"), "cannot be read: embedded null"),
    "no text": (("--data", "{folder}/latin.txt"), "latin.txt is no UTF-8 text: byte 3 is not"),
    "too short": (
        ("--data", "{folder}/short.txt"),
        "has 20 characters, and a context of 64 needs at least 650",
    ),
    "no steps": (("--steps", 0), "steps must be a whole number from 1, and is 0"),
    "a seed below zero": (("--seed", -1), "seed must be a whole number from 0, and is -1"),
    "an endless rate": (("--rate", "inf"), "rate must be zero or more, and is inf"),
    "saved never": (("--every", 0), "--every must be a whole number from 1, and is 0"),
    "heads that do not fit": (("--heads", 5), "a width of 64 cannot be divided among 5 heads"),
    "a file is there": (("--out", "{folder}/short.txt"), "the folder {folder}/short.txt cannot be made: File exists"),
    "nothing to resume": (("--resume",), "there is no model in {folder}/out"),
    "another device's arrays": (("--device", "cpu"), "computes with arrays of NumPy, and 'cpu' is not for them"),
}


@pytest.mark.parametrize("case", WRONG)
def test_training_refuses_in_words(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], examples: Path
) -> None:
    """Code 2, the reason in one line, and nothing is saved."""
    if case == "another device's arrays":
        pytest.importorskip("torch")
    (tmp_path / "short.txt").write_text("the fox, " * 2 + "a\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("a Bär".encode("latin-1"))
    args, told = WRONG[case]
    given = [str(arg).replace("{folder}", str(tmp_path)) for arg in args]
    assert _train("--out", tmp_path / "out", *given) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert told.replace("{folder}", str(tmp_path)) in line
    assert not (tmp_path / "out").exists()


def test_a_run_is_neither_overwritten_nor_mixed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], examples: Path
) -> None:
    """A folder with a model is not taken twice; a resumed run keeps its settings and its text."""
    (tmp_path / "other.txt").write_text("the fox sees the bird.\n" * 20, encoding="utf-8")
    out = ("--out", tmp_path / "out")
    assert _train(*out, "--steps", 1, *TINY) == 0
    for args, told in (
        ((), "has a model already: go on with --resume, or take another --out"),
        (("--resume", "--width", 8), "--width is settled when a run begins: leave it out with --resume"),
        (("--resume", "--untied"), "--untied is settled when a run begins"),
        (("--resume",), "the run has 1 steps already: try --steps with more than that"),
        (("--resume", "--steps", 2, "--data", tmp_path / "other.txt"), "this is not the text that the run began with"),
    ):
        assert _train(*out, *args) == 2
        assert told in capsys.readouterr().err
    assert _train(*out, "--resume", "--steps", 2) == 0


def test_who_asks_for_a_device_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], examples: Path) -> None:
    """Without torch another device falls back to numpy, with a line that says why."""
    from devicekit.testing import simulated_machine
    from numpy_gpt.command import device

    with simulated_machine("no-torch"):
        assert device("cuda").backend == "numpy"
        assert device("cpu").backend == "numpy"
    assert re.fullmatch(r"note: .*torch is not installed.*\n", capsys.readouterr().err)


# -- files -------------------------------------------------------------------------------------------
def _saved(folder: Path, dm: dk.DeviceManager, tied: bool = True) -> Any:
    from numpy_gpt import checkpoint

    run, tokenizer = _run(dm, tied=tied)
    run.advance()
    checkpoint.save(folder, dm, run, tokenizer)
    return run


def _spoilt(folder: Path, dm: dk.DeviceManager, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Another file in the place of the saved one."""
    path = folder / "model.safetensors"
    stored = dm.load_safetensors(path, copy=True)
    told = json.loads(stored.metadata["numpy_gpt"])
    change(stored, told)
    dm.save_safetensors(dict(stored), path, metadata={"numpy_gpt": json.dumps(told)})


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_gives_the_model_and_its_alphabet_back(
    tied: bool, tmp_path: Path, dm: dk.DeviceManager, examples: Path
) -> None:
    """The scores are the same, and other readers of safetensors find the tensors by name."""
    safetensors = pytest.importorskip("safetensors.numpy")
    from numpy_gpt import checkpoint

    run = _saved(tmp_path, dm, tied)
    model, tokenizer = checkpoint.load(tmp_path, dm)
    ids = tokenizer.encode("the fox")[None]
    np.testing.assert_array_equal(model(ids).data, run.model(ids).data)
    names = safetensors.load_file(tmp_path / "model.safetensors").keys()
    assert names == {f"{kind}.{name}" for kind in ("model", "mean", "square") for name in model.parameters}


SPOILT: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "a tensor is missing": (lambda s, t: s.pop("model.norm.gain"), "the weights have no norm.gain"),
    "one too many": (lambda s, t: s.update({"model.x": s["model.norm.gain"].copy()}), "the weights have x, and"),
    "other sizes": (lambda s, t: t["shape"].update(width=16), r"tokens is float32 of shape \(\d+, 8\) in the weights"),
    "endless layers": (lambda s, t: t["shape"].update(layers=10**12), "the weights have no blocks.2.before_attention"),
    "other numbers": (
        lambda s, t: s.update({"model.norm.gain": np.ones(8, np.int64)}),
        "norm.gain is int64 of shape",
    ),
    "no alphabet": (lambda s, t: t.pop("characters"), "it has no 'characters'"),
    "a short alphabet": (lambda s, t: t.update(characters="ab"), "its alphabet is not as long"),
    "twice the same": (lambda s, t: t.update(characters="aa"), "every character comes once"),
    "a word for a size": (lambda s, t: t["shape"].update(heads="two"), "heads must be a whole number"),
    "a size nobody knows": (lambda s, t: t["shape"].update(depth=2), "unexpected keyword argument 'depth'"),
    "no sizes": (lambda s, t: t.update(shape=None), "is no model of this program"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_stranger_s_file_is_refused_in_words(case: str, tmp_path: Path, dm: dk.DeviceManager, examples: Path) -> None:
    """What does not fit together is named, before anything of its size is allocated."""
    from numpy_gpt import checkpoint
    from numpy_gpt.errors import BadInput

    change, told = SPOILT[case]
    _saved(tmp_path, dm)
    _spoilt(tmp_path, dm, change)
    with pytest.raises(BadInput, match=rf"model\.safetensors is no model of this program: .*{told}|{told}"):
        checkpoint.load(tmp_path, dm)


RESUMED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "a mean is missing": (lambda s, t: s.pop("mean.norm.gain"), "running means do not fit norm.gain"),
    "a square of another shape": (
        lambda s, t: s.update({"square.norm.gain": np.ones(1, np.float32)}),
        "running means do not fit norm.gain",
    ),
    "steps below zero": (lambda s, t: t.update(step=-1), "-1 is no number of steps"),
    "another generator": (lambda s, t: t["generator"].update(bit_generator="MT19937"), "PCG64"),
    "a state too large": (lambda s, t: t["generator"].update(has_uint32=2**99), "too large"),
    "an unknown setting": (lambda s, t: t["settings"].update(speed=1), "unexpected keyword argument 'speed'"),
    "a word for a rate": (lambda s, t: t["settings"].update(rate="fast"), "not supported between"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_does_not_fit_together_is_not_resumed(
    case: str, tmp_path: Path, dm: dk.DeviceManager, examples: Path
) -> None:
    """The optimiser's and the generator's state are checked as the model is."""
    from numpy_gpt import checkpoint
    from numpy_gpt.errors import BadInput

    change, told = RESUMED[case]
    _saved(tmp_path, dm)
    _spoilt(tmp_path, dm, change)
    with pytest.raises(BadInput, match=told):
        checkpoint.resume(tmp_path, dm, "the fox sees the bird.\n" * 20)


def test_a_pickle_is_never_opened(tmp_path: Path, dm: dk.DeviceManager, examples: Path) -> None:
    """A file of another kind under the name is devicekit's error, and the command's code 2."""
    from numpy_gpt import generate

    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(200))
    assert generate.main(["--model", str(tmp_path), "--prompt", "a"]) == 2


def test_another_program_s_weights_are_refused(tmp_path: Path, dm: dk.DeviceManager, examples: Path) -> None:
    """A good safetensors file without our metadata."""
    from numpy_gpt import checkpoint
    from numpy_gpt.errors import BadInput

    dm.save_safetensors({"model.a": np.ones(2)}, tmp_path)
    with pytest.raises(BadInput, match="is no model of this program: it has no 'numpy_gpt'"):
        checkpoint.load(tmp_path, dm)


# -- writing -----------------------------------------------------------------------------------------
@pytest.fixture
def writer(tmp_path: Path, dm: dk.DeviceManager, examples: Path) -> Any:
    """A model that has learnt for a moment."""
    from numpy_gpt import checkpoint
    from numpy_gpt.sampling import Writer

    run, tokenizer = _run(dm, steps=30)
    for _ in range(30):
        run.advance()
    checkpoint.save(tmp_path, dm, run, tokenizer)
    return Writer.load(tmp_path, dm)


def test_a_seed_repeats_and_a_cut_narrows(writer: Any) -> None:
    """The same seed writes the same, another one something else; among one candidate all seeds are as greedy."""

    def text(**options: Any) -> str:
        return "".join(writer.write("the ", 40, **options))

    assert text(seed=1, temperature=1.0) == text(seed=1, temperature=1.0)
    assert text(seed=1, temperature=1.0) != text(seed=2, temperature=1.0)
    assert text(seed=1, top_k=1) == text(seed=2, top_k=1) == text(temperature=0) == text(temperature=1e-300)
    assert len(text()) == 40


def test_the_cache_changes_nothing(writer: Any) -> None:
    """With keys and values kept the scores are those of reading all anew, as far as the context goes."""
    from numpy_gpt.model import Cache
    from numpy_gpt.tensor import forgetting

    model, ids = writer.model, writer.tokenizer.encode("the fox ")
    cache = Cache(model.shape, np.dtype("float32"))
    with forgetting():
        parts = [model(part[None], cache=cache).data[0] for part in (ids[:3], ids[3:4], ids[4:])]
    np.testing.assert_allclose(np.concatenate(parts), model(ids[None]).data[0], rtol=1e-4, atol=1e-6)
    assert cache.length == 8


def test_a_long_text_slides_through_the_context(writer: Any) -> None:
    """Beyond the context each character comes from at least the last half of it, read anew."""
    prompt = "the fox sees the bird."
    written = "".join(writer.write(prompt, 30, temperature=0))
    assert "".join(writer.write(prompt[-8:], 30, temperature=0)) == written
    ids = writer.tokenizer.encode(prompt)[-8:]
    first = writer.tokenizer.characters[int(writer.model(ids[None]).data[0, -1].argmax())]
    assert written[0] == first
    ids = np.append(ids, writer.tokenizer.encode(first))[-4:]
    assert written[1] == writer.tokenizer.characters[int(writer.model(ids[None]).data[0, -1].argmax())]


def test_characters_come_as_often_as_expected(examples: Path) -> None:
    """20000 draws follow the softmax of the scores over the temperature, and only the first k come at all."""
    from numpy_gpt.sampling import drawn

    scores, generator = np.array([0.0, 2.0, 1.0, -1.0], np.float32), np.random.default_rng(0)
    weights = np.where([False, True, True, False], np.exp(scores / 0.5), 0)
    counts = np.bincount([drawn(scores, 0.5, 2, generator) for _ in range(20000)], minlength=4)
    np.testing.assert_allclose(counts / 20000, weights / weights.sum(), atol=0.01)
    assert (counts[0], counts[3]) == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        ("", {}, "the prompt is empty: it needs at least one character"),
        ("Ω?", {}, "the model has never seen '?Ω'; it knows"),
        ("a", {"count": 0}, "the number of characters must be 1 or more, and is 0"),
        ("a", {"temperature": -1.0}, "the temperature must be zero or more, and is -1.0"),
        ("a", {"temperature": math.nan}, "the temperature must be zero or more, and is nan"),
        ("a", {"top_k": 0}, "top-k must be 1 or more, and is 0"),
        ("a", {"seed": -1}, "the seed must be a whole number from 0 to 2**64 - 1, and is -1"),
    ],
)
def test_what_cannot_be_written_is_refused(prompt: str, options: dict[str, Any], told: str, writer: Any) -> None:
    """At once, in words."""
    from numpy_gpt.errors import BadInput

    with pytest.raises(BadInput, match=re.escape(told)):
        writer.write(prompt, **{"count": 3, **options})


# -- serving -----------------------------------------------------------------------------------------
def _answer(writer: Any, method: str, path: str, **sent: Any) -> tuple[int, Any]:
    """What the service says, without a port."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    from numpy_gpt.service import create_app

    async def ask() -> tuple[int, Any]:
        transport = httpx.ASGITransport(app=create_app(writer))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.request(method, path, **sent)
        return answer.status_code, answer.json()

    return asyncio.run(ask())


def test_the_service_writes(writer: Any) -> None:
    """What the writer writes, with the seed that repeats it; without one, a seed that was drawn."""
    asked = {"prompt": "the ", "count": 20, "seed": 3, "temperature": 1.0, "top_k": 3}
    code, told = _answer(writer, "POST", "/v1/generate", json=asked)
    assert (code, told["seed"]) == (200, 3)
    assert told["text"] == "".join(writer.write("the ", 20, seed=3, temperature=1.0, top_k=3))
    code, drawn = _answer(writer, "POST", "/v1/generate", json={"prompt": "the ", "count": 20})
    assert drawn["text"] == "".join(writer.write("the ", 20, seed=drawn["seed"]))


def test_the_service_tells_of_its_device(writer: Any) -> None:
    """readyz has the model's sizes and devicekit's report."""
    code, told = _answer(writer, "GET", "/v1/readyz")
    assert (code, told["ready"], told["model"]["context"]) == (200, True, 8)
    assert (told["device"]["backend"], told["device"]["warning"]) == ("numpy", None)


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        ({"json": {"prompt": "QQ"}}, 400, "the model has never seen 'Q'; it knows"),
        ({"json": {"prompt": ""}}, 422, "prompt: String should have at least 1 character"),
        ({"json": {"prompt": "a", "count": 2001}}, 422, "count: Input should be less than or equal to 2000"),
        ({"json": {"prompt": "a", "temperature": -1, "top_k": 0}}, 422, "0; top_k: Input should be greater than"),
        ({"json": {"prompt": "a", "words": 3}}, 422, "words: Extra inputs are not permitted"),
        ({"json": {}}, 422, "prompt: Field required"),
        ({"content": "{"}, 422, "JSON decode error"),
        ({"content": '{"prompt": "\\ud800"}'}, 422, "prompt: "),
    ],
)
def test_a_bad_request_is_answered_in_words(sent: dict[str, Any], code: int, told: str, writer: Any) -> None:
    """4xx, with one sentence under "error"."""
    headers = {"Content-Type": "application/json"}
    found, answer = _answer(writer, "POST", "/v1/generate", headers=headers, **sent)
    assert (found, list(answer)) == (code, ["error"])
    assert told in answer["error"]


def test_a_wrong_path_is_answered_in_words(writer: Any) -> None:
    """As all the rest is."""
    assert _answer(writer, "GET", "/v2") == (404, {"error": "Not Found"})
    assert _answer(writer, "GET", "/v1/generate") == (405, {"error": "Method Not Allowed"})


def test_a_port_that_is_taken_is_told(writer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Code 2 and a line, and so for a port that cannot be."""
    pytest.importorskip("uvicorn")
    from numpy_gpt import service

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert service.main(["--model", str(tmp_path), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port} cannot be listened to: " in capsys.readouterr().err
    assert service.main(["--model", str(tmp_path), "--port", "70000"]) == 2
    assert "--port must be from 0 to 65535, and is 70000" in capsys.readouterr().err


# -- text --------------------------------------------------------------------------------------------
def test_the_built_in_text_is_always_the_same(dm: dk.DeviceManager, examples: Path) -> None:
    """Sentences of known words, one a line, where verbs follow their subjects."""
    from numpy_gpt import corpus

    text = corpus.read(corpus.BUILT_IN, dm)
    assert text == corpus.read(corpus.BUILT_IN, dm)
    lines = text.splitlines()
    assert (len(lines), len(set(text))) == (2000, 27)
    for line in lines:
        one = line.startswith("the ")
        assert re.fullmatch(r"(the|two|three|many) \w+ \w+ \w+ (the|two|three|many) \w+ \w+( \w+)*\.", line)
        assert line.split()[3].endswith("s") == one


def test_a_text_that_begins_with_a_mark_has_none(tmp_path: Path, dm: dk.DeviceManager, examples: Path) -> None:
    """The byte order mark that some editors write is no character to learn."""
    from numpy_gpt import corpus

    (tmp_path / "a.txt").write_text("äöü", encoding="utf-8-sig")
    assert corpus.read(str(tmp_path / "a.txt"), dm) == "äöü"


def test_text_goes_to_numbers_and_back(examples: Path) -> None:
    """Any characters."""
    from numpy_gpt.tokenizer import Tokenizer

    tokenizer = Tokenizer.of("ab 語\n🦊")
    assert tokenizer.decode(tokenizer.encode("🦊 語ab\n")) == "🦊 語ab\n"


def test_pieces_come_with_what_follows(examples: Path) -> None:
    """Every target is the character after; nothing to check with is learnt from; the checks stay the same."""
    corpus, tokenizer = _corpus()
    text = "the fox sees the bird.\n" * 20
    ids, targets = corpus.drawn(5, np.random.default_rng(0))
    for piece, following in zip(ids, targets, strict=True):
        assert tokenizer.decode(piece) + tokenizer.decode(following[-1:]) in text
        np.testing.assert_array_equal(piece[1:], following[:-1])
    np.testing.assert_array_equal(corpus.checks(4), corpus.checks(4))


def test_settings_are_values(examples: Path) -> None:
    """They can be kept in a file and read again."""
    from numpy_gpt.training import Settings

    assert Settings(**json.loads(json.dumps(dataclasses.asdict(Settings(rate=0.1))))) == Settings(rate=0.1)


def test_the_page_shows_the_code_as_it_is(examples: Path) -> None:
    """Every line of Python on the page stands in the program."""
    code = "".join(path.read_text(encoding="utf-8") for path in (examples / "numpy_gpt").glob("*.py"))
    page = (examples / "numpy_gpt" / "README.md").read_text(encoding="utf-8")
    shown = [
        line.strip() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    ]
    assert len(shown) > 10
    assert [line for line in shown if line not in {known.strip() for known in code.splitlines()}] == []
