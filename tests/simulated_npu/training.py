"""A model can be moved to the simulated npu, trained there and used under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from devicekit.testing.simulated_npu import install

install("1GiB", soc="Ascend910B1")

NPU = torch.device("npu", 0)


def network() -> nn.Module:
    """A small network with a convolution, a norm and an attention-free head."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def batch(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same four pictures and labels on any device."""
    pictures = torch.arange(64.0).view(4, 1, 4, 4) / 64
    return pictures.to(device), torch.tensor([0, 1, 2, 0], device=device)


def losses(device: str, optimizer: type[torch.optim.Optimizer]) -> list[float]:
    """Five steps of training."""
    model = network().to(device)
    steps = optimizer(model.parameters(), lr=0.05)
    pictures, labels = batch(device)
    seen = []
    for _ in range(5):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        seen.append(loss.item())
    return seen


def check_training_follows_the_cpu() -> None:
    """SGD and AdamW go through the same losses as on the CPU, and get better."""
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        seen = losses("npu", optimizer)
        assert seen == pytest.approx(losses("cpu", optimizer), rel=1e-4)
        assert seen[-1] < seen[0]


def check_modules_move_and_cast() -> None:
    """.to, .npu, .half, .float and .cpu move every parameter and buffer; they stay parameters."""
    model = network().to("npu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert {p.device for p in (*model.parameters(), *model.buffers())} == {NPU}
    assert all(isinstance(p, nn.Parameter) for p in model.half().parameters())
    assert model[0].weight.dtype == torch.float16
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    assert network().npu().float()[0].weight.device == NPU
    assert {p.device.type for p in model.cpu().parameters()} == {"cpu"}
    assert type(model[0].weight) is nn.Parameter


def check_meta_modules_become_real() -> None:
    """A module made on meta is given memory by to_empty."""
    layer = nn.Linear(2, 2, device="meta").to_empty(device="npu")
    assert layer.weight.device == NPU


def check_state_dicts_go_both_ways() -> None:
    """A state dict from the CPU loads on the npu and back, with copies or by assignment."""
    source, there = network(), network().to("npu")
    for parameter in there.parameters():
        nn.init.zeros_(parameter)
    there.load_state_dict(source.state_dict())
    assert torch.equal(there[4].weight.cpu(), source[4].weight)
    assert all(value.device == NPU for value in there.state_dict().values())
    assigned = nn.Linear(8, 3, device="meta")
    assigned.load_state_dict(there[4].state_dict(), assign=True)
    assert assigned.weight.device == NPU
    source.load_state_dict(there.state_dict())
    assert source[0].weight.device.type == "cpu"


def check_gradients_stay_on_the_device() -> None:
    """Gradients, hooks and checkpointed blocks give gradients on npu:0."""
    x = torch.ones(2, 2, device="npu", requires_grad=True)
    x.register_hook(lambda gradient: gradient * 2)
    checkpoint(nn.Dropout(0.0), x * 3, use_reentrant=False).sum().backward()
    assert x.grad is not None
    assert x.grad.device == NPU
    assert x.grad.tolist() == [[6, 6], [6, 6]]


def check_autocast_has_an_effect() -> None:
    """Under autocast matmuls run in float16 or bfloat16, softmax and losses in float32."""
    layer, x = nn.Linear(4, 4).to("npu"), torch.ones(2, 4, device="npu")
    with torch.autocast("npu"):
        out = layer(x)
        loss = nn.functional.mse_loss(out, x)
        assert (out.dtype, out.softmax(-1).dtype) == (torch.float16, torch.float32)
        assert torch.relu(out).dtype == torch.float16
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert (x @ x.t()).dtype == torch.bfloat16
    with torch.autocast("npu", enabled=False):
        assert layer(x).dtype == torch.float32
    loss.backward()
    assert loss.dtype == layer.weight.grad.dtype == torch.float32


def check_grad_scaler_steps_and_skips() -> None:
    """torch.amp.GradScaler steps on finite gradients, and skips and backs off on infinite ones."""
    layer = nn.Linear(4, 4).to("npu")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("npu", init_scale=8.0)
    for factor, steps in ((1.0, True), (float("inf"), False)):
        before, scale = layer.weight.detach().clone(), scaler.get_scale()
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 4, device="npu")).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, layer.weight) is not steps
        assert (scaler.get_scale() == scale) is steps


def check_attention_layers_run() -> None:
    """Multi-head attention and a transformer layer run, trained and in evaluation."""
    x = torch.ones(1, 2, 4, device="npu")
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True).to("npu")
    layer(x).sum().backward()
    assert layer.eval()(x).device == NPU
    attention = nn.MultiheadAttention(4, 2, batch_first=True).to("npu")
    assert attention(x, x, x)[0].device == NPU


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
