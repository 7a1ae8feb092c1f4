"""SwiGLU: silu(gate) times up, forward and backward."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from s3cache.kernels.declaration import declare
from s3cache.kernels.library.launching import TYPES, jit, launchable, operator

BLOCK = 1024


@jit
def swiglu_forward(
    gate: tl.tensor, up: tl.tensor, out: tl.tensor, size: tl.tensor, block: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    value = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value * tl.sigmoid(value) * factor, mask=inside)


@jit
def swiglu_backward(
    grad: tl.tensor,
    gate: tl.tensor,
    up: tl.tensor,
    grad_gate: tl.tensor,
    grad_up: tl.tensor,
    size: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    flow = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(value)
    tl.store(grad_up + at, flow * value * share, mask=inside)
    slope = share * (1.0 + value * (1.0 - share))
    tl.store(grad_gate + at, flow * factor * slope, mask=inside)


for _type in TYPES:
    for _size in ("i32:16", "i32"):
        declare(
            dict.fromkeys(("gate", "up", "out"), f"*{_type}") | {"size": _size},
            {"block": BLOCK},
            num_warps=4,
        )(swiglu_forward)
        declare(
            dict.fromkeys(("grad", "gate", "up", "grad_gate", "grad_up"), f"*{_type}") | {"size": _size},
            {"block": BLOCK},
            num_warps=4,
        )(swiglu_backward)


@operator("swiglu")
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, of the shape that both have."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    launchable(swiglu_forward)[(triton.cdiv(gate.numel(), BLOCK),)](
        gate, up, out, gate.numel(), block=BLOCK, num_warps=4
    )
    return out


@operator("swiglu_backward")
def _swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    launchable(swiglu_backward)[(triton.cdiv(gate.numel(), BLOCK),)](
        grad, gate, up, grad_gate, grad_up, gate.numel(), block=BLOCK, num_warps=4
    )
    return grad_gate, grad_up


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(context: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _swiglu_backward(grad, *context.saved_tensors)
    return gradients


swiglu.register_autograd(_gradient, setup_context=_save)
