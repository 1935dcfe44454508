"""Of any code: what comes out parses, a second time nothing changes, and without a rewrite every byte stays."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from devicekit.codemod.checking import check
from devicekit.codemod.finding import Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Example
from devicekit.codemod.rules import all_rules
from devicekit.codemod.scanning import Choice, look, look_at
from tests.codemod.examples import every

IMPORTS = st.sampled_from(
    [
        "import torch",
        "import torch as th",
        "import torch.cuda",
        "from torch import cuda, nn",
        "from torch.cuda.amp import autocast, GradScaler",
        "import torch.backends.cudnn as cudnn",
        "import torch.distributed as dist",
        "import os",
        "import numpy as np",
        "from __future__ import annotations",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "import devicekit",
        "dm = 1",
    ]
)
INDEX = st.sampled_from(
    ["", "0", "1", "rank", "args.gpu", "i + 1", "None", "device=2", "non_blocking=True", "*a", "**k"]
)
TEXT = st.sampled_from(
    ['"cuda"', "'cuda:0'", 'f"cuda:{i}"', '"cuda:%d" % i', '"cpu"', '"nccl"', "device", '"cuda" if c else "cpu"']
)
CALLED = st.sampled_from(["empty_cache", "synchronize", "set_device", "manual_seed", "nope"])
AUTOCAST = st.sampled_from(["", "False", "enabled=e", "dtype=d"])
TORCH = st.sampled_from(["torch", "th", "self.torch", "x"])


def expressions(deeper: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions with CUDA in all its places."""
    return st.one_of(
        st.builds("{}.cuda({})".format, deeper, INDEX),
        st.builds("{}.to({})".format, deeper, TEXT),
        st.builds("{}.device({})".format, TORCH, TEXT),
        st.builds("{}.ones(2, device={})".format, TORCH, TEXT),
        st.builds("{}.load(p, map_location={})".format, TORCH, TEXT),
        st.builds("({} == {})".format, deeper, TEXT),
        st.builds("({} if {}.cuda.is_available() else {})".format, TEXT, TORCH, TEXT),
        st.builds("{}.cuda.max_memory_allocated({})".format, TORCH, INDEX),
        st.builds("{{{}: {}, 'device': {}}}".format, TEXT, deeper, TEXT),
        st.builds("[{} for i in {}]".format, deeper, deeper),
        st.builds("(lambda torch, x={}: {})".format, TEXT, deeper),
        st.builds("f'ä {{{}}}'".format, deeper.filter(lambda e: "'" not in e and "\\" not in e and "{" not in e)),
    )


EXPRESSION = st.recursive(st.sampled_from(["x", "f(x)", "(a + b)", "model", "1"]), expressions, max_leaves=4)
SIMPLE = st.one_of(
    st.builds("{} = {}".format, st.sampled_from(["x", "device", "self.device", "torch"]), EXPRESSION),
    st.builds("device = {}".format, TEXT),
    st.builds(
        "{}.cuda.{}({})".format,
        TORCH,
        CALLED,
        INDEX,
    ),
    st.builds("dist.init_process_group({})".format, TEXT),
    st.builds("assert {}".format, EXPRESSION),
    st.builds("return_ = {}  # ü".format, EXPRESSION),
    st.builds("{}.load_state_dict({}.load(p))".format, EXPRESSION, TORCH),
    st.builds("{}.set_default_tensor_type({}.cuda.HalfTensor)".format, TORCH, TORCH),
    st.builds("parser.add_argument('--device', default={})".format, TEXT),
)


def blocks(deeper: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Statements around statements."""
    body = st.lists(deeper, min_size=1, max_size=3).map(lambda s: indented("\n".join(s)))
    condition = st.builds("{}{}.cuda.is_available()".format, st.sampled_from(["", "not "]), TORCH)
    return st.one_of(
        st.builds("if {}:\n{}".format, condition, body),
        st.builds("if {}:\n{}\nelse:\n{}".format, condition, body, body),
        st.builds("def f(torch, device={}):\n{}".format, TEXT, body),
        st.builds("class A:\n{}".format, body),
        st.builds("for i in range({}.cuda.device_count()):\n{}".format, TORCH, body),
        st.builds(
            "with {}.cuda.amp.autocast({}):\n{}".format,
            TORCH,
            AUTOCAST,
            body,
        ),
        st.builds("@autocast()\ndef g(x=autocast):\n{}".format, body),
        st.builds("while {}:\n{}".format, EXPRESSION, body),
    )


def indented(code: str) -> str:
    """One level deeper."""
    return "\n".join(f"    {line}" for line in code.split("\n"))


STATEMENT = st.recursive(SIMPLE, blocks, max_leaves=5)


@st.composite
def modules(draw: st.DrawFn) -> str:
    """A file: imports in some order, code, and sometimes another of the rules' own examples."""
    imports = draw(st.lists(IMPORTS, max_size=4, unique=True))
    imports.sort(key=lambda line: "__future__" not in line)
    lines = [*imports, *draw(st.lists(STATEMENT, min_size=1, max_size=4))]
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from([e.before for _, _, e in every(Example)])).replace("from __future__", "#"))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join("\n".join(lines).split("\n")) + draw(st.sampled_from(["", end]))


def parses(text: str) -> bool:
    """Python takes it."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


@given(modules().filter(parses))
def test_what_comes_out_parses_and_stays(text: str) -> None:
    """One pass does all there is to do: after it nothing is left to rewrite, and nothing changes."""
    seen = look_at("a.py", text.encode(), Choice(rewrite=True))
    assert seen.problem == ""
    ast.parse(seen.after)
    if not any(f.kind is Kind.REWRITE for f in seen.findings):
        assert seen.after == seen.before
    again = look_at("a.py", seen.after, Choice(rewrite=True))
    assert [f.code for f in again.findings if f.kind is Kind.REWRITE] == []
    assert again.after == again.before


@given(modules().filter(parses))
def test_every_finding_is_a_place_of_the_file(text: str) -> None:
    """Lines and columns exist; only rewrites have edits, and these do not overlap."""
    lines = text.split("\n")
    findings = check(Module(text), all_rules())
    for finding in findings:
        assert 1 <= finding.line <= len(lines)
        assert 1 <= finding.column <= len(lines[finding.line - 1]) + 1
        assert bool(finding.edits) == (finding.kind is Kind.REWRITE) or finding.rule == "import-torch-cuda"
    edits = sorted(edit for finding in findings for edit in finding.edits)
    assert all(one.end <= other.start for one, other in itertools.pairwise(edits))


@given(st.binary(max_size=200).map(lambda b: b + b"\n# cuda"))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content: bytes) -> None:  # type: ignore[no-untyped-def]
    """Never an exception, never a change."""
    file = Path(tmp_path_factory.getbasetemp()) / "any.py"
    file.write_bytes(content)
    seen = look(str(file), Choice(rewrite=True))
    assert seen.after == seen.before
