"""`devicekit scan` and `devicekit migrate`, as they are typed."""

from __future__ import annotations

import io
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import run, run_process

CODE = "import torch\n\nx = torch.ones(2).cuda()\ny = torch.load('p')\n"
AFTER = (
    "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()\n\n"
    "x = torch.ones(2).to(dm.device)\ny = torch.load('p')\n"
)


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    """A folder with one file to rewrite, one that has nothing, and one that cannot be parsed; one stands in it."""
    (tmp_path / "a.py").write_text(CODE)
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "old.py").write_text("print 'cuda'\n")
    here = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(here)


# -- scan ----------------------------------------------------------------------------------------------
def test_scan_tells_places_for_people(code: Path) -> None:
    """A line of place, class, rule and reason, a line of what to do; the counts on stderr; 1 for findings."""
    ran = run("scan", "a.py")
    lines = ran.out.splitlines()
    assert lines[0].startswith("a.py:3:5: rewrite [cuda-method] ")
    assert lines[1] == "    instead: torch.ones(2).to(dm.device)"
    assert "1 rewrite" in ran.err
    assert "devicekit migrate" in ran.err
    assert ran.code == 1


def test_scan_goes_on_after_what_it_cannot_read(code: Path) -> None:
    """The file and the reason on stderr, the rest as ever."""
    ran = run("scan")
    assert "old.py: left as it is: line 1: Missing parentheses" in ran.err
    assert "a.py:3:5" in ran.out
    assert ran.code == 1
    assert run("scan", "old.py").code == 1


def test_scan_finds_nothing(code: Path) -> None:
    """Nothing on stdout, and 0."""
    ran = run("scan", "b.py")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing in 1 files" in ran.err


def test_what_is_harmless_is_told_and_is_no_failure(code: Path) -> None:
    """So that a program that runs everywhere passes."""
    (code / "c.py").write_text("import torch\n\ntorch.backends.cudnn.benchmark = True\n")
    ran = run("scan", "c.py")
    assert "harmless [cudnn-settings]" in ran.out
    assert ran.code == 0


def test_scan_as_json(code: Path) -> None:
    """A list of objects with the agreed keys."""
    ran = run("scan", "a.py", "--json")
    data = json.loads(ran.out)
    assert {tuple(one) for one in data} == {("file", "line", "column", "rule", "class", "message", "suggestion")}
    first = data[0]
    assert (first["file"], first["line"], first["column"]) == ("a.py", 3, 5)
    assert (first["rule"], first["class"]) == ("cuda-method", "rewrite")
    assert ran.code == 1
    assert json.loads(run("scan", "b.py", "--json").out) == []


def test_scan_as_sarif(code: Path) -> None:
    """One run with results."""
    log = json.loads(run("scan", "a.py", "--sarif").out)
    assert log["version"] == "2.1.0"
    assert log["runs"][0]["results"]


def test_rules_and_classes_can_be_chosen(code: Path) -> None:
    """--select, --ignore, --class and --exclude leave out the rest."""
    assert run("scan", "a.py", "--select", "torch-load").out.count("[") == 1
    assert "cuda-method" not in run("scan", "a.py", "--ignore", "cuda-method").out
    assert "review" not in run("scan", "a.py", "--class", "rewrite").out
    assert run("scan", "--exclude", "a.py", "--exclude", "old.py").code == 0
    assert run("scan", "a.py", "--jobs", "2").code == 1


def test_rules_are_listed(code: Path) -> None:
    """For people and for programs."""
    assert "cuda-method" in run("scan", "--list-rules").out
    rules = json.loads(run("scan", "--list-rules", "--json").out)
    assert {"cuda-method", "cuda-source"} <= {rule["rule"] for rule in rules}
    assert all(rule["title"] and rule["reason"] for rule in rules)


def test_a_baseline_stops_new_places_only(code: Path) -> None:
    """Written once, the old places pass, and a new one does not."""
    ran = run("scan", "a.py", "--write-baseline", "known.json")
    assert ran.code == 0
    assert "known now" in ran.err
    assert run("scan", "a.py", "--baseline", "known.json").code == 0
    (code / "a.py").write_text("# moved\n" + CODE + "z = x.cuda()\n")
    ran = run("scan", "a.py", "--baseline", "known.json")
    assert ran.code == 1
    assert next(line for line in ran.out.splitlines() if "a.py" in line).startswith("a.py:6:5")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("scan", "typo.py"), "'typo.py' is not there"),
        (("scan", "--select", "typo"), "'typo' is no rule"),
        (("scan", "--class", "typo"), "--class 'typo'"),
        (("scan", "--jobs", "0"), "--jobs 0"),
        (("scan", "--json", "--sarif"), "one format"),
        (("scan", "--baseline", "typo.json"), "--baseline typo.json cannot be read"),
        (("scan", "--baseline", "a.py"), "no baseline"),
        (("scan", "--write-baseline", "no/folder.json"), "--write-baseline no/folder.json cannot be written"),
        (("migrate", "--write", "--check"), "either writes or checks"),
        (("migrate", "typo.py"), "'typo.py' is not there"),
        (("migrate", "--ignore", "typo"), "'typo' is no rule"),
    ],
)
def test_what_makes_no_sense_is_an_error(code: Path, words: tuple[str, ...], what: str) -> None:
    """Three lines and 2; nothing is written."""
    ran = run(*words)
    assert ran.code == 2
    assert what in ran.err
    assert "  try: " in ran.err
    assert (code / "a.py").read_text() == CODE


