"""A saved tuning counts where it was measured and nowhere else, and no file can make devicekit fall."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import devicekit as dk
from devicekit import host as hosts
from devicekit import tuning
from devicekit.backend import Backend
from devicekit.backends.cpu import CpuBackend
from devicekit.resolve import resolver
from devicekit.testing import MACHINES, Build, FakeHost, simulated_machine
from devicekit.tuning import reading
from devicekit.tuning.value import DTYPES, WORDS, Fingerprint, Tuning, fingerprint, fingerprint_of
from devicekit.values import DeviceInfo
from tests.users import as_a_user, without_a_home


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """Two, as if torch had chosen so, and afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture
def machine() -> Iterator[FakeHost]:
    """A processor without native 16-bit formats, where nothing is saved."""
    with simulated_machine("cpu") as host:
        yield host


def backend_of(name: str = "cpu") -> Backend:
    return resolver().decide(name).backend


def made(backend: Backend | None = None, **changes: Any) -> Tuning:
    """A tuning of this machine."""
    here = fingerprint_of(backend or backend_of(), 0)
    return dataclasses.replace(Tuning(here, "2026-01-31T12:00:00+00:00", "bfloat16"), **changes)


def saved(host: FakeHost, value: Tuning) -> Path:
    with tuning.draft(host, value.fingerprint) as draft:
        tuning.save(host, value, draft)
    return tuning.file_of(host, value.fingerprint)


# -- what a manager does with it ---------------------------------------------------------------------
def test_nothing_saved_changes_nothing(machine: FakeHost) -> None:
    """Without a file there is no tuning, and the backend's dtype counts."""
    dm = dk.DeviceManager()
    assert dm.tuning is None
    assert dm.dtype is torch.float32


def test_a_saved_tuning_is_the_default(machine: FakeHost) -> None:
    """Its dtype is the manager's, its choices can be read, and a dtype that is given wins."""
    value = made(channels_last=True, attention="math")
    saved(machine, value)
    dm = dk.DeviceManager()
    assert dm.tuning == value
    assert dm.tuning.channels_last is True
    assert dm.dtype is torch.bfloat16
    assert dk.DeviceManager(dtype=torch.float64).dtype is torch.float64
    with dm.attention(dm.tuning.attention) as chosen:
        assert chosen.name == "math"


def test_a_manager_that_was_sent_away_has_the_tuning_of_where_it_is(machine: FakeHost) -> None:
    """Pickled before its dtype was asked, it goes by the tuning when it arrives."""
    sent = pickle.dumps(dk.DeviceManager())
    saved(machine, made())
    assert pickle.loads(sent).dtype is torch.bfloat16


@pytest.mark.parametrize("text", ["off", " OFF ", "0", "no", "false"])
def test_it_can_be_switched_off(machine: FakeHost, text: str) -> None:
    """The variable is read at every question, so it also counts after the first one."""
    saved(machine, made())
    dm = dk.DeviceManager()
    assert dm.tuning is not None
    machine.env[tuning.SWITCH] = text
    assert dm.tuning is None
    assert dk.DeviceManager().dtype is torch.float32


@pytest.mark.parametrize("text", ["on", "", "1"])
def test_other_words_leave_it_on(machine: FakeHost, text: str) -> None:
    """Only a no is a no."""
    saved(machine, made())
    machine.env[tuning.SWITCH] = text
    assert dk.DeviceManager().tuning is not None


def test_an_accelerator_has_its_own() -> None:
    """The GPU's tuning is not the processor's, and both are kept side by side."""
    with simulated_machine("cuda-laptop") as host:
        saved(host, made(backend_of("cuda"), dtype="float16"))
        saved(host, made(backend_of("cpu"), dtype="bfloat16"))
        assert dk.DeviceManager("cuda").dtype is torch.float16
        assert dk.DeviceManager("cpu").dtype is torch.bfloat16


def test_making_a_manager_starts_no_accelerator() -> None:
    """With a tuning saved a later fork still works, until the dtype is asked."""
    with simulated_machine("cuda-laptop") as host:
        value = made(backend_of("cuda"))
        fresh = FakeHost("cuda-laptop")
    try:
        with hosts.use(fresh):
            file = fresh.config_file(tuning.FOLDER) / tuning.file_of(host, value.fingerprint).name
            file.parent.mkdir(parents=True)
            file.write_bytes(tuning.as_text(value))
            dm = dk.DeviceManager()
            assert not fresh.torch().cuda.is_initialized()
            assert dm.tuning == value
    finally:
        fresh.close()


def test_numpy_has_none() -> None:
    """Dtypes and threads are torch's."""
    with simulated_machine("no-torch") as host:
        folder = host.config_file(tuning.FOLDER)
        folder.mkdir(parents=True)
        (folder / "numpy-0.json").write_text("{}")
        assert dk.DeviceManager().tuning is None


