"""The stand-in for flash-attn computes what the formula says, for each of its options, forward and backward."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from devicekit.errors import DeviceKitError
from devicekit.redirect.entry import redirect_cuda
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.shims import FOLDER, checked, package_of
from devicekit.redirect.simulated import SimulatedTarget
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")


def with_shim() -> Redirect:
    return Redirect(DecidedTarget(resolver().decide("cpu")), shims=["flash-attn"])


@pytest.fixture
def fa() -> Iterator[Any]:
    """The package, as a program imports it."""
    with with_shim():
        yield importlib.import_module("flash_attn")


# -- the plain formula -----------------------------------------------------------------------------
def sees(i: int, j: int, queries: int, keys: int, causal: bool, window: tuple[int, int]) -> bool:
    """Whether query i sees key j: bottom right aligned, as flash-attn's README says from 2.1 on."""
    here = i + keys - queries
    left, right = window
    return (not causal or j <= here) and (left < 0 or j >= here - left) and (causal or right < 0 or j <= here + right)


def plain(q: Any, k: Any, v: Any, **how: Any) -> tuple[Any, Any]:
    """softmax(q @ k * scale) @ v, one query after the other, and each row's log of the sum."""
    batch, queries, heads, size = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    scale = how.get("softmax_scale") or 1 / math.sqrt(size)
    slopes = how.get("alibi_slopes")
    out, sums = torch.zeros_like(q), torch.full((batch, heads, queries), math.inf, dtype=q.dtype)
    rows: list[Any] = []
    for b in range(batch):
        for i in range(queries):
            for h in range(heads):
                seen = [
                    j for j in range(keys)
                    if sees(i, j, queries, keys, how.get("causal", False), how.get("window_size", (-1, -1)))
                ]  # fmt: skip
                if not seen:
                    rows.append(torch.zeros(size, dtype=q.dtype))
                    continue
                score = k[b, seen, h // group] @ q[b, i, h] * scale
                if how.get("softcap"):
                    score = how["softcap"] * torch.tanh(score / how["softcap"])
                if slopes is not None:
                    slope = slopes[b, h] if slopes.dim() == 2 else slopes[h]
                    score = score - slope * torch.tensor([abs(i + keys - queries - j) for j in seen])
                rows.append(score.softmax(0) @ v[b, seen, h // group])
                sums[b, h, i] = score.detach().logsumexp(0)
    out = torch.stack(rows).view(batch, queries, heads, size)
    return out, sums


def inputs(queries: int = 4, keys: int = 4, heads: int = 4, of_keys: int = 4, dtype: Any = None) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, queries, heads, 8), (2, keys, of_keys, 8), (2, keys, of_keys, 8)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype or torch.float64).requires_grad_() for x in made]


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "scale": {"softmax_scale": 0.3},
    "causal": {"causal": True},
    "window": {"window_size": (1, 1)},
    "window to the left": {"window_size": (2, 0)},
    "window, open to the right": {"window_size": (0, -1)},
    "window and causal": {"window_size": (1, 3), "causal": True},
    "softcap": {"softcap": 0.7},
    "softcap and causal": {"softcap": 0.7, "causal": True},
    "alibi": {"alibi_slopes": SLOPES},
    "alibi and causal": {"alibi_slopes": SLOPES, "causal": True},
    "alibi of each sequence": {"alibi_slopes": torch.stack([SLOPES, 2 * SLOPES]), "window_size": (2, 1)},
    "all": {"alibi_slopes": SLOPES, "softcap": 0.9, "window_size": (2, 0), "softmax_scale": 0.5},
    "deterministic": {"deterministic": True, "causal": True},
}
SHAPES = {
    "as many": {},
    "more keys": {"queries": 2, "keys": 5},
    "fewer keys": {"queries": 5, "keys": 2},
    "one query": {"queries": 1, "keys": 6},
    "groups": {"heads": 4, "of_keys": 2},
    "one head of keys": {"heads": 4, "of_keys": 1, "queries": 3, "keys": 5},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("how", OPTIONS.values(), ids=OPTIONS)
def test_it_is_the_formula(fa: Any, how: dict[str, Any], shape: dict[str, int]) -> None:
    """Outputs and gradients in float64, also where a query sees no key."""
    tensors = inputs(**shape)
    out = fa.flash_attn_func(*tensors, **how)
    expected, _ = plain(*tensors, **how)
    torch.testing.assert_close(out, expected)
    weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    got, wanted = (torch.autograd.grad((o * weights).sum(), tensors) for o in (out, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("how", OPTIONS.values(), ids=OPTIONS)
def test_the_sums_of_the_rows(fa: Any, how: dict[str, Any]) -> None:
    """With return_attn_probs: the same output, the logarithms, infinity for a row that sees nothing, and no pattern."""
    tensors = inputs(queries=5, keys=2)
    out, sums, pattern = fa.flash_attn_func(*tensors, **how, return_attn_probs=True)
    expected, logs = plain(*tensors, **how)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(sums, logs, check_dtype=False)
    assert pattern.numel() == 0


def test_dropout_is_real(fa: Any) -> None:
    """The pattern that comes back tells what was dropped, and the output is made of the rest, made larger."""
    q, k, v = inputs(queries=16, keys=32)
    out, _, pattern = fa.flash_attn_func(q, k, v, dropout_p=0.25, causal=True, return_attn_probs=True)
    kept = pattern.clamp(min=0)
    values = (kept / 0.75) @ v.transpose(1, 2)
    torch.testing.assert_close(out, values.transpose(1, 2))
    dropped = float((pattern < 0).sum() / (pattern != 0).sum())
    assert 0.2 < dropped < 0.3
    whole, _ = plain(q, k, v, causal=True)
    torch.testing.assert_close(pattern.abs() @ v.transpose(1, 2), whole.transpose(1, 2))
    assert not torch.equal(out, fa.flash_attn_func(q, k, v, dropout_p=0.25, causal=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("how", [{"causal": True}, {"softcap": 2.0}, {"alibi_slopes": SLOPES.float()}], ids=str)
def test_the_dtype_stays(fa: Any, dtype: Any, how: dict[str, Any]) -> None:
    """Half precision in gives half precision out, near to what the formula gives in float64; also under autocast."""
    tensors = inputs(dtype=dtype)
    expected, _ = plain(*(x.double() for x in tensors), **how)
    for inside in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with inside:
            out = fa.flash_attn_func(*tensors, **how)
        assert out.dtype is dtype
        torch.testing.assert_close(out.double(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("how", OPTIONS.values(), ids=OPTIONS)
def test_packed(fa: Any, how: dict[str, Any]) -> None:
    """Keys and values in one tensor, and all three in one."""
    q, k, v = inputs()
    expected = fa.flash_attn_func(q, k, v, **how)
    assert torch.equal(fa.flash_attn_kvpacked_func(q, torch.stack([k, v], 2), **how), expected)
    assert torch.equal(fa.flash_attn_qkvpacked_func(torch.stack([q, k, v], 2), **how), expected)


# -- sequences behind one another ------------------------------------------------------------------
def starts(*lengths: int) -> Any:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize("how", OPTIONS.values(), ids=OPTIONS)
def test_sequences_of_different_lengths(fa: Any, how: dict[str, Any]) -> None:
    """Each is computed by itself: several keys, none, and more than queries."""
    queries, keys = (3, 1, 2), (3, 4, 0)
    q = torch.randn(6, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(7, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slopes = how.get("alibi_slopes")
    if slopes is not None and slopes.dim() == 2:
        how = {**how, "alibi_slopes": slopes.repeat(2, 1)[:3]}
    cu_q, cu_k = starts(*queries), starts(*keys)
    out = fa.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 3, 4, **how)
    parts = []
    for n in range(3):
        one = how if slopes is None or slopes.dim() == 1 else {**how, "alibi_slopes": how["alibi_slopes"][n]}
        part = (q[cu_q[n] : cu_q[n + 1]], k[cu_k[n] : cu_k[n + 1]], v[cu_k[n] : cu_k[n + 1]])
        parts.append(plain(*(x[None] for x in part), **one))
    torch.testing.assert_close(out, torch.cat([part[0][0] for part in parts]))
    assert len(torch.autograd.grad(out.square().sum(), [q, k, v])) == 3
    again, sums, _ = fa.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 3, 4, **how, return_attn_probs=True)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(sums, torch.cat([part[1][0] for part in parts], -1))
    packed = fa.flash_attn_varlen_kvpacked_func(q, torch.stack([k, v], 1), cu_q, cu_k, 3, 4, **how)
    assert torch.equal(packed, out)


def test_packed_sequences_of_different_lengths(fa: Any) -> None:
    """All three in one tensor; what lies behind the last sequence is zeros."""
    qkv = torch.randn(7, 3, 4, 8, dtype=torch.float64)
    cu = starts(2, 3)
    out = fa.flash_attn_varlen_qkvpacked_func(qkv, cu, 3, causal=True)
    q, k, v = qkv.unbind(1)
    torch.testing.assert_close(out[2:5], plain(q[None, 2:5], k[None, 2:5], v[None, 2:5], causal=True)[0][0])
    assert not out[5:].any()


def test_keys_in_blocks(fa: Any) -> None:
    """A block table says where a sequence's keys lie."""
    q, blocks = torch.randn(3, 4, 8), torch.randn(2, 6, 2, 4, 8)
    table = torch.tensor([[4, 1], [0, 5]], dtype=torch.int32)
    cu_q, cu_k = starts(1, 2), starts(3, 2)
    out = fa.flash_attn_varlen_func(q, *blocks, cu_q, cu_k, 2, 3, causal=True, block_table=table)
    k, v = (torch.cat([x[[4, 1]].flatten(0, 1)[:3], x[[0, 5]].flatten(0, 1)[:2]]) for x in blocks)
    torch.testing.assert_close(out, fa.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 2, 3, causal=True))


# -- generating --------------------------------------------------------------------------------------
def rotated(x: Any, position: int, cos: Any, sin: Any, interleaved: bool) -> Any:
    """One position's heads, pair by pair."""
    out, half = x.clone(), cos.shape[1]
    for p in range(half):
        one, other = (2 * p, 2 * p + 1) if interleaved else (p, p + half)
        c, s = cos[position, p], sin[position, p]
        out[..., one], out[..., other] = x[..., one] * c - x[..., other] * s, x[..., one] * s + x[..., other] * c
    return out


ANGLES = torch.arange(12, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3], dtype=torch.float64)
COS, SIN = ANGLES.cos(), ANGLES.sin()


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("how", [{"causal": True}, {"window_size": (3, 0)}, {}, {"softcap": 1.0}], ids=str)
@pytest.mark.parametrize("interleaved", [None, True, False])
def test_a_cache(fa: Any, how: dict[str, Any], paged: bool, interleaved: bool | None) -> None:
    """New keys are turned, written behind the old ones, and seen; each sequence has its own length."""
    lengths = [3, 6]
    caches = [torch.randn(2, 8, 2, 8, dtype=torch.float64) for _ in range(2)]
    q, k, v = (torch.randn(2, 2, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    expected_k, expected_v = (cache.clone() for cache in caches)
    turned = q.clone()
    for n, length in enumerate(lengths):
        for i in range(2):
            one = k[n, i]
            if interleaved is not None:
                one = rotated(one, length + i, COS, SIN, interleaved)
                turned[n, i] = rotated(
                    q[n, i], length + (i if "softcap" not in how and how else 0), COS, SIN, interleaved
                )
            expected_k[n, length + i], expected_v[n, length + i] = one, v[n, i]
    expected = [
        plain(
            turned[n : n + 1], expected_k[n : n + 1, : lengths[n] + 2], expected_v[n : n + 1, : lengths[n] + 2], **how
        )
        for n in range(2)
    ]
    table = torch.tensor([[2, 0, 1, 3], [7, 6, 5, 4]], dtype=torch.int32) if paged else None
    given = caches
    if table is not None:
        given = [torch.empty(8, 2, 2, 8, dtype=torch.float64) for _ in range(2)]
        for blocks, cache in zip(given, caches, strict=True):
            blocks[table.long()] = cache.unflatten(1, (4, 2))
    rotary = {} if interleaved is None else {"rotary_cos": COS, "rotary_sin": SIN, "rotary_interleaved": interleaved}
    out, sums = fa.flash_attn_with_kvcache(
        q, *given, k, v, cache_seqlens=torch.tensor(lengths, dtype=torch.int32), block_table=table,
        return_softmax_lse=True, **how, **rotary,
    )  # fmt: skip
    torch.testing.assert_close(out, torch.cat([each[0] for each in expected]))
    torch.testing.assert_close(sums, torch.cat([each[1] for each in expected]))
    after = given if table is None else [x[table.long()].flatten(1, 2) for x in given]
    torch.testing.assert_close(after, [expected_k, expected_v])


def test_a_cache_that_is_only_read(fa: Any) -> None:
    """All of it by default; by chosen rows of it, and from a position on; nothing is written."""
    q, k, v = (torch.randn(2, length, 4, 8) for length in (1, 5, 5))
    before = k.clone()
    torch.testing.assert_close(fa.flash_attn_with_kvcache(q, k, v), fa.flash_attn_func(q, k, v))
    swapped = torch.tensor([1, 0], dtype=torch.int32)
    out = fa.flash_attn_with_kvcache(q, k, v, cache_seqlens=4, cache_batch_idx=swapped)
    torch.testing.assert_close(out, fa.flash_attn_func(q, k[[1, 0], :4], v[[1, 0], :4]))
    out = fa.flash_attn_with_kvcache(q, k, v, cache_seqlens=4, cache_leftpad=torch.tensor([1, 1]), num_splits=2)
    torch.testing.assert_close(out, fa.flash_attn_func(q, k[:, 1:4], v[:, 1:4]))
    assert torch.equal(k, before)


# -- what stands around it ---------------------------------------------------------------------------
def test_padding_is_taken_out_and_put_back(fa: Any) -> None:
    """unpad_input and pad_input are each other's inverse, and gradients come through both."""
    padding = importlib.import_module("flash_attn.bert_padding")
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]])
    x = torch.randn(3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    rows, indices, cu, longest, used = padding.unpad_input(x, mask)
    assert (cu.tolist(), longest, used.tolist()) == ([0, 2, 4, 5], 2, [2, 2, 1])
    assert cu.dtype is torch.int32
    assert torch.equal(rows, x[mask.bool()])
    assert torch.equal(padding.index_first_axis(x.flatten(0, 1), indices), rows)
    back = padding.pad_input(rows, indices, 3, 3)
    assert torch.equal(back, x * mask[..., None, None])
    (gradient,) = torch.autograd.grad(back.sum(), x)
    assert torch.equal(gradient, mask[..., None, None].expand_as(x).double())


def test_places_that_are_taken_and_not_used(fa: Any) -> None:
    """They are kept in the rows, and left out of the last lengths."""
    padding = importlib.import_module("flash_attn.bert_padding")
    mask, unused = torch.tensor([[1, 0, 0], [1, 1, 0]]), torch.tensor([[0, 1, 0], [0, 0, 0]])
    rows, _, cu, longest, used = padding.unpad_input(torch.randn(2, 3, 4), mask, unused)
    assert (len(rows), cu.tolist(), longest, used.tolist()) == (4, [0, 2, 4], 2, [1, 2])


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary(fa: Any, interleaved: bool) -> None:
    """Pairs are turned by the angle of their position, from an offset on; the rest of a head stays."""
    apply = importlib.import_module("flash_attn.layers.rotary").apply_rotary_emb
    x = torch.randn(2, 3, 2, 6, dtype=torch.float64)
    for offsets in (0, 2, torch.tensor([1, 4])):
        begin = [offsets] * 2 if isinstance(offsets, int) else offsets.tolist()
        expected = torch.stack([
            torch.stack([rotated(x[b, i], begin[b] + i, COS, SIN, interleaved) for i in range(3)]) for b in range(2)
        ])  # fmt: skip
        torch.testing.assert_close(apply(x, COS, SIN, interleaved, seqlen_offsets=offsets), expected)
    rows = torch.cat([x[0, :1], x[1]])
    expected = torch.cat([rotated(rows[:1, :], 0, COS, SIN, interleaved), apply(x[1:], COS, SIN, interleaved)[0]])
    torch.testing.assert_close(apply(rows, COS, SIN, interleaved, cu_seqlens=starts(1, 3), max_seqlen=3), expected)


def test_rotary_in_place(fa: Any) -> None:
    """The tensor itself is changed and comes back; gradients are those of a rotation, back by the same angle."""
    apply = importlib.import_module("flash_attn.layers.rotary").apply_rotary_emb
    leaf = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    x = leaf * 1
    assert apply(x, COS, SIN, inplace=True) is x
    torch.testing.assert_close(x, apply(leaf, COS, SIN))
    (gradient,) = torch.autograd.grad(x.square().sum(), leaf)
    torch.testing.assert_close(gradient, 2 * leaf)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dropout_p": 1.0}, "p_dropout"),
        ({"dropout_p": 0.1, "softcap": 1.0}, "Softcapping does not support dropout"),
        ({"heads": 3, "of_keys": 2}, "must divide"),
        ({"size": 264}, "at most 256"),
    ],
)
def test_what_the_package_refuses_is_refused(fa: Any, how: dict[str, Any], said: str) -> None:
    heads, of_keys, size = how.pop("heads", 2), how.pop("of_keys", 2), how.pop("size", 8)
    q, k = torch.zeros(1, 2, heads, size), torch.zeros(1, 2, of_keys, size)
    with pytest.raises(RuntimeError, match=said):
        fa.flash_attn_func(q, k, k, **how)


def test_what_is_not_here_says_so(fa: Any) -> None:
    """An option is refused by its name, and a part of the package is an ImportError."""
    x, cu = torch.zeros(2, 1, 8), starts(1, 1)
    with pytest.raises(NotImplementedError, match="return_attn_probs with dropout_p"):
        fa.flash_attn_varlen_func(x, x, x, cu, cu, 1, 1, dropout_p=0.1, return_attn_probs=True)
    with pytest.raises(ImportError, match=r"flash_attn\.ops"):
        importlib.import_module("flash_attn.ops")


@pytest.mark.parametrize("how", [{"causal": True}, {"softcap": 1.0}, {"dropout_p": 0.5}], ids=str)
def test_on_simulated_gpus(how: dict[str, Any]) -> None:
    """It is a part of the program: results and gradients are where the tensors are, and mixing raises."""
    with Redirect(SimulatedTarget(torch, 1, 1 << 30, (8, 6)), strict=True, shims=["flash-attn"]):
        fa = importlib.import_module("flash_attn")
        q = torch.randn(1, 3, 2, 8, device="cuda", requires_grad=True)
        out = fa.flash_attn_func(q, q, q, **how)
        out.sum().backward()
        assert out.is_cuda
        assert q.grad.is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            fa.flash_attn_func(q, q.detach().cpu(), q, **how)


# -- being there and gone ------------------------------------------------------------------------------
def test_it_is_installed_for_all_who_ask() -> None:
    """Its version, its distribution, its modules and its file; and afterwards nothing of it."""
    with with_shim():
        module = importlib.import_module("flash_attn")
        assert (
            module.__version__ == importlib.metadata.version("flash_attn") == importlib.metadata.version("flash-attn")
        )
        assert importlib.metadata.packages_distributions()["flash_attn"] == ["flash-attn"]
        assert importlib.util.find_spec("flash_attn") is not None
        assert module.__file__ == str(FOLDER / "flash_attn" / "__init__.py")
        assert module.flash_attn_func is importlib.import_module("flash_attn.flash_attn_interface").flash_attn_func
        assert module.flash_attn_func.__module__ == "flash_attn.flash_attn_interface"
    assert not [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]
    assert importlib.util.find_spec("flash_attn") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")


def test_a_package_that_was_imported_before_comes_back() -> None:
    """Also one that is installed and cannot work here is stood in for, until the end."""
    real = type(sys)("flash_attn")
    sys.modules["flash_attn"] = real
    try:
        with with_shim():
            assert importlib.import_module("flash_attn") is not real
        assert sys.modules["flash_attn"] is real
    finally:
        del sys.modules["flash_attn"]


def test_its_names() -> None:
    """Spelled as packages may be spelled; another one is our error, which names those that there are."""
    assert checked(["flash_attn", "Flash-Attn"]) == ("flash-attn", "flash-attn")
    assert package_of("flash_attn") == "flash-attn"
    assert package_of("triton") is None
    with pytest.raises(DeviceKitError, match=r"no stand-in for 'apex'.*\n.*'flash-attn'"):
        checked(["apex"])
    with pytest.raises(DeviceKitError, match="no stand-in for 'apex'"):
        redirect_cuda("cpu", shims=["apex"])


@pytest.mark.slow
def test_transformers_takes_it() -> None:
    """A model of transformers that is asked for flash_attention_2 gives what it gives with eager attention."""
    pytest.importorskip("transformers")
    import subprocess

    code = """
import sys, warnings
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver
with Redirect(DecidedTarget(resolver().decide("cpu")), shims=["flash-attn"]):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
    torch.manual_seed(0)
    one = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    other = LlamaForCausalLM._from_config(config, attn_implementation="flash_attention_2")
    other.load_state_dict(one.state_dict())
    one, other = one.to("cuda"), other.to("cuda")
    ids = torch.randint(0, 32, (2, 7), device="cuda")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7], device="cuda")
    for given in ({}, {"attention_mask": mask}):
        a, b = one(ids, **given).logits, other(ids, **given).logits
        seen = given.get("attention_mask", torch.ones_like(ids)).bool()
        torch.testing.assert_close(a[seen], b[seen])
    text = [m.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False) for m in (one, other)]
    assert torch.equal(*text)
print("flash_attn" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
