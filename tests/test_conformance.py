"""Every backend passes the suite that third parties inherit: the usable ones of this machine, all of them simulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import devicekit
from devicekit.backend import Backend
from devicekit.host import current
from devicekit.registry import BUILTIN, Row, load
from devicekit.resolve import resolver
from devicekit.testing import BackendConformance, simulated_machine
from tests.third_party import Acme

ROWS = {row.name: row for row in BUILTIN}

# A machine on which each backend is usable.
MACHINES = {
    "cuda": "two-gpus",
    "rocm": "amd-workstation",
    "xpu": "intel-igpu",
    "npu": "ascend",
    "mps": "mac",
    "cpu": "container-2gib",
    "numpy": "no-torch",
    "vulkan": "vulkan",
}


class TestSimulated(BackendConformance):
    """The real backend classes, on machines made from data."""

    @pytest.fixture(params=list(MACHINES))
    def backend(self, request: pytest.FixtureRequest) -> Iterator[Backend]:
        with simulated_machine(MACHINES[request.param]) as host:
            backend = load(ROWS[request.param], host)
            assert backend.probe().usable
            yield backend


class TestThisMachine(BackendConformance):
    """The real backends on the real machine: on one with a GPU this runs on the GPU."""

    @pytest.fixture(params=resolver().usable_rows(), ids=lambda row: row.name)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        row: Row = request.param
        return load(row, current())


@pytest.mark.parametrize(("machine", "name"), [("ascend-no-cann", "npu"), ("cuda-no-driver", "cuda"), ("mac", "xpu")])
def test_a_backend_that_is_not_usable_passes_what_can_be_asked_of_it(
    machine: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The probe's part of the suite holds for a no as well, and the rest is skipped with the probe's reason."""
    suite = BackendConformance()
    with simulated_machine(machine) as host:
        backend = load(ROWS[name], host)
        suite.test_probe_answers_with_an_availability(backend)
        suite.test_probe_numbers_its_devices(backend)
        suite.test_probe_has_no_side_effect(backend, capfd)
        assert not backend.probe().usable


def test_rows_and_files_agree() -> None:
    """Every row has its file in backends/, and every file its row."""
    folder = Path(devicekit.__file__).parent / "backends"
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert files == {row.target.partition(":")[0].rpartition(".")[2] for row in BUILTIN}
    assert all(row.name == load(row, current()).name for row in BUILTIN)


def test_at_most_one_of_cuda_and_rocm_says_yes() -> None:
    """They share torch.cuda, so each must know its own build."""
    for name in ("two-gpus", "amd-workstation"):
        with simulated_machine(name) as host:
            assert [load(ROWS[n], host).probe().usable for n in ("cuda", "rocm")].count(True) == 1


class Silent(Acme):
    """Answers yes without a reason, prefers what it cannot hold, and lets any seed pass."""

    device_type = "cpu"
    indexed = False

    def storable(self, dtype: object) -> object:
        return self.torch.float32

    def create_generator(self, seed: int | None = None, index: int = 0) -> object:
        return self.torch.Generator("cpu")


class Faulty(BackendConformance):
    """The suite against a backend with mistakes; not collected, because its name does not start with Test."""


@pytest.mark.parametrize(
    "broken", ["test_preferred_dtype_can_be_stored", "test_same_seed_same_generator", "test_what_is_no_seed_is_refused"]
)
def test_the_suite_finds_mistakes(broken: str) -> None:
    """A backend that breaks the contract fails the test that holds it."""
    suite, backend = Faulty(), Silent(current())
    at = backend.probe().devices[0]
    arguments = {"seed": "7"} if "no_seed" in broken else {}
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(suite, broken)(backend, at, **arguments)