def test_the_folder_is_looked_at_once() -> None:
    """Where nothing is saved, later managers cost no question to the file system."""
    asked = []

    class Counting(FakeHost):
        def config_file(self, name: str) -> Path:
            asked.append(name)
            return super().config_file(name)

    host = Counting("cpu")
    try:
        with hosts.use(host):
            for _ in range(3):
                assert dk.DeviceManager().tuning is None
    finally:
        host.close()
    assert asked.count(tuning.FOLDER) == 1


def test_a_user_without_a_home_folder_has_none() -> None:
    """The manager works all the same."""
    with without_a_home() as host:
        assert dk.DeviceManager().tuning is None
        assert tuning.saved(host, made().fingerprint) is None


@pytest.mark.parametrize(
    ("made_of", "variable"),
    [({"cuda": 1}, "PYTORCH_CUDA_ALLOC_CONF"), ({"npu": 1}, "PYTORCH_NPU_ALLOC_CONF")],
)
def test_an_allocator_is_tried_by_the_variable_that_every_version_reads(made_of: dict[str, Any], variable: str) -> None:
    """The same one that saving memory sets; torch 2.9.1 reads this option in no other (pytorch/pytorch#183387)."""
    with simulated_machine(**made_of):
        [settings] = resolver().decide().backend.allocator_settings()
    assert list(settings) == [variable]


# -- threads -----------------------------------------------------------------------------------------
def test_threads_are_set_once(machine: FakeHost) -> None:
    """The first manager sets them; what the user sets afterwards stays."""
    saved(machine, made(threads=1, own_threads=2))
    dk.DeviceManager()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    dk.DeviceManager()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", tuning.THREAD_PINS)
def test_a_variable_for_threads_wins(machine: FakeHost, name: str) -> None:
    """OMP_NUM_THREADS and MKL_NUM_THREADS are the user's, or torchrun's."""
    machine.env[name] = "2"
    saved(machine, made(threads=1, own_threads=2))
    dk.DeviceManager()
    assert torch.get_num_threads() == 2


def test_threads_that_the_user_has_set_stay(machine: FakeHost) -> None:
    """A number that is not torch's own is somebody's choice."""
    saved(machine, made(threads=1, own_threads=2))
    torch.set_num_threads(3)
    dk.DeviceManager()
    assert torch.get_num_threads() == 3


def test_no_number_of_threads_is_no_change(machine: FakeHost) -> None:
    """None leaves it to torch."""
    saved(machine, made(threads=None))
    dk.DeviceManager()
    assert torch.get_num_threads() == 2


def test_an_accelerators_manager_leaves_threads_alone() -> None:
    """Its tuning is not looked up when the manager is made."""
    with simulated_machine("cuda-laptop") as host:
        saved(host, made(backend_of("cuda"), threads=1, own_threads=2))
        dk.DeviceManager("cuda")
        assert torch.get_num_threads() == 2


# -- where it counts ---------------------------------------------------------------------------------
HERE = Fingerprint("AMD EPYC", 8, 4.5, "cuda", "RTX 3090", "sm_86", "2.13.0+cu130", "0.1")


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("processor", "Intel Xeon"), ("cpus", 4), ("quota", None), ("backend", "rocm"), ("device", "RTX 4090"),
        ("architecture", "sm_89"), ("torch", "2.12.0"), ("devicekit", "1"),
    ],
)  # fmt: skip
def test_every_part_of_the_fingerprint_matters(machine: FakeHost, field: str, other: Any) -> None:
    """Another value is another file, and the difference is told with both values."""
    there = dataclasses.replace(HERE, **{field: other})
    assert tuning.file_of(machine, HERE) != tuning.file_of(machine, there)
    assert HERE.difference(HERE) == ""
    told = HERE.difference(there)
    assert repr(getattr(HERE, field)) in told
    assert repr(other) in told


def test_the_parts_are_all_of_them() -> None:
    """The test above and the words for people know every field."""
    assert set(WORDS) == {field.name for field in dataclasses.fields(Fingerprint)}


