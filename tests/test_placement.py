"""`dm.to`: whatever holds tensors, however deep, and what becomes of dtypes on the way."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from devicekit import DeviceKitError, DeviceManager


@pytest.fixture
def dm() -> DeviceManager:
    return DeviceManager("cpu", dtype=torch.float32)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    label: str
    inner: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    size: int = dataclasses.field(init=False, default=0)


def test_containers_keep_their_type_and_order(dm: DeviceManager) -> None:
    """Dicts, ordered and defaulting ones, lists, tuples and named tuples come back as what they were."""
    nested = {
        "list": [np.zeros(2), "text"],
        "tuple": (np.ones(1), None),
        "pair": Pair(np.zeros(1), 3),
        "ordered": collections.OrderedDict(b=np.zeros(1), a=1),
        "default": collections.defaultdict(list, k=np.zeros(1)),
    }
    moved = dm.to(nested)
    assert list(moved) == list(nested)
    assert {key: type(value) for key, value in moved.items()} == {key: type(value) for key, value in nested.items()}
    assert isinstance(moved["list"][0], torch.Tensor)
    assert moved["list"][1] == "text"
    assert isinstance(moved["pair"].left, torch.Tensor)
    assert list(moved["ordered"]) == ["b", "a"]
    assert moved["default"].default_factory is list
    assert isinstance(nested["list"][0], np.ndarray), "the original is left as it was"


def test_dataclasses_come_back_new(dm: DeviceManager) -> None:
    """Frozen and slotted dataclasses are copied field by field, those set after init included."""
    batch = Batch(np.zeros(2), "cat", {"deep": [np.ones(1)]})  # type: ignore[arg-type]
    moved = dm.to(batch)
    assert isinstance(moved.x, torch.Tensor)
    assert moved.label == "cat"
    assert isinstance(moved.inner["deep"][0], torch.Tensor)
    slotted = Slotted(np.zeros(2))  # type: ignore[arg-type]
    slotted.size = 5
    assert dm.to(slotted).size == 5


def test_the_dtype_stays_unless_one_is_given(dm: DeviceManager) -> None:
    """Moving does not cast; a given dtype casts floating-point values and leaves integers and booleans."""
    values = [torch.zeros(1, dtype=d) for d in (torch.float64, torch.float16, torch.int64, torch.bool)]
    assert [t.dtype for t in dm.to(values)] == [torch.float64, torch.float16, torch.int64, torch.bool]
    cast = [t.dtype for t in dm.to(values, torch.bfloat16)]
    assert cast == [torch.bfloat16, torch.bfloat16, torch.int64, torch.bool]


def test_a_tensor_that_is_there_is_not_copied(dm: DeviceManager) -> None:
    """Nothing to do means nothing done, as in torch."""
    x = torch.zeros(3)
    assert dm.to(x) is x


def test_modules_move_in_place_and_keep_ties(dm: DeviceManager) -> None:
    """A module is the same object after the move, cast if asked, and tied parameters stay one."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
    assert dm.to(model, torch.bfloat16) is model
    assert model[0].weight is model[1].weight
    assert model[0].weight.dtype is torch.bfloat16
    assert model.steps.dtype is torch.int64


def test_arrays_become_tensors(dm: DeviceManager) -> None:
    """Numbers do, read-only, reversed and empty ones too, without a warning; texts and objects stay arrays."""
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dm.to(frozen).tolist() == [0.0, 1.0, 2.0]
        assert dm.to(np.arange(3)[::-1]).tolist() == [2, 1, 0]
        assert dm.to(np.zeros((0, 4))).shape == (0, 4)
    words = np.array(["a", "b"])
    assert dm.to(words) is words


def test_packed_sequences_move_themselves(dm: DeviceManager) -> None:
    """torch's own containers with a `to` are left to it."""
    packed = pack_sequence([torch.zeros(3), torch.zeros(2)])
    assert isinstance(dm.to(packed, torch.float64), PackedSequence)
    assert dm.to(packed, torch.float64).data.dtype is torch.float64


class Pipeline:
    """Like a diffusers pipeline: `components`, and a `to` that takes device and dtype."""

    def __init__(self) -> None:
        self.components = {"unet": torch.nn.Linear(1, 1), "scheduler": object()}
        self.asked: dict[str, Any] = {}

    def to(self, **named: Any) -> Pipeline:
        self.asked = named
        return self


def test_pipelines_are_asked_to_move(dm: DeviceManager) -> None:
    """A pipeline gets the device, and the dtype only when one was given."""
    pipeline = Pipeline()
    assert dm.to(pipeline) is pipeline
    assert pipeline.asked == {"device": torch.device("cpu")}
    dm.to(pipeline, torch.float16)
    assert pipeline.asked == {"device": torch.device("cpu"), "dtype": torch.float16}


class Quantity:
    """Has a `to`, but for units."""

    def to(self, unit: str) -> Quantity:
        return self


def test_a_to_that_takes_no_device_is_an_error(dm: DeviceManager) -> None:
    """An object that moves otherwise is named, with what its own method said."""
    with pytest.raises(DeviceKitError, match="a Quantity cannot be put on cpu") as caught:
        dm.to(Quantity())
    assert "unexpected keyword argument 'device'" in caught.value.why


@pytest.mark.parametrize("thing", ["text", 7, 1.5, None, b"x", {1, 2}, torch.Tensor, range(3)])
def test_the_rest_comes_back_as_it_is(dm: DeviceManager, thing: Any) -> None:
    """What holds no tensor is nobody's to move."""
    assert dm.to(thing) is thing


def test_numpy_keeps_arrays_and_takes_tensors() -> None:
    """On the numpy backend arrays stay, floats are cast if asked, and tensors become arrays."""
    dm = DeviceManager("numpy")
    x, counts = np.zeros(2), np.arange(2)
    assert dm.to(x) is x
    assert dm.to(x, np.float32).dtype == np.float32
    assert dm.to(counts, np.float32) is counts
    moved = dm.to({"t": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)})
    assert moved["t"].dtype == np.float32
    assert moved["t"].tolist() == [1.0, 1.0]
