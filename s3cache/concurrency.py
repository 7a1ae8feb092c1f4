"""Many requests at one time."""

from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

import anyio

from s3cache.errors import S3CacheError

T = TypeVar("T")

AT_ONCE = 32
"""Requests of one call that are under way at one time."""


async def for_each(
    items: Iterable[T], function: Callable[[T], Awaitable[None]], at_once: int = AT_ONCE
) -> None:
    """Run `function` on all items, so many at once; an item is taken when it is its turn.

    The first error of ours cancels the rest and is raised.
    """
    failure: list[S3CacheError] = []
    left = iter(items)

    async def work(item: T) -> None:
        try:
            await function(item)
            for following in left:
                await function(following)
        except S3CacheError as error:
            failure.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for item in islice(left, at_once):
            group.start_soon(work, item)
    if failure:
        raise failure[0]
