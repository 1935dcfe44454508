"""The forecasting service of docs/examples: trained, served and asked as a user would, then promise by promise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

import httpx  # noqa: E402

import devicekit as dk  # noqa: E402
from devicekit.testing import simulated_machine  # noqa: E402

pytestmark = pytest.mark.usefixtures("examples", "one_thread")

HOUR = 3600


@pytest.fixture
def shell(user: dict[str, str], examples: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python -m`` in the folder of the examples."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *arguments]
        mine = {**user, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **env}
        return subprocess.run(command, cwd=examples, env=mine, capture_output=True, text=True, timeout=240, check=False)

    return run


@contextlib.contextmanager
def served(user: dict[str, str], examples: Path, *arguments: str, **env: str) -> Iterator[tuple[str, Any]]:
    """A service in a process of its own: its address and the process."""
    mine = {**user, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **env}
    command = [sys.executable, "-m", "forecasting.service", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=examples, env=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), process.communicate(timeout=60)
        yield address, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until_ready(address: str) -> dict[str, Any]:
    """What readyz says once it says 200."""
    for _ in range(1200):
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{address}/v1/readyz", timeout=60)
            if answer.status_code == 200:
                return answer.json()
            assert answer.status_code == 503
        time.sleep(0.05)
    raise AssertionError("it never became ready")


# -- as a user does it ---------------------------------------------------------------------------
@pytest.mark.slow
def test_train_serve_and_ask(shell: Any, user: dict[str, str], examples: Path, tmp_path: Path) -> None:
    """Three commands: the loss falls, a pin that cannot be kept is told, and every answer under load is right."""
    trained = shell("forecasting.train", "--device", "auto", "--steps", "30", "--out", str(tmp_path / "first"))
    assert trained.returncode == 0, trained.stderr
    assert "on other series: loss" in trained.stderr
    told = json.loads((tmp_path / "first" / "config.json").read_text())["training"]
    for begin, end in (told["tokenizer_loss"], told["loss"], told["held_out_loss"]):
        assert end < 0.7 * begin

    with served(user, examples, "--model", str(tmp_path / "first"), KRONOS_DEVICE="npu:63") as (address, process):
        told = until_ready(address)
        assert "'npu:63' (from KRONOS_DEVICE) was asked for" in told["device_warning"]
        assert told["report"]["source"] == "KRONOS_DEVICE"
        assert told["memory"]["available"] <= told["memory"]["total"]
        loaded = shell("forecasting.load", "--url", address, "--clients", "3", "--requests", "12", "--samples", "2")
        assert (loaded.returncode, loaded.stderr) == (0, "")
        assert "12 requests of 3 clients" in loaded.stdout
        assert "errors: 0" in loaded.stdout
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "Traceback" not in said


@pytest.mark.slow
def test_two_processes_train_the_same_model(shell: Any, tmp_path: Path) -> None:
    """Under torchrun the gradients are averaged, rank 0 writes, and the weights are those of one process."""
    common = ("--steps", "6", "--batch", "4", "--device", "cpu", "--out")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    done = shell(*torchrun, "forecasting.train", *common, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("on cpu; processes: 2") == 2  # of the tokenizer and the model, by rank 0 alone
    from forecasting.train import main

    assert main([*common, str(tmp_path / "one")]) == 0
    dm = dk.DeviceManager("cpu")
    for name in ("model.safetensors", "tokenizer.safetensors"):
        two, one = (dm.load_safetensors(tmp_path / folder / name, copy=True) for folder in ("two", "one"))
        assert two.keys() == one.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)


# -- training ------------------------------------------------------------------------------------
def small(**changes: Any) -> Any:
    """Sizes with which a test takes milliseconds."""
    from forecasting.model import Config

    return Config(**{"levels": (5, 5, 3), "width": 32, "layers": 1, "heads": 2, "context": 32, "horizon": 8, **changes})


def made(seed: int = 0, config: Any = None) -> Any:
    """A predictor that has learned nothing."""
    from forecasting import folder
    from forecasting.predictor import Predictor

    torch.manual_seed(seed)
    return Predictor(*folder.build(config or small()), "cpu")


def test_a_trained_model_beats_an_untrained_one() -> None:
    """On series that it has not seen its forecasts are nearer, and nearer than to say that nothing will change."""
    from forecasting.candles import Candles
    from forecasting.market import make_candles
    from forecasting.predictor import Predictor
    from forecasting.train import Plan, train

    dm = dk.DeviceManager("cpu")
    config = small(levels=(7, 5, 5), width=48)
    model, tokenizer, told = train(dm, config, Plan(steps=120))
    before, after = told["held_out_loss"]
    assert after < 0.75 * before

    new = made(5, config)
    errors: dict[str, list[float]] = {"trained": [], "untrained": [], "last close": []}
    for seed in range(700, 724):
        whole = make_candles(40, seed)
        past, closes = Candles(whole.times[:32], whole.values[:32]), np.log(whole.values[32:, 3])
        for name, each in (
            ("trained", Predictor(model, tokenizer, dm)),
            ("untrained", Predictor(new.model, tokenizer, dm)),
        ):
            forecast = each.predict(past, 8, samples=8, seed=seed)
            errors[name].append(float(np.abs(np.log(forecast.mean[:, 3]) - closes).mean()))
        errors["last close"].append(float(np.abs(np.log(past.values[-1, 3]) - closes).mean()))
    means = {name: np.mean(found) for name, found in errors.items()}
    assert means["trained"] < 0.75 * means["untrained"]
    assert means["trained"] < 0.75 * means["last close"]


def test_training_repeats_itself() -> None:
    """The same seed makes the same weights, and another one others."""
    from forecasting.train import Plan, train

    dm = dk.DeviceManager("cpu")
    one, again, other = (train(dm, small(), Plan(steps=3, batch=2, seed=seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_a_batch_that_cannot_be_shared() -> None:
    """It is refused before anything is computed, for the parts would not weigh the same."""
    from forecasting.train import Plan, Share, train

    with pytest.raises(dk.DeviceKitError, match="a batch of 16 windows cannot be shared by 3 processes"):
        train(dk.DeviceManager("cpu"), small(), Plan(), Share(0, 3))


def test_a_model_survives_its_folder(tmp_path: Path) -> None:
    """What is loaded forecasts what was saved, also after the files are gone."""
    from forecasting import folder
    from forecasting.market import make_candles
    from forecasting.predictor import Predictor

    before, candles = made(), make_candles(32, 1)
    folder.save(tmp_path, before.model, before.tokenizer, {})
    loaded = Predictor.load(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    assert np.array_equal(loaded.predict(candles, 3, seed=1).paths, before.predict(candles, 3, seed=1).paths)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no model: there is no config.json"),
        ("{", "describes no model"),
        ('{"model": {"levels": [5], "depth": 3}}', "unexpected keyword argument 'depth'"),
        ('{"model": {"levels": [4]}}', "levels are odd numbers from 3"),
        ('{"model": {"levels": [5], "width": 33}}', "4 heads cannot share a width of 33"),
        ('{"model": {"levels": [5], "width": 1e9}}', "from 1 to 65536"),
        ("[" * 100_000, "describes no model"),
    ],
)
def test_a_folder_that_holds_no_model(tmp_path: Path, text: str | None, words: str) -> None:
    """Its configuration is missing, broken or of another kind."""
    from forecasting import folder

    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(folder.ModelError, match=words):
        folder.read_config(tmp_path)


# -- candles -------------------------------------------------------------------------------------
GOOD = [10.0, 12.0, 9.0, 11.0, 5.0]


@pytest.mark.parametrize("columns", [5, 6])
def test_features_give_the_candles_back(columns: int) -> None:
    """Nothing but the first gap is lost on the way to numbers of one size, whatever the market's units."""
    from forecasting.features import Scale
    from forecasting.market import make_candles

    values = make_candles(64, 3).values[:, :columns] * ([1000.0] * 4 + [1e-3] * (columns - 4))
    scale = Scale.of(values[:48])
    back = scale.candles(scale.features(values)[None, 48:], columns)[0]
    np.testing.assert_allclose(back, values[48:], rtol=1e-4)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_candles_take_lists_arrays_and_tensors(kind: Any) -> None:
    """And keep doubles and whole seconds; so do NumPy's own times."""
    from forecasting.candles import Candles

    candles = Candles(kind([0, HOUR]), kind([GOOD, GOOD]))
    assert (candles.times.dtype, candles.values.dtype, len(candles)) == (np.int64, np.float64, 2)
    dated = Candles(np.array(["1970-01-01T00", "1970-01-01T01"], "datetime64[ns]"), [GOOD, GOOD])
    assert dated.times.tolist() == candles.times.tolist()


