"""RoPE: rotary position embedding, the halves of each head turned by angles of their position."""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from s3cache.kernels.declaration import declare
from s3cache.kernels.library.launching import TYPES, jit, launchable, operator

_HEADS = 4
"""Heads that a program turns at one time."""


@partial(jit, unspecialized=["length"])
def rope_kernel(
    x: tl.tensor,
    cosine: tl.tensor,
    sine: tl.tensor,
    out: tl.tensor,
    length: tl.tensor,
    heads: tl.tensor,
    direction: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
    at_once: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    position = token % length
    head = tl.program_id(1) * at_once + tl.arange(0, at_once)
    at = tl.arange(0, block)
    inside_half = at < half
    inside = (head < heads)[:, None] & inside_half[None, :]
    turn = position * half + at
    along = tl.load(cosine + turn, mask=inside_half, other=1.0).to(tl.float32)[None, :]
    across = tl.load(sine + turn, mask=inside_half, other=0.0).to(tl.float32)[None, :] * direction
    start = (token * heads + head)[:, None] * (2 * half) + at[None, :]
    first = tl.load(x + start, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + start + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start, first * along - second * across, mask=inside)
    tl.store(out + start + half, second * along + first * across, mask=inside)


for _type in TYPES:
    for _half in (32, 64):
        for _heads in ("i32:16", "i32"):
            for _direction in (1, -1):
                declare(
                    {"x": f"*{_type}", "cosine": "*fp32", "sine": "*fp32", "out": f"*{_type}"}
                    | {"length": "i32", "heads": _heads},
                    {"direction": _direction, "half": _half, "block": _half, "at_once": _HEADS},
                    num_warps=4,
                )(rope_kernel)


@operator("rope")
def _rope(x: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    x, cosine, sine = x.contiguous(), cosine.contiguous(), sine.contiguous()
    batch, length, heads, width = x.shape
    out = torch.empty_like(x)
    half = width // 2
    launchable(rope_kernel)[(batch * length, triton.cdiv(heads, _HEADS))](
        x,
        cosine,
        sine,
        out,
        length,
        heads,
        direction=direction,
        half=half,
        block=triton.next_power_of_2(half),
        at_once=_HEADS,
        num_warps=4,
    )
    return out


def rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x of shape (batch, length, heads, 2 h), turned by angles of cosine and sine (length, h)."""
    out: Tensor = _rope(x, cosine, sine, 1)
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cosine, sine, direction = inputs
    ctx.save_for_backward(cosine, sine)
    ctx.direction = direction


def _gradient(context: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _rope(grad, *context.saved_tensors, -context.direction), None, None, None


_rope.register_autograd(_gradient, setup_context=_save)
