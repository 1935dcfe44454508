"""What migrate shows is what changes, and git takes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devicekit.codemod.difference import difference, new_lines

LINE = st.sampled_from(["a\n", "b\n", "\n", "  x = 1\n", "ü\r\n", "\x0c\n", "-c\n"])
TEXT = st.builds("{}{}".format, st.lists(LINE, max_size=12).map("".join), st.sampled_from(["", "end"]))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=TEXT, after=TEXT)
def test_git_makes_the_one_of_the_other(tmp_path: Path, before: str, after: str) -> None:
    """Whatever the lines are and however the file ends."""
    shown = "".join(difference(before, after, "f"))
    if before == after:
        assert shown == ""
        return
    if not before or not after:
        return  # git wants /dev/null there, and migrate never empties a file
    file = tmp_path / "f"
    file.write_bytes(before.encode())
    command = ["git", "apply", "--whitespace=nowarn", "-p1", "-"]
    done = subprocess.run(command, input=shown.encode(), cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == after.encode()


@pytest.mark.parametrize("length", [20, 400])
def test_it_is_no_larger_than_the_change(length: int) -> None:
    """Also in a long file, where the same line stands many times."""
    before = "start\n" + "\nsame\n" * length + "old\n" + "\nsame\n" * length
    after = before.replace("old", "new\nmore")
    shown = list(difference(before, after, "f"))
    assert [line for line in shown[2:] if line[0] in "+-"] == ["-old\n", "+new\n", "+more\n"]
    assert new_lines(before, after) == ["new\n", "more\n"]
