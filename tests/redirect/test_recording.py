"""What is counted, at which line of the program, and how the counts of child processes come to their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from devicekit.redirect import told
from devicekit.redirect.recording import Place, Record, Row, place_of
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")

HERE = str(Path(__file__))


def shown(file: str) -> str:
    """As a record tells it."""
    home = Path.cwd()
    return str(Path(file).relative_to(home)) if Path(file).is_relative_to(home) else file


# -- places ----------------------------------------------------------------------------------------
def test_the_most_frequent_first() -> None:
    """Then by name; what was refused is told apart; a file in the working folder is told from there."""
    record = Record()
    inside, outside = str(Path.cwd() / "train.py"), "/elsewhere/model.py"
    record.add({Place("b", inside, 3): 1, Place("a", inside, 2): 1, Place("c", outside, 1): 5})
    record.add({Place("import triton: not here", inside, 1, refused=True): 2, Place("c", outside, 1): 1})
    assert record.rows() == [
        Row("c", outside, 1, 6, False),
        Row("import triton: not here", "train.py", 1, 2, True),
        Row("a", "train.py", 2, 1, False),
        Row("b", "train.py", 3, 1, False),
    ]
    data = record.to_dict()
    assert data["refused"] == [{"what": "import triton: not here", "file": "train.py", "line": 1, "count": 2}]
    assert [entry["what"] for entry in data["redirected"]] == ["c", "a", "b"]
    assert json.loads(json.dumps(data)) == data


def test_the_line_is_the_programs() -> None:
    """Also where the program calls torch, which calls what is redirected."""
    record = Record()
    with Redirect(DecidedTarget(resolver().decide("cpu")), record=record) as redirect:
        assert redirect.record is record
        for _ in range(3):
            torch.zeros(2, device="cuda")
        line = sys._getframe().f_lineno - 1
        torch.nn.Linear(2, 2, device="cuda")
    first, *others = record.rows()
    assert first == Row("torch.zeros", shown(HERE), line, 3, False)
    assert {row.line for row in others} == {line + 2}


def test_where_no_frame_is_the_programs() -> None:
    """It is counted without a place."""
    assert place_of("torch.load", None) == Place("torch.load", "", 0)
    record = Record()
    record.count("torch.load", None)
    assert record.rows() == [Row("torch.load", "", 0, 1, False)]


def test_threads_lose_nothing() -> None:
    record = Record()

    def count() -> None:
        for _ in range(2000):
            record.count("x", None)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.counts == Counter({Place("x", "", 0): 8000})


# -- children ----------------------------------------------------------------------------------------
def test_a_child_s_counts_come_once() -> None:
    """What it leaves is added when the parent is asked, and taken away; nothing is left twice."""
    parent = Record()
    folder = Path(parent.share())
    assert parent.share() == str(folder)
    parent.count("x", None)
    child = Record.of_child(str(folder))
    child.count("x", None)
    child.count("y", None)
    child.leave()
    child.leave()
    assert len(list(folder.iterdir())) == 1
    assert [(row.what, row.times) for row in parent.rows()] == [("x", 2), ("y", 1)]
    assert [(row.what, row.times) for row in parent.rows()] == [("x", 2), ("y", 1)]
    parent.leave()
    assert list(folder.iterdir()) == []
    parent.close()
    assert not folder.exists()
    child.count("too late", None)
    child.leave()
    assert [(row.what, row.times) for row in parent.rows()] == [("x", 2), ("y", 1)]


def test_what_is_half_written_is_not_read(tmp_path: Path) -> None:
    """A child that is killed while it writes leaves a part of a file, which nobody takes for one."""
    (tmp_path / "1-a.part").write_text("[[")
    told.write(tmp_path, {Place("x", "", 0): 2})
    assert list(told.read(tmp_path)) == [[["x", "", 0, False, 2]]]


PROGRAM = """
import multiprocessing, os, sys
from devicekit.redirect.recording import Record

def work(folder=None):
    record = RECORD if folder is None else Record.of_child(folder)
    record.count("in the child", sys._getframe())
    globals()["kept"] = record

if __name__ == "__main__":
    RECORD = Record()
    folder = RECORD.share()
    RECORD.count("in the parent", None)
    how = sys.argv[1]
    if how == "os.fork":
        if os.fork() == 0:
            work()
            sys.exit()
        os.wait()
    else:
        child = multiprocessing.get_context(how).Process(target=work, args=() if how == "fork" else (folder,))
        child.start()
        child.join()
    print(sorted((row.what, row.times) for row in RECORD.rows()))
    RECORD.close()
    print(os.path.exists(folder))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver", "os.fork"])
def test_every_end_of_a_child(how: str, tmp_path: Path) -> None:
    """Python's own, and multiprocessing's by os._exit; what the parent counted before a fork is not told twice."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, program, how], capture_output=True, text=True, timeout=120, env=env)
    assert (done.stdout, done.stderr) == ("[('in the child', 1), ('in the parent', 1)]\nFalse\n", "")
