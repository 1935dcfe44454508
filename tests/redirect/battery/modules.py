"""Modules on the device: where parameters and buffers are, and layers of every kind."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.redirect.battery.checking import Raises, Skipped, check, group

group("modules")
RNN = Skipped("the simulated npu has no recurrent kernels")
X = {"device": "cuda"}


class Net(nn.Module):
    """A parameter, a buffer, and a tensor made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        return self.layer(x) + self.mean + torch.zeros(4, device=x.device, dtype=x.dtype)


@check("Net().cuda(): parameters and buffers", translated=False)
def _() -> Any:
    net = Net().cuda()
    return net.layer.weight.is_cuda and net.mean.is_cuda


@check("Net().to('cuda'), to(device), to(0), cuda(0): all in place")
def _() -> Any:
    device = torch.ones(1, **X).device
    ways = [
        lambda m: m.to("cuda"),
        lambda m: m.to(torch.device("cuda")),
        lambda m: m.to(0),
        lambda m: m.cuda(0),
        lambda m: m.to(device="cuda:0"),
    ]
    nets = [Net() for _ in ways]
    return all(way(m) is m and m.layer.weight.device == device for m, way in zip(nets, ways, strict=True))


@check("Net().to(torch.device('cuda'), torch.bfloat16)", ["torch.bfloat16", "torch.bfloat16"])
def _() -> Any:
    net = Net().to(torch.device("cuda"), torch.bfloat16)
    return [str(net.layer.weight.dtype), str(net(torch.ones(1, 3, dtype=torch.bfloat16, **X)).dtype)]


@check("Net().cuda().half(), .float()", ["torch.float16", "torch.float32"])
def _() -> Any:
    net = Net().cuda().half()
    return [str(net.layer.weight.dtype), str(net.float().layer.weight.dtype)]


@check("parameters stay the same objects, and leaves")
def _() -> Any:
    net = Net()
    before = net.layer.weight
    net.cuda()
    return net.layer.weight is before and before.is_leaf and before.requires_grad


@check("net.cuda() copies: the initial tensors stay", [0.0, 0.0, 0.0, 0.0])
def _() -> Any:
    net = Net()
    before = net.mean
    net.cuda().mean.add_(1)
    return before.tolist()


@check("forward, loss and backward", [[2, 4], True])
def _() -> Any:
    net = Net().cuda()
    out = net(torch.randn(2, 3, **X))
    out.square().mean().backward()
    return [list(out.shape), net.layer.weight.grad is not None]


@check("next(model.parameters()).device drives the program", 4)
def _() -> Any:
    net = Net().cuda()
    return net(torch.ones(3, device=next(net.parameters()).device)).numel()


@check("next(model.parameters()).is_cuda", translated=False)
def _() -> Any:
    return next(Net().cuda().parameters()).is_cuda


@check("model.cpu() after model.cuda()", "cpu")
def _() -> Any:
    return str(Net().cuda().cpu().layer.weight.device)


@check("model.to_empty(device='cuda') from meta", True)
def _() -> Any:
    with torch.device("meta"):
        net = Net()
    net = net.to_empty(device="cuda")
    return net.layer.weight.device == torch.ones(1, **X).device


@check("Module(device='cuda') of torch's layers", True)
def _() -> Any:
    device = torch.ones(1, **X).device
    made = [
        nn.Linear(2, 2, **X),
        nn.Conv2d(1, 1, 1, **X),
        nn.Embedding(2, 2, **X),
        nn.LayerNorm(2, **X),
        nn.BatchNorm1d(2, **X),
    ]
    return all(m.weight.device == device for m in made)


@check("nn.Parameter(torch.ones(2, device='cuda')).is_cuda", translated=False)
def _() -> Any:
    return nn.Parameter(torch.ones(2, **X)).is_cuda


@check("nn.Parameter(x).cuda() is no parameter", False)
def _() -> Any:
    return isinstance(nn.Parameter(torch.ones(2)).cuda(), nn.Parameter)


@check("state_dict() on the device", [True, True, True], translated=[False, False, False])
def _() -> Any:
    return [value.is_cuda for value in Net().cuda().state_dict().values()]