FAULTY = {
    "not finite": [10.0, float("nan"), 9.0, 11.0, 5.0],
    "above 1e30": [10.0, 12.0, 9.0, 11.0, 1e31],
    "price that is not above 0": [10.0, 12.0, 0.0, 11.0, 5.0],
    "high below its low": [10.0, 8.0, 9.0, 11.0, 5.0],
    "outside its low and high": [13.0, 12.0, 9.0, 11.0, 5.0],
    "negative volume": [10.0, 12.0, 9.0, 11.0, -5.0],
}


@pytest.mark.parametrize("words", FAULTY)
def test_an_impossible_candle_is_named(words: str) -> None:
    """With its number and what is wrong with it."""
    from forecasting.candles import Candles, ForecastError

    with pytest.raises(ForecastError, match=f"candle 1 .*{words}"):
        Candles([0, HOUR], [GOOD, FAULTY[words]])


@pytest.mark.parametrize(
    ("times", "values", "words"),
    [
        ([0, HOUR], [[*GOOD, 1.0], [*GOOD, -1.0]], "candle 1 has a negative amount"),
        ([HOUR, 0], [GOOD, GOOD], r"candle 1 \(1970-01-01T00:00:00Z\) is not later"),
        ([0, 0], [GOOD, GOOD], "times must increase"),
        ([0], [GOOD, GOOD], "there are 2 candles, and times"),
        ([0, 1_704_067_200_000], [GOOD, GOOD], "milliseconds"),
        ([0.5, 1.5], [GOOD, GOOD], "times are whole seconds"),
        ([0, [1]], [GOOD, GOOD], "the times are no list"),
        ([0, 1], [GOOD, GOOD[:3]], "no table of numbers"),
        ([0, 1], [GOOD[:4], GOOD[:4]], r"not \(2, 4\)"),
        ([0, 1], [["a"] * 5] * 2, "the candles are no numbers"),
    ],
)
def test_candles_that_are_none(times: Any, values: Any, words: str) -> None:
    """Shapes, types and orders that make no series are told in words."""
    from forecasting.candles import Candles, ForecastError

    with pytest.raises(ForecastError, match=words):
        Candles(times, values)


