"""Folders that others may write are refused, unless a group is to share one; no link is followed."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from s3cache import folders
from s3cache.agent.address import agent_directory
from s3cache.agent.connection import Connection
from s3cache.counts import HighestCounts
from s3cache.errors import DiskTierError
from s3cache.manifest import Result
from s3cache.settings import Settings
from s3cache.spool import Put, Spool
from s3cache.tier import DiskTier, open_tier

NOBODY = 65534
PUT = Put(Result("ns", "key", {"a": b"a"}), "job", "run")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def settings(folder: Path, shared_group: bool = False) -> Settings:
    return Settings(
        url="s3://bucket", directory=folder, disk_limit=1 << 20, job="job", shared_group=shared_group
    )


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}


def use(settings: Settings) -> None:
    """Leave one of everything."""
    tier = open_tier(settings)
    tier.write("packs/a/0", b"content")
    assert tier.read("packs/a/0") == b"content"
    Spool(settings.spool_directory, 1 << 20, settings.access).add(PUT)
    counts = HighestCounts(settings.tier_directory / "counts", settings.access)
    counts.note("profiles/job/linux/", 7)
    assert counts.of("profiles/job/linux/") == 7


def as_user(user: int, group: int, action: Callable[[], object]) -> bool:
    """Return whether another user, in another process, gets an action done."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_all_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        use(settings(tmp_path / "a" / "cache"))
    finally:
        os.umask(old)
    assert modes(tmp_path / "a") == {0o700, 0o600}


@pytest.mark.parametrize("below", ["", "tier", "spool"])
@pytest.mark.parametrize(
    ("mode", "remedy"),
    [(0o770, "S3CACHE_SHARED_GROUP=1"), (0o707, "chmod o-w"), (0o777, "chmod o-w"), (0o1777, "chmod o-w")],
)
def test_a_folder_that_others_may_write_is_refused(
    tmp_path: Path, below: str, mode: int, remedy: str
) -> None:
    use(settings(tmp_path / "cache"))
    (tmp_path / "cache" / below).chmod(mode)
    with pytest.raises(DiskTierError, match=f"may write there.*{remedy}"):
        open_tier(settings(tmp_path / "cache"))


def test_the_tiers_own_folder_is_looked_at_too(tmp_path: Path) -> None:
    DiskTier(tmp_path / "tier", 1 << 20)
    (tmp_path / "tier" / "objects").chmod(0o777)
    with pytest.raises(DiskTierError, match="everybody may write"):
        DiskTier(tmp_path / "tier", 1 << 20)


def test_no_agent_is_started_where_others_may_write(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents").chmod(0o777)
    with pytest.raises(DiskTierError, match="everybody may write"):
        Connection(settings(tmp_path)).start()
    assert list((tmp_path / "agents").iterdir()) == []


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    use(settings(tmp_path / "cache"))
    os.chown(tmp_path / "cache", NOBODY, NOBODY)
    with pytest.raises(DiskTierError, match=f"belongs to user {NOBODY}"):
        open_tier(settings(tmp_path / "cache"))


@as_root
def test_a_folder_of_root_is_refused_by_others(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    (tmp_path / "cache").mkdir(0o755)
    assert not as_user(NOBODY, NOBODY, lambda: open_tier(settings(tmp_path / "cache")))


def test_a_folder_that_others_may_read_is_used(tmp_path: Path) -> None:
    tmp_path.joinpath("cache").mkdir(0o755)
    use(settings(tmp_path / "cache"))


# A group that shares one.


def test_a_group_shares_a_folder_if_it_is_told_to(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        use(settings(tmp_path / "cache", shared_group=True))
    finally:
        os.umask(old)
    assert modes(tmp_path / "cache") == {0o2770, 0o660}
    tmp_path.joinpath("cache").chmod(0o2777)
    with pytest.raises(DiskTierError, match="everybody may write"):
        open_tier(settings(tmp_path / "cache", shared_group=True))


@as_root
def test_users_of_one_group_share_what_each_of_them_writes(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 0, 4242)
    shared.chmod(0o2770)

    def one() -> None:
        open_tier(settings(shared, shared_group=True)).write("packs/a/0", b"content")

    def other() -> None:
        tier = open_tier(settings(shared, shared_group=True))
        assert tier.read("packs/a/0") == b"content"
        assert tier.write("packs/a/1", b"more")
        tier.remove("packs/a/0")

    assert as_user(1001, 4242, one)
    assert as_user(1002, 4242, other)
    assert not as_user(1003, 4343, other)


# Links.


def test_a_link_in_the_disk_tier_is_not_followed(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "tier", 1 << 20)
    other = DiskTier(tmp_path / "other", 1 << 20)
    other.write("packs/a/0", b"somebody else's")
    link = tmp_path / "tier" / "objects" / "packs" / "a" / "0"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "other" / "objects" / "packs" / "a" / "0")
    assert tier.read("packs/a/0") is None
    assert tier.digest("packs/a/0") is None
    assert not tier.has("packs/a/0")
    assert tier.write("packs/a/0", b"ours")
    assert tier.read("packs/a/0") == b"ours"
    assert other.read("packs/a/0") == b"somebody else's"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "tier", 1 << 20)
    os.mkfifo(tmp_path / "tier" / "objects" / "pipe")
    (tmp_path / "tier" / "objects" / "folder").mkdir()
    for name in "pipe", "folder":
        assert tier.read(name) is None


def test_the_books_of_the_disk_tier_are_no_link(tmp_path: Path) -> None:
    DiskTier(tmp_path / "tier", 1 << 20)
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "tier" / "usage").symlink_to(tmp_path / "victim")
    DiskTier(tmp_path / "tier", 1 << 20).write("packs/a/0", b"content")
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_file_in_the_spool_is_removed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    spool = Spool(tmp_path, 1 << 20)
    make(tmp_path / "0.put")
    (path,) = spool.pending()
    assert spool.load(path) is None
    assert spool.pending() == []


