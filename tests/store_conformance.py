"""What everything that is an ObjectStore must do. A subclass says, by a fixture, what `store` is."""

import random

import anyio
import pytest

from s3cache.errors import ObjectAbsent
from s3cache.stores.base import ObjectStore

CONTENT = bytes(range(256)) * 3
OBJECTS = {
    "packs/00/0000": b"",
    "packs/ab/ab01": CONTENT,
    "manifests/fx-graph/key/0": b"zero",
    "manifests/fx-graph/key/1": b"one",
    "manifests/fx-graph/key/10": b"ten",
    "manifests/fx-graph/~Key_1.2-3/0": b"\x1f\x8b\x08 looks compressed",
    "manifests/fx-graph-2/key/0": b"other",
    "profiles/job/linux-x86_64/0001": b"segment",
}


class ReadConformance:
    """What everything must do that can be read; `filled` holds OBJECTS."""

    pytestmark = pytest.mark.anyio

    async def test_an_object_is_returned_as_it_was_created(self, filled: ObjectStore) -> None:
        for name, data in OBJECTS.items():
            found = await filled.get(name)
            assert type(found) is bytes
            assert found == data

    @pytest.mark.parametrize("name", ["absent", "packs/00/0001", "manifests/fx-graph/key/2"])
    async def test_what_is_absent_raises_object_absent(self, filled: ObjectStore, name: str) -> None:
        with pytest.raises(ObjectAbsent):
            await filled.get(name)

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            (range(768), CONTENT),
            (range(1), CONTENT[:1]),
            (range(100, 300), CONTENT[100:300]),
            (range(767, 768), CONTENT[767:]),
            (range(700, 769), CONTENT[700:]),
            (range(700, 1 << 40), CONTENT[700:]),
            (range(768, 769), b""),
            (range(768, 1 << 40), b""),
            (range(1 << 40, (1 << 40) + 1), b""),
        ],
        ids=str,
    )
    async def test_a_part_is_what_the_object_has_of_it(
        self, filled: ObjectStore, part: range, expected: bytes
    ) -> None:
        found = await filled.get("packs/ab/ab01", part)
        assert type(found) is bytes
        assert found == expected

    async def test_a_part_of_an_empty_object_is_empty(self, filled: ObjectStore) -> None:
        assert await filled.get("packs/00/0000", range(10)) == b""

    async def test_a_part_of_what_is_absent_raises_object_absent(self, filled: ObjectStore) -> None:
        with pytest.raises(ObjectAbsent):
            await filled.get("packs/00/0001", range(10))

    async def test_list_yields_every_name_once(self, filled: ObjectStore) -> None:
        assert sorted([listed.name async for listed in filled.list("")]) == sorted(OBJECTS)

    async def test_list_yields_the_names_of_one_folder_sorted(self, filled: ObjectStore) -> None:
        expected = sorted(name for name in OBJECTS if name.startswith("manifests/fx-graph/key/"))
        assert [listed.name async for listed in filled.list("manifests/fx-graph/key/")] == expected

    @pytest.mark.parametrize("prefix", ["packs/", "manifests/fx-graph/", "manifests/fx-graph/key/1", "m"])
    async def test_list_yields_what_begins_with_the_prefix(self, filled: ObjectStore, prefix: str) -> None:
        expected = sorted(name for name in OBJECTS if name.startswith(prefix))
        assert sorted([listed.name async for listed in filled.list(prefix)]) == expected

    async def test_list_of_an_absent_prefix_is_empty(self, filled: ObjectStore) -> None:
        assert [listed.name async for listed in filled.list("profiles/another/")] == []

    async def test_many_may_read_at_once(self, filled: ObjectStore) -> None:
        read: list[tuple[str, bytes]] = []

        async def get(name: str) -> None:
            read.append((name, await filled.get(name)))

        async with anyio.create_task_group() as group:
            for name in [*OBJECTS] * 4:
                group.start_soon(get, name)
        assert sorted(read) == sorted([*OBJECTS.items()] * 4)


class StoreConformance(ReadConformance):
    """What every store must do; `store` is empty."""

    @pytest.fixture
    async def filled(self, store: ObjectStore) -> ObjectStore:
        for name, data in reversed(OBJECTS.items()):
            await store.create(name, data)
        return store

    async def test_an_empty_store_lists_nothing(self, store: ObjectStore) -> None:
        assert [listed.name async for listed in store.list("")] == []

    async def test_the_first_creates_and_the_second_changes_nothing(self, store: ObjectStore) -> None:
        assert await store.create("packs/aa/aa", b"first") is True
        assert await store.create("packs/aa/aa", b"second") is False
        assert await store.get("packs/aa/aa") == b"first"

    async def test_the_same_bytes_are_created_once(self, store: ObjectStore) -> None:
        for data in b"", b"same":
            name = f"packs/aa/{len(data)}"
            assert [await store.create(name, data) for _ in range(3)] == [True, False, False]

    async def test_one_of_many_writers_creates(self, store: ObjectStore) -> None:
        created: list[bytes] = []

        async def create(data: bytes) -> None:
            if await store.create("manifests/ns/key/0", data):
                created.append(data)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(create, f"writer {number}".encode())
        assert created == [await store.get("manifests/ns/key/0")]

    async def test_a_large_object_is_returned_whole(self, store: ObjectStore) -> None:
        data = random.Random(1).randbytes(3 << 20)
        await store.create("packs/cc/large", data)
        assert await store.get("packs/cc/large") == data
        assert await store.get("packs/cc/large", range(1 << 20, 2 << 20)) == data[1 << 20 : 2 << 20]

    async def test_what_is_deleted_is_absent_and_may_be_created_again(self, store: ObjectStore) -> None:
        await store.create("packs/aa/aa", b"old")
        await store.delete("packs/aa/aa")
        with pytest.raises(ObjectAbsent):
            await store.get("packs/aa/aa")
        assert [listed.name async for listed in store.list("")] == []
        assert await store.create("packs/aa/aa", b"new") is True
        assert await store.get("packs/aa/aa") == b"new"

    async def test_deleting_leaves_the_neighbours(self, filled: ObjectStore) -> None:
        await filled.delete("manifests/fx-graph/key/1")
        assert [listed.name async for listed in filled.list("manifests/fx-graph/key/")] == [
            "manifests/fx-graph/key/0",
            "manifests/fx-graph/key/10",
        ]

    async def test_deleting_what_is_absent_is_no_error(self, store: ObjectStore) -> None:
        await store.delete("packs/aa/aa")

    async def test_a_store_that_became_empty_takes_objects_again(self, store: ObjectStore) -> None:
        for name in "top", "packs/aa/aa":
            await store.create(name, b"x")
            await store.delete(name)
            assert await store.create(name, b"y") is True
            await store.delete(name)