# -- the model -----------------------------------------------------------------------------------
def test_the_tokenizer_s_two_ways_agree() -> None:
    """Every token comes back from its own features' code, and decoding one is what rounding leaves of a candle."""
    tokenizer = made().tokenizer
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 2
    tokens = tokenizer.encode(features)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocabulary == 75
    torch.testing.assert_close(tokenizer.decode(tokens), tokenizer(features))
    assert len(torch.unique(tokenizer.decode(torch.arange(75)), dim=0)) == 75


def test_memory_changes_nothing() -> None:
    """One token after another, with what was kept, gives the logits of all at once; and none sees a later one."""
    model = made(config=small(layers=2)).model
    tokens, stamps = torch.arange(10)[None], torch.randn(1, 10, 4)
    with torch.no_grad():
        whole = model(tokens, stamps)
        logits, memory = model.advance(tokens[:, :6], stamps[:, :6])
        parts = [logits]
        for at in range(6, 10):
            logits, memory = model.advance(tokens[:, at : at + 1], stamps[:, at : at + 1], memory)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_sampling_keeps_to_the_likely() -> None:
    """top_k=1 and a tiny top_p leave one path; chance at its ends still draws a token that is there."""
    from forecasting.model import Sampling, sample

    each = made()
    tokens, stamps = torch.arange(5), torch.zeros(8, 4)
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    plain = sample(each.model, tokens, stamps, noise, Sampling())
    (greedy,) = torch.unique(sample(each.model, tokens, stamps, noise, Sampling(top_k=1)), dim=0)
    (narrow,) = torch.unique(sample(each.model, tokens, stamps, noise, Sampling(top_p=1e-6)), dim=0)
    (cold,) = torch.unique(sample(each.model, tokens, stamps, noise, Sampling(temperature=1e-6)), dim=0)
    assert greedy.tolist() == narrow.tolist() == cold.tolist()
    assert len(torch.unique(plain, dim=0)) > 1
    ends = sample(each.model, tokens, stamps, torch.tensor([[-40.0] * 4, [40.0] * 4]), Sampling(top_k=3))
    assert 0 <= int(ends.min()) <= int(ends.max()) < 75
    assert ends[0].tolist() == greedy.tolist()


# -- the predictor -------------------------------------------------------------------------------
def test_a_seed_is_a_forecast() -> None:
    """The same one gives the same paths, alone or beside others; without one it is told afterwards."""
    from forecasting.market import make_candles

    predictor, candles = made(), make_candles(32, 1)
    alone = [predictor.predict(candles, 5, seed=seed).paths for seed in range(4)]
    assert not np.array_equal(alone[0], alone[1])
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: predictor.predict(candles, 5, seed=seed).paths, [0, 1, 2, 3] * 3))
    assert all(np.array_equal(alone[at % 4], paths) for at, paths in enumerate(together))
    assert torch.equal(torch.get_rng_state(), before)
    unseeded = predictor.predict(candles, 5)
    assert np.array_equal(predictor.predict(candles, 5, seed=unseeded.seed).paths, unseeded.paths)


