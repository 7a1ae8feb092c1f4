"""The library's kernels against float64, on shapes that fit no block; by the interpreter without a GPU."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from s3cache.kernels import library  # noqa: E402

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of the largest value: what rounding to the type, here and in between, may cost.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}

Function = Callable[..., Tensor]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def the_same_numbers_each_time() -> None:
    torch.manual_seed(0)


def check(
    ours: Function,
    reference: Function,
    *inputs: Tensor,
    differentiable: int | None = None,
    cancelling: float = 1.0,
) -> None:
    """Hold a function and its gradients against the same in float64, computed from the same inputs.

    Rounding costs a part of the largest number in a sum: `cancelling`, where the result is smaller.
    """
    dtype = inputs[0].dtype
    count = len(inputs) if differentiable is None else differentiable
    mine = [value.clone().requires_grad_() for value in inputs[:count]] + list(inputs[count:])
    exact = [value.to(torch.float64).requires_grad_() for value in inputs[:count]] + [
        value.to(torch.float64) if value.is_floating_point() else value for value in inputs[count:]
    ]
    got, want = ours(*mine), reference(*exact)
    flow = torch.randn_like(want)
    got_gradients = torch.autograd.grad(got, mine[:count], flow.to(got.dtype))
    want_gradients = torch.autograd.grad(want, exact[:count], flow.to(got.dtype).to(torch.float64))
    for result, expected in zip((got, *got_gradients), (want, *want_gradients), strict=True):
        assert result.shape == expected.shape
        error = (result.to(torch.float64) - expected).abs().max()
        assert error <= TOLERANCE[dtype] * max(expected.abs().max().item(), cancelling)


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 5, 257), (7, 1024), (300, 33)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def inverse(x: Tensor) -> Tensor:
        return (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return x * inverse(x) * weight

    x = random(*shape, dtype=dtype)
    # In a gradient, numbers that have the size of the inverse cancel.
    largest = max(inverse(x.to(torch.float64)).max().item(), 1.0)
    check(library.rms_norm, reference, x, random(shape[-1], dtype=dtype), cancelling=largest)


@pytest.mark.parametrize("shape", [(3, 100), (2, 5, 257), (7, 1024), (300, 33)])
def test_layer_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, shape[-1:], weight, bias)

    weight, bias = (random(shape[-1], dtype=dtype) for _ in range(2))
    check(library.layer_norm, reference, random(*shape, dtype=dtype), weight, bias)


@pytest.mark.parametrize("shape", [(1,), (3, 1000), (2, 5, 257), (1024,)])
def test_swiglu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def reference(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    check(library.swiglu, reference, random(*shape, dtype=dtype), random(*shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 7, 3, 64), (1, 5, 9, 48)])
def test_rope(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    _, length, _, width = shape
    angle = torch.rand(length, width // 2, device=DEVICE) * 6

    def reference(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        cosine, sine = cosine[:, None], sine[:, None]
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

    x = random(*shape, dtype=dtype)
    check(library.rope, reference, x, angle.cos(), angle.sin(), differentiable=1)


@pytest.mark.parametrize(("tokens", "width", "vocabulary"), [(1, 16, 5), (7, 33, 5000), (20, 64, 100)])
def test_linear_cross_entropy(dtype: torch.dtype, tokens: int, width: int, vocabulary: int) -> None:
    target = torch.randint(vocabulary, (tokens,), device=DEVICE)
    if tokens > 1:
        target[::3] = -100

    def reference(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(hidden @ weight.T, target)

    hidden, weight = random(tokens, width, dtype=dtype), random(vocabulary, width, dtype=dtype) / 4
    check(library.linear_cross_entropy, reference, hidden, weight, target, differentiable=2)


def test_the_loss_of_no_token_is_nothing(dtype: torch.dtype) -> None:
    target = torch.full((3,), -100, device=DEVICE)
    hidden, weight = random(3, 8, dtype=dtype), random(9, 8, dtype=dtype)
    assert library.linear_cross_entropy(hidden, weight, target) == 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:TensorFloat32:UserWarning")
@pytest.mark.skipif(DEVICE == "cpu", reason="torch.compile cannot trace Triton's interpreter")
def test_operators_are_part_of_one_graph(dtype: torch.dtype) -> None:
    def block(x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = library.rms_norm(x, weight) @ weight.diag()
        turned = library.rope(hidden.view(1, -1, 4, 32), cosine, sine).view(x.shape)
        return library.swiglu(library.layer_norm(turned, weight, weight), hidden)

    x, weight = random(16, 128, dtype=dtype), random(128, dtype=dtype)
    angle = torch.rand(16, 16, device=DEVICE) * 6
    eager, compiled = (
        function(x.clone().requires_grad_(), weight, angle.cos(), angle.sin())
        for function in (block, torch.compile(block, fullgraph=True))
    )
    assert (eager - compiled).abs().max() <= 4 * TOLERANCE[dtype] * eager.abs().max()
    compiled.sum().backward()


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (65, 33, 17), (100, 200, 130)])
def test_matmul(dtype: torch.dtype, m: int, n: int, k: int) -> None:
    check(library.matmul, torch.matmul, random(m, k, dtype=dtype), random(k, n, dtype=dtype))
