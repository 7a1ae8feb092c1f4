"""The disk tier: what it keeps, what it lets go, and what is left when its processes die."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from s3cache import tier as tiers
from s3cache.digest import DIGEST_BYTES, raw_digest_of
from s3cache.errors import DiskFull, DiskTierError
from s3cache.tier import DiskTier
from tests import dying, writers
from tests.writers import content_of, size_of

LIMIT = 10_000
ENTRY = 1000 - DIGEST_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def tier(root: Path) -> DiskTier:
    return DiskTier(root, LIMIT)


def held(root: Path) -> int:
    """Return how many bytes the tier's folder holds, whatever they are there for."""
    folders = (root / name for name in ("objects", "quarantine", "incoming"))
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def used_at(root: Path, name: str, seconds: float) -> None:
    os.utime(root / "objects" / name, (seconds, seconds))


def assert_all_read_right(root: Path, limit: int) -> None:
    tier = DiskTier(root, limit)
    for name in tier.names():
        assert tier.read(name) == content_of(name, size_of(name))
    assert tier.take_quarantined() == 0


def assert_usage_is_right_after_a_change(root: Path, limit: int) -> None:
    DiskTier(root, limit).write("packs/after/after-10", content_of("packs/after/after-10", 10))
    used, trusted = tiers._USAGE.unpack((root / "usage").read_bytes())
    assert trusted
    assert used == held(root) <= limit


# What it returns.


def test_an_object_is_read_by_another_process_of_the_user(root: Path, tier: DiskTier) -> None:
    tier.write("packs/ab/abc", b"content")
    assert DiskTier(root, LIMIT).read("packs/ab/abc") == b"content"


@pytest.mark.parametrize("position", [0, DIGEST_BYTES - 1, DIGEST_BYTES, -1])
def test_a_flipped_byte_is_a_miss_and_goes_to_quarantine(root: Path, tier: DiskTier, position: int) -> None:
    tier.write("packs/ab/abc", b"content")
    path = root / "objects/packs/ab/abc"
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    assert tier.read("packs/ab/abc") is None
    assert tier.take_quarantined() == 1
    assert [kept.read_bytes() for kept in (root / "quarantine").iterdir()] == [damaged]
    assert tier.write("packs/ab/abc", b"content")
    assert tier.read("packs/ab/abc") == b"content"
    assert_usage_is_right_after_a_change(root, LIMIT)


@pytest.mark.parametrize("size", [0, 5, DIGEST_BYTES, DIGEST_BYTES + 3])
def test_a_truncated_file_is_a_miss(root: Path, tier: DiskTier, size: int) -> None:
    tier.write("packs/ab/abc", b"content")
    os.truncate(root / "objects/packs/ab/abc", size)
    assert tier.read("packs/ab/abc") is None
    assert tier.names() == []


