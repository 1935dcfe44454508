"""A program that is run here sees and does what it does under ``python``. None of it needs torch."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import devicekit
from devicekit.redirect.running import NoProgramError, Program, asks_for_cuda

SRC = Path(devicekit.__file__).parents[1]
OURS = """
import sys
from devicekit.redirect.running import Program
kind, name, *rest = sys.argv[1:]
Program(name, rest, kind).run()
"""
FLAG = {"script": [], "module": ["-m"], "text": ["-c"]}

TELLS = """
import inspect, os, pickle, sys
class Kept:
    pass
def function():
    return 1
main = sys.modules["__main__"]
spec = None if __spec__ is None else (__spec__.name, __spec__.origin)
print(__name__, __package__, spec, globals().get("__file__"), type(__builtins__).__name__, __doc__)
print(sys.argv, sys.path[0], main.Kept is Kept, type(pickle.loads(pickle.dumps(Kept()))) is Kept)
print(type(__loader__).__name__, function.__code__.co_filename)
if globals().get("__file__", "").endswith(".py"):
    print(inspect.getsource(function))
"""


def both(kind: str, name: str, *rest: str, cwd: Path) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
    """What our way of running it gives, and what Python's gives: code, stdout, stderr."""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    env.pop("PYTHONSAFEPATH", None)
    found = []
    for command in (["-c", OURS, kind, name, *rest], [*FLAG[kind], name, *rest]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, cwd=cwd, env=env)
        found.append((done.returncode, done.stdout, done.stderr))
    return found[0], found[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A script, a package, a folder and a zip file that can be run, and a link to a script elsewhere."""
    for name in ("script.py", "inner/script.py", "package/__main__.py", "package/part.py", "app/__main__.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(TELLS)
    (tmp_path / "package" / "__init__.py").write_text("import sys\nprint('the package, with', sys.argv[0])\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "inner" / "script.py")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", TELLS)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("script", "script.py"), ("script", "inner/script.py"), ("script", "link.py"), ("script", "app"),
        ("script", "app.zip"), ("module", "package"), ("module", "package.part"), ("module", "script"),
        ("text", TELLS),
    ],
    ids=lambda value: value if len(value) < 20 else "...",
)  # fmt: skip
def test_it_sees_what_it_sees_under_python(folder: Path, kind: str, name: str) -> None:
    """Its name, file and spec, its arguments, where it imports from, itself as ``__main__``, its own text."""
    ours, pythons = both(kind, name, "--option", "--", "-x", cwd=folder)
    assert ours == pythons
    assert ours[0] == 0


ENDS = {
    "by itself": "print(1)",
    "exit": "import sys; sys.exit()",
    "exit None": "raise SystemExit(None)",
    "exit 3": "import sys; sys.exit(3)",
    "exit True": "import sys; sys.exit(True)",
    "exit with words": "import sys; sys.exit('it is enough')",
    "an error": "def f():\n    return 1 / 0\n\n\nf()",
    "a chain of errors": "try:\n    {}['x']\nexcept KeyError as exc:\n    raise ValueError('no x') from exc",
    "a hook of its own": "import sys\nsys.excepthook = lambda *told: print('hook', told[0])\n1 / 0",
    "not Python": "x = = 1",
    "a module that is missing": "import no_such_module",
    "another interruption": "class Stop(BaseException):\n    pass\n\n\nraise Stop",
}


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_it_ends_as_under_python(tmp_path: Path, text: str) -> None:
    """The same code, and the same on stderr: the program's frames and none of ours."""
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    ours, pythons = both("script", "script.py", cwd=tmp_path)
    assert ours == pythons


def test_an_interruption(tmp_path: Path) -> None:
    """The traceback is Python's, and the code what shells make of a process that was interrupted."""
    ours, pythons = both("text", "raise KeyboardInterrupt", cwd=tmp_path)
    assert ours[0] == 130
    assert ours[1:] == pythons[1:]


def test_a_module_whose_own_import_fails(tmp_path: Path) -> None:
    """That is an error of the program, with a traceback; it ends with 1."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import no_such_module\n")
    (code, out, err), _ = both("module", "package.part", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "devicekit" not in err
    assert err.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")


def test_its_threads_and_its_last_will_find_it_there(tmp_path: Path) -> None:
    """What runs after the last line finds the program's names and ``__main__``."""
    (tmp_path / "script.py").write_text(
        "import atexit, sys, threading, time\n"
        "def late(word):\n"
        "    time.sleep(0.2)\n"
        "    print(word, name, sys.modules['__main__'].late is late)\n"
        "name = 'still here'\n"
        "threading.Thread(target=late, args=('thread',)).start()\n"
        "atexit.register(late, 'exit')\n"
    )
    ours, pythons = both("script", "script.py", cwd=tmp_path)
    assert ours == pythons
    assert ours[1] == "thread still here True\nexit still here True\n"


def test_compiled_code(folder: Path) -> None:
    """A .pyc file is run as well."""
    import py_compile

    py_compile.compile(str(folder / "script.py"), cfile=str(folder / "compiled.pyc"), doraise=True)
    (code, out, err), _ = both("script", "compiled.pyc", cwd=folder)
    assert (code, err) == (0, "")
    assert out.startswith("__main__ None None ")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_spawned_find_the_program(tmp_path: Path, method: str) -> None:
    """By its file, also where its class is pickled to them."""
    if method == "forkserver" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    (tmp_path / "script.py").write_text(
        "import multiprocessing, sys\n"
        "class Task:\n"
        "    def __call__(self):\n"
        "        print(type(self).__module__, __name__, sys.argv, flush=True)\n"
        "if __name__ == '__main__':\n"
        f"    child = multiprocessing.get_context({method!r}).Process(target=Task())\n"
        "    child.start()\n"
        "    child.join()\n"
        "    print(child.exitcode)\n"
    )
    ours, pythons = both("script", "script.py", "-x", cwd=tmp_path)
    assert ours == pythons
    assert ours[1] == "__mp_main__ __mp_main__ ['script.py', '-x']\n0\n"


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder or a package without ``__main__``, a missing module: before anything runs, and why."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "__init__.py").touch()
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    for program, why in (
        (Program("none.py"), "no such file"),
        (Program("empty"), "no __main__.py"),
        (Program("no_such_module", kind="module"), "no module named 'no_such_module' is found"),
        (Program("no_such_module.part", kind="module"), "no module named 'no_such_module' is found"),
    ):
        with pytest.raises(NoProgramError) as caught:
            program.check()
        assert why in caught.value.why
    for name, why in (("empty", "no __main__.py"), ("empty.part", "there is no such module")):
        Program(name, kind="module").check()
        with pytest.raises(NoProgramError) as caught:
            Program(name, kind="module").run()
        assert why in caught.value.why


ASKING = {
    "assert x.is_cuda": True,
    "assert x.device.type == 'cuda'": True,
    'assert x.device.type == "cuda", x': True,
    "if not x.is_cuda:\n    raise ValueError('wrong device')": True,
    "assert x.shape == 2": False,
    "assert x.my_is_cuda_like": False,
    "raise RuntimeError('cuda')": False,
}


@pytest.mark.parametrize(("text", "asks"), ASKING.items())
def test_a_refusal_that_asks_for_cuda(tmp_path: Path, text: str, asks: bool) -> None:
    """The line that raised it says so, or the one above."""

    class Like:
        is_cuda = my_is_cuda_like = False
        shape = 1
        device = type("device", (), {"type": "cpu"})

    file = tmp_path / "asking.py"
    file.write_text(f"def f(x):\n    {text.replace(chr(10), chr(10) + '    ')}\n")
    names: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with pytest.raises((AssertionError, RuntimeError, ValueError)) as caught:
        names["f"](Like)  # type: ignore[operator]
    assert asks_for_cuda(caught.value) is asks


def test_nothing_asks_for_cuda() -> None:
    assert not asks_for_cuda(None)
    assert not asks_for_cuda(ValueError("never raised"))
