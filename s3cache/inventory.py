"""What lies in a bucket, and what names what, in a temporary file: there may be millions of objects."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self, TypeVar

from s3cache.errors import Corrupt
from s3cache.manifest import MAX_SLOTS, TOMBSTONE
from s3cache.names import Kind, kind_of, pack_name
from s3cache.pack import PackFrame
from s3cache.stores.base import Listed, ObjectStore

T = TypeVar("T")

_PAGE = 1000
_MOST = (1 << 62) - 1
"""What SQLite can hold of a number, and more than any pack has of bytes."""
_CACHE_KIBIBYTES = 32 << 10
_SCHEMA = """
CREATE TABLE objects (
    name TEXT PRIMARY KEY, folder TEXT, kind TEXT, size INTEGER, created REAL,
    is_live INTEGER DEFAULT 0, goes INTEGER DEFAULT 0, is_condemned INTEGER DEFAULT 0,
    is_damaged INTEGER DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE named (namer TEXT, name TEXT, PRIMARY KEY (namer, name)) WITHOUT ROWID;
CREATE INDEX namers ON named (name);
CREATE INDEX folders ON objects (folder) WHERE kind = 'profiles';
CREATE TABLE bodies (name TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID;
CREATE TABLE frames (pack TEXT, segment TEXT, start INTEGER, length INTEGER, digest BLOB);
CREATE INDEX packs ON frames (pack);
CREATE TABLE listed (name TEXT PRIMARY KEY, is_due INTEGER) WITHOUT ROWID;
"""
_IS_TOMBSTONE = "(kind = 'manifests' AND size = 0)"
_IS_DUE = "EXISTS (SELECT 1 FROM listed WHERE listed.name = objects.name AND is_due)"
_WAITS = "EXISTS (SELECT 1 FROM listed WHERE listed.name = objects.name AND NOT is_due)"


class Total(NamedTuple):
    """So many objects of a kind, and their bytes."""

    kind: str
    objects: int
    bytes: int


class Slot(NamedTuple):
    """A slot: the name of its object, whether that is a tombstone, whether it goes or is damaged."""

    name: str
    is_tombstone: bool
    goes: bool
    is_damaged: bool

    @property
    def is_of_use(self) -> bool:
        """Whether readers are to find it, for which no slot below it may be empty."""
        return not (self.is_tombstone or self.goes or self.is_damaged)


def top_of(slots: Mapping[int, Slot]) -> int:
    """Return the highest slot that is of use, -1 when none is."""
    return max((number for number, slot in slots.items() if slot.is_of_use), default=-1)


async def read(objects: ObjectStore, name: str, decode: Callable[[bytes], T]) -> T:
    """Return what `decode` makes of an object. What arrives damaged is asked for once more.

    Raises Corrupt when that is damaged, too, ObjectAbsent when there is no such object.
    """
    with suppress(Corrupt):
        return decode(await objects.get(name))
    return decode(await objects.get(name))


class Inventory:
    """The objects of a bucket. As a context manager it has its file, which nobody else sees."""

    def __enter__(self) -> Self:
        # Without a name SQLite keeps a file that is gone when its process is.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, objects: Iterable[Listed]) -> None:
        """Add objects; those whose names are not of our making have no kind."""
        rows = (
            (name, name.rpartition("/")[0], _kind_of(name), size, created)
            for name, size, created in objects
        )
        self._many(
            "INSERT OR REPLACE INTO objects (name, folder, kind, size, created) VALUES (?, ?, ?, ?, ?)",
            rows,
        )

    async def take(self, found: AsyncIterator[Listed]) -> None:
        """Add what a listing yields."""
        page: list[Listed] = []
        async for listed in found:
            page.append(listed)
            if len(page) == _PAGE:
                self.add(page)
                page.clear()
        self.add(page)

    def note_named(self, namer: str, named: Iterable[str]) -> None:
        """Note what an object names."""
        self._many("INSERT OR IGNORE INTO named VALUES (?, ?)", ((namer, name) for name in named))

    def named_by(self, namer: str) -> list[str]:
        """Return what an object names."""
        return [
            name for (name,) in self._rows("SELECT name FROM named WHERE namer = ? ORDER BY name", namer)
        ]

    def note_damaged(self, manifest: str) -> None:
        """Note that no reader can use a manifest."""
        self._many("UPDATE objects SET is_damaged = 1 WHERE name = ?", [(manifest,)])

    def keep_frames(self, segment: str, frames: Iterable[PackFrame]) -> None:
        """Keep what a segment says of frames."""
        self._many(
            "INSERT INTO frames VALUES (?, ?, ?, ?, ?)",
            (
                (
                    pack_name(packed.place.pack),
                    segment,
                    min(packed.place.offset, _MOST),
                    packed.place.length,
                    packed.digest,
                )
                for packed in frames
            ),
        )

    def frames_in(self, pack: str) -> Iterator[tuple[str, range, bytes]]:
        """Yield which bytes of a pack are a frame, with their digest, and which segment says so."""
        for segment, start, length, digest in self._database.execute(
            "SELECT segment, start, length, digest FROM frames WHERE pack = ?", (pack,)
        ):
            yield segment, range(start, start + length), digest

    def keep_body(self, manifest: str, body: bytes) -> None:
        """Keep a manifest as it lies in the bucket."""
        self._many("INSERT OR REPLACE INTO bodies VALUES (?, ?)", [(manifest, body)])

    def bodies_in(self, pack: str) -> Iterator[tuple[str, bytes]]:
        """Yield the manifests that were kept of those that name a pack, and their bytes."""
        after = ""
        while rows := self._rows(
            "SELECT bodies.name, body FROM named JOIN bodies ON bodies.name = namer"
            f" WHERE named.name = ? AND namer > ? ORDER BY namer LIMIT {_PAGE}",
            pack,
            after,
        ):
            yield from rows
            after = rows[-1][0]

    def let_go(self, names: Iterable[str]) -> None:
        """Note that these go."""
        self._many("UPDATE objects SET goes = 1 WHERE name = ?", ((name,) for name in names))

    def use(self, names: Iterable[str]) -> None:
        """Note that something in use names these objects."""
        self._many("UPDATE objects SET is_live = 1 WHERE name = ?", ((name,) for name in names))

    def condemn(self, names: Iterable[str], *, is_due: bool) -> None:
        """Note what a list says; it is due once the grace is over."""
        self._many(
            "INSERT INTO listed VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET is_due = max(is_due, excluded.is_due)",
            ((name, is_due) for name in names),
        )

    def has(self, name: str) -> bool:
        """Return whether there is an object of that name."""
        return bool(self._rows("SELECT 1 FROM objects WHERE name = ?", name))

    def stays(self, name: str) -> bool:
        """Return whether there is an object of that name which does not go and is no tombstone."""
        return bool(
            self._rows(
                f"SELECT 1 FROM objects WHERE name = ? AND NOT goes AND NOT {_IS_TOMBSTONE}",
                name,
            )
        )

    def sample_of_manifests(self, limit: int | None) -> Iterator[str]:
        """Yield so many manifests by chance, all of them without `limit`."""
        if limit is None:
            yield from self._names("kind = 'manifests' AND size > 0")
        else:
            for (name,) in self._rows(
                "SELECT name FROM objects WHERE kind = 'manifests' AND size > 0 ORDER BY random() LIMIT ?",
                limit,
            ):
                yield name

    def named_packs(self, by: Kind | None = None) -> Iterator[str]:
        """Yield the packs that objects name, or those of a kind, whether they are there or not."""
        after = "packs/"
        while rows := self._rows(
            "SELECT DISTINCT name FROM named WHERE name > ? AND name < 'packs0' AND namer GLOB ?"
            f" ORDER BY name LIMIT {_PAGE}",
            after,
            f"{by.value}/*" if by else "*",
        ):
            for (pack,) in rows:
                yield pack
            after = rows[-1][0]

    def unnamed_packs(self, created_before: float) -> Iterator[str]:
        """Yield the packs that nothing names, but for young ones, whose manifests may be on their way."""
        yield from self._names(
            "kind = 'packs' AND created < :created_before"
            " AND NOT EXISTS (SELECT 1 FROM named WHERE named.name = objects.name)",
            created_before=created_before,
        )

    def foreign(self) -> Iterator[str]:
        """Yield the objects whose names are not of our making."""
        yield from self._names("kind = ''")

    def of_kind(self, kind: Kind) -> Iterator[str]:
        """Yield the objects of a kind."""
        yield from self._names("kind = :kind", kind=kind.value)

    def segments(self, prefix: str) -> list[str]:
        """Return the segments of the profile of that prefix, the newest first."""
        rows = self._rows(
            "SELECT name FROM objects WHERE kind = 'profiles' AND folder = ? ORDER BY name DESC",
            prefix.rstrip("/"),
        )
        return [name for (name,) in rows]

    def empty_slots(self) -> Iterator[str]:
        """Yield the slots in which there is nothing although one above is of use."""
        for slots in self.slots():
            top = top_of(slots)
            for number in sorted(set(range(top)) - slots.keys()):
                yield f"{slots[top].name.rpartition('/')[0]}/{number}"

    def certain_to_stay(self, unused_since: float) -> Iterator[str]:
        """Yield the manifests that stay whatever is in use: they are young, or not due."""
        yield from self._names(
            f"kind = 'manifests' AND size > 0 AND NOT (created < :unused_since AND {_IS_DUE})",
            unused_since=unused_since,
        )

    def in_use_after_all(self, unused_since: float) -> Iterator[str]:
        """Yield the other manifests that are in use."""
        yield from self._names(
            f"kind = 'manifests' AND size > 0 AND is_live AND created < :unused_since AND {_IS_DUE}",
            unused_since=unused_since,
        )

    def decide(self, unused_since: float, due_since: float, claimed_since: float) -> None:
        """Decide what goes and what is condemned: what was created before the moment that is given.

        A pack goes when all manifests that name it do.
        """
        unused = (
            f"NOT is_live AND created < :unused_since AND NOT {_IS_TOMBSTONE}"
            " AND kind IN ('packs', 'manifests', 'profiles', 'preludes')"
        )
        naming = "SELECT named.name FROM named JOIN objects AS naming ON naming.name = namer WHERE"
        moments = {"unused_since": unused_since, "due_since": due_since, "claimed_since": claimed_since}
        for statement in (
            "UPDATE objects SET is_live = 1"
            f" WHERE name IN ({naming} naming.is_live OR naming.created >= :unused_since)",
            f"UPDATE objects SET goes = 1 WHERE {unused} AND {_IS_DUE} AND kind <> 'packs'",
            f"UPDATE objects SET goes = 1 WHERE {unused} AND {_IS_DUE} AND kind = 'packs'"
            f" AND name NOT IN ({naming} NOT naming.goes)",
            f"UPDATE objects SET is_condemned = 1 WHERE {unused} AND NOT goes AND NOT {_WAITS}",
            "UPDATE objects SET goes = 1 WHERE kind = 'leases' AND created < :unused_since"
            " OR kind = 'claims' AND created < :claimed_since"
            " OR kind = 'condemned' AND created < :due_since",
        ):
            self._database.execute(statement, moments)

    def going(self, kind: Kind) -> Iterator[str]:
        """Yield the objects of a kind that go."""
        yield from self._names("kind = :kind AND goes", kind=kind.value)

    def condemned(self) -> Iterator[str]:
        """Yield what is condemned."""
        yield from self._names("is_condemned")

    def slots(self) -> Iterator[dict[int, Slot]]:
        """Yield, key by key, what lies in its slots."""
        folder, slots = "", dict[int, Slot]()
        columns = "name, folder, size, goes, is_damaged"
        for name, of, size, goes, is_damaged in self._pages(columns, "kind = 'manifests'", {}):
            if of != folder:
                if slots:
                    yield slots
                folder, slots = of, {}
            slots[_slot_of(name)] = Slot(name, size == len(TOMBSTONE), bool(goes), bool(is_damaged))
        if slots:
            yield slots

    def profiles(self) -> Iterator[tuple[str, float]]:
        """Yield the prefix of each profile, and when its newest segment or lease was created."""
        after = ""
        while True:
            rows = self._rows(
                "SELECT folder, max(created) FROM objects WHERE kind = 'profiles' AND folder > ?"
                f" GROUP BY folder ORDER BY folder LIMIT {_PAGE}",
                after,
            )
            for folder, written in rows:
                leases = folder.replace("profiles/", "leases/", 1)
                ((leased,),) = self._rows(
                    "SELECT max(created) FROM objects WHERE name > ? AND name < ?",
                    f"{leases}/",
                    f"{leases}0",
                )
                yield f"{folder}/", max(written, leased or 0.0)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def lists(self) -> Iterator[Listed]:
        """Yield the lists of what was condemned."""
        rows = self._pages("name, size, created", "kind = :kind", {"kind": Kind.CONDEMNED.value})
        yield from (Listed(*row) for row in rows)

    def totals_going(self) -> list[Total]:
        """Return how much goes, kind by kind."""
        return self._totals("goes")

    def totals_condemned(self) -> list[Total]:
        """Return how much is condemned, kind by kind."""
        return self._totals("is_condemned")

    def totals_waiting(self) -> list[Total]:
        """Return how much was condemned earlier, is not due and is still not used, kind by kind."""
        return self._totals(f"NOT is_live AND NOT goes AND {_WAITS}")

    def _totals(self, condition: str) -> list[Total]:
        rows = self._rows(
            f"SELECT kind, count(*), sum(size) FROM objects WHERE {condition} GROUP BY kind ORDER BY kind"
        )
        return [Total(*row) for row in rows]

    def _names(self, condition: str, **values: object) -> Iterator[str]:
        return (name for (name,) in self._pages("name", condition, values))

    def _pages(self, columns: str, condition: str, values: Mapping[str, object]) -> Iterator[Any]:
        # Page by page: what was found may be changed before the next page is read.
        statement = (
            f"SELECT {columns} FROM objects WHERE name > :after AND {condition} ORDER BY name LIMIT {_PAGE}"
        )
        rows: list[Any] = [("",)]
        while rows:
            rows = self._database.execute(statement, {**values, "after": rows[-1][0]}).fetchall()
            yield from rows

    def _rows(self, statement: str, *values: object) -> list[Any]:
        return self._database.execute(statement, values).fetchall()

    def _many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._database.executemany(statement, rows)


def _kind_of(name: str) -> str:
    kind = kind_of(name)
    # Where no reader looks there is no slot.
    if kind is None or (kind is Kind.MANIFEST and _slot_of(name) >= MAX_SLOTS):
        return ""
    return kind.value


def _slot_of(manifest: str) -> int:
    return int(manifest.rpartition("/")[2])
