"""Compaction: many segments in, one out; nothing in use is lost, little is sent again."""

import random

from s3cache import catalog, compaction, envelope, manifest, profile
from s3cache.catalog import Reference
from s3cache.compaction import FRAGMENTS, SEGMENTS, SMALL_BYTES, START_SECONDS, UNUSED_STARTS, Plan
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Result
from s3cache.pack import build
from s3cache.profile import Segment

NOISE = random.Random(1)
DAY_MS = 86_400_000


def result(key: str, size: int = 100, **texts: bytes) -> Result:
    """Return a kernel: a binary that a start reads, and texts on demand."""
    members = {"binary": NOISE.randbytes(size), **texts}
    return Result("triton", key, members, on_demand=frozenset(texts))


def packed(*results: Result, opened: list[str] | None = None) -> list[Reference]:
    """Return references to results that lie in one pack."""
    return [Reference(0, manifest, opened or []) for manifest in build(results, {}).manifests]


def segment(references: list[Reference], *unused: Reference, replaces: list[str] | None = None) -> Segment:
    return Segment(
        frames=[],
        catalog=catalog.build(references, NO_KEYS),
        replaces=replaces or [],
        unused={catalog.short_digest(reference.name): 1 for reference in unused},
    )


def by_day(*segments: Segment) -> dict[str, Segment]:
    """Return segments under names, one written a day."""
    return {f"profiles/job/linux/{day * DAY_MS:013d}-{0:08x}": made for day, made in enumerate(segments, 1)}


def planned(segments: dict[str, Segment]) -> Plan:
    plan = compaction.plan(segments, NO_KEYS)
    assert plan is not None
    return plan


def keys(references: list[Reference]) -> list[str]:
    return [reference.manifest.key for reference in references]


def test_a_few_segments_are_left_alone() -> None:
    few = [segment(packed(result(f"key-{number}"))) for number in range(SEGMENTS - 1)]
    assert compaction.plan(by_day(*few), NO_KEYS) is None


def test_all_references_stay_in_the_order_of_first_use() -> None:
    first, second = packed(result("a"), result("b"))
    many = [segment([second]), segment([first]), *[segment([second])] * SEGMENTS]
    assert keys(planned(by_day(*many)).references) == ["b", "a"]


def test_the_last_word_says_where_a_result_lies() -> None:
    kernel = result("key", 500)
    (early,), (late,) = packed(kernel), packed(kernel, result("other"))[:1]
    assert early.places != late.places
    (kept,) = planned(by_day(*[segment([early])] * SEGMENTS, segment([late]))).references
    assert kept.places == late.places


def test_members_that_any_start_opened_stay_open() -> None:
    kernel = result("key", ptx=b"text", llir=b"text")
    many = [segment(packed(kernel, opened=[name])) for name in ("ptx", "llir")] * SEGMENTS
    (kept,) = planned(by_day(*many)).references
    assert kept.opened == ["llir", "ptx"]
    assert set(kept.read) == {"binary", "ptx", "llir"}


def test_what_no_start_used_for_long_leaves() -> None:
    old, new = packed(result("old"))[0], packed(result("new"))[0]
    votes = [segment([new], old)] * UNUSED_STARTS
    assert keys(planned(by_day(segment([old]), *votes)).references) == ["new"]


def test_what_was_used_once_in_between_stays() -> None:
    old, new = packed(result("old"))[0], packed(result("new"))[0]
    votes = [segment([new], old)] * UNUSED_STARTS
    between = [*votes[:-1], segment([new]), *votes[:-1]]
    plan = planned(by_day(segment([old]), *between))
    assert keys(plan.references) == ["old", "new"]
    assert plan.unused == {catalog.short_digest(old.name): UNUSED_STARTS - 1}


def test_machines_that_start_at_once_are_one_start() -> None:
    old, new = packed(result("old"))[0], packed(result("new"))[0]
    together = {
        f"profiles/job/linux/{10 * DAY_MS + number:013d}-{number:08x}": segment([new], old)
        for number in range(3 * UNUSED_STARTS)
    }
    plan = planned({**by_day(segment([old])), **together})
    assert plan.unused == {catalog.short_digest(old.name): 1}
    assert START_SECONDS * 1000 < DAY_MS