@check("load_state_dict of the host's tensors into a module on the device", True)
def _() -> Any:
    one, other = Net(), Net().cuda()
    other.load_state_dict(one.state_dict())
    return (
        torch.equal(other.layer.weight.cpu(), one.layer.weight)
        and other.layer.weight.device == torch.ones(1, **X).device
    )


@check("load_state_dict(assign=True) of tensors on the device", translated=False)
def _() -> Any:
    one, other = Net().cuda(), Net()
    other.load_state_dict(one.state_dict(), assign=True)
    return other.layer.weight.is_cuda


@check("copy.deepcopy(model) stays there, and is another", [True, False], translated=[False, False])
def _() -> Any:
    net = Net().cuda()
    other = copy.deepcopy(net)
    return [other.layer.weight.is_cuda, other.layer.weight.data_ptr() == net.layer.weight.data_ptr()]


@check("pickle of a model", 12)
def _() -> Any:
    return pickle.loads(pickle.dumps(Net().cuda())).layer.weight.numel()


@check("an average of weights, as EMA does it", True)
def _() -> Any:
    net = Net().cuda()
    ema = copy.deepcopy(net)
    with torch.no_grad():
        for a, b in zip(ema.parameters(), net.parameters(), strict=True):
            a.mul_(0.9).add_(b.data, alpha=0.1)
            a.copy_(b)
    return torch.equal(ema.layer.weight, net.layer.weight)


@check("nn.init on the device", True)
def _() -> Any:
    net = Net().cuda()
    nn.init.zeros_(net.layer.bias)
    nn.init.xavier_uniform_(net.layer.weight)
    nn.init.kaiming_normal_(net.layer.weight)
    nn.init.orthogonal_(net.layer.weight)
    return net.layer.bias.sum().item() == 0


@check("nn.LSTM, GRU, RNN", [[1, 2, 3]] * 3, npu=RNN)
def _() -> Any:
    x = torch.ones(1, 2, 2, **X)
    return [list(kind(2, 3, batch_first=True).cuda()(x)[0].shape) for kind in (nn.LSTM, nn.GRU, nn.RNN)]


@check("an LSTM trains, flatten_parameters() is allowed", True, npu=RNN)
def _() -> Any:
    net = nn.LSTM(2, 3, num_layers=2, bidirectional=True).cuda()
    net.flatten_parameters()
    net(torch.ones(4, 1, 2, **X))[0].sum().backward()
    return net.weight_ih_l0.grad.shape == (12, 2)


@check("nn.LSTMCell", [1, 3], npu=RNN)
def _() -> Any:
    return list(nn.LSTMCell(2, 3).cuda()(torch.ones(1, 2, **X))[0].shape)


@check(
    "convolutions: 1d, 2d, 3d, transposed, grouped, channels_last",
    [[1, 2, 3], [1, 2, 3, 3], [1, 2, 3, 3, 3], [1, 2, 5, 5], [1, 2, 3, 3]],
)
def _() -> Any:
    two = torch.ones(1, 2, 3, 3, **X)
    return [
        list(nn.Conv1d(2, 2, 1).cuda()(torch.ones(1, 2, 3, **X)).shape), list(nn.Conv2d(2, 2, 1).cuda()(two).shape),
        list(nn.Conv3d(2, 2, 1).cuda()(torch.ones(1, 2, 3, 3, 3, **X)).shape),
        list(nn.ConvTranspose2d(2, 2, 3).cuda()(two).shape),
        list(nn.Conv2d(2, 2, 1, groups=2).cuda().to(memory_format=torch.channels_last)(two).shape),
    ]  # fmt: skip


@check("BatchNorm trains and evaluates, SyncBatchNorm is converted", [True, True])
def _() -> Any:
    net = nn.BatchNorm2d(2).cuda()
    net(torch.randn(4, 2, 3, 3, **X))
    trained = bool((net.running_mean != 0).any())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(2)).cuda())
    return [trained, isinstance(converted[0], nn.SyncBatchNorm)]


@check("LayerNorm, GroupNorm, RMSNorm, InstanceNorm", 4)
def _() -> Any:
    x = torch.randn(2, 4, 4, **X)
    made = [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4)]
    return sum(m.cuda()(x).shape == x.shape for m in made)