@pytest.mark.parametrize("columns", [5, 6])
def test_a_forecast_is_made_of_candles(columns: int) -> None:
    """High is highest, low is lowest, nothing is negative, and it goes on in the rhythm of what was given."""
    from forecasting.candles import Candles
    from forecasting.market import make_candles

    given = make_candles(50, 2)
    forecast = made().predict(Candles(given.times, given.values[:, :columns]), 8, samples=16, seed=0)
    assert forecast.paths.shape == (16, 8, columns)
    assert (forecast.times - given.times[-1]).tolist() == [HOUR * step for step in range(1, 9)]
    for path in [*forecast.paths, forecast.mean]:
        Candles(forecast.times, path)


def test_a_market_that_stands_still_goes_on_so() -> None:
    """No movement and no volume, and the forecast has none to speak of either."""
    from forecasting.candles import Candles

    forecast = made().predict(Candles(np.arange(20), [[7.0, 7.0, 7.0, 7.0, 0.0, 0.0]] * 20), 8, seed=0)
    np.testing.assert_allclose(forecast.paths[..., :4], 7.0, rtol=1e-3)
    assert (forecast.paths[..., 4:] == 0).all()


def test_candles_beyond_all_measure() -> None:
    """Where a market jumps by sixty powers of ten, what numbers cannot hold is told in words; never as infinity."""
    from forecasting.candles import Candles, ForecastError
    from forecasting.features import Scale

    rows = np.array([[price, price, price, price, 1e30] for price in [1e-30, 1e30] * 10])
    for step in (6.0, -6.0):
        with pytest.raises(ForecastError, match="leaves what numbers can hold"):
            Scale.of(rows).candles(np.full((1, 8, 6), step, np.float32), 5)
    with contextlib.suppress(ForecastError):
        assert np.isfinite(made().predict(Candles(np.arange(20), rows), 8, samples=64, seed=0).mean).all()


NONSENSE = [
    ({"horizon": 9}, "a horizon of 9 candles cannot be forecast; it is 1 to 8"),
    ({"horizon": 0}, "a horizon of 0"),
    ({"temperature": 0.0}, "a temperature of 0.0 cannot be"),
    ({"temperature": float("inf")}, "a temperature of inf"),
    ({"temperature": float("nan")}, "a temperature of nan"),
    ({"top_p": 0.0}, "top_p is a probability"),
    ({"top_p": 1.5}, "top_p is a probability"),
    ({"top_k": 0}, "top_k is a number of tokens from 1"),
    ({"samples": 0}, "0 samples"),
]


@pytest.mark.parametrize(("changes", "words"), NONSENSE)
def test_a_question_that_makes_no_sense(changes: dict[str, Any], words: str) -> None:
    """Each number is checked, and the answer says what it may be."""
    from forecasting.candles import ForecastError
    from forecasting.market import make_candles

    with pytest.raises(ForecastError, match=words):
        made().predict(make_candles(20, 1), **{"horizon": 2, **changes})


def test_too_few_candles() -> None:
    """From fewer than 16 nothing is forecast."""
    from forecasting.candles import ForecastError
    from forecasting.market import make_candles

    with pytest.raises(ForecastError, match="15 candles are too few; at least 16"):
        made().predict(make_candles(15, 1), 1)


def test_top_k_may_be_any_number() -> None:
    """More than there are tokens is all of them."""
    from forecasting.market import make_candles

    predictor, candles = made(), make_candles(20, 1)
    all_of_them = predictor.predict(candles, 2, seed=1, top_k=10**30)
    assert np.array_equal(all_of_them.paths, predictor.predict(candles, 2, seed=1).paths)


@pytest.mark.parametrize("machine", [{"cuda": 2}, {"npu": 1}, {"mps": True}, {}], ids=str)
def test_every_device_gives_the_same_forecast(machine: dict[str, Any], tmp_path: Path) -> None:
    """On simulated machines (their tensors are the CPU's) it goes to the best device, and gives the same."""
    from forecasting import folder
    from forecasting.market import make_candles
    from forecasting.predictor import Predictor

    here, candles = made(), make_candles(32, 1)
    folder.save(tmp_path, here.model, here.tokenizer, {})
    with simulated_machine(**machine):
        there = Predictor.load(tmp_path)
        assert (there.device.type, there.device_warning) == (next(iter(machine), "cpu"), None)
        paths = there.predict(candles, 4, seed=1).paths
    assert np.array_equal(paths, here.predict(candles, 4, seed=1).paths)


