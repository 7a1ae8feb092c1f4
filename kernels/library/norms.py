"""RMSNorm and LayerNorm over the last dimension, forward and backward."""

from functools import partial
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from s3cache.kernels.declaration import declare
from s3cache.kernels.library.launching import TYPES, block_of, jit, launchable, operator, rows_of, warps_of

PARTS = 256
"""Programs of a backward pass; each adds up the gradient of the weight over its rows."""
_WIDTHS = (1024, 2048, 4096, 8192)


@jit
def rms_norm_forward(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    columns: tl.tensor,
    epsilon: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < columns
    value = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value) / columns + epsilon)
    tl.store(scale + row, inverse)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, value * inverse * gain, mask=inside)


@partial(jit, unspecialized=["rows"])
def rms_norm_backward(
    grad: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    grad_x: tl.tensor,
    grad_weight: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    block: tl.constexpr,
) -> None:
    part = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < columns
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([block], tl.float32)
    at_x = part * columns + at
    for row in range(part, rows, tl.num_programs(0)):
        value = tl.load(x + at_x, mask=inside, other=0.0).to(tl.float32)
        flow = tl.load(grad + at_x, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(scale + row)
        normal = value * inverse
        total += flow * normal
        flow *= gain
        mean = tl.sum(flow * normal) / columns
        tl.store(grad_x + at_x, (flow - normal * mean) * inverse, mask=inside)
        at_x += tl.num_programs(0).to(tl.int64) * columns
    tl.store(grad_weight + part * columns + at, total, mask=inside)


@jit
def layer_norm_forward(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    columns: tl.tensor,
    epsilon: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < columns
    value = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    center = tl.sum(value) / columns
    centered = tl.where(inside, value - center, 0.0)
    inverse = tl.rsqrt(tl.sum(centered * centered) / columns + epsilon)
    tl.store(mean + row, center)
    tl.store(scale + row, inverse)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, centered * inverse * gain + shift, mask=inside)


@partial(jit, unspecialized=["rows"])
def layer_norm_backward(
    grad: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    grad_x: tl.tensor,
    grad_weight: tl.tensor,
    grad_bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    block: tl.constexpr,
) -> None:
    part = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < columns
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([block], tl.float32)
    total_flow = tl.zeros([block], tl.float32)
    at_x = part * columns + at
    for row in range(part, rows, tl.num_programs(0)):
        value = tl.load(x + at_x, mask=inside, other=0.0).to(tl.float32)
        flow = tl.load(grad + at_x, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(scale + row)
        normal = tl.where(inside, (value - tl.load(mean + row)) * inverse, 0.0)
        total += flow * normal
        total_flow += flow
        flow *= gain
        along = tl.sum(flow * normal) / columns
        offset = tl.sum(flow) / columns
        tl.store(grad_x + at_x, (flow - normal * along - offset) * inverse, mask=inside)
        at_x += tl.num_programs(0).to(tl.int64) * columns
    tl.store(grad_weight + part * columns + at, total, mask=inside)
    tl.store(grad_bias + part * columns + at, total_flow, mask=inside)


for _type in TYPES:
    for _width in _WIDTHS:
        for _kernel, _typed, _fp32, _sizes in (
            (
                rms_norm_forward,
                ("x", "weight", "out"),
                ("scale",),
                {"columns": "i32:16", "epsilon": "fp32"},
            ),
            (
                rms_norm_backward,
                ("grad", "x", "weight", "grad_x"),
                ("scale", "grad_weight"),
                {"rows": "i32", "columns": "i32:16"},
            ),
            (
                layer_norm_forward,
                ("x", "weight", "bias", "out"),
                ("mean", "scale"),
                {"columns": "i32:16", "epsilon": "fp32"},
            ),
            (
                layer_norm_backward,
                ("grad", "x", "weight", "grad_x"),
                ("mean", "scale", "grad_weight", "grad_bias"),
                {"rows": "i32", "columns": "i32:16"},
            ),
        ):
            declare(
                dict.fromkeys(_typed, f"*{_type}") | dict.fromkeys(_fp32, "*fp32") | _sizes,
                {"block": _width},
                num_warps=warps_of(_width),
            )(_kernel)


@operator("rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    rows = rows_of(x)
    out = torch.empty_like(rows)
    scale = rows.new_empty(len(rows), dtype=torch.float32)
    block = block_of(x.shape[-1])
    launchable(rms_norm_forward)[(len(rows),)](
        rows, weight, out, scale, x.shape[-1], epsilon, block=block, num_warps=warps_of(block)
    )
    return out.view(x.shape), scale


@operator("rms_norm_backward")
def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    rows, flow = rows_of(x), rows_of(grad)
    grad_x = torch.empty_like(rows)
    parts = min(len(rows), PARTS)
    grad_weight = rows.new_empty((parts, x.shape[-1]), dtype=torch.float32)
    block = block_of(x.shape[-1])
    launchable(rms_norm_backward)[(parts,)](
        flow,
        rows,
        weight,
        scale,
        grad_x,
        grad_weight,
        len(rows),
        x.shape[-1],
        block=block,
        num_warps=warps_of(block),
    )
    return grad_x.view(x.shape), grad_weight.sum(0).to(weight.dtype)


@operator("layer_norm")
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows_of(x)
    out = torch.empty_like(rows)
    mean, scale = rows.new_empty((2, len(rows)), dtype=torch.float32).unbind()
    block = block_of(x.shape[-1])
    launchable(layer_norm_forward)[(len(rows),)](
        rows, weight, bias, out, mean, scale, x.shape[-1], epsilon, block=block, num_warps=warps_of(block)
    )
    return out.view(x.shape), mean.clone(), scale.clone()


@operator("layer_norm_backward")
def _layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, flow = rows_of(x), rows_of(grad)
    grad_x = torch.empty_like(rows)
    parts = min(len(rows), PARTS)
    grad_weight = rows.new_empty((parts, x.shape[-1]), dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    block = block_of(x.shape[-1])
    launchable(layer_norm_backward)[(parts,)](
        flow,
        rows,
        weight,
        mean,
        scale,
        grad_x,
        grad_weight,
        grad_bias,
        len(rows),
        x.shape[-1],
        block=block,
        num_warps=warps_of(block),
    )
    return grad_x.view(x.shape), grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0).to(weight.dtype)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return x of shape (..., n), each row divided by its root mean square, times weight of shape (n,)."""
    out, _ = _rms_norm(x, weight, epsilon)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return x (..., n), each row with mean 0 and variance 1, times weight plus bias, both (n,)."""
    out, *_ = _layer_norm(x, weight, bias, epsilon)
    return out


def _save_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _ = inputs
    _, scale = output
    ctx.save_for_backward(x, weight, scale)


def _rms_norm_gradient(context: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_rms_norm_backward(grad, *context.saved_tensors), None


def _save_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, *_ = inputs
    _, mean, scale = output
    ctx.save_for_backward(x, weight, mean, scale)


def _layer_norm_gradient(context: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_layer_norm_backward(grad, *context.saved_tensors), None


_rms_norm.register_autograd(_rms_norm_gradient, setup_context=_save_rms_norm)
_layer_norm.register_autograd(_layer_norm_gradient, setup_context=_save_layer_norm)