@check("F.scaled_dot_product_attention: plain, causal, masked", [True, True, True])
def _() -> Any:
    q = torch.randn(1, 2, 4, 8, **X)
    mask = torch.ones(4, 4, dtype=torch.bool, **X).tril()
    plain = functional.scaled_dot_product_attention(q, q, q)
    causal = functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    masked = functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    return [plain.shape == q.shape, causal.shape == q.shape, torch.allclose(causal, masked, atol=1e-4)]


@check("sdpa_kernel([MATH]) around attention", True)
def _() -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(1, 1, 4, 8, **X)
    with sdpa_kernel([SDPBackend.MATH]):
        return functional.scaled_dot_product_attention(q, q, q).shape == q.shape


@check("nn.MultiheadAttention, TransformerEncoder", [[1, 3, 4], [1, 3, 4]])
def _() -> Any:
    x = torch.ones(1, 3, 4, **X)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1).cuda()
    return [list(nn.MultiheadAttention(4, 2, batch_first=True).cuda()(x, x, x)[0].shape), list(encoder(x).shape)]


@check("a causal mask made on the device", 3)
def _() -> Any:
    return int(torch.isinf(nn.Transformer.generate_square_subsequent_mask(3, device="cuda")).sum().item())


@check("losses: cross_entropy, mse, bce, l1, kl_div, nll, huber", 7)
def _() -> Any:
    x, t, p = torch.randn(2, 3, **X), torch.tensor([0, 1], **X), torch.full((2, 3), 0.5, **X)
    found = [
        functional.cross_entropy(x, t), functional.mse_loss(x, p), functional.binary_cross_entropy(p, p),
        functional.l1_loss(x, p), functional.kl_div(p.log(), p, reduction="batchmean"),
        functional.nll_loss(x.log_softmax(1), t), functional.huber_loss(x, p),
    ]  # fmt: skip
    return sum(bool(torch.isfinite(f).item()) for f in found)


@check("nn.CrossEntropyLoss(weight=...).cuda()", True)
def _() -> Any:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3)).cuda()
    return loss(torch.randn(2, 3, **X), torch.tensor([0, 1], **X)).item() > 0


@check("nn.utils.clip_grad_norm_, clip_grad_value_", [True, True])
def _() -> Any:
    net = Net().cuda()
    (net(torch.ones(1, 3, **X)) * 100).sum().backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    nn.utils.clip_grad_value_(net.parameters(), 0.1)
    return [norm.item() > 1, net.layer.weight.grad.abs().max().item() < 0.11]


@check("the norm that clip_grad_norm_ gives is on the device", translated=False)
def _() -> Any:
    net = Net().cuda()
    net(torch.ones(1, 3, **X)).sum().backward()
    return nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True).is_cuda


@check("nn.utils.parametrizations.spectral_norm, weight_norm", 2)
def _() -> Any:
    parametrizations = nn.utils.parametrizations
    made = [
        parametrizations.spectral_norm(nn.Linear(2, 2)).cuda(),
        parametrizations.weight_norm(nn.Linear(2, 2)).cuda(),
    ]
    return sum(m(torch.ones(1, 2, **X)).shape == (1, 2) for m in made)


@check("ParameterList, ModuleDict, ParameterDict", 3)
def _() -> Any:
    made = [
        nn.ParameterList([torch.ones(1)]),
        nn.ParameterDict({"a": torch.ones(1)}),
        nn.ModuleDict({"a": nn.Linear(1, 1)}),
    ]
    device = torch.ones(1, **X).device
    return sum(next(m.cuda().parameters()).device == device for m in made)


@check("a lazy module on the device", 2)
def _() -> Any:
    return nn.LazyLinear(2).cuda()(torch.ones(1, 3, **X)).shape[1]


@check("a model split over two devices", [1, 2], npu=Raises(RuntimeError), needs_devices=2)
def _() -> Any:
    first, second = nn.Linear(3, 4).to("cuda:0"), nn.Linear(4, 2).to("cuda:1")
    return list(second(first(torch.ones(1, 3).to("cuda:0")).to("cuda:1")).shape)


@check("torch.save of a model to a buffer and back", True)
def _() -> Any:
    net, buffer = Net().cuda(), io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other = Net()
    other.load_state_dict(torch.load(buffer, map_location="cpu"))
    return torch.equal(other.layer.weight, net.layer.weight.cpu())
