"""The documents are true: their examples run, their links lead somewhere, what they name exists."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import devicekit
from devicekit import host
from devicekit.cli.main import COMMANDS, Parser
from devicekit.host import Host
from devicekit.registry import BUILTIN, GROUP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README, README_ZH = ROOT / "README.md", DOCS / "README.zh.md"
EXAMPLE = DOCS / "examples" / "third_party_backend"

PAGES = sorted([*ROOT.glob("*.md"), *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)])

FENCE = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, *languages: str) -> list[str]:
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [code for _, language, code in found if not languages or language in languages]


def _prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def _code(path: Path) -> str:
    """Everything on the page that is set as code."""
    return "\n".join([*_blocks(path), *re.findall(r"`([^`\n]+)`", _prose(path))])


# -- the two READMEs -------------------------------------------------------------------------------
def test_the_readmes_have_the_same_blocks() -> None:
    """Whoever reads Chinese gets the same commands and examples, in the same order."""
    assert _blocks(README_ZH) == _blocks(README)


def test_the_readmes_have_the_same_shape() -> None:
    """The same headings, by level, and tables with the same number of lines."""
    for pattern in (HEADING, re.compile(r"^(\|)", re.MULTILINE)):
        assert pattern.findall(_prose(README_ZH)) == pattern.findall(_prose(README))


def test_two_commands_do_all_the_set_up() -> None:
    """One line runs the demo and one passes the tests; CI takes the second one from here."""
    first, second = (block.strip() for block in _blocks(README, "sh")[:2])
    assert first == "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/devicekit demo"
    assert second == (
        'python3 -m venv .venv && .venv/bin/pip install -r requirements.txt -e ".[test]" && .venv/bin/python -m pytest'
    )


# -- examples --------------------------------------------------------------------------------------
class Untouched(Host):
    """The real machine, without anybody's pins and saved choice."""

    def __init__(self, folder: Path) -> None:
        super().__init__(env={key: text for key, text in os.environ.items() if not key.endswith("VISIBLE_DEVICES")})
        self.folder = folder

    def config_file(self, name: str) -> Path:
        return self.folder / name


def _session(path: Path) -> str:
    """The page with only its Python blocks left, every line where it was."""
    text = path.read_text(encoding="utf-8")
    kept = [" "] * len(text)
    for match in FENCE.finditer(text):
        if match[2].strip() == "python":
            kept[match.start(3) : match.end(3)] = match[3]
    return "".join(new if old != "\n" else old for new, old in zip(kept, text, strict=True))


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """The files that an example writes lie there; contextlib.chdir came with Python 3.11."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


WITH_EXAMPLES = [path for path in PAGES if any(">>>" in block for block in _blocks(path, "python"))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=_name)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    """What stands after >>> gives what stands below it."""
    text = "\n".join(line.rstrip() for line in _session(path).splitlines())
    examples = doctest.DocTestParser().get_doctest(text, {}, _name(path), str(path), 0)
    told: list[str] = []
    with host.use(Untouched(tmp_path)), _working_in(tmp_path):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
        failed, tried = runner.run(examples, out=told.append)
    assert tried
    assert not failed, "".join(told)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_python_blocks_are_python(path: Path) -> None:
    """A block without prompts can be compiled at least."""
    for block in _blocks(path, "python"):
        if ">>>" not in block:
            compile(block, _name(path), "exec")


# -- names -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_to_files(path: Path) -> None:
    """A link to a local file names one that is there, and a heading in it, if it names one."""
    for target in LINK.findall(_prose(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.is_file(), target
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


def _options(name: str) -> set[str]:
    """What can be typed after a command."""
    (module,) = [command.module for command in COMMANDS if command.name == name]
    parser = Parser(prog=name)
    importlib.import_module(module).add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_commands_exist(path: Path) -> None:
    """Every `devicekit WORD --option` that is set as code can be typed."""
    shell = [*_blocks(path, "sh", "text"), *re.findall(r"`([^`\n]+)`", _prose(path))]
    for line in "\n".join(shell).splitlines():
        for word, rest in re.findall(r"(?:^|[/ ])devicekit ([a-z]\w*)([^#;&|]*)", line.partition("#")[0]):
            assert word in [command.name for command in COMMANDS], line
            assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= _options(word), line


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_public_names_exist(path: Path) -> None:
    """`dk.NAME` is public, and `dm.NAME` is something that a DeviceManager has."""
    code = _code(path)
    assert set(re.findall(r"\bdk\.(\w+)", code)) <= set(devicekit.__all__)
    assert set(re.findall(r"\bdm\.(\w+)", code)) <= set(dir(devicekit.DeviceManager))


def test_the_reference_is_complete() -> None:
    """Every public name has its entry."""
    reference = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    listed = re.findall(r"^\.\. auto(?:class|exception|function):: (\w+)$", reference, re.MULTILINE)
    assert sorted(set(listed) & set(devicekit.__all__)) == devicekit.__all__


def test_every_command_is_in_the_reference() -> None:
    """A heading for each."""
    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^## devicekit (\w+)$", page, re.MULTILINE) == [command.name for command in COMMANDS]


def test_backends_agree() -> None:
    """Rows of the registry, files of backends, pages about them, lines in the READMEs, lines in the index."""
    names = {row.name for row in BUILTIN}
    package = Path(devicekit.__file__).parent / "backends"
    assert {path.stem for path in package.glob("*.py") if not path.name.startswith("_")} == names
    assert {path.stem for path in (DOCS / "backends").glob("*.md")} == names
    assert {row.target.partition(":")[0].rpartition(".")[2] for row in BUILTIN} == names
    for readme, folder in ((README, "docs/backends"), (README_ZH, "backends")):
        linked = re.findall(rf"^\| \[(\w+)\]\({folder}/(\w+)\.md\)", readme.read_text(encoding="utf-8"), re.MULTILINE)
        assert {left for left, right in linked if left == right} == names
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^backends/(\w+)$", index, re.MULTILINE)) == names


@pytest.mark.parametrize("name", [row.name for row in BUILTIN])
def test_a_backend_s_page_says_what_was_run(name: str) -> None:
    """Every page ends with what ran on real hardware, and has the same sections."""
    page = (DOCS / "backends" / f"{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings[-1] == "What was run where"
    assert {"How it is detected", "Number formats", "Memory figures", "Masks", "Traps handled"} <= set(headings)
    assert re.search(r"^- Real hardware: ", page, re.MULTILINE)


# -- the example of a third party's backend ----------------------------------------------------------
def _python(*arguments: str) -> str:
    path = os.pathsep.join([str(EXAMPLE / "src"), str(Path(devicekit.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_passes_its_own_tests() -> None:
    """The conformance suite runs against it, and nothing of it is skipped."""
    told = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert re.search(r"^\d+ passed in ", told, re.MULTILINE), told


class Installed(Host):
    """The real machine, with the example's entry points and an environment of its own."""

    def __init__(self, **env: str) -> None:
        super().__init__(env=env)
        project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        origin = SimpleNamespace(name=project["name"])
        found = project["entry-points"][GROUP]
        self.entries = [SimpleNamespace(name=name, value=value, dist=origin) for name, value in found.items()]

    def entry_points(self, group: str) -> Sequence[Any]:
        return self.entries if group == GROUP else ()