def test_a_segment_that_stands_for_many_hands_on_what_they_counted() -> None:
    old, new = packed(result("old"))[0], packed(result("new"))[0]
    digest = catalog.short_digest(old.name)
    compacted = Segment(
        [], catalog.build([old, new], NO_KEYS), ["profiles/job/linux/0-0"], {digest: UNUSED_STARTS - 1}
    )
    later = [segment([new], old)] + [segment([new], old)] * (SEGMENTS - 2)
    assert keys(planned(by_day(compacted, *later)).references) == ["new"]


def test_small_packs_are_packed_together_once_they_are_many() -> None:
    few = [segment(packed(result(f"key-{number}"))) for number in range(FRAGMENTS - 1)]
    large = segment(packed(result("large", SMALL_BYTES + 1)))
    assert planned(by_day(*few, large)).packs == set()
    plan = planned(by_day(*few, large, segment(packed(result("another")))))
    (of_large,) = [reference for reference in plan.references if reference.manifest.key == "large"]
    assert len(plan.packs) == FRAGMENTS
    assert of_large.places[0].pack not in plan.packs


def test_what_only_texts_make_large_is_small() -> None:
    many = [
        segment(packed(result(f"key-{number}", ptx=NOISE.randbytes(SMALL_BYTES))))
        for number in range(SEGMENTS)
    ]
    assert len(planned(by_day(*many)).packs) == SEGMENTS


def test_a_pack_that_is_mostly_waste_is_packed_anew_by_itself() -> None:
    kept, *gone = packed(*[result(f"key-{number}", SMALL_BYTES // 3) for number in range(3)])
    votes = [segment([kept], *gone)] * UNUSED_STARTS
    plan = planned(by_day(segment([kept, *gone]), *votes))
    assert keys(plan.references) == [kept.manifest.key]
    assert plan.packs == {kept.places[0].pack}


def test_results_that_lie_in_their_manifest_need_no_pack() -> None:
    inline = manifest.inline(Result("autotune", "key", {"best": b"{}"}), {})
    assert inline is not None
    plan = planned(by_day(*[segment([Reference(0, inline)])] * SEGMENTS))
    assert (keys(plan.references), plan.packs) == (["key"], set())


def test_what_is_moved_lies_elsewhere_and_is_the_same() -> None:
    kernel = result("key", 500, ptx=b"text" * 100)
    (old,) = build([kernel], {}).manifests
    read_only = Result("triton", "key", {"binary": kernel.members["binary"]})
    other = build([result("other"), read_only], {})
    anew = compaction.moved(old, other.manifests[1])
    manifest.check(anew)
    assert [(m.name, m.digest, m.size, m.on_demand) for m in anew.members] == [
        (m.name, m.digest, m.size, m.on_demand) for m in old.members
    ]
    assert {place.pack for place in anew.places(None)} == {other.digest}
    assert anew.places(["ptx"]) == old.places(["ptx"])


def test_a_damaged_reference_leaves_the_profile() -> None:
    sound = catalog.build(packed(result("key")), NO_KEYS)
    damaged = bytearray(envelope.unseal("catalog", sound, NO_KEYS).body)
    damaged[-30:] = bytes(30)
    sealed = envelope.seal("catalog", bytes(damaged), NO_KEYS)
    many = [Segment([], sealed), *[segment(packed(result("other")))] * (SEGMENTS - 1)]
    plan = compaction.plan(by_day(*many), NO_KEYS)
    assert plan is not None
    assert [reference.manifest.key for reference in plan.references] == ["other"]


def test_the_name_of_what_stands_for_many_is_newer_than_they() -> None:
    many = by_day(*[segment([])] * SEGMENTS)
    name = profile.name_of_compacted(many, b"data")
    assert name == profile.name_of_compacted(list(reversed(many)), b"data")
    assert profile.is_segment_name(name, "profiles/job/linux/")
    assert all(name > other for other in many)
