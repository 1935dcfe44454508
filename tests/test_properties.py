"""No input makes anything but devicekit's own errors: properties over generated words, pins and values."""

from __future__ import annotations

import string
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import devicekit as dk
from devicekit.host import Host
from devicekit.host import use as use_host
from devicekit.request import PINS

WORDS = ["auto", "gpu", "cpu", "cuda", "rocm", "hip", "xpu", "npu", "mps", "vulkan", "numpy"]

near_words = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=string.ascii_letters + ":0123456789-. \t\n", max_size=12),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", " ", "\t"]),
        st.sampled_from([*WORDS, *(w.upper() for w in WORDS)]),
        st.sampled_from(["", ":", ":-", "::", ": ", ":0x"]),
        st.one_of(st.just(""), st.integers(0, 10**30).map(str)),
    ),
)
anything = st.one_of(
    near_words,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=8),
    st.lists(st.text(max_size=3), max_size=2),
    st.sampled_from([torch.device("cpu"), torch.device("cuda:3"), torch.device("meta"), object(), dk]),
)


def _ours(call: Any) -> Any:
    """The result, or the error if it is one of ours; any other exception fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dk.DeviceFallbackWarning)
        try:
            return call()
        except dk.DeviceKitError as error:
            caught = error
    assert caught.what
    assert caught.try_
    return caught


@given(asked=anything, strict=st.booleans())
@example(asked="cuda:" + "9" * 5000, strict=True)
@example(asked="cuda:\u0661", strict=False)
@example(asked="\0", strict=False)
def test_no_argument_makes_another_error(asked: Any, strict: bool) -> None:
    """`resolve_device` gives a device, or one of our errors, whatever it is given."""
    result = _ours(lambda: dk.resolve_device(asked, strict=strict))
    assert isinstance(result, (torch.device, str, dk.DeviceKitError))
    if not strict and isinstance(result, dk.DeviceKitError):
        assert isinstance(result, dk.UnknownDeviceError)


@given(asked=anything)
def test_no_argument_makes_explain_or_the_manager_raise_another_error(asked: Any) -> None:
    """`explain` and `DeviceManager` accept and refuse exactly what `resolve_device` does."""
    results = [_ours(lambda make=make: make(asked)) for make in (dk.resolve_device, dk.explain, dk.DeviceManager)]
    refused = [isinstance(result, dk.DeviceKitError) for result in results]
    assert refused[0] == refused[1] == refused[2]
    if not refused[0]:
        assert str(results[0]) == results[1].device == str(results[2].device)


pins = st.dictionaries(
    st.sampled_from([*PINS, "LOCAL_RANK"]), near_words.filter(lambda text: "\0" not in text), max_size=4
)


@given(env=pins)
def test_no_pin_makes_another_error(env: dict[str, str]) -> None:
    """Any text in the pins and in LOCAL_RANK gives a device, or an error that names the variable."""
    with use_host(Host(env=env)):
        result = _ours(dk.resolve_device)
    if isinstance(result, dk.DeviceKitError):
        assert any(pin in str(result) for pin in PINS)


@given(env=pins)
def test_auto_never_raises_without_a_pin(env: dict[str, str]) -> None:
    """`auto` always finds a device; only a pin can be wrong."""
    with use_host(Host(env={"LOCAL_RANK": env.get("LOCAL_RANK", "")})):
        assert isinstance(dk.resolve_device("auto"), torch.device)


@given(word=st.sampled_from(WORDS), index=st.one_of(st.none(), st.integers(0, 3)))
def test_a_device_that_was_resolved_resolves_to_itself(word: str, index: int | None) -> None:
    """Asking for the answer gives the answer, without a warning."""
    asked = word if index is None else f"{word}:{index}"
    first = _ours(lambda: dk.resolve_device(asked))
    if not isinstance(first, dk.DeviceKitError):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert dk.resolve_device(str(first)) == torch.device(str(first))


@pytest.mark.parametrize("seed", [None, 0, -1, 2**64 - 1])
def test_errors_survive_a_process_border(seed: object) -> None:
    """Every error can be pickled with what, why and try."""
    import pickle

    error = dk.DeviceUnavailableError("what", why=f"why {seed}", try_="try")
    again = pickle.loads(pickle.dumps(error))
    assert (again.what, again.why, again.try_, str(again)) == (error.what, error.why, error.try_, str(error))