def test_a_file_that_cannot_be_read_is_a_miss(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    tier.write("packs/ab/abc", b"content")
    monkeypatch.setattr(os, "read", failing(errno.EIO))
    assert tier.read("packs/ab/abc") is None


def test_a_hit_does_not_need_to_note_its_use(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    tier.write("packs/ab/abc", b"content")
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    assert tier.read("packs/ab/abc") == b"content"


def test_an_object_is_read_though_it_is_evicted_meanwhile(
    root: Path, tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of("old", ENTRY)
    tier.write("packs/ab/old", content)
    os.utime(root / "objects/packs/ab/old", (1, 1))
    read_rest = tiers._read_rest

    def evict_then_read(file: int) -> bytes:
        for number in range(15):
            tier.write(f"packs/cd/{number}", content_of(str(number), ENTRY))
        assert not tier.has("packs/ab/old")
        return read_rest(file)

    monkeypatch.setattr(tiers, "_read_rest", evict_then_read)
    assert tier.read("packs/ab/old") == content
    assert tier.take_quarantined() == 0


def test_names_are_sorted_and_begin_with_the_prefix(tier: DiskTier) -> None:
    for name in "manifests/ns/key/1", "packs/ab/abc", "manifests/ns/key/0", "manifests/ns2/key/0":
        tier.write(name, b"")
    keys = ["manifests/ns/key/0", "manifests/ns/key/1"]
    assert tier.names("manifests/ns/") == keys
    assert tier.names("manifests/ns/k") == keys
    assert tier.names("manifests/ns/key/1") == keys[1:]
    assert tier.names("manifests/n") == [*keys, "manifests/ns2/key/0"]
    assert tier.names("m") == [*keys, "manifests/ns2/key/0"]
    assert tier.names() == [*keys, "manifests/ns2/key/0", "packs/ab/abc"]


@pytest.mark.parametrize("prefix", ["catalogs/", "catalogs/job/", "packs/ab/abd", "packs/ab/abc/", "x"])
def test_of_a_prefix_that_nothing_has_there_are_no_names(tier: DiskTier, prefix: str) -> None:
    tier.write("packs/ab/abc", b"")
    assert tier.names(prefix) == []


def test_names_of_a_folder_are_found_without_looking_at_the_others(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "catalogs/job/1", "catalogs/other/1", "packs/ab/abc":
        tier.write(name, b"")
    looked: list[str] = []
    walk = os.walk

    def record(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, files in walk(os.fspath(folder)):
            looked.append(parent)
            yield parent, folders, files

    monkeypatch.setattr(os, "walk", record)
    assert tier.names("catalogs/job/") == ["catalogs/job/1"]
    assert [Path(folder).name for folder in looked] == ["job"]


def test_a_digest_is_that_of_the_content(tier: DiskTier) -> None:
    for content in b"", b"content":
        tier.write(f"packs/{len(content)}", content)
        assert tier.digest(f"packs/{len(content)}") == raw_digest_of(content)


@pytest.mark.parametrize("name", ["packs/ab/absent", "packs/ab", "packs", "packs/" + "a" * 300])
def test_what_is_absent_has_no_digest(tier: DiskTier, name: str) -> None:
    tier.write("packs/ab/abc", b"content")
    assert tier.digest(name) is None


def test_asking_for_a_digest_is_no_use_and_reads_no_content(root: Path, tier: DiskTier) -> None:
    tier.write("packs/ab/abc", b"content")
    os.truncate(root / "objects/packs/ab/abc", DIGEST_BYTES)
    used_at(root, "packs/ab/abc", 1000.0)
    assert tier.digest("packs/ab/abc") == raw_digest_of(b"content")
    assert (root / "objects/packs/ab/abc").stat().st_mtime == 1000.0
    assert tier.take_quarantined() == 0


# What it lets go.


def test_the_least_recently_used_goes_first(root: Path, tier: DiskTier) -> None:
    for number in range(10):
        tier.write(f"packs/{number}", content_of("", ENTRY))
        used_at(root, f"packs/{number}", 1000.0 + number)
    tier.read("packs/0")
    tier.read("packs/3")
    tier.write("packs/new", content_of("", ENTRY))
    assert tier.names() == sorted(["packs/0", "packs/new", *(f"packs/{n}" for n in range(3, 10))])


def test_a_write_of_what_is_there_changes_nothing(root: Path, tier: DiskTier) -> None:
    assert tier.write("packs/a", b"first")
    assert not tier.write("packs/a", b"second")
    assert tier.read("packs/a") == b"first"


def test_an_entry_as_large_as_the_limit_takes_all_of_it(root: Path, tier: DiskTier) -> None:
    tier.write("packs/small", b"x")
    assert tier.write("packs/large", bytes(LIMIT - DIGEST_BYTES))
    assert tier.names() == ["packs/large"]
    assert held(root) == LIMIT


def test_an_entry_larger_than_the_limit_is_refused_and_evicts_nothing(tier: DiskTier) -> None:
    tier.write("packs/small", b"x")
    with pytest.raises(DiskFull, match="S3CACHE_DISK_LIMIT"):
        tier.write("packs/large", bytes(LIMIT - DIGEST_BYTES + 1))
    assert tier.names() == ["packs/small"]


def test_what_is_in_quarantine_counts_and_goes_before_any_object(root: Path, tier: DiskTier) -> None:
    for number in range(10):
        tier.write(f"packs/{number}", content_of("", ENTRY))
    for number in range(6):
        (root / "objects" / f"packs/{number}").write_bytes(bytes(1000))
        assert tier.read(f"packs/{number}") is None
    for number in range(10, 15):
        tier.write(f"packs/{number}", content_of("", ENTRY))
        assert held(root) <= LIMIT
    assert tier.names() == sorted(f"packs/{number}" for number in range(6, 15))


def test_the_quarantine_keeps_few_files(root: Path) -> None:
    tier = DiskTier(root, 1 << 20)
    for number in range(40):
        tier.write("packs/a", b"content")
        (root / "objects/packs/a").write_bytes(number.to_bytes(4, "big"))
        tier.read("packs/a")
    kept = sorted((root / "quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [n.to_bytes(4, "big") for n in range(24, 40)]
    assert_usage_is_right_after_a_change(root, 1 << 20)


def test_a_lower_limit_is_reached_with_the_next_write(root: Path, tier: DiskTier) -> None:
    for number in range(10):
        tier.write(f"packs/{number}", content_of("", ENTRY))
    DiskTier(root, LIMIT // 2).write("packs/new", b"x")
    assert held(root) <= LIMIT // 2


def test_four_processes_writing_at_once_stay_within_the_limit(root: Path) -> None:
    limit, size, count = 100_000, 9_000, 60
    DiskTier(root, limit)
    processes = [dying.start(writers.write_many, root, limit, writer, count, size) for writer in range(4)]
    most = 0
    while any(process.is_alive() for process in processes):
        # Nothing changes while the lock is held, so what is counted was there at one moment.
        with FileLock(root / "lock", poll_interval=0.001):
            most = max(most, held(root))
        time.sleep(0.003)
    assert [process.exitcode for process in processes] == [0] * 4
    assert most > limit // 2
    assert most <= limit + size + DIGEST_BYTES
    assert_all_read_right(root, limit)
    assert_usage_is_right_after_a_change(root, limit)


# The disk.


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("first", [b"", b"12345678"])
def test_what_is_written_down_first_stays(tier: DiskTier, first: bytes) -> None:
    assert tier.write_first("views/run", first) == first
    assert tier.write_first("views/run", b"abcdefgh") == first


@pytest.fixture
def fill_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the tier's disk hold 200,000 bytes, and so many that are not the tier's; its floor is 10,000."""
    others = 0

    def fill(count: int) -> None:
        nonlocal others
        others = count

    def disk_usage(path: object) -> Disk:
        used = others + held(root)
        return Disk(200_000, used, 200_000 - used)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return fill


def test_it_keeps_a_floor_of_free_space(root: Path, fill_disk: Callable[[int], None]) -> None:
    tier = DiskTier(root, 150_000)
    for number in range(100):
        fill_disk(number * 1_500)
        tier.write(f"packs/{number}", content_of("", ENTRY))
        assert shutil.disk_usage(root).free >= 10_000
    assert len(tier.names()) > 20


def test_the_floor_is_kept_to_the_byte(root: Path, fill_disk: Callable[[int], None]) -> None:
    tier = DiskTier(root, 150_000)
    tier.write("packs/old", content_of("", ENTRY))
    os.utime(root / "objects/packs/old", (1, 1))
    fill_disk(200_000 - 10_000 - 2_000)
    tier.write("packs/new", content_of("", ENTRY))
    assert tier.names() == ["packs/new", "packs/old"]
    tier.write("packs/newer", content_of("", ENTRY))
    assert tier.names() == ["packs/new", "packs/newer"]


def test_a_disk_filled_by_others_raises_disk_full(root: Path, fill_disk: Callable[[int], None]) -> None:
    tier = DiskTier(root, 150_000)
    fill_disk(190_000)
    with pytest.raises(DiskFull, match="make room"):
        tier.write("packs/a", b"x")
    fill_disk(180_000)
    assert tier.write("packs/a", b"x")


def test_a_disk_filled_by_others_evicts_nothing_when_that_would_not_help(
    root: Path, fill_disk: Callable[[int], None]
) -> None:
    tier = DiskTier(root, 150_000)
    tier.write("packs/a", b"content")
    fill_disk(199_000)
    with pytest.raises(DiskFull):
        tier.write("packs/b", b"x")
    assert tier.names() == ["packs/a"]


def test_a_name_that_no_file_can_have_is_absent_and_cannot_be_written(tier: DiskTier) -> None:
    name = "packs/" + "a" * 300
    assert not tier.has(name)
    with pytest.raises(DiskTierError):
        tier.write(name, b"content")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_raises_disk_full_and_leaves_nothing(
    root: Path, tier: DiskTier, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(number))
        with pytest.raises(DiskFull, match="no space left"):
            tier.write("packs/a", b"x")
    assert held(root) == 0
    assert tier.write("packs/a", b"x")


def test_a_write_that_fails_raises_disk_tier_error(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", failing(errno.EIO))
    with pytest.raises(DiskTierError, match="S3CACHE_DIR"):
        tier.write("packs/a", b"x")


def test_a_folder_that_cannot_be_made_raises_disk_tier_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskTierError, match="S3CACHE_DIR"):
        DiskTier(tmp_path / "file" / "tier", LIMIT)


def test_a_folder_one_may_not_write_raises_disk_tier_error(
    root: Path, tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DiskTierError, match="S3CACHE_DIR"):
        DiskTier(root, LIMIT)


def test_a_lock_that_is_never_free_raises_disk_tier_error(
    root: Path, tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "_LOCK_SECONDS", 0.02)
    with FileLock(root / "lock"), pytest.raises(DiskTierError, match="lock"):
        tier.write("packs/a", b"x")


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EROFS, DiskTierError), (errno.EIO, DiskTierError), (errno.ENOSPC, DiskFull)],
)
def test_a_folder_that_cannot_be_changed_any_more_raises_disk_tier_error(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, number: int, error: type[DiskTierError]
) -> None:
    tier.write("packs/a", b"content")
    monkeypatch.setattr(os, "pwrite", failing(number))
    with pytest.raises(error, match="S3CACHE_DIR"):
        tier.remove("packs/a")


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# Death.


def test_kill_9_before_any_line_of_a_write_that_evicts(root: Path) -> None:
    old = [f"packs/old/{number}-{LIMIT // 3}" for number in range(2)]
    new = f"packs/new/new-{LIMIT // 2}"
    outcomes = set()
    for line in range(1, 500):
        shutil.rmtree(root, ignore_errors=True)
        writers.write(root, LIMIT, old)
        died = dying.die_before_line(line, tiers, writers.write, root, LIMIT, [new])
        outcomes.add(DiskTier(root, LIMIT).has(new))
        assert held(root) <= LIMIT
        assert_all_read_right(root, LIMIT)
        assert_usage_is_right_after_a_change(root, LIMIT)
        if not died:
            break
    assert not died
    assert outcomes == {True, False}


def test_kill_9_at_random_moments_of_two_writers(root: Path) -> None:
    randomly = random.Random(2)
    sizes = []
    for seed in range(0, 60, 2):
        processes = [
            dying.start(writers.write_for_ever, root, 200_000, number) for number in (seed, seed + 1)
        ]
        dying.kill_within(0.06, processes, randomly)
        if root.exists():
            assert held(root) <= 200_000
            assert_all_read_right(root, 200_000)
            sizes.append(held(root))
    assert max(sizes) > 100_000
    assert_usage_is_right_after_a_change(root, 200_000)
