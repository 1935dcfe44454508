"""Files come back byte for byte but for the edits: encodings, line ends, notebooks."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Rule
from devicekit.codemod.scanning import Choice, Seen, look, look_at
from devicekit.codemod.source import PythonFile, UnreadableError

CALL = "x = f().cuda()"


def rewritten(folder: Path, content: bytes, name: str = "a.py") -> Seen:
    """What migrate makes of a file with this content."""
    file = folder / name
    file.write_bytes(content)
    return look(str(file), Choice(rewrite=True))


@pytest.mark.parametrize(
    "content",
    [
        f"import torch\n# ä\n{CALL}\n".encode(),
        b"\xef\xbb\xbf" + f"import torch\n# ä\n{CALL}\n".encode(),
        f"# -*- coding: latin-1 -*-\nimport torch\n# ä\n{CALL}\n".encode("latin-1"),
        f"# coding: gbk\nimport torch\n# 设备\n{CALL}\n".encode("gbk"),
        f"import torch\r\n{CALL}\r\n".encode(),
        f"import torch\n# mixed\r\n{CALL}\n".encode(),
        f"import torch\n\x0c\n{CALL}".encode(),
    ],
    ids=["utf-8", "mark", "latin-1", "gbk", "crlf", "mixed", "no-end"],
)
def test_all_but_the_edits_stays(tmp_path: Path, content: bytes) -> None:
    """Encoding, byte order mark and line ends are those of before."""
    seen = rewritten(tmp_path, content)
    assert seen.problem == ""
    assert b"f().to(dm.device)" in seen.after
    end = b"\r\n" if b"torch\r" in content else b"\n"
    back = seen.after.replace(b"import devicekit" + end, b"").replace(b".to(dm.device)", b".cuda()")
    manager = end + b"dm = devicekit.DeviceManager.current()" + end
    assert back.replace(manager + end, b"").replace(manager, b"") == content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"x.cuda(\n", "never closed"),
        (b"print 'cuda'\n", "line 1"),
        (b"# cuda \xff\n", "decoded"),
        (b"# coding: klingon\n# cuda\n", "decoded"),
        (b"x = 'cuda'\x00\n", "null"),
        (b"x = cuda" + b"(" * 1000 + b")" * 1000, "nested"),
    ],
)
def test_what_cannot_be_parsed_is_left_and_said(tmp_path: Path, content: bytes, why: str) -> None:
    """One sentence for people; the file stays."""
    seen = rewritten(tmp_path, content)
    assert why in seen.problem
    assert seen.findings == ()
    assert seen.after == seen.before


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A folder of that name, a file that has gone, a file that is data."""
    assert look(str(tmp_path), Choice()).problem
    assert look(str(tmp_path / "gone.py"), Choice()).problem == "No such file or directory"
    large = tmp_path / "large.py"
    with large.open("wb") as stream:
        stream.truncate(8_000_001)
    assert "larger than 8 MB" in look(str(large), Choice()).problem


class Broken(Rule):
    """A rule with a fault."""

    name = "broken"
    visits = (ast.Call,)
    examples = ()

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Falls over."""
        raise KeyError(module.file)


def test_a_rule_that_fails_costs_one_file() -> None:
    """The file is left, and whose fault it is is said."""
    seen = look_at("a.py", b"f('cuda')\n", Choice(rewrite=True), [Broken()])
    assert seen.problem == "a rule failed on it, which is a fault of devicekit: KeyError: 'a.py'"
    assert (seen.findings, seen.before, seen.after) == ((), b"", b"")


def test_odd_code_is_read_without_a_warning() -> None:
    """What Python would warn of is for the code's author."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = look_at("a.py", b"x = '\\d', 1 is 1, f().cuda()\n", Choice(rewrite=True))
    assert [f.rule for f in seen.findings] == ["cuda-method"]


def test_decoding_says_what_is_wrong() -> None:
    """The codec and the byte."""
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        PythonFile.read(b"\xff\xfe")


# -- notebooks -----------------------------------------------------------------------------------------
def notebook(*cells: str, indent: int | None = 1, end: str = "\n", **metadata: object) -> bytes:
    """A notebook of code cells, with a page of text before them."""
    data = {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["# cuda ü\n", "text"]},
            *(
                {
                    "cell_type": "code",
                    "execution_count": None,
                    "metadata": {},
                    "outputs": [],
                    "source": cell.splitlines(keepends=True),
                }
                for cell in cells
            ),
        ],
        "metadata": metadata,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return (json.dumps(data, indent=indent, ensure_ascii=False) + end).encode()