def test_the_pin_counts() -> None:
    """KRONOS_DEVICE decides for "auto"; where it cannot be kept, that is told, and strictly it is an error."""
    from forecasting import folder
    from forecasting.predictor import Predictor

    parts = folder.build(small())
    with simulated_machine(cuda=2, env={"KRONOS_DEVICE": "cuda:1"}):
        assert str(Predictor(*parts).device) == "cuda:1"
    with simulated_machine("cpu", env={"KRONOS_DEVICE": "xpu:1"}):
        with pytest.warns(dk.DeviceFallbackWarning):
            fallen = Predictor(*parts)
        assert str(fallen.device) == "cpu"
        assert fallen.device_warning.startswith("'xpu:1' (from KRONOS_DEVICE) was asked for")
        with pytest.raises(dk.DeviceUnavailableError, match="'xpu:1'"):
            Predictor(*parts, strict=True)


# -- the service ---------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application itself, from its start to its end."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            yield client


def talk(app: Any, conversation: Callable[[httpx.AsyncClient], Any]) -> Any:
    """What the conversation gives."""

    async def all_of_it() -> Any:
        async with client_of(app) as client:
            return await conversation(client)

    return asyncio.run(all_of_it())


def asking(**changes: Any) -> dict[str, Any]:
    """A question that can be answered, but for the changes."""
    from forecasting.load import question

    return {**question(1), "horizon": 2, "samples": 2, **changes}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of two models."""
    from forecasting import folder

    for seed, name in enumerate(("first", "second")):
        each = made(seed)
        folder.save(tmp_path / name, each.model, each.tokenizer, {})
    return tmp_path


async def ready(client: httpx.AsyncClient) -> dict[str, Any]:
    """What readyz says once it says 200."""
    while (answer := await client.get("/v1/readyz")).status_code == 503:
        await asyncio.sleep(0.01)
    return answer.json()


def test_the_service_forecasts_what_the_predictor_forecasts(models: Path) -> None:
    """Through JSON the same numbers, with device, seed, times and the closes of every path."""
    from forecasting.market import make_candles
    from forecasting.predictor import Predictor
    from forecasting.service import create_app

    async def conversation(client: httpx.AsyncClient) -> Any:
        told = await ready(client)
        return told, (await client.post("/v1/predict", json=asking(seed=7))).json()

    told, answer = talk(create_app(models / "first", "cpu"), conversation)
    expected = Predictor.load(models / "first", "cpu").predict(make_candles(64, 1), 2, samples=2, seed=7)
    assert (told["ready"], told["model"], told["device"], told["device_warning"]) == (True, "first", "cpu", None)
    assert told["memory"]["total"] > 0
    assert told["report"]["versions"]["torch"]
    assert (answer["model"], answer["device"], answer["seed"]) == ("first", "cpu", 7)
    assert answer["closes"] == expected.paths[:, :, 3].tolist()
    assert [candle["amount"] for candle in answer["candles"]] == expected.mean[:, 5].tolist()
    assert answer["candles"][0]["time"].endswith("Z")


def test_it_is_not_ready_before_there_is_a_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 from readyz and predict, until /v1/load-model has answered with the device."""
    from forecasting.service import create_app

    async def conversation(client: httpx.AsyncClient) -> Any:
        early = [await client.get("/v1/readyz"), await client.post("/v1/predict", json=asking())]
        loaded = await client.post("/v1/load-model", json={"model": "second", "device": "cpu"})
        return early, loaded, await client.get("/v1/readyz")

    monkeypatch.chdir(models)
    early, loaded, late = talk(create_app(), conversation)
    for answer in early:
        assert (answer.status_code, answer.json()["error"]) == (503, "no model has been loaded")
        assert answer.headers["Retry-After"] == "1"
    assert (loaded.status_code, loaded.json()["model"], loaded.json()["device"]) == (200, "second", "cpu")
    assert late.status_code == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "third"}, "third holds no model"),
        ({"model": "broken"}, "broken"),
        ({"model": "../first"}, "model: String should match pattern"),
        ({"model": "/etc"}, "model: String should match pattern"),
        ({"model": "first", "device": "cuad"}, "'cuad' is no device"),
        ({"model": 3}, "model: Input should be a valid string"),
        ({}, "model: Field required"),
    ],
)
def test_a_load_that_fails_changes_nothing(models: Path, change: dict[str, Any], words: str) -> None:
    """The answer says why, and the model before it goes on serving; after it another one can be loaded."""
    from forecasting.service import create_app

    (models / "broken").mkdir()
    for file in (models / "first").iterdir():
        (models / "broken" / file.name).write_bytes(
            file.read_bytes()[:2000] if file.stem == "model" else file.read_bytes()
        )

    async def conversation(client: httpx.AsyncClient) -> Any:
        await ready(client)
        failed = await client.post("/v1/load-model", json=change)
        after = await client.post("/v1/predict", json=asking())
        await client.post("/v1/load-model", json={"model": "second"})
        return failed, after, await client.post("/v1/predict", json=asking())

    failed, after, other = talk(create_app(models / "first", "cpu"), conversation)
    assert failed.status_code == 422
    assert words in failed.json()["error"]
    assert (after.status_code, after.json()["model"]) == (200, "first")
    assert other.json()["model"] == "second"
    assert other.json()["closes"] != after.json()["closes"]


