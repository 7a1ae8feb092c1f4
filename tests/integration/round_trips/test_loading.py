"""Functions and models that one machine compiled and a fresh one loads."""

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device

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

        def fn(x, y, number=number):
            return x * number + (y @ y).view(25)

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