def sources(content: bytes) -> list[str]:
    """The text of each code cell."""
    return ["".join(c["source"]) for c in json.loads(content)["cells"] if c["cell_type"] == "code"]


def test_a_notebook_is_one_program(tmp_path: Path) -> None:
    """Imports and manager go where torch is imported; a later cell uses them."""
    content = notebook("import torch", "y = 1\nx = f().cuda()")
    seen = rewritten(tmp_path, content, "a.ipynb")
    assert sources(seen.after) == [
        "import devicekit\nimport torch\n\ndm = devicekit.DeviceManager.current()",
        "y = 1\nx = f().to(dm.device)",
    ]
    finding = seen.findings[0]
    assert (finding.cell, finding.line, finding.column) == (2, 2, 5)
    assert finding.where.endswith("a.ipynb:cell 2:2:5")


@pytest.mark.parametrize("indent", [None, 1, 2, 4])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_notebook_keeps_its_layout(tmp_path: Path, indent: int | None, end: str) -> None:
    """Only the edited cells differ, not the way in which the file was written."""
    seen = rewritten(tmp_path, notebook("import torch\nx = f().cuda()", indent=indent, end=end), "a.ipynb")
    assert seen.after == notebook(*sources(seen.after), indent=indent, end=end)


@pytest.mark.parametrize(
    "cell",
    [
        "%matplotlib inline\nx = f().cuda()",
        "!nvidia-smi\nx = f().cuda()",
        "out = !ls\nx = f().cuda()",
        "%%time\nx = f().cuda()",
        "f?\nx = f().cuda()",
        "x = f().cuda()\n",
    ],
)
def test_magics_stay_as_they_are(tmp_path: Path, cell: str) -> None:
    """They are no Python, and the Python beside them is read all the same."""
    seen = rewritten(tmp_path, notebook("import torch", cell), "a.ipynb")
    assert sources(seen.after)[1] == cell.replace(".cuda()", ".to(dm.device)")


@pytest.mark.parametrize("cell", ["%%bash\npython x.py --device cuda", "for cuda in:", "%%html\n<b>cuda()</b>"])
def test_a_cell_that_is_no_python_is_passed_over(tmp_path: Path, cell: str) -> None:
    """The other cells are read."""
    seen = rewritten(tmp_path, notebook(cell, "import torch\nx = f().cuda()"), "a.ipynb")
    assert sources(seen.after)[0] == cell
    assert "to(dm.device)" in sources(seen.after)[1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"cuda", "no notebook"),
        (b'{"cuda": 1}', "format 4"),
        (b'["cuda"]', "format 4"),
        (b'{"cells": [{"cell_type": "code"}], "x": "cuda"}', "no source"),
        (b'{"cells": ["cuda"]}', "no source"),
        (b'{"cells": [], "metadata": {"kernelspec": {"language": "cuda"}}}', "not Python"),
        (b"\xff cuda", "no notebook"),
    ],
)
def test_what_is_no_notebook_is_said(tmp_path: Path, content: bytes, why: str) -> None:
    """And left as it is."""
    seen = rewritten(tmp_path, content, "a.ipynb")
    assert why in seen.problem
    assert seen.after == seen.before


def test_a_source_that_is_one_text_stays_one(tmp_path: Path) -> None:
    """Both forms of the format are kept."""
    data = json.loads(notebook("import torch\nx = f().cuda()"))
    data["cells"][1]["source"] = "import torch\nx = f().cuda()"
    seen = rewritten(tmp_path, json.dumps(data).encode(), "a.ipynb")
    assert json.loads(seen.after)["cells"][1]["source"].endswith("x = f().to(dm.device)")


def test_an_odd_layout_stays(tmp_path: Path) -> None:
    """Only the source of the cell is written anew, in the layout that it had."""
    odd = (
        '{"cells" : [ {"source":"cuda {[", "cell_type":"raw"},\n'
        '{"cell_type": "code", "outputs": [ ], "source": ["import torch\\n","x = f().cuda()"]}],\n'
        '"metadata":{"a": {"source": [1.50, -2e3, null, "\\u00fc \\" ]"]}} }'
    )
    seen = rewritten(tmp_path, odd.encode(), "a.ipynb")
    new = [
        "import devicekit\\n", "import torch\\n", "\\n", "dm = devicekit.DeviceManager.current()\\n",
        "\\n", "x = f().to(dm.device)",
    ]  # fmt: skip
    source = ", ".join(f'"{line}"' for line in new)
    assert seen.after.decode() == odd.replace('["import torch\\n","x = f().cuda()"]', f"[{source}]")
