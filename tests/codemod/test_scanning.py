"""Many files: which are read, in which order, by how many processes, and what the comments silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devicekit.codemod.baseline import as_baseline, known, without_known
from devicekit.codemod.checking import check
from devicekit.codemod.finding import Kind
from devicekit.codemod.module import Module
from devicekit.codemod.rules import NAMES, all_rules, chosen_rules
from devicekit.codemod.sarif import as_sarif
from devicekit.codemod.scanning import Choice, scan
from devicekit.codemod.text_rules import TEXT_RULES, TextRule
from devicekit.codemod.walking import files_under
from devicekit.errors import DeviceKitError

CODE = "import torch\n\nx = f().cuda()\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small code base."""
    files = {
        "a.py": CODE,
        "pkg/b.py": "x = 1\n",
        "pkg/kernel.cu": "__global__ void f() {}\n",
        "pkg/config.yaml": "lr: 1\ndevice: cuda\n",
        "pkg/notes.txt": "cuda\n",
        "run.sh": "CUDA_VISIBLE_DEVICES=0 python a.py\n",
        "requirements.txt": "torch\nflash-attn\n",
        ".hidden/c.py": CODE,
        "env/pyvenv.cfg": "",
        "env/d.py": CODE,
        "node_modules/e.py": CODE,
        "third_party/f.py": CODE,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(tree: Path, *exclude: str) -> list[str]:
    """What is read under a folder."""
    return [str(Path(f).relative_to(tree)) for f in files_under([str(tree)], exclude)]


def test_what_is_ours_is_read_in_order(tree: Path) -> None:
    """Hidden folders, environments and installed packages are not; other kinds of files neither."""
    assert names(tree) == [
        "a.py",
        "requirements.txt",
        "run.sh",
        "pkg/b.py",
        "pkg/config.yaml",
        "pkg/kernel.cu",
        "third_party/f.py",
    ]


def test_files_can_be_left_out(tree: Path) -> None:
    """By a name anywhere in the path, or by a pattern of the whole path."""
    assert names(tree, "third_party", "*.sh", "*/pkg/*.yaml") == [
        "a.py",
        "requirements.txt",
        "pkg/b.py",
        "pkg/kernel.cu",
    ]


def test_a_file_that_is_named_is_read_once(tree: Path) -> None:
    """Also a hidden one, and also where a folder holds it as well."""
    hidden = str(tree / ".hidden/c.py")
    assert list(files_under([hidden, hidden, str(tree / ".hidden")])) == [hidden]


def test_a_path_that_is_not_there_is_an_error(tree: Path) -> None:
    """A typo is no empty code base."""
    with pytest.raises(DeviceKitError, match="not there"):
        list(files_under([str(tree / "typo")]))


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_result_does_not_depend_on_the_processes(tree: Path, jobs: int) -> None:
    """One or several, the files come in their order, each counted once."""
    for number in range(20):
        (tree / f"more{number:02}.py").write_text(CODE if number % 2 else "y = 1\n")
    files = list(files_under([str(tree)]))
    counted: list[tuple[int, int]] = []
    seen = list(scan(files, jobs=jobs, watch=lambda done, total: counted.append((done, total))))
    assert [one.file for one in seen] == files
    assert counted == [(n, len(files)) for n in range(1, len(files) + 1)]
    found = [(Path(f.file).name, f.line, f.rule) for one in seen for f in one.findings]
    assert found[:1] == [("a.py", 3, "cuda-method")]
    assert len(found) == 1 + 10 + 5


def test_rules_are_chosen_by_name(tree: Path) -> None:
    """Also those of files that are no Python; a name that is none is an error that says so."""
    files = [str(tree / "a.py"), str(tree / "pkg/kernel.cu")]
    assert [f.rule for one in scan(files, Choice(select=("cuda-source",))) for f in one.findings] == ["cuda-source"]
    assert [f.rule for one in scan(files, Choice(ignore=("cuda-source",))) for f in one.findings] == ["cuda-method"]
    with pytest.raises(DeviceKitError, match="'cuda-typo' is no rule"):
        list(scan(files, Choice(ignore=("cuda-typo",))))
    assert [rule.name for rule in chosen_rules(["cuda-method"])] == ["cuda-method"]


def test_every_rule_has_a_file_and_every_file_a_rule() -> None:
    """Names are unique, and none is forgotten in the list."""
    folder = Path(__import__("devicekit.codemod.rules", fromlist=["x"]).__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--"}
    assert files == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("rule", TEXT_RULES, ids=lambda r: r.name)
def test_text_rules_hold_their_examples(rule: TextRule) -> None:
    """Each line of theirs is found, or not, as they say."""
    assert [len(list(rule.check(line, "f"))) for line in rule.found] == [1] * len(rule.found)
    assert [len(list(rule.check(line, "f"))) for line in rule.left] == [0] * len(rule.left)


# -- comments ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("x = f().cuda()  # devicekit: ignore\n", 0),
        ("x = f().cuda()  # devicekit: ignore[cuda-method]\n", 0),
        ("x = f().cuda()  # noqa  # devicekit: ignore[cuda-method, other]\n", 0),
        ("x = f().cuda()  # devicekit: ignore[other]\n", 1),
        ("x = f(\n    1,  # devicekit: ignore\n).cuda()\n", 0),
        ("# devicekit: ignore\nx = f().cuda()\n", 1),
        ("# devicekit: ignore-file\nx = f().cuda()\n", 0),
        ("# devicekit: ignore-file[cuda-method]\nx = f().cuda()\n", 0),
        ("# devicekit: ignore-file[other]\nx = f().cuda()\n", 1),
    ],
)
def test_a_comment_silences(code: str, count: int) -> None:
    """On any line of the place, for all rules or for those named; a silenced place is not rewritten either."""
    assert len(check(Module(f"import torch\n{code}"), all_rules())) == count