# -- migrate -------------------------------------------------------------------------------------------
def test_migrate_shows_what_it_would_do(code: Path) -> None:
    """A difference that `git apply` takes; nothing is written."""
    ran = run("migrate", "a.py")
    assert ran.code == 0
    assert "-x = torch.ones(2).cuda()\n" in ran.out
    assert "+x = torch.ones(2).to(dm.device)\n" in ran.out
    assert "1 places in 1 files can be rewritten: --write does it" in ran.err
    assert (code / "a.py").read_text() == CODE
    done = subprocess.run(["git", "apply", "-p1", "-"], input=ran.out, text=True, cwd=code, check=False)
    assert done.returncode == 0
    assert (code / "a.py").read_text() == AFTER


def test_migrate_tells_what_is_left(code: Path) -> None:
    """What needs a reader, with the next step."""
    ran = run("migrate", "a.py", "--quiet")
    assert ran.out == ""
    assert "a.py:4:5: review [torch-load]" in ran.err
    assert "next: " in ran.err
    assert "left as they are: " in ran.err


def test_migrate_writes_once(code: Path) -> None:
    """A second time there is nothing to do; permissions stay."""
    (code / "a.py").chmod(0o754)
    ran = run("migrate", "--write")
    assert ran.code == 1  # old.py could not be read
    assert (code / "a.py").read_text() == AFTER
    assert stat.S_IMODE((code / "a.py").stat().st_mode) == 0o754
    assert "1 places in 1 files rewritten" in ran.err
    before = (code / "a.py").stat().st_mtime_ns
    assert "0 places" in run("migrate", "a.py", "--write").err
    assert (code / "a.py").stat().st_mtime_ns == before


def test_migrate_checks(code: Path) -> None:
    """1 while there is something to rewrite, 0 after; nothing is written."""
    assert run("migrate", "a.py", "--check").code == 1
    assert (code / "a.py").read_text() == CODE
    run("migrate", "a.py", "--write")
    assert run("migrate", "a.py", "--check").code == 0


def test_migrate_as_json(code: Path) -> None:
    """Files with their differences, what is left, and what could not be read."""
    data = json.loads(run("migrate", "--json").out)
    assert [one["file"] for one in data["files"]] == ["a.py"]
    assert data["files"][0]["diff"].startswith("--- a/a.py\n+++ b/a.py\n")
    assert [one["rule"] for one in data["files"][0]["rewrites"]] == ["cuda-method"]
    assert "torch-load" in {one["rule"] for one in data["left"]}
    assert [one["file"] for one in data["unreadable"]] == ["old.py"]
    assert data["written"] is False


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "chflags"), reason="root may write everywhere")
def test_what_cannot_be_written_is_told_and_the_rest_is_written(code: Path) -> None:
    """The file stays as it was, and the exit code is 2."""
    (code / "sub").mkdir()
    (code / "sub/c.py").write_text(CODE)
    (code / "a.py").chmod(0o444)
    ran = run("migrate", "--write", "a.py", "sub")
    assert ran.code == 2
    assert "a.py: not written" in ran.err
    assert (code / "a.py").read_text() == CODE
    assert (code / "sub/c.py").read_text() == AFTER


def test_a_link_stays_a_link(code: Path) -> None:
    """What it points to is written."""
    (code / "link.py").symlink_to("a.py")
    run("migrate", "--write", "link.py")
    assert (code / "link.py").is_symlink()
    assert (code / "a.py").read_text() == AFTER


def test_a_file_without_an_end_of_line_makes_a_difference_that_applies(code: Path) -> None:
    """As git writes it."""
    (code / "a.py").write_text(CODE.rstrip("\n"))
    ran = run("migrate", "a.py")
    done = subprocess.run(["git", "apply", "-p1", "-"], input=ran.out, text=True, cwd=code, check=False)
    assert done.returncode == 0
    assert (code / "a.py").read_text() == AFTER.rstrip("\n")


def test_the_commands_import_no_torch(code: Path) -> None:
    """They read code where torch is not installed."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from devicekit.cli.main import main\n"
        "assert main(['migrate', 'a.py', '--write']) == 0\n"
        "assert main(['scan', 'a.py', '--select', 'cuda-method']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (code / "a.py").read_text() == AFTER


def test_a_person_sees_colours_and_a_bar(code: Path) -> None:
    """On a terminal the difference is coloured; in a pipe it is not."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "devicekit", "migrate", "a.py"]
    with subprocess.Popen(command, stdout=follower, stderr=follower, cwd=code, env=env) as process:
        os.close(follower)
        shown = io.BytesIO()
        while True:
            try:
                block = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            shown.write(block)
        process.wait(60)
    os.close(leader)
    text = shown.getvalue().decode()
    assert "\x1b[32m+x = torch.ones(2).to(dm.device)" in text
    assert "\x1b[31m-x = torch.ones(2).cuda()" in text
    assert "\x1b" not in run_process("migrate", "a.py").out
