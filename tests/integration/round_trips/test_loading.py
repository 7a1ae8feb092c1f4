"""Functions and models that one machine compiled and a fresh one loads."""

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device, step_of
from tests.integration.starts import Fleet

GPU = pytest.mark.gpu
KERNEL_FILES = 6
"""A kernel's texts, binary and metadata, at the least."""

FUNCTIONS = """
    from itertools import product

    from torch._inductor import config

    STATIC_LAUNCHER = "use_static_triton_launcher"
    if not hasattr(config, STATIC_LAUNCHER):
        STATIC_LAUNCHER = "use_static_cuda_launcher"

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    shapes = {"static": False, "dynamic": True}
    bundles = {"bundled": True, "unbundled": False}
    launchers = {"static-launcher": True, "launcher": False} if DEVICE == "cuda" else {"launcher": False}
    grads = {"grad": True, "no-grad": False}
    cells = product(dtypes, shapes, bundles, launchers, grads)

    for number, (dtype, shape, bundle, launcher, grad) in enumerate(cells, 2):
        if launchers[launcher] and not bundles[bundle]:
            continue
        bundled = {"bundle_triton_into_fx_graph_cache": bundles[bundle]}
        options = bundled | {STATIC_LAUNCHER: launchers[launcher]}

        # A literal: with dynamic shapes a variable would be an input, and all kernels the same.
        fn = eval(f"lambda x, y: x * {number} + (y @ y).view(25)")

        with step("-".join((dtype, shape, bundle, launcher, grad)), config.patch(options)) as computed:
            x = torch.rand(25, dtype=dtypes[dtype], device=DEVICE)
            y = torch.rand(5, 5, dtype=dtypes[dtype], device=DEVICE)
            eager = [value.clone().requires_grad_(grads[grad]) for value in (x, y)]
            compiled = [value.clone().requires_grad_(grads[grad]) for value in (x, y)]
            expected, found = fn(*eager), torch.compile(fn, dynamic=shapes[shape])(*compiled)
            torch.testing.assert_close(found, expected)
            computed(found)
            if grads[grad]:
                expected.sum().backward()
                found.sum().backward()
                for one, other in zip(compiled, eager):
                    torch.testing.assert_close(one.grad, other.grad)
                    computed(one.grad)
    report(steps=steps)
"""


CHOICES = """
    from torch._inductor import config

    class Convolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 2, 3, bias=False)
            self.second = nn.Conv2d(2, 3, 3, bias=False)

        def forward(self, x):
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    def train(model, fn, x):
        model.zero_grad()
        found = fn(x)
        found.sum().backward()
        return [found, *(parameter.grad for parameter in model.parameters())]

    # Gradients are compared bit by bit.
    torch.backends.cudnn.deterministic = True

    # Without conversions of layouts there is no kernel to compile.
    def convolve(name, dtype, dynamic):
        with step(name, config.patch(layout_optimization=False)) as computed:
            model = Convolutions().to(DEVICE, dtype)
            x = torch.rand(2, 1, 8, 8, dtype=dtype, device=DEVICE)
            expected = train(model, model, x)
            found = train(model, torch.compile(model, dynamic=dynamic), x)
            torch.testing.assert_close(found, expected)
            for value in found:
                computed(value)

    def run(name, fn, *patches):
        with step(name, *patches) as computed:
            x = torch.rand(3, 3, device=DEVICE)
            found = torch.compile(fn)(x)
            torch.testing.assert_close(found, fn(x))
            computed(found)

    def constant(numbers):
        return lambda x: x @ torch.tensor(numbers, dtype=x.dtype, device=DEVICE).view(3, 4)

    @torch.library.custom_op("trips::add_one", mutates_args=("x",))
    def add_one(x: torch.Tensor) -> None:
        x += 1

    @torch.library.custom_op("trips::add_two", mutates_args=("x",))
    def add_two(x: torch.Tensor) -> None:
        x += 2

    def operating(operator):
        def fn(x):
            y = x @ x
            operator(y)
            return y

        return fn

    tag = torch.compiler.config.cache_key_tag
    another_tag = torch.compiler.config.patch(cache_key_tag=f"{tag}-another")
    versions = {
        version: config.patch(enable_auto_functionalized_v2=value)
        for version, value in (("v1", False), ("v2", True))
    }

    # What is another than the recorded one comes first.
    if ROLE != "a":
        run("another-tag", lambda x: x @ x @ x, another_tag)
    run("tag", lambda x: x @ x @ x)
    if ROLE == "b":
        run("another-constant", constant(list(range(1, 13))))
    if ROLE in "ab":
        run("constant", constant(list(range(12))))
        for version, patch in versions.items():
            if ROLE == "b":
                run(f"another-operator-{version}", operating(add_two), patch)
            run(f"operator-{version}", operating(add_one), patch)
        for dtype in "float32", "float64":
            for shape, dynamic in ("static", False), ("dynamic", True):
                convolve(f"convolutions-{dtype}-{shape}", getattr(torch, dtype), dynamic)
    report(steps=steps)
"""