def test_the_example_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, it is preferred to the processor, it can be pinned, and its reasons are told."""
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    with host.use(Installed(DEVICEKIT_DEVICE="acme")):
        dm = devicekit.DeviceManager(strict=True)
        assert (dm.backend, str(dm.device), dm.warning) == ("acme", "cpu", None)
        assert dm.memory_stats().source == "the Acme driver (the whole card)"
        assert dm.report()["versions"]["acme_driver"] == "2.4"
    with host.use(Installed(ACME_VISIBLE_DEVICES="")):
        assert "acme" not in devicekit.available_backends()
        (verdict,) = [v for v in devicekit.explain().verdicts if v.backend == "acme"]
        assert verdict.origin == "acme-device"
        assert "hides every card" in verdict.reason


# -- claims of the decisions -------------------------------------------------------------------------
def _says(path: Path, *, imported: str, attribute: tuple[str, str]) -> bool:
    """Whether a file imports a module at run time, or names an attribute of one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {id(n) for i in ast.walk(tree) if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
               for n in ast.walk(i)}  # fmt: skip
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if id(node) not in guarded and any(name.partition(".")[0] == imported for name in names):
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) == ".".join(attribute):
            return True
    return False


def test_there_is_one_door() -> None:
    """Decision 1: what decides and acts imports no torch and reads no os.environ, but through its host."""
    package = Path(devicekit.__file__).parent
    rooms = ["backend", "manager", "placement", "probing", "registry", "reporting", "request", "resolve", "rng"]
    files = [*(package / f"{room}.py" for room in rooms), *(package / "backends").glob("*.py")]
    assert [_name(f) for f in files if _says(f, imported="torch", attribute=("os", "environ"))] == []


def test_the_contract_has_five_questions() -> None:
    """Decision 5: five methods are abstract, and the page about it names the ones that have a default."""
    from devicekit.backend import Backend

    questions = {"probe", "preferred_dtype", "create_generator", "memory_stats", "empty_cache"}
    assert Backend.__abstractmethods__ == questions
    page = (DOCS / "decisions" / "0005-five-questions-and-defaults.md").read_text(encoding="utf-8")
    defaults = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert questions | set(re.findall(r"`(\w+)`", page)) >= defaults
