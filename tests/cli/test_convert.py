"""convert: what is written is whole or not there, what was there stays, and all that is lost is told."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from devicekit import host
from devicekit.errors import WeightsError
from devicekit.pickles.conversion import Wish, convert
from tests.cli.calling import SRC, run
from tests.pickles.making import FOUR, archive, loaded, of_torch, op_dict, op_ints, op_tensor, program


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint as a training script saves it."""
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"module.w": weight, "module.tied": weight, "module.n": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old.pt")
    return tmp_path / "old.pt"


def _new(old: Path) -> str:
    return str(old.with_name("new.safetensors"))


def test_it_tells_what_became_of_what(old: Path) -> None:
    """The new file, its tensors, ties, values, and how to take one part alone."""
    code, out, err = run("convert", str(old), _new(old))
    assert (code, err) == (0, "")
    assert out.startswith(f"{_new(old)}: 2 tensors, 32 B (1 float32, 1 int64), from torch.save; written, read again")
    assert "state_dict.module.tied = state_dict.module.w" in out
    assert "'devicekit.values': epoch" in out
    assert "state_dict (3 tensors)" in out
    assert loaded(old.parent)["state_dict.module.w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_options_and_json(old: Path) -> None:
    """A part, shorter names, another dtype; one document."""
    words = ("--key", "state_dict", "--strip-prefix", "module.", "--dtype", "float16", "--json")
    code, out, err = run("convert", str(old), _new(old), *words)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "source": str(old),
        "kind": "torch.save",
        "target": _new(old),
        "tensors": 2,
        "bytes": 20,
        "dtypes": {"float16": 1, "int64": 1},
        "tied": {"tied": "w"},
        "values": [],
        "left_out": {},
        "parts": {},
    }
    assert loaded(old.parent)["w"].dtype == torch.float16


def test_nothing_is_overwritten_unasked(old: Path) -> None:
    """A file, an index or a shard in the way is an error; with --overwrite it is replaced."""
    for name in ("new.safetensors", "new.safetensors.index.json"):
        there = old.with_name(name)
        there.write_text("precious")
        code, _, err = run("convert", str(old), _new(old))
        assert code == 2
        assert f"{there} is there already" in err
        assert there.read_text() == "precious"
        assert run("convert", str(old), _new(old), "--overwrite").code == 0
        old.with_name("new.safetensors").unlink()
    assert run("convert", str(old), _new(old)).code == 0
    assert sorted(path.name for path in old.parent.iterdir()) == ["new.safetensors", "old.pt"]


def test_the_old_file_is_never_the_new_one(tmp_path: Path) -> None:
    """A pickle under the name .safetensors cannot be converted onto itself, nor through a link."""
    old = tmp_path / "new.safetensors"
    torch.save({"w": torch.ones(2)}, old)
    before = old.read_bytes()
    code, _, err = run("convert", str(old), str(old), "--overwrite")
    assert (code, old.read_bytes()) == (2, before)
    assert "is what would be converted" in err


def test_a_refused_file_is_exit_code_1(tmp_path: Path) -> None:
    """Its names are listed, as data too, and nothing is written."""
    old = tmp_path / "old.pt"
    old.write_bytes(of_torch(program(b"cos\nsystem\nX\4\0\0\0true\x85R")))
    code, out, err = run("convert", str(old), _new(old), "--json")
    assert code == 1
    assert json.loads(out) == {"source": str(old), "refused": [{"name": "os.system", "count": 1, "byte": 2}]}
    assert err.splitlines()[0] == f"devicekit: {old} is not converted."
    assert "'os.system' at byte 2" in err
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_everything_as_it_was(old: Path, stop: type[BaseException]) -> None:
    """What is stopped in the middle of writing leaves no draft, and the old target."""
    new = Path(_new(old))
    new.write_text("precious")

    def interrupt(done: int, _: int) -> None:
        if done:
            raise stop

    with pytest.raises(stop):
        convert(old, new, Wish(overwrite=True), host.current(), interrupt)
    assert new.read_text() == "precious"
    assert sorted(path.name for path in old.parent.iterdir()) == ["new.safetensors", "old.pt"]


