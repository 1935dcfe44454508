"""What every backend must do, as tests that its author inherits.

    from devicekit.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def backend(self):
            return MyBackend(devicekit.host.current())

On a machine where the backend's probe says no, the questions about a device are skipped with the probe's reason, and
the rest is tested. To test them there as well, hand in a host of :func:`devicekit.testing.simulated_machine`.
"""

from __future__ import annotations

import gc
import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from devicekit.backend import Backend
from devicekit.errors import DeviceKitError
from devicekit.formats import FORMATS, attempt
from devicekit.values import AttentionCase, Availability, DeviceInfo, MemoryStats

__all__ = ["BackendConformance"]


class BackendConformance:
    """Inherit it, give it a ``backend`` fixture, and run pytest."""

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test; a subclass must give its own."""
        raise NotImplementedError("override the fixture `backend` with one that returns your backend")

    @pytest.fixture
    def at(self, backend: Backend) -> DeviceInfo:
        """A usable device of the backend."""
        answer = backend.probe()
        usable = [device for device in answer.devices if device.usable]
        if not usable:
            pytest.skip(f"{backend.name} is not usable here: {answer.reason}")
        return usable[0]

    # -- the probe -----------------------------------------------------------------------------
    def test_probe_answers_with_an_availability(self, backend: Backend) -> None:
        """A probe never raises: it answers yes with devices, or no with a reason."""
        answer = backend.probe()
        assert isinstance(answer, Availability)
        assert answer.reason
        assert answer.usable == any(device.usable for device in answer.devices)

    def test_probe_numbers_its_devices(self, backend: Backend) -> None:
        """Indices are distinct, not negative, and in order; a device that is not usable says why."""
        devices = backend.probe().devices
        indices = [device.index for device in devices]
        assert indices == sorted(set(indices))
        assert all(index >= 0 for index in indices)
        assert all(device.usable or device.reason for device in devices)

    def test_probe_has_no_side_effect(self, backend: Backend, capfd: pytest.CaptureFixture[str]) -> None:
        """Probing twice gives the same answer, prints nothing and leaves the environment alone."""
        before = dict(backend.host.env)
        capfd.readouterr()
        first, second = backend.probe(), backend.probe()
        assert (first.usable, first.reason) == (second.usable, second.reason)
        assert dict(backend.host.env) == before
        assert tuple(capfd.readouterr()) == ("", "")

    def test_it_has_a_name_and_a_device_type(self, backend: Backend) -> None:
        """The name is one lower-case word, and the device type is what the framework says."""
        assert backend.name.isidentifier()
        assert backend.name == backend.name.lower()
        assert backend.device_type

    # -- one device ----------------------------------------------------------------------------
    def test_device_is_of_its_type(self, backend: Backend, at: DeviceInfo) -> None:
        """The device's string starts with the backend's device type."""
        assert str(backend.device(at.index)).partition(":")[0] == backend.device_type

    def test_the_current_device_is_the_one_that_was_made_current(self, backend: Backend, at: DeviceInfo) -> None:
        """Where the runtime tells of a current device, it is this one."""
        backend.make_current(at.index)
        assert backend.current_index() in (at.index, None)

    def test_a_device_is_current_for_a_while(self, backend: Backend) -> None:
        """Each usable device can be the current one, and after an error inside the former one is again."""

        def failing_on(index: int) -> None:
            with backend.being_current(index):
                assert backend.current_index() in (index, None)
                raise ZeroDivisionError

        before = backend.current_index() or 0
        for device in backend.probe().devices:
            if device.usable:
                with pytest.raises(ZeroDivisionError):
                    failing_on(device.index)
                assert (backend.current_index() or 0) == before

    def test_a_stream_is_current_for_a_while(self, backend: Backend, at: DeviceInfo) -> None:
        """Inside, work goes to it; afterwards, also after an error, to the former one; None changes nothing."""
        streams = backend.streams()

        def failing_in(stream: Any) -> None:
            with streams.stream(stream):
                streams.set_stream(None)
                assert streams.current_stream(at.index) == stream
                raise ZeroDivisionError

        with backend.being_current(at.index):
            before = streams.current_stream()
            assert before == streams.current_stream(at.index) == streams.default_stream(at.index)
            with pytest.raises(ZeroDivisionError):
                failing_in(streams.Stream(at.index, 0))
            with streams.stream(None):
                assert streams.current_stream() == before

    def test_streams_wait_for_each_other(self, backend: Backend, at: DeviceInfo) -> None:
        """What a second stream computes from the first one's numbers is there when both have waited."""
        streams, ones = backend.streams(), _integers(backend)
        with backend.being_current(at.index):
            side, main = streams.Stream(at.index, 0), streams.current_stream(at.index)
            moved = backend.put(ones, backend.device(at.index))
            side.wait_stream(main)
            with streams.stream(side):
                doubled = moved * 2
                done = side.record_event()
            main.wait_event(done)
            done.synchronize()
            assert _numbers(doubled + 1) == [1, 3, 5, 7, 9, 11]
            side.synchronize()
            assert (side.query(), done.query()) == (True, True)

    def test_events_measure_milliseconds(self, backend: Backend, at: DeviceInfo) -> None:
        """Two that were made for it tell a time that is not negative; without recording there is none."""
        streams = backend.streams()
        with backend.being_current(at.index):
            start, end, never = (streams.Event(True, False) for _ in range(3))
            start.record()
            end.record(streams.current_stream(at.index))
            end.synchronize()
            assert start.elapsed_time(end) >= 0
            with pytest.raises((ValueError, RuntimeError)):
                start.elapsed_time(never)

    def test_preferred_dtype_can_be_stored(self, backend: Backend, at: DeviceInfo) -> None:
        """A backend does not prefer what it cannot hold."""
        dtype = backend.preferred_dtype(at.index)
        assert backend.storable(dtype) == dtype

    def test_memory_is_bytes_or_unknown(self, backend: Backend, at: DeviceInfo) -> None:
        """Every figure is None or a whole number of bytes, none exceeds the total, and the source is named."""
        stats = backend.memory_stats(at.index)
        assert isinstance(stats, MemoryStats)
        assert stats.source
        figures = (stats.total, stats.available, stats.allocated, stats.reserved, stats.peak)
        assert all(figure is None or (isinstance(figure, int) and figure >= 0) for figure in figures)
        if stats.total is not None and stats.available is not None:
            assert stats.available <= stats.total
        if stats.allocated is not None and stats.peak is not None:
            assert stats.allocated <= stats.peak

    def test_housekeeping_never_raises(self, backend: Backend, at: DeviceInfo) -> None:
        """Emptying the cache, waiting and resetting the peak work before anything was allocated."""
        backend.empty_cache(at.index)
        backend.synchronize(at.index)
        backend.reset_peak_memory(at.index)

    # -- random numbers ------------------------------------------------------------------------
    def test_same_seed_same_generator(self, backend: Backend, at: DeviceInfo) -> None:
        """Two generators of one seed are in the same state, of two seeds in another, of no seed in any."""
        states = [_fingerprint(backend.create_generator(seed, at.index)) for seed in (7, 7, 8, None, None)]
        assert states[0] == states[1]
        assert len(set(states[1:])) == 4

    @pytest.mark.parametrize("seed", [-1, 2**64 - 1, -(2**63)])
    def test_extreme_seeds_are_seeds(self, backend: Backend, at: DeviceInfo, seed: int) -> None:
        """The whole range that torch takes is taken."""
        assert backend.create_generator(seed, at.index) is not None

    @pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "7"])
    def test_what_is_no_seed_is_refused(self, backend: Backend, at: DeviceInfo, seed: Any) -> None:
        """A fraction, a text or a number out of range is an error, and never another seed."""
        with pytest.raises((TypeError, ValueError)):
            backend.create_generator(seed, at.index)

    @pytest.mark.parametrize("shape", [(3,), (2, 8), (5, 7), ()])
    def test_normal_numbers_are_the_same_everywhere(
        self, backend: Backend, at: DeviceInfo, shape: tuple[int, ...]
    ) -> None:
        """One seed gives one array, whatever the device, in the asked dtype."""
        device = backend.device(at.index)
        first, second = (backend.draw_normal(shape, 5, device, None) for _ in range(2))
        assert tuple(first.shape) == shape
        assert _numbers(first) == _numbers(second) == pytest.approx(_REFERENCE[shape], abs=1e-6)

    def test_a_seed_is_for_the_device_alone(self, backend: Backend, at: DeviceInfo) -> None:
        """One seed gives one state of the device's own generator, where it has one, and the CPU's is left alone."""
        cpu = backend.torch.get_rng_state() if backend.needs_torch else None
        states = []
        for seed in (7, 8, 7):
            backend.manual_seed(seed)
            states.append(backend.rng_state(at.index))
        if states[0] is not None:
            assert _bytes(states[0]) == _bytes(states[2]) != _bytes(states[1])
        if cpu is not None:
            assert backend.torch.equal(backend.torch.get_rng_state(), cpu)

    def test_random_state_comes_back(self, backend: Backend, at: DeviceInfo) -> None:
        """A state that was taken can be pickled and set again, where the device has one of its own."""
        state = backend.rng_state(at.index)
        if state is None:
            return
        backend.set_rng_state(pickle.loads(pickle.dumps(state)), at.index)  # noqa: S301  # our own bytes
        assert _bytes(backend.rng_state(at.index)) == _bytes(state)

    # -- moving and computing --------------------------------------------------------------------
    def test_values_survive_the_move(self, backend: Backend, at: DeviceInfo) -> None:
        """What goes to the device comes back as it was; integers stay integers, whatever dtype is asked for."""
        device, dtype = backend.device(at.index), backend.preferred_dtype(at.index)
        x = backend.draw_normal((4, 4), 3, device, None)
        assert _numbers(backend.put(x, device)) == _numbers(x)
        count = _integers(backend)
        moved = backend.put(count, device, dtype)
        assert str(moved.dtype).endswith("int64")
        assert _numbers(moved) == _numbers(count)
        assert backend.put(x, device, dtype).dtype == dtype

    def test_what_is_no_tensor_comes_back_as_it_is(self, backend: Backend, at: DeviceInfo) -> None:
        """Texts, numbers and None are nobody's to move."""
        device = backend.device(at.index)
        for thing in ("text", 7, 1.5, None, b"bytes", object):
            assert backend.put(thing, device) is thing

    def test_a_real_kernel_computes_rightly(self, backend: Backend, at: DeviceInfo) -> None:
        """The verification that doctor runs passes."""
        backend.verify(at.index)

    def test_autocast_computes_in_what_it_claims(self, backend: Backend, at: DeviceInfo) -> None:
        """Each of ``autocast_dtypes`` is the dtype of a matrix product inside of autocast, without a warning."""
        _needs_torch(backend)
        torch = backend.torch
        matrix = backend.put(torch.ones(8, 8), backend.device(at.index))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for dtype in backend.autocast_dtypes(at.index):
                with torch.autocast(backend.device_type, dtype=dtype):
                    assert (matrix @ matrix).dtype == dtype

    # -- number formats --------------------------------------------------------------------------
    def test_formats_have_a_word_each(self, backend: Backend, at: DeviceInfo) -> None:
        """What is claimed of a format is native, emulated or no, and the preferred dtype is native."""
        told = backend.precisions(at.index)
        assert set(told.values()) <= {"native", "emulated", "no"}
        preferred = backend.preferred_dtype(at.index)
        assert told.get(str(getattr(preferred, "name", preferred)).removeprefix("torch.")) == "native"

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_product_does_what_is_claimed(self, backend: Backend, at: DeviceInfo, form: str) -> None:
        """A product in a format runs and is right where it is native or emulated, and not where it is none of these; of
        a format that nobody can tell of it does so or gives a reason.
        """
        _needs_torch(backend)
        word = backend.precisions(at.index).get(form)
        trial = attempt(backend, at.index, form, timed=False)
        assert word is None or trial.ran is (word != "no"), trial.reason
        assert trial.ran is not bool(trial.reason)

    def test_traits_are_words(self, backend: Backend, at: DeviceInfo) -> None:
        """What is told besides is text under a name."""
        told = backend.traits(at.index)
        assert all(isinstance(text, str) and text for text in (*told, *told.values()))

    def test_attention_is_what_it_claims(self, backend: Backend, at: DeviceInfo) -> None:
        """There is a kernel or a reason, and each that takes a plain case computes what defines attention."""
        case = AttentionCase(backend.preferred_dtype(at.index), head_dim=8)
        kernels = backend.attention_kernels(case, at.index)
        assert kernels
        assert all(isinstance(reason, str) for reason in kernels.values())
        assert isinstance(backend.flash_attn_problem(case, at.index), str)
        _needs_torch(backend)
        given = [backend.draw_normal((1, 2, 5, 8), seed, backend.device(at.index), case.dtype) for seed in range(3)]
        if given[0].device.type != backend.device_type:
            return  # a simulated one has its tensors on the CPU, and not its kernels
        torch, (query, key, value) = backend.torch, (x.double() for x in map(_on_the_cpu, given))
        expected = torch.softmax(query @ key.transpose(-2, -1) / 8**0.5, dim=-1) @ value
        for name in [name for name, reason in kernels.items() if not reason]:
            try:
                chosen = backend.select_attention([name])
            except DeviceKitError:
                continue  # it is taken, but cannot be asked for
            with chosen:
                got = _on_the_cpu(torch.nn.functional.scaled_dot_product_attention(*given)).double()
            assert torch.allclose(got, expected, atol=2e-2), name

    def test_compiling_has_a_reason_or_none(self, backend: Backend, at: DeviceInfo) -> None:
        """Whether code can be generated is answered in words, and empty is yes."""
        assert isinstance(backend.compile_problem(at.index), str)

    # -- saving memory -------------------------------------------------------------------------
    def test_it_holds_what_was_put_there(self, backend: Backend, at: DeviceInfo) -> None:
        """A tensor that was moved to a device that counts its memory lies there."""
        _needs_torch(backend)
        device = backend.device(at.index)
        moved = backend.put(backend.torch.ones(3), device)
        assert backend.holds(moved, device) or backend.memory_stats(at.index).allocated is None

    def test_the_allocator_has_an_option_or_a_reason(self, backend: Backend) -> None:
        """One that can be set has a variable, and a name and a value; else it is said why there is none."""
        option = backend.expandable_segments()
        if option.variables:
            assert re.fullmatch(r"\w+:\w+", option.option)
        else:
            assert option.reason

    def test_the_allocators_settings_are_variables(self, backend: Backend) -> None:
        """Each candidate names at least one variable, and its value is text; no two are the same."""
        settings = backend.allocator_settings()
        assert all(settings)
        assert all(re.fullmatch(r"\w+", name) and value for each in settings for name, value in each.items())
        assert len({tuple(each.items()) for each in settings}) == len(settings)

    # -- loading ---------------------------------------------------------------------------------
    @pytest.mark.parametrize("count", [0, 1, 1000])
    def test_memory_for_weights_lies_flat_on_the_device(self, backend: Backend, at: DeviceInfo, count: int) -> None:
        """What is allocated has the length and the dtype that were asked for, and lies where a move puts things."""
        _needs_torch(backend)
        device, dtype = backend.device(at.index), backend.torch.float16
        made = backend.allocate(count, dtype, device)
        assert (tuple(made.shape), made.dtype, made.is_contiguous()) == ((count,), dtype, True)
        assert made.device == backend.put(backend.torch.zeros(1), device).device

    @pytest.mark.parametrize("buffers", [0, 1, 2, 7])
    def test_staged_bytes_arrive(self, backend: Backend, at: DeviceInfo, buffers: int) -> None:
        """Numbers that go through the same few buffers are all on the device when the staging has finished."""
        _needs_torch(backend)
        targets, expected = _stage(backend, at.index, buffers)
        assert [_numbers(target) for target in targets] == [_numbers(right) for right in expected]

    @pytest.mark.parametrize("wanted", ["float16", "bfloat16", "float32"])
    @pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float64"])
    def test_staged_numbers_are_cast(self, backend: Backend, at: DeviceInfo, stored: str, wanted: str) -> None:
        """A target of another dtype than the file's gets the values that torch casts on the CPU."""
        _needs_torch(backend)
        if str(backend.storable(getattr(backend.torch, wanted))) != f"torch.{wanted}":
            pytest.skip(f"{backend.name} has no {wanted}")
        targets, expected = _stage(backend, at.index, 3, stored, wanted)
        assert all(str(target.dtype) == f"torch.{wanted}" for target in targets)
        assert [_numbers(target) for target in targets] == [_numbers(right) for right in expected]

    def test_threads_have_a_staging_each(self, backend: Backend, at: DeviceInfo) -> None:
        """Several threads that load at the same time get their own numbers, cast and not."""
        _needs_torch(backend)

        def work(number: int) -> bool:
            targets, expected = _stage(backend, at.index, 5, "float32", ("float32", "float16")[number % 2], number)
            return [_numbers(target) for target in targets] == [_numbers(right) for right in expected]

        with ThreadPoolExecutor(4) as crew:
            assert all(crew.map(work, range(8)))

    def test_a_staging_gives_its_memory_back(self, backend: Backend, at: DeviceInfo) -> None:
        """When the targets are gone, nothing of the device's memory is held, where it can tell."""
        gc.collect()
        before = backend.memory_stats(at.index).allocated
        if before is None or not backend.accelerator:
            return
        _stage(backend, at.index, 3, "float32", "float16")
        gc.collect()
        after = backend.memory_stats(at.index).allocated
        assert after is not None
        assert after <= before


