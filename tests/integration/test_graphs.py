"""FX graphs and AOTAutograd's results: recorded by one machine, found by one that is fresh."""

from dataclasses import replace

from tests.integration.conftest import NewFleet
from tests.integration.jobs import CUBE, TRAINING
from tests.integration.starts import Fleet, Machine, Start

GUARDED = """
    import torch

    @torch.compile
    def double(x):
        for bound in (16, 64):
            if x.size(0) > bound:
                pass
        return (x * 2).sin()

    for size in 8, 32, 128:
        x = torch.arange(float(size))
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(double(x), (x * 2).sin())
    report()
"""
"""One graph, compiled three times under one key, each time with other guards."""

FORGE = """
    import pickle, s3cache

    with s3cache.open_sync() as cache:
        for namespace in ("fx-graph", "aot-autograd"):
            for key in os.environ[namespace].split():
                for variant, content in ("", b"no pickle"), ("other", pickle.dumps(5)):
                    cache.put(namespace, key, {"content": content}, variant=variant)
"""
"""Stores what is sound for the cache, and nothing that PyTorch can use."""


def test_a_fresh_machine_hits_every_graph(recorded: Start, read: Start) -> None:
    assert recorded.facts["inductor"]["fxgraph_cache_miss"] == 2
    assert recorded.facts["aot_autograd"]["autograd_cache_miss"] == 1
    assert read.facts["inductor"]["fxgraph_cache_hit"] == 2
    assert read.facts["inductor"]["fxgraph_lookup_write_file"] == 2
    assert read.facts["aot_autograd"]["autograd_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in read.facts["inductor"]
    assert "autograd_cache_miss" not in read.facts["aot_autograd"]
    assert read.count("bucket_hits", "fx-graph") == 2
    assert read.count("bucket_hits", "aot-autograd") == 1
    assert read.count("misses") == read.count("puts") == 0
    assert recorded.warnings == read.warnings == []


def test_a_fresh_machine_computes_the_same(recorded: Start, read: Start) -> None:
    assert read.facts["losses"] == recorded.facts["losses"]


def test_a_fresh_machine_executes_no_compiler(recorded: Start, read: Start) -> None:
    assert recorded.compiled
    assert read.compiled == []


def test_every_variant_of_a_key_is_found(fleet: Fleet) -> None:
    machine = fleet.recorder()
    before = fleet.objects("manifests/fx-graph/")
    assert machine.start(GUARDED).facts["inductor"]["fxgraph_cache_miss"] == 3
    (key,) = machine.keys("fxgraph")
    variants = fleet.objects("manifests/fx-graph/").keys() - before.keys()
    assert variants == {f"manifests/fx-graph/{key}/{slot}" for slot in range(3)}

    start = fleet.fresh().start(GUARDED)
    assert start.facts["inductor"]["fxgraph_cache_hit"] == 3
    assert "fxgraph_cache_miss" not in start.facts["inductor"]
    assert start.compiled == []


def test_an_edited_wrapper_takes_effect_and_stays_where_it_is(
    fleet: Fleet, reader: Machine, read: Start
) -> None:
    machine = fleet.copy_of(reader, "inductor")
    stored = fleet.objects()
    for wrapper in machine.inductor.glob("*/*.py"):
        wrapper.write_text(wrapper.read_text() + "\nimport builtins; builtins.was_edited = True\n")
    edited = machine.start(
        TRAINING.replace("report(", "import builtins; report(edited=hasattr(builtins, 'was_edited'), ")
    )
    assert edited.facts["edited"]
    assert edited.facts["inductor"]["fxgraph_cache_hit"] == 2
    assert edited.facts["losses"] == read.facts["losses"]
    assert fleet.objects("manifests").items() <= stored.items()
    assert fleet.objects("packs").items() <= stored.items()


def test_a_damaged_disk_tier_is_repaired(fleet: Fleet, reader: Machine, read: Start) -> None:
    machine = fleet.copy_of(reader, "cache/tier")
    damaged = [path for path in machine.tier.rglob("*") if path.is_file()]
    assert len(damaged) > 4
    for number, path in enumerate(damaged):
        content = path.read_bytes()
        half = len(content) // 2
        end = b"" if number % 2 else bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes(content[:half] + end)
    # Of a job that has no profile nothing is prefetched: its look-ups meet the damage.
    start = machine.start(TRAINING, S3CACHE_JOB="without-profile")
    assert start.facts["losses"] == read.facts["losses"]
    assert start.facts["inductor"]["fxgraph_cache_hit"] == 2
    assert start.compiled == []


def test_what_pytorch_cannot_read_is_compiled_anew(
    new_fleet: NewFleet, recorder: Machine, recorded: Start
) -> None:
    fleet = new_fleet()
    keys = {"fx-graph": recorder.keys("fxgraph"), "aot-autograd": recorder.keys("aotautograd")}
    fleet.fresh().start(FORGE, **{namespace: " ".join(keys[namespace]) for namespace in keys})
    assert len(fleet.objects("manifests/")) == 6

    # The compiled libraries are here already, so that only graphs are compiled.
    machine = replace(fleet.copy_of(recorder, "inductor"), tmp=recorder.tmp)
    machine.forget("fxgraph", "aotautograd")
    start = machine.start(TRAINING)
    assert start.facts["losses"] == recorded.facts["losses"]
    assert start.facts["inductor"]["fxgraph_cache_miss"] == 2
    assert start.facts["aot_autograd"]["autograd_cache_miss"] == 1
    assert "cannot be loaded" in start.said
    assert start.count("puts", "fx-graph") == 2


def test_read_only_reads_and_does_not_write(fleet: Fleet, recorded: Start) -> None:
    stored = fleet.objects()
    machine = fleet.recorder()
    start = machine.start(TRAINING + CUBE.replace("3", "4"), S3CACHE_MODE="read-only")
    assert start.facts["inductor"]["fxgraph_cache_hit"] == 2
    assert start.facts["inductor"]["fxgraph_cache_miss"] == 1
    assert start.cache["requests"]["PUT"] == 0
    assert fleet.objects() == stored
    assert not list(machine.folder.rglob("*.put"))
    assert start.warnings == []


def test_without_pytorchs_caches_nothing_is_read_or_written(fleet: Fleet, recorded: Start) -> None:
    stored = fleet.objects()
    start = fleet.recorder().start(
        CUBE,
        S3CACHE_JOB="never-seen",
        TORCHINDUCTOR_FORCE_DISABLE_CACHES="1",
        TORCHINDUCTOR_VEC_ISA_OK="1",
    )
    assert start.compiled
    assert start.cache["namespaces"] == {}
    # The prelude of a job that has none.
    assert (start.cache["requests"]["GET"], start.cache["requests"]["PUT"]) == (1, 0)
    assert fleet.objects() == stored
