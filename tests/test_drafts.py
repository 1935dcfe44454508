"""A draft becomes the file as a whole, or leaves no trace; what cannot be written is known at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from devicekit.drafts import Draft
from tests.users import as_a_user


def test_a_draft_takes_its_place_when_it_is_done(tmp_path: Path) -> None:
    """Until then the old content is there, and afterwards nothing but the new."""
    file = tmp_path / "results.json"
    file.write_text("old")
    with Draft(file) as draft:
        assert file.read_text() == "old"
        assert draft.path.suffix == ".json"
        draft.commit(b"new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_draft_that_others_fill(tmp_path: Path) -> None:
    """What was written into its path is what is put in place."""
    with Draft(tmp_path / "a.png") as draft:
        draft.path.write_bytes(b"picture")
        draft.commit()
    assert (tmp_path / "a.png").read_bytes() == b"picture"


def test_leaving_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    """An error in the block is no reason to touch the old file."""
    file = tmp_path / "results.json"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), Draft(file):
        _ = 1 / 0
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file that it leads to is replaced."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Draft(tmp_path / "link") as draft:
        draft.commit(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_new_file_has_the_usual_rights(tmp_path: Path) -> None:
    """Those that the umask leaves, so that others may read results."""
    (tmp_path / "usual").write_text("")
    with Draft(tmp_path / "new") as draft:
        draft.commit(b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("name", ["no/such/folder/file", "."])
def test_what_cannot_be_written_is_known_at_once(tmp_path: Path, name: str) -> None:
    """A missing folder and a folder in the place of the file are errors before anything is written."""
    with pytest.raises(OSError, match=r"No such file|no regular file"):
        Draft(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_never_replaced() -> None:
    """Who is root could rename a file over /dev/null."""
    with pytest.raises(OSError, match="no regular file"):
        Draft(os.devnull)


def test_a_file_that_may_not_be_written_is_not_replaced() -> None:
    """Renaming would be allowed, and is not what its owner wants."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o777)
        file = folder / "kept"
        file.write_text("old")
        file.chmod(0o444)
        with as_a_user(), pytest.raises(PermissionError):
            Draft(file)
        assert list(folder.iterdir()) == [file]


def test_a_folder_that_may_not_be_written_is_known_at_once() -> None:
    """Before anything is computed for it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        with as_a_user(), pytest.raises(PermissionError):
            Draft(Path(name) / "new")
        Path(name).chmod(0o777)