# The numbers of torch.randn(shape, generator=torch.Generator().manual_seed(5)), torch 2.13.0 on the CPU.
_REFERENCE: dict[tuple[int, ...], list[float]] = {
    (3,): [-0.486781, -0.603822, -0.558096],
    (2, 8): [1.84233, 0.518887, -1.711921, -1.701379, 2.019419, -0.268614, -0.130718, -1.437414, 0.390768, -0.018968,
        -1.352687, -0.730818, 0.987922, -0.419408, -0.584896, -0.782335],
    (5, 7): [1.84233, 0.518887, -1.711921, -1.701379, 2.019419, -0.268614, -0.130718, -1.437414, 0.390768, -0.018968,
        -1.352687, -0.730818, 0.987922, -0.419408, -0.584896, -0.782335, 2.779863, 1.222025, -0.336449, -0.179166,
        1.92306, 0.28795, 0.936796, -2.403135, 0.818343, -0.663277, 0.265266, -1.639119, -1.815305, -0.206629,
        -0.525951, -1.697733, -1.036467, 0.670462, -0.177705],
    (): [-0.486781],
}  # fmt: skip


_STAGED = 64
"""Elements that a buffer of ``_stage`` has room for."""


def _stage(
    backend: Backend, index: int, buffers: int, stored: str = "float32", wanted: str = "float32", first: int = 0
) -> tuple[list[Any], list[Any]]:
    """Targets on the device after so many buffers, and what they must hold."""
    torch, device = backend.torch, backend.device(index)
    source, target = getattr(torch, stored), getattr(torch, wanted)
    values = [(torch.arange(_STAGED) * 3 + first + i).to(source) / 8 for i in range(buffers)]
    targets = [backend.allocate(_STAGED, target, device) for _ in values]
    staging = backend.staging(device, _STAGED * source.itemsize)
    for made, value in zip(targets, values, strict=True):
        raw = staging.buffer()
        raw.copy_(value.view(torch.uint8))
        half = raw.view(source)
        staging.send(made[: _STAGED // 2], half[: _STAGED // 2])
        staging.send(made[_STAGED // 2 :], half[_STAGED // 2 :])
        staging.sent()
    staging.finish()
    return targets, [value.to(target) for value in values]


def _needs_torch(backend: Backend) -> None:
    if not backend.needs_torch:
        pytest.skip(f"{backend.name} has arrays, which are read into where they are")


def _fingerprint(generator: Any) -> str:
    state = generator.get_state() if hasattr(generator, "get_state") else generator.bit_generator.state
    return str(_bytes(state))


def _bytes(state: Any) -> Any:
    return bytes(state.cpu().numpy()) if hasattr(state, "cpu") else state


def _numbers(x: Any) -> list[float]:
    host = x.detach().cpu() if hasattr(x, "detach") else x
    return [float(value) for value in host.reshape(-1).tolist()]


def _on_the_cpu(x: Any) -> Any:
    return x.detach().cpu()


def _integers(backend: Backend) -> Any:
    if backend.needs_torch:
        return backend.torch.arange(6)
    return backend.host.import_module("numpy").arange(6)
