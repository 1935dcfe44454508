"""Optimizers and schedulers whose parameters are on the device."""

from __future__ import annotations

from typing import Any

import torch

from tests.redirect.battery.checking import Differs, Raises, Skipped, check, group

group("optimizers")
REFUSED = Raises(AssertionError, "capturable")


def _trained(make: Any, steps: int = 3) -> bool:
    """The loss falls."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1).cuda()
    x, y = torch.randn(8, 3, device="cuda"), torch.randn(8, 1, device="cuda")
    optimizer, losses = make(net.parameters()), []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < losses[0]


@check("SGD with momentum")
def _() -> Any:
    return _trained(lambda p: torch.optim.SGD(p, 0.01, momentum=0.9))


@check("Adam, AdamW, RMSprop, Adagrad")
def _() -> Any:
    return all(
        _trained(lambda p, o=o: o(p, 0.01))
        for o in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)
    )


@check("AdamW(foreach=True)")
def _() -> Any:
    return _trained(lambda p: torch.optim.AdamW(p, 0.01, foreach=True))


@check("AdamW(fused=True)", npu=Skipped("the simulated npu has no fused kernels"))
def _() -> Any:
    return _trained(lambda p: torch.optim.AdamW(p, 0.01, fused=True))


@check("SGD(fused=True)", npu=Skipped("the simulated npu has no fused kernels"))
def _() -> Any:
    return _trained(lambda p: torch.optim.SGD(p, 0.01, fused=True))


@check(
    "Adam(capturable=True)",
    translated=REFUSED,
    masqueraded=Differs(REFUSED, "torch asks where the parameters really are"),
    npu=True,
)
def _() -> Any:
    return _trained(lambda p: torch.optim.Adam(p, 0.01, capturable=True))


@check("LBFGS with a closure")
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 2, device="cuda")).square().sum()
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    return closure().item() < before


@check("state of an optimizer is on the device", translated=False)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    return optimizer.state[net.weight]["exp_avg"].is_cuda


@check("an optimizer's state_dict, saved and loaded from the host", translated=False)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        for name, value in state.items():
            state[name] = value.cpu()
    other = torch.optim.Adam(net.parameters())
    other.load_state_dict(saved)
    return other.state[net.weight]["exp_avg"].is_cuda


@check("optimizer.state moved by hand, as old programs do after loading", True)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value):
                state[name] = value.cuda()
    net(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    return True


@check("a scheduler, a learning rate as a tensor on the device", True)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    net(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    scheduler.step()
    return scheduler.get_last_lr()[0] < 0.1


@check("torch.optim.swa_utils.AveragedModel on the device", True)
def _() -> Any:
    net = torch.nn.Linear(2, 1).cuda()
    average = torch.optim.swa_utils.AveragedModel(net, device="cuda")
    average.update_parameters(net)
    return torch.equal(average.module.weight, net.weight)
