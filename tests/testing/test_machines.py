"""Machines as data: sizes, JSON, presets, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicekit.testing import MACHINES, Build, Card, Faults, Machine, machine_named
from devicekit.testing.machines import CPU_FLAGS, accelerated

NEEDED = {
    "cuda-laptop",
    "cuda-old-gpu",
    "cuda-old-driver",
    "cuda-no-driver",
    "two-gpus",
    "amd-workstation",
    "mac",
    "ascend",
    "ascend-no-cann",
    "ascend-beside-cuda",
    "intel-igpu",
    "container-2gib",
    "no-torch",
}


# -- sizes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "number"),
    [("24GiB", 24 << 30), ("1.5 GiB", 3 << 29), ("512mib", 512 << 20), ("7", 7), (7, 7), ("4KiB", 4096), (0, 0)],
)
def test_sizes_are_read(size: int | str, number: int) -> None:
    """Bytes, or a number with a binary unit."""
    assert Card(memory=size).total == number


@pytest.mark.parametrize("size", ["24GB", "lots", "", "-1GiB", "1TiBs", "GiB", -1, True])
def test_a_size_that_is_none_is_refused(size: int | str) -> None:
    """Nonsense is a ValueError that repeats it, when the card is made and not when it is asked."""
    with pytest.raises(ValueError, match="GiB") as caught:
        Card(memory=size)
    assert repr(size) in str(caught.value)


def test_more_free_than_there_is_is_refused() -> None:
    """Others cannot leave more than the card has."""
    with pytest.raises(ValueError, match="is more than"):
        Card(memory="1GiB", free="2GiB")


# -- JSON ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_survives_json(name: str) -> None:
    """What comes back is equal, down to the slices and the faults."""
    machine = MACHINES[name]
    assert Machine.from_json(machine.to_json()) == machine
    assert json.loads(machine.to_json())["name"] == name


_CARDS = st.builds(
    Card,
    name=st.text(max_size=5),
    memory=st.sampled_from(["1GiB", 4096, "24GiB"]),
    architecture=st.sampled_from(["sm_61", "gfx90a", "Ascend910B3", "xe-lpg", "apple-m3"]),
    integrated=st.booleans(),
    lacks=st.sampled_from([(), ("bfloat16",)]),
    slices=st.sampled_from([(), (Card("slice", "1GiB"),)]),
)
_MACHINES = st.builds(
    Machine,
    platform=st.sampled_from(["linux", "darwin", "win32"]),
    build=st.sampled_from([None, Build(), Build("2.6.0+cu124", cuda="12.4", architectures=("sm_90", "compute_90"))]),
    cards=st.lists(_CARDS, max_size=3).map(tuple),
    cpu=st.lists(st.sampled_from(CPU_FLAGS), max_size=3).map(tuple),
    env=st.dictionaries(st.text(min_size=1, max_size=3), st.text(max_size=3), max_size=2),
    entry_points=st.sampled_from([{}, {"devicekit.backends": {"acme": "acme:Acme"}}]),
    faults=st.builds(Faults, hang=st.floats(0, 9), oom_at=st.sampled_from([None, "1MiB", 7]), shim=st.booleans()),
)


@given(_MACHINES)
def test_any_machine_survives_json(machine: Machine) -> None:
    """Whatever can be made can be told to another process."""
    assert Machine.from_json(machine.to_json()) == machine


# -- presets ---------------------------------------------------------------------------------------
def test_the_presets_are_there() -> None:
    """Each machine of the issue has its name, and is called by it."""
    assert set(MACHINES) >= NEEDED
    assert all(machine.name == name for name, machine in MACHINES.items())
    assert machine_named("mac") is MACHINES["mac"]


def test_an_unknown_preset_has_a_near_miss() -> None:
    """A typo is a ValueError, with the name that was probably meant, or all of them."""
    with pytest.raises(ValueError, match="'macc' is no simulated machine; did you mean 'mac'"):
        machine_named("macc")
    with pytest.raises(ValueError, match="one of cpu, no-torch"):
        machine_named("zzzzzz")


def test_which_backend_a_machine_is_for() -> None:
    """The build decides, and the plugin where there is none."""
    expected = {"two-gpus": "cuda", "amd-workstation": "rocm", "intel-igpu": "xpu", "ascend": "npu", "mac": "mps"}
    assert {name: MACHINES[name].accelerator for name in expected} == expected
    assert MACHINES["no-torch"].accelerator is MACHINES["cpu"].accelerator is None
    assert MACHINES["ascend-beside-cuda"].accelerator == "cuda"


# -- cards -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("architecture", "vendor"),
    [("sm_86", "nvidia"), ("gfx90a", "amd"), ("xe2-hpg", "intel"), ("Ascend910B", "huawei"), ("apple-m1", "apple")],
)
def test_the_architecture_says_the_vendor(architecture: str, vendor: str) -> None:
    """One field for both, so that they cannot disagree."""
    assert Card(architecture=architecture).vendor == vendor


@pytest.mark.parametrize(("architecture", "near"), [("8.6", "write it as sm_86"), ("Ascend910B7", "did you mean")])
def test_an_unknown_architecture_is_refused(architecture: str, near: str) -> None:
    """With the spelling that was meant."""
    with pytest.raises(ValueError, match=near):
        Card(architecture=architecture)


def test_every_card_has_a_uuid_of_its_own() -> None:
    """Given by position where it is not told, kept where it is; two alike are refused."""
    machine = Machine(cards=(Card(), Card(uuid="GPU-mine"), Card(architecture="gfx1100")))
    assert [c.uuid for c in machine.cards] == [
        "GPU-00000001-5a1e-4d3c-9b7f-0123456789ab",
        "GPU-mine",
        "GPU-0000000000000003",
    ]
    with pytest.raises(ValueError, match="same uuid"):
        replace(machine, cards=(machine.cards[0],) * 2)


def test_another_tenants_card_is_nobodys() -> None:
    """A hidden card is in the table of cards, and in no runtime's."""
    machine = Machine(cards=(Card(), Card(hidden=True)))
    assert len(machine.cards) == 2
    assert len(machine.cards_of("nvidia")) == 1