def test_a_first_model_that_cannot_be_loaded(models: Path) -> None:
    """readyz keeps the reason, and another one can be loaded."""
    from forecasting.service import create_app

    (models / "second" / "model.safetensors").unlink()

    async def conversation(client: httpx.AsyncClient) -> Any:
        while "being loaded" in (early := await client.get("/v1/readyz")).json()["error"]:
            await asyncio.sleep(0.01)
        await client.post("/v1/load-model", json={"model": "first"})
        return early, await client.get("/v1/readyz")

    early, late = talk(create_app(models / "second", "cpu"), conversation)
    assert early.status_code == 503
    assert "model.safetensors" in early.json()["error"]
    assert late.json()["model"] == "first"


def test_a_strict_service_takes_no_other_device(models: Path) -> None:
    """A device that is not here is refused, with the reason; else the next one is taken, with a warning."""
    from forecasting.service import create_app

    async def conversation(client: httpx.AsyncClient) -> Any:
        await ready(client)
        return (await client.post("/v1/load-model", json={"model": "first", "device": "xpu"})).json()

    with simulated_machine("cpu"):
        assert "'xpu' was asked for" in talk(create_app(models / "first", strict=True), conversation)["error"]
        with pytest.warns(dk.DeviceFallbackWarning):
            told = talk(create_app(models / "first"), conversation)
    assert told["device"] == "cpu"
    assert "'xpu' was asked for" in told["device_warning"]


def candle(**changes: Any) -> dict[str, Any]:
    whole = {"time": "2024-01-01T00:00:00Z", "open": 10, "high": 12, "low": 9, "close": 11, "volume": 5}
    return {**whole, **changes}


ROWS = [candle(time=f"2024-01-01T{hour:02}:00:00Z") for hour in range(20)]
BAD = {
    "too few": ({"candles": ROWS[:3]}, "3 candles are too few"),
    "none": ({"candles": []}, "0 candles are too few"),
    "nan": ({"candles": [*ROWS, candle(time="2024-01-02", open=float("nan"))]}, "candle 20 holds a number that is not"),
    "high below low": ({"candles": [*ROWS, candle(time="2024-01-02", high=8)]}, "candle 20 has a high below its low"),
    "negative volume": ({"candles": [*ROWS, candle(time="2024-01-02", volume=-1)]}, "candle 20 has a negative volume"),
    "unsorted": ({"candles": ROWS[::-1]}, "times must increase"),
    "a time that is none": ({"candles": [candle(time="soon")]}, "candles.0.time: "),
    "a time that is no number": ({"candles": [candle(time=float("nan"))]}, "candles.0.time: "),
    "text for a price": ({"candles": [candle(open="10")]}, "candles.0.open: Input should be a valid number"),
    "true for a price": ({"candles": [candle(open=True)]}, "candles.0.open: Input should be a valid number"),
    "a huge price": ({"candles": [candle(open=10**400)]}, "candles.0.open: "),
    "no close": ({"candles": [{k: v for k, v in candle().items() if k != "close"}]}, "candles.0.close: Field required"),
    "some amounts": ({"candles": [candle(amount=3.0), *ROWS]}, "some candles have an amount"),
    "too many": ({"candles": ROWS * 205}, "candles: List should have at most 4096 items"),
    "no list": ({"candles": 5}, "candles: Input should be a valid list"),
    "too far": ({"horizon": 9}, "a horizon of 9 candles cannot be forecast"),
    "a horizon of text": ({"horizon": "2"}, "horizon: Input should be a valid integer"),
    "half a horizon": ({"horizon": 1.5}, "horizon: Input should be a valid integer"),
    "an endless horizon": ({"horizon": 10**30}, "cannot be forecast"),
    "a negative seed": ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    "a seed of text": ({"seed": "1"}, "seed: Input should be a valid integer"),
    "too many samples": ({"samples": 65}, "samples: Input should be less than or equal to 64"),
    "no temperature": ({"temperature": float("nan")}, "a temperature of nan"),
    "a misspelling": ({"horizn": 3}, "horizn: Extra inputs are not permitted"),
}


