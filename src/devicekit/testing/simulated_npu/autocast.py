"""``torch.autocast("npu")``: which operators run in the lower precision, and which in float32.

The two lists are those of Ascend/pytorch ``torch_npu/csrc/aten/AutoCastOps.cpp`` at 9e73e708, less
the operators that this torch has under no such name. There is no cache of cast weights, and the
operators that torch_npu promotes to the widest of their types are left to torch's own promotion.
"""

from __future__ import annotations

from typing import Any

import torch

from devicekit.testing.simulated_npu.machine import NAME

__all__ = ["register_autocast"]

_LOWER = """
_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv linear addbmm baddbmm
bmm chain_matmul linalg_multi_dot lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
scaled_dot_product_attention
"""

_FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm group_norm frobenius_norm.dim
nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss
nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss
margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp prod prod.dim_int softmax.int
log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord
sum sum.dim_IntList
"""

_KEY = "AutocastPrivateUse1"
# A torch.library.Library takes its registrations back when it is collected.
_libraries: list[torch.library.Library] = []


def register_autocast() -> None:
    """Register the casting kernels.

    Operators that are not listed fall through; without that they would fail inside autocast.
    """
    everything: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]  # torch's
    everything.fallback(torch.library.fallthrough_kernel, _KEY)
    aten: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch's
    for name in _LOWER.split():
        aten.impl(name, _kernel(name, None), _KEY)
    for name in _FLOAT32.split():
        aten.impl(name, _kernel(name, torch.float32), _KEY)
    _libraries.extend((everything, aten))


def _kernel(name: str, dtype: torch.dtype | None) -> Any:
    """A kernel that casts floating tensors, to ``dtype`` or to autocast's, and goes on."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    done = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))  # not in torch's stubs

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(done):
            to = dtype or torch.get_autocast_dtype(NAME)
            cast_kwargs = {key: _cast(value, to) for key, value in kwargs.items()}
            return operator(*_cast(args, to), **cast_kwargs)

    return kernel


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return [_cast(v, dtype) for v in value]
    if not isinstance(value, torch.Tensor) or value.device.type != NAME:
        return value
    return value.to(dtype) if value.is_floating_point() and value.dtype != torch.float64 else value