def test_a_new_file_that_is_not_what_was_written_is_thrown_away(old: Path) -> None:
    """Each tensor is read again and compared before the new file takes its place."""
    new = Path(_new(old))
    new.write_text("precious")

    def spoil(done: int, total: int) -> None:
        if done == total:
            (draft,) = old.parent.glob(".new*")
            with draft.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x55")

    with pytest.raises(WeightsError, match="is not there as it was written"):
        convert(old, new, Wish(overwrite=True), host.current(), spoil)
    assert new.read_text() == "precious"


def test_a_compressed_file_that_breaks_on_the_way(tmp_path: Path) -> None:
    """What turns out only while it is read is an error too, and nothing is left."""
    np.savez_compressed(tmp_path / "old.npz", a=np.random.default_rng(0).normal(size=100_000))
    data = bytearray((tmp_path / "old.npz").read_bytes())
    data[500_000] ^= 0xFF
    (tmp_path / "old.npz").write_bytes(data)
    code, _, err = run("convert", str(tmp_path / "old.npz"), str(tmp_path / "new.safetensors"))
    assert code == 2
    assert "its ZIP archive is broken" in err
    assert [path.name for path in tmp_path.iterdir()] == ["old.npz"]


def test_memory_is_that_of_a_part(tmp_path: Path) -> None:
    """A tensor of 200 MiB takes two parts of 64 MiB."""
    size = 200 << 20
    old = tmp_path / "old.pt"
    code = program(op_dict(w=op_tensor(op_ints(size // 4), op_ints(1))))
    code = code.replace(b"L4L\n", f"L{size // 4}L\n".encode())
    old.write_bytes(archive({"x/data.pkl": code, "x/data/0": bytes(size)}))
    tracemalloc.start()
    try:
        convert(old, tmp_path / "new.safetensors", Wish(), host.current())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "new.safetensors").stat().st_size > size
    assert peak < 160 << 20


def test_the_new_file_has_the_rights_of_any_new_file(old: Path) -> None:
    """And not those of a temporary one."""
    run("convert", str(old), _new(old))
    old.with_name("plain").write_text("")
    assert stat.S_IMODE(Path(_new(old)).stat().st_mode) == stat.S_IMODE(old.with_name("plain").stat().st_mode)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.pt", "new.safetensors"), "cannot be read"),
        (("old.pt", "new.json"), "ends in .safetensors"),
        (("", "new.safetensors"), "is no file"),
        (("old.pt", "no/such/folder/new.safetensors"), "make the folder first"),
        (("old.pt", "new.safetensors", "--dtype", "float8"), "invalid choice"),
        (("old.pt", "new.safetensors", "--key", "model"), "--key with one of these"),
        (("old.pt",), "required"),
    ],
)
def test_mistakes(old: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is three lines and exit code 2."""
    monkeypatch.chdir(old.parent)
    code, out, err = run("convert", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert [path.name for path in old.parent.iterdir()] == ["old.pt"]


def test_a_host_without_torch_and_numpy(old: Path) -> None:
    """Everything in order is converted with neither; what needs one of them says so."""
    program_text = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('torch', 'numpy'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from devicekit.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    views = old.with_name("views.pt")
    views.write_bytes(of_torch(program(op_dict(w=op_tensor(op_ints(2, 2), op_ints(1, 2)))), _0=FOUR))

    def alone(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program_text, "convert", *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SRC)})

    done = alone(str(old), _new(old))
    assert (done.returncode, done.stderr) == (0, "")
    assert loaded(old.parent)["state_dict.module.w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for words in ((str(views),), (str(old), "--dtype", "float16")):
        done = alone(words[0], str(old.with_name("other.safetensors")), *words[1:])
        assert (done.returncode, "pip install numpy" in done.stderr) == (2, True), done.stderr