def test_comments_of_several_lines_add_up() -> None:
    """A file may silence one rule everywhere and another one on a line."""
    code = "# devicekit: ignore-file[other]\nimport torch\nx = f().cuda()  # devicekit: ignore[cuda-method]\n"
    assert check(Module(code), all_rules()) == []


# -- baseline and SARIF --------------------------------------------------------------------------------
def found(text: str) -> list[object]:
    """All findings of a text."""
    return check(Module(text, "a.py"), all_rules())  # type: ignore[return-value]


def test_a_baseline_knows_places_also_when_they_move() -> None:
    """One more of the same kind is new."""
    before = found("import torch\n\nx = f().cuda()\n")
    there = known(as_baseline(before))
    assert without_known(found("import torch\n# moved\n\nx = f().cuda()\n"), there) == []
    again = without_known(found("import torch\n\nx = f().cuda()\nx = f().cuda()\n"), there)
    assert [f.line for f in again] == [4]
    other = without_known(found("import torch\n\ny = f().cuda()\n"), there)
    assert [f.line for f in other] == [3]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "x", "findings": []}', '{"schema": "devicekit-scan-baseline/1"}', "1"]
)
def test_what_is_no_baseline_is_an_error(text: str) -> None:
    """Nothing is silently taken for known."""
    with pytest.raises(DeviceKitError, match="no baseline"):
        known(text)


def test_sarif_has_what_code_hosts_need() -> None:
    """Rules, places, levels, and a fingerprint that survives moving lines."""
    findings = found(CODE)
    log = as_sarif(findings, "1.0")
    run = log["runs"][0]
    assert log["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["cuda-method"]
    result = run["results"][0]
    assert (result["ruleId"], result["ruleIndex"], result["level"]) == ("cuda-method", 0, "warning")
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "a.py"
    assert place["region"] == {"startLine": 3, "startColumn": 5}
    moved = as_sarif(found("# more\n" + CODE), "1.0")["runs"][0]["results"][0]
    assert moved["partialFingerprints"] == result["partialFingerprints"]
    json.dumps(log)


def test_kinds_are_words() -> None:
    """They are printed as the issue trackers and the JSON have them."""
    assert [str(kind) for kind in Kind] == ["rewrite", "review", "cannot", "harmless"]
