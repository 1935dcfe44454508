"""Random numbers: generators, seeds and states."""

from __future__ import annotations

import random
from typing import Any

import torch

from tests.redirect.battery.checking import Differs, check, group

group("numbers")


def _draw() -> list[float]:
    return torch.rand(3, device="cuda").tolist()


@check("torch.manual_seed makes the device's numbers repeat")
def _() -> Any:
    torch.manual_seed(3)
    first = _draw()
    torch.manual_seed(3)
    return first == _draw()


@check("torch.cuda.manual_seed, manual_seed_all")
def _() -> Any:
    torch.cuda.manual_seed(3)
    first = _draw()
    torch.cuda.manual_seed_all(3)
    return first == _draw()


@check("torch.cuda.seed(), seed_all(), initial_seed()", [True, True])
def _() -> Any:
    torch.cuda.manual_seed(5)
    found = torch.cuda.initial_seed() == 5
    torch.cuda.seed()
    torch.cuda.seed_all()
    return [found, isinstance(torch.cuda.initial_seed(), int)]


@check("a whole set_seed function, as programs have it")
def _() -> Any:
    def seed() -> None:
        random.seed(1)
        torch.manual_seed(1)
        torch.cuda.manual_seed(1)
        torch.cuda.manual_seed_all(1)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False

    seed()
    first = _draw()
    seed()
    torch.backends.cudnn.deterministic = False
    return first == _draw()


@check("torch.cuda.get_rng_state, set_rng_state")
def _() -> Any:
    state = torch.cuda.get_rng_state()
    first = _draw()
    torch.cuda.set_rng_state(state)
    return first == _draw() and state.dtype == torch.uint8 and state.device.type == "cpu"


@check("torch.cuda.get_rng_state_all, set_rng_state_all")
def _() -> Any:
    states = torch.cuda.get_rng_state_all()
    first = _draw()
    torch.cuda.set_rng_state_all(states)
    return first == _draw() and len(states) == torch.cuda.device_count()


@check("torch.cuda.get_rng_state('cuda:0'), of a device", [True, True])
def _() -> Any:
    return [torch.is_tensor(torch.cuda.get_rng_state(d)) for d in ("cuda:0", torch.device("cuda"))]


@check("torch.random.fork_rng(devices=[0])")
def _() -> Any:
    torch.cuda.manual_seed(1)
    with torch.random.fork_rng(devices=[0]):
        first = _draw()
    return first == _draw()


@check("torch.random.fork_rng() of all devices")
def _() -> Any:
    torch.manual_seed(1)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        first = _draw()
    return first == _draw()


@check("torch.Generator('cuda').manual_seed(0)")
def _() -> Any:
    draws = [torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).tolist() for _ in range(2)]
    return draws[0] == draws[1]


@check("torch.Generator(device='cuda'), 'cuda:0', of a device, of x.device")
def _() -> Any:
    devices = ("cuda", "cuda:0", torch.device("cuda"), torch.ones(1, device="cuda").device)
    draws = [torch.rand(3, device="cuda", generator=torch.Generator(device=d).manual_seed(0)).tolist() for d in devices]
    return all(d == draws[0] for d in draws)


@check("generator.device.type", "cuda", translated=lambda device: device.type)
def _() -> Any:
    return torch.Generator("cuda").device.type


@check("isinstance(torch.Generator('cuda'), torch.Generator)", [True, True, False])
def _() -> Any:
    return [isinstance(g, torch.Generator) for g in (torch.Generator("cuda"), torch.Generator(), 3)]


@check("two generators do not disturb each other, nor the default")
def _() -> Any:
    torch.cuda.manual_seed(1)
    one, other = torch.Generator("cuda").manual_seed(1), torch.Generator("cuda").manual_seed(1)
    torch.rand(9, device="cuda", generator=one)
    first = torch.rand(3, device="cuda", generator=other).tolist()
    second = torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).tolist()
    state = torch.cuda.get_rng_state()
    torch.rand(9, device="cuda", generator=one)
    return first == second and torch.equal(state, torch.cuda.get_rng_state())


@check("generator.get_state, set_state, initial_seed, seed")
def _() -> Any:
    generator = torch.Generator("cuda").manual_seed(7)
    state = generator.get_state()
    first = torch.rand(2, device="cuda", generator=generator).tolist()
    generator.set_state(state)
    again = torch.rand(2, device="cuda", generator=generator).tolist()
    return first == again and generator.initial_seed() == 7 and isinstance(generator.seed(), int)


@check("torch.Generator() is the host's", "cpu")
def _() -> Any:
    return str(torch.Generator().device)


@check("a generator of the host draws on the host, and .to('cuda') follows", True)
def _() -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, generator=generator).to("cuda")
    return torch.equal(x.cpu(), torch.randn(2, generator=torch.Generator().manual_seed(0)))


@check("randn, randint, randperm, normal_, bernoulli_ with a generator of the device", 5)
def _() -> Any:
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.empty(2, device="cuda")
    made = [
        torch.randn(2, device="cuda", generator=g), torch.randint(0, 9, (2,), device="cuda", generator=g),
        torch.randperm(2, device="cuda", generator=g), x.normal_(generator=g), x.clone().bernoulli_(0.5, generator=g),
    ]  # fmt: skip
    return sum(m.device == x.device for m in made)


@check("torch.cuda.default_generators[0]", True)
def _() -> Any:
    torch.cuda.init()
    return isinstance(torch.cuda.default_generators[0], torch.Generator)


@check("dropout repeats after a seed", True)
def _() -> Any:
    x, drop = torch.ones(64, device="cuda"), torch.nn.Dropout(0.5)
    torch.manual_seed(1)
    first = drop(x)
    torch.manual_seed(1)
    return torch.equal(first, drop(x))


@check(
    "torch.randn_like with a seed of the device only leaves the host's numbers",
    True,
    translated=False,
    masqueraded=Differs(False, "both share torch's generator"),
    npu=True,
)
def _() -> Any:
    torch.manual_seed(0)
    first = torch.rand(2)
    torch.manual_seed(0)
    _draw()
    return torch.equal(first, torch.rand(2))
