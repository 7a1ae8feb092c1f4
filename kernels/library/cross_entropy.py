"""Linear layer and cross-entropy in one: the logits of all tokens are never there at the same time."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from s3cache.kernels.declaration import declare
from s3cache.kernels.library.launching import TYPES, jit, launchable, operator

LOGITS = 64 << 20
"""So many logits are there at one time."""
IGNORED = -100
"""The target of tokens that do not count, as torch has it."""
LOWEST: tl.constexpr = tl.constexpr(-3.4e38)
"""Below all logits, and yet finite."""
_BLOCK = 4096
_WARPS = 8


@jit
def cross_entropy_kernel(
    logits: tl.tensor,
    target: tl.tensor,
    loss: tl.tensor,
    columns: tl.tensor,
    ignored: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    wanted = tl.load(target + row)
    at = tl.arange(0, block)
    highest = tl.full([block], LOWEST, tl.float32)
    total = tl.zeros([block], tl.float32)
    for start in range(0, columns, block):
        value = tl.load(logits + start + at, mask=start + at < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, value)
        total = total * tl.exp(highest - higher) + tl.exp(value - higher)
        highest = higher
    top = tl.max(highest)
    normal = tl.sum(total * tl.exp(highest - top))
    counts = wanted != ignored
    chosen = tl.load(logits + tl.where(counts, wanted, 0)).to(tl.float32)
    tl.store(loss + row, tl.where(counts, top + tl.log(normal) - chosen, 0.0))
    for start in range(0, columns, block):
        column = start + at
        value = tl.load(logits + column, mask=column < columns, other=float("-inf")).to(tl.float32)
        slope = tl.exp(value - top) / normal - tl.where(column == wanted, 1.0, 0.0)
        tl.store(logits + column, tl.where(counts, slope, 0.0), mask=column < columns)


for _type in TYPES:
    for _columns in ("i32:16", "i32"):
        declare(
            {"logits": f"*{_type}", "target": "*i64", "loss": "*fp32", "columns": _columns},
            {"ignored": IGNORED, "block": _BLOCK},
            num_warps=_WARPS,
        )(cross_entropy_kernel)


@operator("linear_cross_entropy")
def _linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens, vocabulary = len(hidden), len(weight)
    losses = hidden.new_empty(tokens, dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    step = max(1, min(tokens, LOGITS // vocabulary))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        logits = hidden[part] @ weight.T
        launchable(cross_entropy_kernel)[(len(logits),)](
            logits,
            target[part],
            losses[part],
            vocabulary,
            ignored=IGNORED,
            block=_BLOCK,
            num_warps=_WARPS,
        )
        grad_hidden[part] = logits @ weight
        grad_weight += logits.T @ hidden[part]
    count = (target != IGNORED).sum().clamp(min=1)
    return losses.sum() / count, grad_hidden / count, (grad_weight / count).to(weight.dtype)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss, fp32, of logits hidden @ weight.T against target.

    Shapes (tokens, n), (vocabulary, n) and (tokens,); a target of -100 does not count.
    """
    loss, *_ = _linear_cross_entropy(hidden.contiguous(), weight.contiguous(), target.contiguous())
    return loss


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])


def _gradient(context: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None]:
    grad_hidden, grad_weight = context.saved_tensors
    return (grad * grad_hidden).to(grad_hidden.dtype), (grad * grad_weight).to(grad_weight.dtype), None


_linear_cross_entropy.register_autograd(_gradient, setup_context=_save)
