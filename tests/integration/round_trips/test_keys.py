"""What changes a key of PyTorch's is a miss on another machine; nothing else is."""

from collections import Counter

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device
from tests.integration.starts import Fleet

CHANGES = """
    from torch._guards import CompileContext, CompileId, compile_context
    from torch._inductor import config, remote_cache
    from torch._inductor.custom_graph_pass import CustomGraphPass
    from torch._inductor.runtime.autotune_cache import AutotuneCache, AutotuneCacheBundler

    keys = set()

    class Backend(remote_cache.RemoteCacheBackend):
        def _get(self, key):
            return None

        def _put(self, key, data):
            pass

    def noting(method):
        def note(self, key, *data):
            keys.add(key)
            return method(self, key, *data)

        return note

    for cache in remote_cache.RedisRemoteCache.__subclasses__():
        cache.backend_override_cls = cache.backend_override_cls or Backend
        backend = type(cache.backend_override_cls())
    backend.get, backend.put = noting(backend.get), noting(backend.put)

    class Swap(CustomGraphPass):
        def __init__(self, uuid):
            self._uuid = uuid

        def __call__(self, graph):
            for node in graph.nodes:
                if node.target is torch.ops.aten.mm.default:
                    node.args = node.args[::-1]

        def uuid(self):
            return self._uuid

    def squared(x):
        return x @ x

    torch.compiler.allow_in_graph(squared)

    def multiply(x, y):
        return x @ y

    def square(x, y):
        return squared(x @ y)

    def swap(uuid):
        return config.patch(post_grad_custom_pre_pass=Swap(uuid))

    def trust(value):
        return config.patch(unsafe_marked_cacheable_functions={f"{__name__}.squared": value})

    def run(name, *patches, fn=multiply, swapped=False, change=lambda x: x, shape=(4, 4)):
        with step(name, *patches) as computed:
            x, y = change(torch.rand(shape, device=DEVICE)), change(torch.rand(shape, device=DEVICE))
            found = torch.compile(fn)(x, y)
            torch.testing.assert_close(found, fn(y, x) if swapped else fn(x, y))
            computed(found)

    noted = {}
    run("plain")
    run("a-pass", swap("a uuid"), swapped=True)
    run("a-trusted-function", trust("a value"), fn=square)
    if ROLE == "b":
        run("another-uuid", swap("another uuid"), swapped=True)
        run("no-uuid", swap(None), swapped=True)
        run("another-value", trust("another value"), fn=square)
        run("not-trusted", fn=square)
        run("public-config", config.patch(max_autotune_pointwise=True))
        run("private-config", config.patch(_micro_pipeline_tp=True))
        run("dtype", change=torch.Tensor.double)
        run("strides", change=lambda x: x.t().contiguous().t())
        run("shape", shape=(5, 5))
        run("requires-grad", change=torch.Tensor.requires_grad_)
        if torch.cuda.is_available():
            other = "cuda" if DEVICE == "cpu" else "cpu"
            run("device", change=lambda x: x.to(other))
    else:
        folder = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        meta = {
            "autotune_local_cache": True,
            "autotune_remote_cache": config.autotune_remote_cache,
            "bundled_autotune_remote_cache": config.autotune_remote_cache,
            "backend_hash": "backend",
            "is_fbcode": False,
        }

        class Config:
            kwargs, num_warps, num_stages = {"XBLOCK": 64}, 4, 1

        with compile_context(CompileContext(CompileId(frame_id=0, frame_compile_id=0))):
            AutotuneCacheBundler.begin_compile(meta, code="code")
            autotuned = AutotuneCache.create(meta, str(folder / "ke" / "kernel.py"), "hash")
            assert autotuned.read_best(meta, [Config]) is None
            autotuned.save(Config, 1_000_000)
            AutotuneCacheBundler.end_compile()

        torch.compiler.config.job_id = "job"
        run("job", shape=(6, 6))

        patterns = "fxgraph/*/*", "aotautograd/*", "dynamo/*.pkl", "*/*.best_config"
        names = sorted(str(path.relative_to(folder)) for one in patterns for path in folder.glob(one))
        noted = {"keys": sorted(keys), "names": names}
    report(steps=steps, **noted)
"""
"""Matrices are multiplied, which needs no compiled kernel.

Where it is recorded, the keys that PyTorch's remote caches are asked for are noted, and the names
in its own folder.
"""


@pytest.mark.parametrize("step", ["plain", "a-pass", "a-trusted-function"])
def test_what_is_the_same_hits(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, step: str
) -> None:
    trip = round_trip(CHANGES, caches, device)
    a, b = trip.on_a(step), trip.on_b(step)
    assert (a.hits, a.misses, a.aot_autograd["autograd_cache_miss"]) == (0, 1, 1)
    assert (b.hits, b.misses, b.aot_autograd["autograd_cache_hit"]) == (1, 0, 1)
    assert b.computed == a.computed


@pytest.mark.parametrize(
    "step",
    [
        "another-uuid",
        "another-value",
        "public-config",
        "private-config",
        "dtype",
        "strides",
        "shape",
        "requires-grad",
        pytest.param("device", marks=pytest.mark.gpu),
    ],
)
def test_what_changes_a_key_misses(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, step: str
) -> None:
    b = round_trip(CHANGES, caches, device).on_b(step)
    assert (b.hits, b.misses) == (0, 1)
    assert (b.aot_autograd["autograd_cache_hit"], b.aot_autograd["autograd_cache_miss"]) == (0, 1)


def test_a_pass_without_a_uuid_bypasses(round_trip: MakeRoundTrip, caches: Caches, device: Device) -> None:
    b = round_trip(CHANGES, caches, device).on_b("no-uuid")
    assert (b.hits, b.misses) == (0, 0)
    assert b.inductor["fxgraph_cache_bypass"] == b.aot_autograd["autograd_cache_bypass"] == 1


def test_a_function_that_is_not_trusted_bypasses(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    b = round_trip(CHANGES, caches, device).on_b("not-trusted")
    assert (b.hits, b.misses) == (0, 1)
    assert b.aot_autograd["autograd_cache_bypass"] == 1


def test_keys_are_those_of_stock_pytorch(round_trip: MakeRoundTrip, fleet: Fleet, caches: Caches) -> None:
    trip = round_trip(CHANGES, caches, Device.CPU)
    stock = trip.start(fleet.recorder(), ROLE="a", S3CACHE_URL="")
    assert stock.cache == {}
    assert trip.recorded.facts["names"] == stock.facts["names"]
    assert trip.recorded.facts["keys"] == stock.facts["keys"]
    counts = Counter(name.partition("/")[0] for name in stock.facts["names"])
    assert counts == {"fxgraph": 4, "aotautograd": 4, "dynamo": 1, "ke": 1}
    counts = Counter(key.partition("::")[0] for key in stock.facts["keys"])
    assert sorted(counts.values()) == ([1, 1, 1, 4, 4] if caches is Caches.REMOTE else [])
