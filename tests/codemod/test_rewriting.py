"""What the edits need is added once and in place, and what they leave over goes."""

from __future__ import annotations

import ast

import pytest

from devicekit.codemod.checking import check
from devicekit.codemod.finding import Edit, Finding, Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rewriting import apply, edits_for
from devicekit.codemod.rules import all_rules
from tests.codemod.examples import migrated


@pytest.mark.parametrize(
    ("before", "after"),  # with $ for what is rewritten, and @ for the new manager
    [
        # beside torch, where the imports are sorted
        (
            "import numpy\nimport torch\n\n$\n",
            "import devicekit\nimport numpy\nimport torch\n\n@\n\n$\n",
        ),
        (
            "import os\nimport torch\n\n$\n",
            "import os\nimport devicekit\nimport torch\n\n@\n\n$\n",
        ),
        (
            "import os\n\nfrom torch import nn\n\n$\n",
            "import os\n\nimport devicekit\nfrom torch import nn\n\n@\n\n$\n",
        ),
        # after the last import that comes before its first use
        (
            "import torch\nfrom a import b\n\n$\n",
            "import devicekit\nimport torch\nfrom a import b\n\n@\n\n$\n",
        ),
        (
            "import torch\n$\nimport os\n",
            "import devicekit\nimport torch\n\n@\n\n$\nimport os\n",
        ),
        # after what chooses the visible devices
        (
            "import os\nimport torch\nos.environ['CUDA_VISIBLE_DEVICES'] = '1'\n$\n",
            "import os\nimport devicekit\nimport torch\nos.environ['CUDA_VISIBLE_DEVICES'] = '1'\n\n@\n\n$\n",
        ),
        # with a docstring, a future import, a hash-bang, and without any import
        (
            '"""Doc."""\nfrom __future__ import annotations\n$\n',
            '"""Doc."""\nfrom __future__ import annotations\nimport devicekit\n\n@\n\n$\n',
        ),
        (
            "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n$\n",
            "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\nimport devicekit\n\n@\n\n$\n",
        ),
        # what is there already is used
        (
            "import devicekit\nimport torch\n\n@\n$\n",
            "import devicekit\nimport torch\n\n@\n$\n",
        ),
        (
            "import devicekit\n\ngpu = devicekit.DeviceManager()\n$\n",
            "import devicekit\n\ngpu = devicekit.DeviceManager()\nx = f().to(gpu.device)\n",
        ),
        # the name is taken
        (
            "import torch\n\ndm = 1\n$\n",
            "import devicekit\nimport torch\n\n"
            "device_manager = devicekit.DeviceManager.current()\n\ndm = 1\nx = f().to(device_manager.device)\n",
        ),
        # line ends, comments and odd layouts stay
        (
            "import torch\r\n\r\n$  # up\r\n",
            "import devicekit\r\nimport torch\r\n\r\n@\r\n\r\n$  # up\r\n",
        ),
        (
            "import torch\n\nx = (\n    f()  # 1\n    .cuda(  # 2\n    )\n)\n",
            "import devicekit\nimport torch\n\n@\n\nx = (\n    f()  # 1\n    .to(dm.device  # 2\n    )\n)\n",
        ),
        (
            "import torch\n\nx = 'ä', f('ö').cuda(), 'ü'\n",
            "import devicekit\nimport torch\n\n@\n\nx = 'ä', f('ö').to(dm.device), 'ü'\n",
        ),
        ("import torch\n\n$", "import devicekit\nimport torch\n\n@\n\n$"),
        (
            "x = 1\x0c\nimport torch\n\ny = f().cuda()\n",
            "x = 1\x0c\nimport devicekit\nimport torch\n\n@\n\ny = f().to(dm.device)\n",
        ),
    ],
)
def test_imports_and_manager_have_their_place(before: str, after: str) -> None:
    """As a person would put them, and only where they are missing; a second time changes nothing."""
    before = before.replace("$", "x = f().cuda()").replace("@", "dm = devicekit.DeviceManager.current()")
    after = after.replace("$", "x = f().to(dm.device)").replace("@", "dm = devicekit.DeviceManager.current()")
    assert migrated(before) == after
    ast.parse(after)
    assert migrated(after) == after


def test_without_a_rewrite_nothing_changes() -> None:
    """A file whose findings are all for a reader keeps every character."""
    text = "import torch\n\ntorch.load(p)\nassert x.is_cuda\n"
    assert migrated(text) == text


def test_edits_are_put_in_by_their_place() -> None:
    """Insertions at one place keep their order."""
    assert apply("abc", [Edit(1, 2, "X"), Edit(3, 3, "!"), Edit(3, 3, "?"), Edit(0, 0, "<")]) == "<aXc!?"


def test_an_edit_that_would_break_the_file_is_for_a_reader() -> None:
    """What a rule got wrong is left out; the other rewrites stay."""
    module = Module("import torch\n\nx = f().cuda()\ny = 1\n")
    findings = check(module, all_rules())
    at = module.text.index("1")
    wrong = Finding("f", 4, 5, "wrong", Kind.REWRITE, "m", "s", place=(at, at + 1), edits=(Edit(at, at + 1, "("),))
    settled, edits = edits_for(module, [*findings, wrong])
    assert [f.kind for f in settled if f.rule == "wrong"] == [Kind.REVIEW]
    text = apply(module.text, edits)
    ast.parse(text)
    assert "x = f().to(dm.device)\ny = 1\n" in text
