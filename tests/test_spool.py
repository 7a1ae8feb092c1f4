"""The spool: what was added is there after any death, and never more than it may hold."""

import errno
import itertools
import os
import random
import shutil
import time
from pathlib import Path
from typing import NoReturn

import pytest

from s3cache import spool as spools
from s3cache.digest import digest_of
from s3cache.errors import DiskFull, DiskTierError
from s3cache.spool import Spool
from tests import dying, writers
from tests.writers import put_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Spool:
    return Spool(folder, 100_000)


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def numbers_in(spool: Spool) -> list[int]:
    """Return the numbers of the results that wait, each of which is right."""
    numbers = []
    for path in spool.pending():
        put = spool.load(path)
        assert put is not None
        number = int(put.result.cost_seconds)
        assert put == put_of(number)
        numbers.append(number)
    return numbers


def fill(spool: Spool) -> int:
    """Add results until there is no room; return how many there are."""
    for count in itertools.count():
        try:
            spool.add(put_of(count * 7))
        except DiskFull:
            return count
    raise AssertionError


def test_a_result_comes_back_as_it_was_added(spool: Spool, folder: Path) -> None:
    spool.add(put_of(1))
    (path,) = Spool(folder, 1 << 20).pending()
    assert Spool(folder, 1 << 20).load(path) == put_of(1)


def test_a_spool_that_was_never_used_has_nothing_and_makes_no_folder(spool: Spool, folder: Path) -> None:
    assert spool.pending() == []
    assert not folder.exists()


def test_the_oldest_comes_first(spool: Spool) -> None:
    for number in range(12):
        spool.add(put_of(number))
    assert numbers_in(spool) == list(range(12))


def test_what_was_added_before_is_not_added_again(spool: Spool) -> None:
    assert spool.add(put_of(1))
    assert not spool.add(put_of(1))
    assert spool.add(put_of(2))
    assert len(spool.pending()) == 2


def test_what_is_discarded_is_gone_and_may_be_discarded_again(spool: Spool) -> None:
    spool.add(put_of(1))
    (path,) = spool.pending()
    spool.discard(path)
    spool.discard(path)
    assert spool.pending() == []
    assert spool.load(path) is None


def test_it_never_holds_more_than_its_limit(spool: Spool, folder: Path) -> None:
    added = fill(spool)
    assert 90_000 < held(folder) <= 100_000
    assert len(numbers_in(spool)) == added
    with pytest.raises(DiskFull, match="wait"):
        spool.add(put_of(1000))


def test_the_limit_is_kept_to_the_byte(folder: Path) -> None:
    Spool(folder, 1 << 20).add(put_of(1))
    size = held(folder)
    shutil.rmtree(folder)
    with pytest.raises(DiskFull):
        Spool(folder, size - 1).add(put_of(1))
    Spool(folder, size).add(put_of(1))


def test_room_that_became_free_is_used(spool: Spool) -> None:
    fill(spool)
    for path in spool.pending():
        spool.discard(path)
    spool.add(put_of(1))


def test_the_limit_holds_while_another_process_discards(spool: Spool, folder: Path) -> None:
    fill(spool)
    # A file that is listed and then gone.
    (folder / "0.put").symlink_to(folder / "gone")
    with pytest.raises(DiskFull):
        spool.add(put_of(1000))


@pytest.mark.parametrize("position", [0, 31, 32, -1])
def test_a_damaged_file_is_nothing_and_goes(spool: Spool, position: int) -> None:
    spool.add(put_of(1))
    (path,) = spool.pending()
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    assert spool.load(path) is None
    assert spool.pending() == []


@pytest.mark.parametrize("size", [0, 31, 32, 100])
def test_a_truncated_file_is_nothing_and_goes(spool: Spool, size: int) -> None:
    spool.add(put_of(1))
    (path,) = spool.pending()
    os.truncate(path, size)
    assert spool.load(path) is None
    assert spool.pending() == []


def test_a_file_of_another_version_is_nothing_and_goes(spool: Spool, folder: Path) -> None:
    folder.mkdir()
    body = b"\x81\xa3new\xc0"
    (folder / "1.put").write_bytes(bytes.fromhex(digest_of(body)) + body)
    (path,) = spool.pending()
    assert spool.load(path) is None
    assert spool.pending() == []


def test_what_a_dead_writer_left_goes_after_an_hour(spool: Spool, folder: Path) -> None:
    spool.add(put_of(1))
    for name, age in {"fresh": 3500.0, "abandoned": 3700.0}.items():
        (folder / f"{name}.incoming").write_bytes(b"half")
        os.utime(folder / f"{name}.incoming", (time.time() - age,) * 2)
    assert len(spool.pending()) == 1
    assert [path.name for path in folder.glob("*.incoming")] == ["fresh.incoming"]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, DiskTierError)],
)
def test_a_write_that_fails_is_said_and_leaves_nothing(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("s3cache.spool.os.rename", fail)
    with pytest.raises(error) as raised:
        spool.add(put_of(1))
    assert type(raised.value) is error
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_raises_disk_tier_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", 1 << 20)
    with pytest.raises(DiskTierError):
        spool.add(put_of(1))
    assert spool.pending() == []


def test_processes_that_add_at_once_do_not_meet(folder: Path) -> None:
    processes = [dying.start(writers.spool_at_one_moment, folder, number) for number in range(4)]
    for process in processes:
        process.join()
    assert sorted(numbers_in(Spool(folder, 1 << 20))) == [0, 1, 2, 3]


def test_kill_9_before_any_line_of_an_add_leaves_all_of_it_or_nothing(folder: Path) -> None:
    outcomes = []
    for line in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        Spool(folder, 1 << 20).add(put_of(1))
        died = dying.die_before_line(line, spools, writers.spool_one, folder, 2)
        outcomes.append(numbers_in(Spool(folder, 1 << 20)))
        if not died:
            break
    assert not died
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == [1]
    assert outcomes[-1] == [1, 2]


def test_kill_9_at_random_moments_loses_nothing_that_was_added(folder: Path, tmp_path: Path) -> None:
    randomly = random.Random(3)
    log = tmp_path / "acknowledged"
    for first in range(0, 20_000, 1000):
        process = dying.start(writers.spool_for_ever, folder, first, log)
        dying.kill_within(0.05, [process], randomly)
    acknowledged = [int(line) for line in log.read_text().splitlines()]
    found = numbers_in(Spool(folder, 1 << 20))
    assert len(acknowledged) > 50
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found)) <= len(acknowledged) + 20
