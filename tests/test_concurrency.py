"""Many requests at one time: no more than so many, and an item is taken when it is its turn."""

from collections.abc import Iterator

import anyio
import pytest

from s3cache.concurrency import for_each
from s3cache.errors import Busy

pytestmark = pytest.mark.anyio


async def test_so_many_run_at_once_and_items_are_taken_late() -> None:
    taken: list[int] = []
    running: set[int] = set()
    done: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    async def run(number: int) -> None:
        running.add(number)
        assert len(running) <= 3
        assert len(taken) <= len(done) + 3
        await anyio.lowlevel.checkpoint()
        running.remove(number)
        done.append(number)

    await for_each(items(), run, at_once=3)
    assert sorted(done) == list(range(20))


async def test_the_first_error_cancels_the_rest_and_is_raised() -> None:
    done: list[int] = []

    async def run(number: int) -> None:
        if number == 1:
            raise Busy("first")
        await anyio.sleep(30)
        done.append(number)

    with anyio.fail_after(5), pytest.raises(Busy, match="first"):
        await for_each(range(100), run, at_once=4)
    assert done == []


async def test_nothing_is_nothing_to_do() -> None:
    async def run(_: int) -> None:
        raise AssertionError

    await for_each([], run)