# -- the rest ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("told", "faults"),
    [
        (None, Faults()),
        ("no_kernels", Faults(no_kernels=True)),
        (["shim", "wrong_numbers"], Faults(shim=True, wrong_numbers=True)),
        ("hang", Faults(hang=3600.0)),
        ({"hang": 0.5, "oom_at": "1GiB"}, Faults(hang=0.5, oom_at="1GiB")),
        (Faults(abort=True), Faults(abort=True)),
    ],
)
def test_faults_are_told_in_many_ways(told: object, faults: Faults) -> None:
    """By name, by names, by name and value, or as they are."""
    assert Faults.of(told) == faults  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "near"), [("no_kernel", "did you mean 'no_kernels'"), ("oom_at", "needs a size"), ({"oom_at": "x"}, "GiB")]
)
def test_a_fault_that_is_none_is_refused(told: object, near: str) -> None:
    """A typo in a fault would make a test pass for nothing."""
    with pytest.raises(ValueError, match=near):
        Faults.of(told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"platform": "linus"},
        {"cpu": ("avx1024",)},
        {"host_memory": "big"},
        {"container": "2GB"},
        {"faults": "no_such_fault"},
    ],
)
def test_a_machine_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    """Each field is checked when the machine is made."""
    with pytest.raises(ValueError, match=r"GiB|did you mean|one of"):
        Machine(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "release", "older"),
    [
        ("2.8.0+cpu", (2, 9), True),
        ("2.13.0", (2, 9), False),
        ("2.10.1+cu130", (2, 10), False),
        ("2.9", (2, 9, 1), True),
    ],
)
def test_versions_compare_as_numbers(version: str, release: tuple[int, ...], older: bool) -> None:
    """2.13 is newer than 2.9."""
    assert Build(version).older_than(*release) is older


def test_alike_cards_by_number() -> None:
    """A kind, a count, and what each has; another vendor's architecture is refused."""
    machine = accelerated("cuda", 2, "12GiB", "sm_90")
    assert [(c.total, c.architecture) for c in machine.cards] == [(12 << 30, "sm_90")] * 2
    assert accelerated("mps", 0).cards == ()
    with pytest.raises(ValueError, match="no architecture of cuda"):
        accelerated("cuda", 1, architecture="gfx1100")
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        accelerated("cud", 1)