def test_what_is_larger_than_the_spool_is_not_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20)
    with (tmp_path / "0.put").open("wb") as file:
        file.truncate(1 << 40)
    (path,) = spool.pending()
    assert spool.load(path) is None


# How far profiles have counted.


def test_a_count_only_grows(tmp_path: Path) -> None:
    counts = HighestCounts(tmp_path / "counts")
    assert counts.of("profiles/job/linux/") == 0
    for count in 3, 2, 3:
        counts.note("profiles/job/linux/", count)
        assert HighestCounts(tmp_path / "counts").of("profiles/job/linux/") == 3
    assert counts.of("profiles/job/other/") == 0


@pytest.mark.parametrize("held", [b"", b"no number", b"\xff" * 100])
def test_a_count_that_cannot_be_read_is_none(tmp_path: Path, held: bytes) -> None:
    counts = HighestCounts(tmp_path / "counts")
    counts.note("profiles/job/linux/", 3)
    (path,) = [path for path in (tmp_path / "counts").rglob("*") if path.is_file()]
    path.write_bytes(held)
    assert counts.of("profiles/job/linux/") == 0
    counts.note("profiles/job/linux/", 4)
    assert counts.of("profiles/job/linux/") == 4


def test_where_counts_cannot_be_written_there_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "counts").write_bytes(b"a file")
    HighestCounts(tmp_path / "counts").note("profiles/job/linux/", 3)
    assert "is not remembered" in caplog.text


# Whose agent it is.


def test_other_keys_are_another_agents(tmp_path: Path) -> None:
    from s3cache.keys import KeySource
    from tests.signing import ALICE, BOB

    found = [
        Settings(
            url="s3://bucket",
            directory=tmp_path,
            disk_limit=1,
            job="job",
            trusted_keys=tuple(each.public for each in trusted),
            signing_key=signing,
        )
        for trusted, signing in [
            ((), None),
            ((ALICE,), None),
            ((ALICE, BOB), None),
            ((ALICE,), KeySource("env", "A")),
            ((ALICE,), KeySource("env", "B")),
        ]
    ]
    assert len({agent_directory(each, {}) for each in found}) == len(found)
    assert agent_directory(found[0], {}) != agent_directory(settings(tmp_path, shared_group=True), {})


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    folders.make(tmp_path / "a" / "b" / "c", folders.OWNER)
    assert modes(tmp_path / "a") == {0o700}


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/proc/nowhere/below", ""])
def test_a_folder_that_cannot_be_made_is_an_error(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        folders.make(folder, folders.OWNER)
