"""Requirements: what is met, what is not and why, and that no text makes anything but our own errors."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devicekit.cli.require import Requirement, parse
from devicekit.cli.terms import Subject
from devicekit.errors import DeviceKitError
from devicekit.isolation.facts import BackendFacts, DeviceFacts, TorchFacts
from devicekit.values import DeviceInfo
from tests.cli.calling import run, run_on

GIB = 2**30
BACKENDS = {"cuda": "cuda", "rocm": "rocm", "hip": "rocm", "npu": "npu", "cpu": "cpu"}

CARD = DeviceFacts(
    label="cuda:0",
    info=DeviceInfo(0, "a card", architecture="sm_86", total_memory=24 * GIB, free_memory=None, bfloat16=True),
    memory_source="a test",
    precisions={"float32": "native", "float64": "native", "bfloat16": "native", "float8": "no", "int4": "emulated"},
)
SUBJECT = Subject(
    TorchFacts(True, version="2.13.0+cu130"),
    BackendFacts(
        "cuda", "devicekit", True, "", devices=(CARD, replace(CARD, label="cuda:1")), versions={"driver": "580.65.06"}
    ),
    CARD,
)
PROCESSOR = Subject(
    TorchFacts(False, reason="torch is not installed"),
    BackendFacts("numpy", "devicekit", True, "", accelerator=False),
    DeviceFacts("numpy", DeviceInfo(0)),
)


def met(text: str, subject: Subject = SUBJECT) -> bool:
    return parse(text, BACKENDS).check(subject).met


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bf16", True),
        ("BFloat16", True),
        ("not fp64", False),
        ("fp8", False),
        ("not float8 and not int4", True),
        ("gpu and accelerator", True),
        ("cuda", True),
        ("rocm", False),
        ("not rocm", True),
        ("memory>=24GiB", True),
        ("memory > 24 GiB", False),
        ("memory>=25.7GB", True),
        ("memory>=25.8GB", False),
        ("memory<=24576MiB", True),
        ("memory==25769803776B", True),
        ("memory!=24GiB", False),
        ("devices>=2", True),
        ("devices<2", False),
        ("capability>=8.0", True),
        ("capability>=8", True),
        ("capability>=9", False),
        ("capability<8.7", True),
        ("torch>=2.6", True),
        ("torch==2.13.0", True),
        ("torch>2.13", False),
        ("torch<2.14", True),
        ("driver>=550", True),
        ("driver>=580.65.07", False),
        ("bf16 and memory>=20GiB", True),
        ("rocm or cuda", True),
        ("rocm and bf16 or cuda", True),
        ("cuda or rocm and npu", True),
        ("(cuda or rocm) and npu", False),
        ("not (rocm or npu)", True),
        ("not (cuda and rocm)", True),
        ("not not cuda", True),
        ("NOT rocm AND cuda", True),
    ],
)
def test_a_requirement_is_met_or_not(text: str, expected: bool) -> None:
    """Words, comparisons, and, or, not and parentheses mean what they say."""
    assert met(text) is expected


def test_another_word_for_a_backend_means_it() -> None:
    """`hip` is met by rocm."""
    amd = Subject(SUBJECT.torch, replace(SUBJECT.backend, name="rocm"), CARD)
    assert met("hip and rocm", amd)
    assert not met("hip")


@pytest.mark.parametrize("text", ["fp16", "not fp16", "free>=1GiB", "not free>=1GiB", "free<1GiB"])
def test_what_is_unknown_is_never_met(text: str) -> None:
    """An unknown figure meets neither a requirement nor its opposite."""
    outcome = parse(text, BACKENDS).check(SUBJECT)
    assert not outcome.met
    [(_, told)] = outcome.terms
    assert told.met is None


def test_what_is_unknown_does_not_matter_where_another_term_decides() -> None:
    """A yes beside an unknown decides an `or`, a no decides an `and`."""
    assert met("free>=1GiB or cuda")
    assert not met("free>=1GiB and rocm")
    assert met("not (free>=1GiB and rocm)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory>=32GiB", "total memory is 24.0 GiB (a test)"),
        ("free>=1GiB", "free memory is unknown: a test"),
        ("fp16", "whether it computes float16 natively cannot be told"),
        ("fp8", "float8 is not there"),
        ("int4", "int4 is emulated"),
        ("bf16", "bfloat16 is native"),
        ("tf32", "whether it computes tf32 natively cannot be told"),
        ("rocm", "the backend is cuda"),
        ("devices>=3", "cuda has 2 usable"),
        ("capability>=9.0", "compute capability is 8.6"),
        ("torch>=3", "torch version is 2.13.0+cu130"),
        ("driver>=600", "driver version is 580.65.06"),
    ],
)
def test_a_term_tells_the_actual_value(text: str, said: str) -> None:
    """What failed is told with the figure that was found."""
    [(term, told)] = parse(text, BACKENDS).check(SUBJECT).terms
    assert (term, told.said) == (text, said)


@pytest.mark.parametrize("text", ["memory>=1B", "capability>=1", "torch>=1", "driver>=1", "gpu", "bf16"])
def test_a_host_without_figures_meets_nothing(text: str) -> None:
    """On a processor without torch every figure that it lacks is unknown, and nothing raises."""
    assert not met(text, PROCESSOR)


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("", "a term is missing before the end", "bf16 or fp16"),
        ("bf17", "'bf17' is no term", "did you mean 'bf16'?"),
        ("memry>=3GiB", "'memry' is no term", "did you mean 'memory'?"),
        ("qqqq", "'qqqq' is no term", "one of bf16"),
        ("memory", "'memory' needs a comparison", "memory>=8GiB"),
        ("memory>=20", "'20' is no size", "memory>=8GiB"),
        ("memory>=20G", "'20G' is no size", "memory>=8GiB"),
        ("memory>=", "a value is missing before the end", "memory>=8GiB"),
        ("memory=>3GiB", "'=' is not expected", "did you mean '>='?"),
        ("bf16 && cuda", "'&' is not expected", "did you mean 'and'?"),
        ("bf16, cuda", "',' is not expected", "did you mean 'and'?"),
        ("!cuda", "'!' is not expected", "did you mean 'not'?"),
        ("bf16 cuda", "'cuda' is not expected", "'and' or 'or'"),
        ("bf16 and", "a term is missing before the end", ""),
        ("and bf16", "a term is missing before 'and'", ""),
        ("(bf16", "a ')' is missing before the end", ""),
        ("bf16)", "')' is not expected here", "remove it"),
        ("devices>=1.5", "'1.5' is no whole number", "devices>=2"),
        ("torch>=2..6", "'2..6' is no version", "torch>=2.6"),
        ("(" * 60 + "bf16" + ")" * 60, "nested too deeply", "fewer parentheses"),
        ("not " * 5000 + "bf16", "nested too deeply", "fewer parentheses"),
    ],
)
def test_what_cannot_be_read_is_answered_with_a_way_out(text: str, what: str, hint: str) -> None:
    """A requirement that is none is our error, with what is wrong and a near miss."""
    with pytest.raises(DeviceKitError) as caught:
        parse(text, BACKENDS)
    assert what in caught.value.what
    assert hint in caught.value.try_


def test_the_caret_points_at_the_place() -> None:
    """The second line of the reason has a caret under the first letter that is wrong, on the terminal too."""
    code, out, err = run("doctor", "--require", "cuda and bf17 or npu")
    assert (code, out) == (2, "")
    _, line, caret, _ = err.splitlines()
    assert line[caret.index("^") :].startswith("bf17 or npu")


PIECES = (
    "bf16 cuda memory free devices capability torch driver and or not ( ) >= > == != < <= = 8GiB 20 2.6 8.0 GiB "
    "20GB 1e9 nan inf gpu fp16 , ! 0x10 9999999999999999999GiB"
)
WORDS = st.sampled_from(PIECES.split())


@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join), st.lists(WORDS).map("".join)))
@example("memory>=" + "9" * 5000 + "GiB")
@example("torch>=" + "9" * 5000)
@example("devices>=" + "9" * 5000)
@example("capability>=8.0\x00")
@example("memory>=٣GiB")
def test_no_text_makes_anything_but_our_own_errors(text: str) -> None:
    """Whatever is given, it is read and checked, or it is a DeviceKitError."""
    with contextlib.suppress(DeviceKitError):
        requirement = parse(text, BACKENDS)
        _check(requirement)


def _check(requirement: Requirement) -> None:
    for subject in (SUBJECT, PROCESSOR):
        outcome = requirement.check(subject)
        assert outcome.met in (True, False)
        assert outcome.terms


# -- through the doctor ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "code"), [("bf16 and memory>=4GiB and capability>=8.0 and not npu", 0), ("memory>=20GiB", 1)]
)
def test_the_exit_code_is_the_answer(text: str, code: int) -> None:
    """`doctor --require` ends with 0 where the device meets it and with 1 where it does not."""
    ran = run_on("cuda-laptop", "doctor", "--require", text)
    assert ran.code == code
    assert f"Required: {text}: {'not met' if code else 'met'}." in ran.out


def test_a_device_that_cannot_be_used_meets_nothing() -> None:
    """The requirement is about the device that was asked for, not about the one that stands in for it."""
    code, out, _ = run_on("cpu", "doctor", "--device", "cuda", "--require", "memory>=1GiB")
    assert code == 1
    assert "not met, because the device cannot be used" in out
