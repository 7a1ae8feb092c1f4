"""Operators that take functions: flex attention, branches, Triton kernels that the user wrote."""

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device
from tests.integration.starts import Fleet

GPU = pytest.mark.gpu

ATTENTION = """
    from torch._inductor import config
    from torch.nn.attention.flex_attention import flex_attention

    mods = {
        "first": lambda score, batch, head, query, key: score * 3 + (query - key),
        "other": lambda score, batch, head, query, key: score * 4 + (query - key),
    }
    if ROLE == "a":
        del mods["other"]
    for name, mod in mods.items():
        # Machine B, which has a library to compile, has no precompiled header.
        with step(name, config.patch(cpp_cache_precompile_headers=False)) as computed, torch.no_grad():
            query, key, value = (torch.rand(1, 1, 16, 16, device=DEVICE) for _ in range(3))
            found = torch.compile(flex_attention)(query, key, value, score_mod=mod)
            scores = (query @ key.mT / 4)[0, 0]
            at = torch.arange(16, device=DEVICE)
            weights = mod(scores, 0, 0, at[:, None], at[None, :]).softmax(-1)
            torch.testing.assert_close(found, weights @ value, rtol=1e-3, atol=1e-3)
            computed(found)
    report(steps=steps)
"""

BRANCHES = """
    from torch._inductor import config

    def choose(is_first, x):
        return torch.cond(is_first, lambda x: (x / 2,), lambda x: (x @ x,), (x,))[0]

    for name, bundle in {"bundled": True, "unbundled": False}.items():
        with step(name, config.patch(bundle_triton_into_fx_graph_cache=bundle)) as computed:
            compiled = torch.compile(choose)
            x = torch.rand(4, 4, device=DEVICE)
            for value in True, False:
                is_first = torch.tensor(value, device=DEVICE)
                found = compiled(is_first, x)
                torch.testing.assert_close(found, choose(is_first, x))
                computed(found)
    report(steps=steps)
"""

TRITON_KERNELS = '''
    import importlib
    import zlib

    from torch._inductor import config

    STATIC_LAUNCHER = "use_static_triton_launcher"
    if not hasattr(config, STATIC_LAUNCHER):
        STATIC_LAUNCHER = "use_static_cuda_launcher"

    own = zlib.crc32(os.getcwd().encode()) / 2**32
    factors = {"scale": 3.0, "scale_by_own": own}
    source = """
    import triton
    import triton.language as tl
    """
    for name, factor in factors.items():
        source += f"""
    @triton.jit
    def {name}(x, out, size, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        here = at < size
        tl.store(out + at, tl.load(x + at, mask=here) * {factor}, mask=here)
    """
    pathlib.Path("kernels.py").write_text(source)
    importlib.invalidate_caches()
    import kernels
    import triton

    def tuned(*blocks):
        return triton.autotune([triton.Config({"BLOCK": block}) for block in blocks], key=[])(kernels.scale)

    def launching(kernel, **options):
        def launch(x):
            out = torch.empty_like(x)
            kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, out, x.numel(), **options)
            return out + 1

        return launch

    launches = {
        "plain": (launching(kernels.scale, BLOCK=16), 3.0),
        "own": (launching(kernels.scale_by_own, BLOCK=16), own),
        "some-configs": (launching(tuned(16, 32)), 3.0),
        "other-configs": (launching(tuned(64, 128)), 3.0),
    }
    for bundle, is_bundled in {"bundled": True, "unbundled": False}.items():
        options = {"bundle_triton_into_fx_graph_cache": is_bundled}
        if not is_bundled:
            options[STATIC_LAUNCHER] = False
        for name, (launch, factor) in launches.items():
            with step(f"{name}-{bundle}", config.patch(options)) as computed:
                x = torch.rand(40, device=DEVICE)
                found = torch.compile(launch)(x)
                torch.testing.assert_close(found, x * factor + 1)
                computed(found)
    report(steps=steps)
'''
"""The configurations are all that differs between two launches of one kernel."""


def test_attention_with_the_same_score_is_loaded(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    trip = round_trip(ATTENTION, caches, device)
    a, b = trip.on_a("first"), trip.on_b("first")
    assert (a.misses, a.hits, b.misses, b.hits) == (1, 0, 0, 1)
    assert b.computed == a.computed


def test_attention_with_another_score_misses(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    trip = round_trip(ATTENTION, caches, device)
    first, other = trip.on_b("first"), trip.on_b("other")
    assert (other.misses, other.hits) == (1, 0)
    assert other.computed != first.computed


def test_branches_are_not_cached_but_their_libraries_are(
    fleet: Fleet, round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    graphs = ("manifests/fx-graph/", "manifests/aot-autograd/")
    before = {name for name in fleet.objects() if name.startswith(graphs)}
    trip = round_trip(BRANCHES, caches, device)
    assert {name for name in fleet.objects() if name.startswith(graphs)} == before
    for bundle in "bundled", "unbundled":
        a, b = trip.on_a(bundle), trip.on_b(bundle)
        assert a.inductor["fxgraph_cache_bypass"] == b.inductor["fxgraph_cache_bypass"] == 1
        assert (a.misses, a.hits, b.misses, b.hits) == (0, 0, 0, 0)
        assert b.computed == a.computed
    assert trip.recorded.warnings == trip.restored.warnings == []
    if device is Device.CPU:
        assert trip.restored.compiled == []
        # With remote caches on, A finds the libraries that it compiled with them off.
        assert caches is Caches.REMOTE or trip.recorded.compiled


@GPU
@pytest.mark.parametrize("bundle", ["bundled", "unbundled"])
@pytest.mark.parametrize("launch", ["plain", "some-configs", "other-configs"])
def test_a_kernel_that_the_user_wrote_is_loaded(
    round_trip: MakeRoundTrip, caches: Caches, launch: str, bundle: str
) -> None:
    trip = round_trip(TRITON_KERNELS, caches, Device.CUDA)
    a, b = trip.on_a(f"{launch}-{bundle}"), trip.on_b(f"{launch}-{bundle}")
    assert (a.misses, a.hits, b.misses, b.hits) == (1, 0, 0, 1)
    assert b.computed == a.computed


@GPU
@pytest.mark.parametrize("bundle", ["bundled", "unbundled"])
def test_another_kernel_of_that_name_misses(round_trip: MakeRoundTrip, caches: Caches, bundle: str) -> None:
    trip = round_trip(TRITON_KERNELS, caches, Device.CUDA)
    a, b = trip.on_a(f"own-{bundle}"), trip.on_b(f"own-{bundle}")
    assert (a.misses, a.hits, b.misses, b.hits) == (1, 0, 1, 0)
    assert b.computed != a.computed