@pytest.mark.parametrize("grad", ["grad", "no-grad"])
@pytest.mark.parametrize(
    ("device", "bundle", "launcher"),
    [
        pytest.param(Device.CPU, "bundled", "launcher", id="cpu-bundled-launcher"),
        pytest.param(Device.CPU, "unbundled", "launcher", id="cpu-unbundled-launcher"),
        pytest.param(Device.CUDA, "bundled", "static-launcher", id="cuda-bundled-static", marks=GPU),
        pytest.param(Device.CUDA, "bundled", "launcher", id="cuda-bundled-launcher", marks=GPU),
        pytest.param(Device.CUDA, "unbundled", "launcher", id="cuda-unbundled-launcher", marks=GPU),
    ],
)
@pytest.mark.parametrize("shape", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_function_is_loaded(
    round_trip: MakeRoundTrip,
    caches: Caches,
    device: Device,
    dtype: str,
    shape: str,
    bundle: str,
    launcher: str,
    grad: str,
) -> None:
    trip = round_trip(FUNCTIONS, caches, device)
    step = f"{dtype}-{shape}-{bundle}-{launcher}-{grad}"
    a, b = trip.on_a(step), trip.on_b(step)
    graphs = 2 if grad == "grad" else 1
    assert (a.misses, a.hits) == (graphs, 0)
    assert (b.misses, b.hits) == (0, graphs)
    assert a.inductor["fxgraph_lookup_write_file"] == 0
    assert b.inductor["fxgraph_lookup_write_file"] == graphs
    assert b.computed == a.computed
    if device is Device.CUDA and bundle == "bundled":
        assert a.inductor["triton_bundler_save_kernel"] >= KERNEL_FILES * graphs
        assert b.inductor["triton_bundler_read_and_emit_kernel"] >= KERNEL_FILES * graphs
    if launcher == "static-launcher":
        assert a.inductor["triton_bundler_save_static_autotuner"] == graphs
        assert b.inductor["triton_bundler_load_static_autotuner"] == graphs


@pytest.mark.parametrize("shape", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_with_a_graph_break_is_loaded(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, dtype: str, shape: str
) -> None:
    trip = round_trip(CHOICES, caches, device)
    step = f"convolutions-{dtype}-{shape}"
    a, b = trip.on_a(step), trip.on_b(step)
    assert (a.hits, a.misses) == (0, 4)
    assert (b.hits, b.misses) == (4, 0)
    assert b.aot_autograd["autograd_cache_hit"] == 2
    assert b.computed == a.computed


@pytest.mark.parametrize("step", ["tag", "constant", "operator-v1", "operator-v2"])
def test_what_was_recorded_is_loaded_and_nothing_else(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, step: str
) -> None:
    trip = round_trip(CHOICES, caches, device)
    a, b, another = trip.on_a(step), trip.on_b(step), trip.on_b(f"another-{step}")
    assert (a.hits, a.misses) == (0, 1)
    assert (another.hits, another.misses) == (0, 1)
    assert (b.hits, b.misses) == (1, 0)
    assert b.computed == a.computed
    assert (another.computed == a.computed) == (step == "tag")


def test_tags_do_not_disturb_each_other(round_trip: MakeRoundTrip, fleet: Fleet, caches: Caches) -> None:
    start = round_trip(CHOICES, caches, Device.CPU).start(fleet.fresh(), ROLE="c")
    for step in "tag", "another-tag":
        c = step_of(start, step)
        assert (c.hits, c.misses) == (1, 0)
