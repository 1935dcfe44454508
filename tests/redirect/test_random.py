"""Random numbers of torch.cuda under a redirect: those of the target's generators."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("redirect")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The process's own generator goes on as if nothing had been."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def drawn() -> Any:
    return torch.randn(3, device="cuda")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda", 0)], ids=str)
def test_a_generator_of_the_device(device: Any) -> None:
    """It is a real one, and so takes part where the tensor is."""
    made = torch.Generator(torch.device(device)) if device == 0 else torch.Generator(device)
    assert torch.equal(
        torch.randn(3, generator=made.manual_seed(1), device="cuda"),
        torch.randn(3, generator=torch.Generator(device="cuda").manual_seed(1), device="cuda"),
    )
    assert made.device == torch.device("cpu")
    assert isinstance(made, torch.Generator)


def test_numbers_are_those_of_a_script_for_the_processor() -> None:
    there = torch.randn(3, generator=torch.Generator("cuda").manual_seed(4), device="cuda")
    assert torch.equal(there, torch.randn(3, generator=torch.Generator().manual_seed(4)))
    torch.cuda.manual_seed_all(4)
    assert torch.equal(drawn(), there)


def test_other_generators_are_torchs_own() -> None:
    assert torch.Generator().device == torch.Generator("cpu").device == torch.device("cpu")
    assert torch.Generator("cuda").initial_seed() == torch.Generator().initial_seed()
    assert isinstance(torch.default_generator, torch.Generator)
    assert issubclass(torch.Generator, torch.Generator)
    assert not isinstance(1, torch.Generator)
    with pytest.raises(RuntimeError, match="cuad"):
        torch.Generator("cuad")


def test_programs_build_on_the_class() -> None:
    class Mine(torch.Generator):
        pass

    made = Mine("cuda")
    assert isinstance(made, Mine)
    assert torch.randn(2, generator=made.manual_seed(0), device="cuda").shape == (2,)
    assert not isinstance(torch.Generator(), Mine)


def test_generators_are_copied_and_pickled() -> None:
    made = torch.Generator("cuda").manual_seed(5)
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), made.clone_state()):
        assert torch.equal(torch.randn(2, generator=other), torch.randn(2, generator=made.clone_state()))
    assert pickle.loads(pickle.dumps(torch.Generator)) is torch.Generator


@pytest.mark.parametrize("seed", ["manual_seed", "manual_seed_all"])
def test_seeds(seed: str) -> None:
    getattr(torch.cuda, seed)(3)
    first = drawn()
    getattr(torch.cuda, seed)(3)
    assert torch.equal(drawn(), first)
    assert torch.cuda.initial_seed() == 3
    torch.manual_seed(3)
    assert torch.equal(drawn(), first)


@pytest.mark.parametrize("seed", ["seed", "seed_all"])
def test_a_seed_from_entropy(seed: str) -> None:
    torch.cuda.manual_seed_all(3)
    getattr(torch.cuda, seed)()
    assert torch.cuda.initial_seed() != 3


@pytest.mark.parametrize("device", ["cuda", 0, "cuda:0", torch.device("cuda")], ids=str)
def test_a_state_is_brought_back(device: Any) -> None:
    state, states = torch.cuda.get_rng_state(device), torch.cuda.get_rng_state_all()
    first = drawn()
    torch.cuda.set_rng_state(state, device)
    assert torch.equal(drawn(), first)
    torch.cuda.set_rng_state_all(states)
    assert torch.equal(drawn(), first)


@pytest.mark.parametrize("options", [{}, {"devices": [0]}, {"devices": ["cuda:0"]}, {"device_type": "cuda"}], ids=str)
def test_forked_random_numbers(options: dict[str, Any]) -> None:
    torch.cuda.manual_seed(8)
    with torch.random.fork_rng(**options):
        first = drawn()
    assert torch.equal(drawn(), first)


def test_default_generators() -> None:
    """One for each device, and on a processor torch's default generator."""
    with Redirect(DecidedTarget(resolver().decide("cpu"), 2)):
        assert len(torch.cuda.default_generators) == 2
        assert [g is torch.default_generator for g in torch.cuda.default_generators] == [True, True]
        assert len(torch.cuda.default_generators[:1]) == 1
        with pytest.raises(IndexError):
            torch.cuda.default_generators[2]


def test_the_class_is_torchs_own_afterwards() -> None:
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        kind = torch.Generator
    assert kind("cpu").device == torch.device("cpu")
    assert isinstance(kind(), kind)