def test_bad_questions_are_answered_in_words(models: Path) -> None:
    """422 with the place and the reason, for each of them; and after all of them a good one is answered."""
    from forecasting.service import create_app

    async def conversation(client: httpx.AsyncClient) -> Any:
        await ready(client)
        found = {}
        for name, (changes, words) in BAD.items():
            body = json.dumps(asking(**changes))  # httpx refuses NaN, json does not
            answer = await client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
            if answer.status_code != 422 or words not in answer.json()["error"]:
                found[name] = (answer.status_code, answer.text)
        broken = await client.post("/v1/predict", content="{", headers={"Content-Type": "application/json"})
        good = await client.post(
            "/v1/predict", json=asking(candles=[*ROWS, candle(time="2024-01-02T00:00:00+02:00")][:20])
        )
        return found, broken, good

    found, broken, good = talk(create_app(models / "first", "cpu"), conversation)
    assert found == {}
    assert (broken.status_code, "JSON" in broken.json()["error"]) == (422, True)
    assert good.status_code == 200
    assert "amount" not in good.json()["candles"][0]


# -- under pressure ------------------------------------------------------------------------------
class Scripted:
    """A predictor whose forecasts first do what they are told."""

    def __init__(self) -> None:
        self.real = made()
        self.first: Callable[[], Any] = lambda: None
        self.emptied = 0
        self.dm = self

    def predict(self, *args: Any, **options: Any) -> Any:
        self.first()
        return self.real.predict(*args, **options)

    def empty_cache(self) -> None:
        self.emptied += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real.dm if name == "report" else self.real, name)


def scripted(limit: int = 16) -> tuple[Any, Scripted]:
    """An application with such a predictor, under any name but one that does not fit."""
    from forecasting.engine import Engine
    from forecasting.service import create_app

    predictor = Scripted()

    def load(name: str, device: str | None) -> Any:
        if name == "huge":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")
        return predictor

    return create_app(engine=Engine(load, limit=limit)), predictor


def too_much() -> None:
    """More than any machine has, asked of the allocator itself."""
    torch.empty(2**60, dtype=torch.uint8)


def on_the_card() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("fail", [on_the_card, too_much])
def test_memory_that_runs_out_is_told_and_outlived(fail: Callable[[], None]) -> None:
    """507 in words, the cache is emptied, and the next question is answered as ever."""
    app, predictor = scripted()

    async def conversation(client: httpx.AsyncClient) -> Any:
        await client.post("/v1/load-model", json={"model": "any"})
        before = await client.post("/v1/predict", json=asking())
        predictor.first, emptied = fail, predictor.emptied
        failed = await client.post("/v1/predict", json=asking())
        predictor.first = lambda: None
        assert predictor.emptied == emptied + 1
        return before, failed, await client.post("/v1/predict", json=asking())

    before, failed, after = talk(app, conversation)
    assert (failed.status_code, failed.json()["error"][:31]) == (507, "the device has not enough memor")
    assert (after.status_code, after.json()) == (200, before.json())


def test_a_model_that_does_not_fit() -> None:
    """507, whether reading it or trying it fails; the one before it goes on."""
    app, predictor = scripted()

    async def conversation(client: httpx.AsyncClient) -> Any:
        await client.post("/v1/load-model", json={"model": "one"})
        huge = await client.post("/v1/load-model", json={"model": "huge"})
        predictor.first = on_the_card
        tried = await client.post("/v1/load-model", json={"model": "two"})
        predictor.first = lambda: None
        return huge, tried, await client.post("/v1/predict", json=asking())

    huge, tried, after = talk(app, conversation)
    for failed in (huge, tried):
        assert (failed.status_code, failed.json()["error"]) == (507, "the device has not enough memory for this model")
    assert after.json()["model"] == "one"