def test_what_is_in_a_fingerprint(machine: FakeHost) -> None:
    """The processor's and the device's names, what may be used of it, and the versions."""
    (machine.root / "proc").mkdir(exist_ok=True)
    (machine.root / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Acme 9000\n")
    found = fingerprint(machine, "npu", DeviceInfo(0, "Ascend NPU", architecture="910B3"), "2.13.0+cpu")
    assert (found.processor, found.backend, found.device, found.architecture) == (
        "Acme 9000", "npu", "Ascend NPU", "910B3",
    )  # fmt: skip
    assert found.cpus >= 1
    assert found.quota is None
    assert found.torch == "2.13.0+cpu"
    assert dk.__version__.startswith(found.devicekit)


def test_any_name_of_a_device_can_be_kept(machine: FakeHost, tmp_path: Path) -> None:
    """However long it is and whatever is in it, what was written is read."""
    device = DeviceInfo(0, "\x1b[31m\n" + "x" * 999, architecture="\0")
    value = dataclasses.replace(made(), fingerprint=fingerprint(machine, "npu", device, "2.13.0"))
    assert reading.load(written(tmp_path, tuning.as_text(value))) == value


@pytest.mark.parametrize("change", [{"build": Build("2.12.0+cpu")}, {"cpu": ("avx2",)}], ids=["torch", "architecture"])
def test_a_tuning_of_another_machine_is_not_found(machine: FakeHost, change: dict[str, Any]) -> None:
    """In a folder that both share, each has its own, and the other's changes nothing."""
    file = saved(machine, made())
    with simulated_machine(dataclasses.replace(MACHINES["cpu"], **change)) as other:
        folder = other.config_file(tuning.FOLDER)
        folder.mkdir(parents=True)
        (folder / file.name).write_bytes(file.read_bytes())
        assert dk.DeviceManager().tuning is None
        saved(other, made(dtype="float16"))
        assert dk.DeviceManager().tuning.dtype == "float16"
        assert len(list(folder.iterdir())) == 2


def test_a_file_under_the_name_of_another_does_not_count(machine: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    """Renamed by hand, it is still of another torch; the log says so."""
    mine = made()
    other = dataclasses.replace(mine, fingerprint=dataclasses.replace(mine.fingerprint, torch="2.7.0"))
    file = tuning.file_of(machine, mine.fingerprint)
    file.parent.mkdir(parents=True)
    file.write_bytes(tuning.as_text(other))
    assert dk.DeviceManager().tuning is None
    assert "torch '2.7.0'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"attention": "warp"}, "'warp' is no attention kernel"), ({"allocator": {"LD_PRELOAD": "/x"}}, "no settings")],
)
def test_what_the_backend_does_not_know_is_not_taken_over(machine: FakeHost, changes: dict[str, Any], why: str) -> None:
    """Kernels and variables of a file are held against the backend's own."""
    backend = backend_of()
    with pytest.raises(dk.DeviceKitError, match=why):
        tuning.check(made(**changes), made().fingerprint, backend)
    good = made(attention="math", allocator=backend.allocator_settings()[0])
    tuning.check(good, made().fingerprint, backend)


def test_a_device_that_cannot_be_described_has_none(machine: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    """What its runtime raises goes to the log, and whoever uses the device will hear of it."""

    class Lost(CpuBackend):
        def describe(self, index: int = 0) -> DeviceInfo:
            raise RuntimeError("the device fell off the bus")

    saved(machine, made())
    assert tuning.of(Lost(machine), 0) is None
    assert "fell off the bus" in caplog.text


# -- files -------------------------------------------------------------------------------------------
def document(**changes: Any) -> dict[str, Any]:
    value = Tuning(
        HERE, "2026-01-31T12:00:00+00:00", "float16", 2, 8, "flash", True, {"A": "b"}, {"dtype": {"float16": 0.5}}
    )
    return {**value.to_dict(), **changes}


def written(folder: Path, content: bytes) -> Path:
    file = folder / "tuning.json"
    file.write_bytes(content)
    return file


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    """What was written is read as the same value."""
    file = written(tmp_path, json.dumps(document()).encode())
    value = reading.load(file)
    assert value.to_dict() == document()
    assert reading.load(written(tmp_path, tuning.as_text(value))) == value


REFUSED: dict[str, tuple[Any, str]] = {
    "not JSON": (b"dtype = float32", "Expecting value"),
    "empty": (b"", "Expecting value"),
    "cut off": (json.dumps(document()).encode()[:100], "Unterminated|Expecting"),
    "not text": (b"\xff\xfe\xff", "decode|Expecting"),
    "deep": (b"[" * 30_000, "nested too deeply|Expecting"),
    "huge": (b" " * (reading.LARGEST + 1), "more than 65536 bytes"),
    "huge number": (
        json.dumps(document(threads=0)).encode().replace(b'"threads": 0', b'"threads": ' + b"9" * 5000),
        ".",
    ),
    "a list": ([], "format"),
    "another format": (document(format="other"), "format"),
    "another version": (document(version=2), "its version is 2"),
    "a bool as version": (document(version=True), "its version is True"),
    "no dtype": ({k: v for k, v in document().items() if k != "dtype"}, "has no dtype"),
    "more": (document(more=1), "'more', which means nothing"),
    "dtype": (document(dtype="int8"), "dtype cannot be 'int8'"),
    "dtype of another type": (document(dtype=["float32"]), "dtype cannot be"),
    "threads": (document(threads=0), "threads cannot be 0"),
    "threads as text": (document(threads="2"), "threads cannot be '2'"),
    "threads as bool": (document(threads=True), "threads cannot be True"),
    "more threads than CPUs": (document(threads=9), "threads is 9"),
    "attention": (document(attention="a\nb"), "attention cannot be"),
    "channels_last": (document(channels_last=1), "channels_last cannot be 1"),
    "allocator": (document(allocator={"A": 1}), "allocator cannot be"),
    "seconds": (document(seconds={"dtype": {"float16": -1}}), "seconds cannot be"),
    "created": (document(created="\x1b[2J"), "created cannot be"),
    "long text": (document(created="x" * 300), "created cannot be"),
    "fingerprint": (document(fingerprint=None), "fingerprint cannot be None"),
    "half a fingerprint": (document(fingerprint={"processor": "x"}), "its fingerprint has no cpus"),
    "CPUs": (document(fingerprint={**dataclasses.asdict(HERE), "cpus": 10**9}), "cpus cannot be"),
    "not a number": (json.dumps(document(seconds={"dtype": {"float16": float("nan")}})).encode(), "NaN is no number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_tuning_is_refused(tmp_path: Path, name: str) -> None:
    """Our error names the file and what is wrong with it, and says what to do."""
    content, why = REFUSED[name]
    file = written(tmp_path, content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(dk.DeviceKitError, match=r"tuning\.json (is no tuning|cannot be read)") as caught:
        reading.load(file)
    assert re.search(why, caught.value.why)
    assert caught.value.try_


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, a pipe, a device, nothing at all and a name that is none: none of them keeps us waiting."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, "/dev/zero", tmp_path / "missing", "a\0b"):
        with pytest.raises(dk.DeviceKitError, match="cannot be read"):
            reading.load(path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """With the system's reason."""
    file = written(tmp_path, json.dumps(document()).encode())
    file.chmod(0)
    with as_a_user(), pytest.raises(dk.DeviceKitError, match="Permission denied"):
        reading.load(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(document())
OF_FINGERPRINT = sorted(dataclasses.asdict(HERE))


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A good document with anything in one or two of its places."""
    told = document()
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        told[name] = draw(json_values)
    if isinstance(told["fingerprint"], dict):
        for name in draw(st.lists(st.sampled_from(OF_FINGERPRINT), max_size=2)):
            told["fingerprint"][name] = draw(json_values)
    return json.dumps(told).encode()


@given(content=st.one_of(st.binary(max_size=200), json_values.map(lambda v: json.dumps(v).encode()), documents()))
@example(content=json.dumps(document()).encode())
@example(content=json.dumps(document()).encode("utf-16"))
@example(content=json.dumps(document(created="\ud800")).encode())
def test_any_bytes_are_a_tuning_or_our_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever lies there, it is refused in our words, or it is a value that can be written and read again."""
    file = written(tmp_path_factory.getbasetemp(), content)
    try:
        value = reading.load(file)
    except dk.DeviceKitError:
        return
    assert value.dtype in DTYPES
    assert value.threads is None or 1 <= value.threads <= value.fingerprint.cpus
    file.write_bytes(tuning.as_text(value))
    assert reading.load(file) == value


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 20_000, json.dumps(document()).encode()])
def test_a_broken_saved_file_changes_nothing(
    machine: FakeHost, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """The manager works as without it, the log has one line, and the file stays for its owner to look at."""
    file = tuning.file_of(machine, made().fingerprint)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "devicekit"):
        dm = dk.DeviceManager()
        assert (dm.tuning, dm.dtype) == (None, torch.float32)
    assert caplog.text.count("the saved tuning does not count") == 1
    assert file.read_bytes() == content


def test_forgetting_leaves_the_others(machine: FakeHost) -> None:
    """Only the file of this fingerprint goes, and going twice is no error."""
    value = made()
    other = dataclasses.replace(value, fingerprint=HERE)
    saved(machine, value)
    kept = saved(machine, other)
    tuning.forget(machine, value.fingerprint)
    tuning.forget(machine, value.fingerprint)
    assert dk.DeviceManager().tuning is None
    assert list(kept.parent.iterdir()) == [kept]


def test_saving_over_an_old_one_is_all_or_nothing(machine: FakeHost) -> None:
    """Until the new one is whole the old one is there, and nothing else lies in the folder afterwards."""
    value = made()
    file = saved(machine, value)
    with tuning.draft(machine, value.fingerprint):
        assert reading.load(file) == value
    saved(machine, dataclasses.replace(value, dtype="float16"))
    assert dk.DeviceManager().tuning.dtype == "float16"
    assert list(file.parent.iterdir()) == [file]
