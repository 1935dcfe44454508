"""Names are resolved, not guessed."""

from __future__ import annotations

import ast

import pytest

from devicekit.codemod.checking import check
from devicekit.codemod.module import Module
from devicekit.codemod.names import Names
from devicekit.codemod.rules import all_rules
from tests.codemod.examples import migrated


def meaning_of_last_call(code: str) -> str | None:
    """What the function of the last call in the code is."""
    tree = ast.parse(code)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return Names(tree).qualified(max(calls, key=lambda c: (c.lineno, c.col_offset)).func)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("import torch\ntorch.cuda.f()", "torch.cuda.f"),
        ("import torch as th\nth.cuda.f()", "torch.cuda.f"),
        ("import torch.cuda\ntorch.cuda.f()", "torch.cuda.f"),
        ("import torch.backends.cudnn as cudnn\ncudnn.f()", "torch.backends.cudnn.f"),
        ("from torch import cuda\ncuda.f()", "torch.cuda.f"),
        ("from torch.cuda.amp import autocast as a\na()", "torch.cuda.amp.autocast"),
        ("def f():\n    import torch\n    torch.cuda.f()", "torch.cuda.f"),
        ("import torch\ndef f():\n    torch.cuda.f()", "torch.cuda.f"),
        ("import torch\nx = [torch.cuda.f() for _ in y]", "torch.cuda.f"),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None\ntorch.cuda.f()", "torch.cuda.f"),
        ("torch.cuda.f()", "torch.cuda.f"),  # a notebook, or `from common import *`
        ("def f(x=torch.cuda.f()):\n    torch = x", "torch.cuda.f"),
        ("import torch\nclass A:\n    torch = 1\n    def f(self):\n        torch.cuda.f()", "torch.cuda.f"),
        ("def f():\n    global torch\n    import torch\ndef g():\n    torch.cuda.f()", "torch.cuda.f"),
    ],
)
def test_an_import_is_followed(code: str, meaning: str) -> None:
    """Whatever the file calls it, it is known by its own name."""
    assert meaning_of_last_call(code) == meaning


@pytest.mark.parametrize(
    "code",
    [
        "def f(torch):\n    torch.cuda.f()",
        "import torch\ndef f(torch):\n    torch.cuda.f()",
        "import torch\ntorch = Fake()\ntorch.cuda.g()",
        "from .torch import cuda\ncuda.f()",
        "import torch\nf = lambda torch: torch.cuda.f()",
        "import torch\nx = [torch.cuda.f() for torch in y]",
        "import torch\nfor torch in x:\n    pass\ntorch.cuda.f()",
        "import torch\nwith x as torch:\n    torch.cuda.f()",
        "class A:\n    torch = 1\n    torch.cuda.f()",
        "import torch\ndef f():\n    torch = 1\n    def g():\n        torch.cuda.f()",
        "import torch\nmatch x:\n    case torch:\n        torch.cuda.f()",
        "try:\n    x\nexcept E as torch:\n    torch.cuda.f()",
        "x().cuda.f()",
    ],
)
def test_what_is_no_import_means_nothing(code: str) -> None:
    """A parameter, a variable, a relative import or a loop's target of that name is not torch."""
    assert meaning_of_last_call(code) is None


def test_two_imports_of_one_name_are_both_possible() -> None:
    """Which of them counts cannot be told, so it is not resolved; what it may be is known."""
    tree = ast.parse(
        "try:\n    from torch.amp import autocast\nexcept E:\n    from torch.cuda.amp import autocast\nautocast()"
    )
    names, call = Names(tree), tree.body[-1].value.func
    assert names.qualified(call) is None
    assert names.possible(call) == {"torch.amp.autocast", "torch.cuda.amp.autocast"}


@pytest.mark.parametrize(
    "code",
    [
        'x = f"{torch.cuda.is_available()}"\n',
        'x = f"""\n  ä {torch.cuda.is_available()}\n  {model.cuda()}\n"""\n',
        'x = ("a"\n     f"b{model.cuda()}")\n',
        'x = f"{y:{model.cuda()}}"\n',
    ],
)
def test_what_is_in_an_f_string_is_written_only_where_its_place_is_known(code: str) -> None:
    """Before Python 3.12 the tree says the wrong place for some; these are told, and stay."""
    text = f"import torch\n\n{code}"
    findings = check(Module(text), all_rules())
    assert findings
    after = migrated(text)
    ast.parse(after)
    assert after.replace("torch.cuda.is_available()", "").count("cuda") in (0, text.count("model.cuda"))
