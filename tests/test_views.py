"""What a pinned run sees on a machine: what its disk tier has whole, and it may use."""

import os
import random
from pathlib import Path

import pytest

from s3cache import catalog, names
from s3cache.agent import views
from s3cache.agent.job_profile import JobProfile
from s3cache.catalog import Reference
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.manifest import Manifest, Result
from s3cache.pack import Pack
from s3cache.tier import DiskTier
from s3cache.view import View
from tests.test_local import add, damage, inline, packed

PLATFORM = "linux-x86_64"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def tier(root: Path) -> DiskTier:
    return DiskTier(root, 256 << 20)


def result(key: str, **requires: str) -> Result:
    """Return a result that is too large for its manifest."""
    return Result("ns", key, {"a": random.Random(key).randbytes(2000)}, requires=requires)


def catalogue(tier: DiskTier, *built: Manifest, stamp: int = 1, job: str = "job") -> None:
    name = f"catalogs/{job}/{PLATFORM}/{stamp:013d}-00000000"
    tier.write(name, catalog.build([Reference(0, each) for each in built], NO_KEYS))


def on_disk(tier: DiskTier, *results: Result) -> Pack:
    """Return the pack of results, with its frames and a catalog of them in the tier."""
    made = packed(tier, *results)
    catalogue(tier, *made.manifests)
    return made


def seen(tier: DiskTier, *keys: str) -> set[str]:
    """Return which of the keys are seen."""
    view = views.here(tier, JobProfile("job", PLATFORM, NO_KEYS), Machine())
    return {key for key in keys if view.sees(names.manifest_name("ns", key, 0))}


def test_what_a_catalog_names_is_seen_and_nothing_else(tier: DiskTier) -> None:
    on_disk(tier, result("packed"))
    catalogue(tier, inline(key="inline"), stamp=2)
    add(tier, inline(key="by itself"))
    assert seen(tier, "packed", "inline", "by itself", "absent") == {"packed", "inline"}


def test_kernels_that_were_compiled_ahead_are_seen_and_other_jobs_are_not(tier: DiskTier) -> None:
    catalogue(tier, inline(key="ahead"), job=names.KERNELS_JOB)
    catalogue(tier, inline(key="of another"), job="another")
    assert seen(tier, "ahead", "of another") == {"ahead"}


@pytest.mark.parametrize("is_damaged", [True, False])
def test_what_is_not_whole_is_not_seen(root: Path, tier: DiskTier, is_damaged: bool) -> None:
    made = on_disk(tier, result("torn"), Result("other", "key", {"a": random.Random(2).randbytes(2000)}))
    torn, whole = made.manifests
    assert torn.frames != whole.frames
    if is_damaged:
        damage(root, torn.frames[0].name)
    else:
        tier.remove(torn.frames[0].name)
    view = views.here(tier, JobProfile("job", PLATFORM, NO_KEYS), Machine())
    assert view == View.of([Reference(0, whole)])


@pytest.mark.parametrize("is_packed_anew_here", [True, False])
def test_what_was_packed_anew_is_seen_where_it_is_now(tier: DiskTier, is_packed_anew_here: bool) -> None:
    old = on_disk(tier, result("key"))
    new = packed(tier, result("key"), result("neighbour"))
    catalogue(tier, *new.manifests, stamp=2)
    gone = old if is_packed_anew_here else new
    tier.remove(gone.manifests[0].frames[0].name)
    assert seen(tier, "key") == ({"key"} if is_packed_anew_here else set())


def test_what_this_machine_cannot_use_is_not_seen(tier: DiskTier) -> None:
    on_disk(tier, result("new", glibc="999"), result("old", glibc="1"), result("unknown", vec_isa="avx2"))
    assert seen(tier, "new", "old", "unknown") == {"old", "unknown"}


def test_what_is_seen_is_what_the_tier_parts_with_last(root: Path, tier: DiskTier) -> None:
    made = on_disk(tier, result("key"))
    path = root / "objects" / made.manifests[0].frames[0].name
    os.utime(path, (1, 1))
    seen(tier, "key")
    assert path.stat().st_mtime > 1