def test_a_long_forecast_stops_nobody_and_a_queue_has_an_end() -> None:
    """While one runs and one waits, readyz answers and a third is turned away with Retry-After; both are served."""
    app, predictor = scripted(limit=2)
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(60)

    async def conversation(client: httpx.AsyncClient) -> Any:
        await client.post("/v1/load-model", json={"model": "any"})
        predictor.first = hold
        both = [asyncio.create_task(client.post("/v1/predict", json=asking())) for _ in range(2)]
        while not begun.is_set() or app.state.engine._waiting < 2:
            await asyncio.sleep(0.001)
        meanwhile = await client.get("/v1/readyz")
        third = await client.post("/v1/predict", json=asking())
        go_on.set()
        served = await asyncio.gather(*both)
        return meanwhile, third, served, await client.post("/v1/predict", json=asking())

    try:
        meanwhile, third, served, after = talk(app, conversation)
    finally:
        go_on.set()
    assert meanwhile.status_code == 200
    assert (third.status_code, third.json()["error"]) == (503, "2 forecasts are waiting; come back later")
    assert int(third.headers["Retry-After"]) >= 1
    assert [answer.status_code for answer in [*served, after]] == [200] * 3


def test_one_forecast_at_a_time() -> None:
    """However many ask at once, never two run, and equal seeds have equal answers."""
    app, predictor = scripted()
    running, most = 0, 0
    lock = threading.Lock()
    real = predictor.real.predict

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        found = real(*args, **options)
        with lock:
            running -= 1
        return found

    predictor.real.predict = counted

    async def conversation(client: httpx.AsyncClient) -> Any:
        await client.post("/v1/load-model", json={"model": "any"})
        return await asyncio.gather(*(client.post("/v1/predict", json=asking(seed=i % 3)) for i in range(12)))

    answers = [answer.json() for answer in talk(app, conversation)]
    assert most == 1
    assert all(answers[at] == answers[at % 3] for at in range(12))
    assert answers[0] != answers[1]


# -- the load test -------------------------------------------------------------------------------
def test_the_load_test_sees_what_is_wrong() -> None:
    """Other answers to the same question, and candles that cannot be, are faults."""
    from forecasting import load

    good = {"low": 1, "open": 2, "close": 2, "high": 3}
    assert load._wrong({"candles": [good] * load.HORIZON}) is None
    assert load._wrong({"candles": [good]}) == f"1 candles instead of {load.HORIZON}"
    assert load._wrong({"candles": [{**good, "high": 1}] * load.HORIZON}) == "a candle that cannot be"
    same = [load.Reply(1, 0.1, {"seed": 1}, None), load.Reply(2, 0.1, {"seed": 2}, None)]
    assert not load.faults([*same, same[0]])
    assert load.faults([*same, load.Reply(1, 0.1, {"seed": 3}, None), load.Reply(1, 0.1, None, "late")]) == {
        "another answer to the same question and seed": 1,
        "late": 1,
    }


# -- errors of the command lines -----------------------------------------------------------------
@pytest.fixture
def nowhere() -> str:
    """An address at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_command_that_cannot_begin_says_why(
    models: Path, nowhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, the reason on stderr, no traceback."""
    from forecasting import load, service, train

    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken, simulated_machine("cpu"):
        port = str(taken.getsockname()[1])
        first = str(models / "first")
        cases = [
            (service, ["--model", str(tmp_path / "no")], "holds no model"),
            (service, ["--model", first, "--device", "cuad"], "did you mean 'cuda'?"),
            (service, ["--model", first, "--device", "xpu", "--strict"], "'xpu' was asked for"),
            (service, ["--model", first, "--port", port], "in use"),
            (train, ["--out", str(tmp_path / "new"), "--device", "cuad"], "'cuad' is no device"),
            (train, ["--out", str(tmp_path / "file" / "new"), "--steps", "1", "--batch", "1"], "file"),
            (load, ["--url", nowhere], "cannot be asked: ConnectionRefusedError"),
            (load, ["--url", "ftp://here"], "it is no http://HOST:PORT"),
        ]
        for module, arguments, words in cases:
            assert module.main(arguments) == 2, arguments
            said = capsys.readouterr().err
            assert words in said
            assert "Traceback" not in said
    for module, arguments in [
        (train, ["--out", "x", "--steps", "0"]),
        (train, ["--out", "x", "--seed", "-1"]),
        (service, ["--model", "x", "--port", "70000"]),
        (load, ["--url", nowhere, "--clients", "none"]),
    ]:
        with pytest.raises(SystemExit, match="2"):
            module.main(arguments)
        assert "is no whole number from" in capsys.readouterr().err


def test_the_factory_takes_no_arguments() -> None:
    """So that ``uvicorn --factory forecasting.service:create_app`` can make the application."""
    from forecasting.service import create_app

    paths = {route.path for route in create_app().routes}
    assert {"/v1/predict", "/v1/readyz", "/v1/load-model"} <= paths


def test_the_pins_of_this_process_are_not_the_tests() -> None:
    """What the machine that runs the tests has pinned would change which device they talk about."""
    assert "KRONOS_DEVICE" not in os.environ
