"""One job's profile as the agent knows it: what earlier starts used, what this one adds."""

import time
from collections.abc import Collection, Mapping, Set
from contextlib import suppress
from typing import NamedTuple

import anyio

from s3cache import catalog, names, profile
from s3cache.catalog import Catalog, Reference
from s3cache.errors import Corrupt
from s3cache.keyring import Keyring
from s3cache.local import LocalEntries
from s3cache.prefetch import Progress
from s3cache.profile import Segment
from s3cache.tier import DiskTier

OLD_SECONDS = 60.0
"""A start so long after a prefetch of its job has ended has one of its own."""


class _Use(NamedTuple):
    """A slot that a start used, and the members on demand that it asked for."""

    namespace: str
    key: str
    slot: int
    opened: set[str]


class Prefetch:
    """One reading of a profile, and how far what it names has come."""

    def __init__(self) -> None:
        self.is_begun = False
        self.progress = Progress()
        self.read = anyio.Event()
        """Set when the profile was read, or could not be."""
        self.over = anyio.Event()
        """Set when it has come to its end."""
        self.ended: float | None = None
        """When it did, by the monotonic clock."""

    def end(self) -> None:
        """Note that it has come to its end."""
        self.progress.is_over = True
        self.ended = time.monotonic()
        self.over.set()

    @property
    def is_old(self) -> bool:
        """Whether others may have stored something since, and this machine lost some of what came."""
        return self.ended is not None and time.monotonic() - self.ended > OLD_SECONDS


class JobProfile:
    """Collects references in the order of use; those that are new make the next segment."""

    def __init__(self, job: str, platform: str, keyring: Keyring) -> None:
        self.job = job
        self.keyring = keyring
        self.platform = platform
        self.prefix = names.profile_prefix(job, platform)
        self.is_known = False
        """Whether it was read, be it empty."""
        self.prelude_bytes: int | None = None
        """How much of the prelude in the bucket is of use, 0 when there is none; None: nobody looked."""
        self.weighed: Set[str] = frozenset()
        """The segments of which a prelude was last thought of."""
        self.highest_count = 0
        """How far segments have counted that this machine has ever read or written."""
        self.segments: dict[str, Segment] = {}
        """Those that hold, by name, the oldest first."""
        self._prefetch = Prefetch()
        self._catalogs: dict[str, Catalog] = {}
        self._used: set[bytes] = set()
        self._has_voted = False
        self._listed: set[str] = set()
        self._new: dict[str, _Use] = {}

    def prefetch_for_a_start(self) -> Prefetch:
        """Return the last prefetch, or a new one if that is old."""
        if self._prefetch.is_old:
            self._prefetch = Prefetch()
        return self._prefetch

    def learn(self, segments: Mapping[str, Segment]) -> None:
        """Take over segments that are in the bucket."""
        self._listed |= segments.keys()
        self.segments = profile.live({**self.segments, **segments})
        # The newest first: what it says of where a result lies is what holds now.
        self._catalogs = {
            name: Catalog(self.segments[name].catalog, self.keyring) for name in reversed(self.segments)
        }
        self.highest_count = max(self.highest_count, profile.highest_count(segments.values()))
        for name, use in list(self._new.items()):
            if (known := self.find(name)) and use.opened <= set(known.opened):
                del self._new[name]

    def __len__(self) -> int:
        return len(self._digests())

    def find(self, name: str) -> Reference | None:
        """Return what the profile has of a manifest, by name."""
        found = self._find(name)
        return found[1] if found else None

    def segment_of(self, name: str) -> str | None:
        """Return the name of the segment that `find` finds a manifest in."""
        found = self._find(name)
        return found[0] if found else None

    def keys(self, namespace_prefix: str) -> list[tuple[str, str]]:
        """Return namespace and key, in the order of use, of what it has in namespaces that begin so."""
        found: dict[tuple[str, str], None] = {}
        for known in reversed(self._catalogs.values()):
            for reference in known.references():
                if reference.manifest.namespace.startswith(namespace_prefix):
                    found[reference.manifest.namespace, reference.manifest.key] = None
        return list(found)

    @property
    def new(self) -> Set[str]:
        """The names of manifests that the next segment is to name."""
        return self._new.keys()

    def add(self, namespace: str, key: str, slot: int, opened: Collection[str] = ()) -> None:
        """Note that a start used a slot, and which members on demand it asked for."""
        name = names.manifest_name(namespace, key, slot)
        digest = catalog.short_digest(name)
        if digest in self._used and not opened:
            return
        self._used.add(digest)
        known = self.find(name)
        if known is None or not set(opened) <= set(known.opened):
            self._new.setdefault(name, _Use(namespace, key, slot, set())).opened.update(opened)

    def use(self, tier: DiskTier, namespace: str, key: str) -> None:
        """Note that a start used a key that it had already: all its slots that are known here."""
        slot = 0
        while tier.has(name := names.manifest_name(namespace, key, slot)) or self.find(name):
            self.add(namespace, key, slot)
            slot += 1

    def forget(self, gone: Collection[str]) -> None:
        """Leave out of the next segment what the bucket has no more."""
        for name in gone:
            self._new.pop(name, None)
            # Whoever makes it again, or finds it here, uses it for the first time.
            self._used.discard(catalog.short_digest(name))

    def next_segment(self, tier: DiskTier, writer: dict[str, str]) -> Segment | None:
        """Return the next segment, or None when nothing is new. `learn` it once stored."""
        if not self._new:
            return None
        references: list[Reference] = []
        entries = LocalEntries(tier, names.catalog_prefixes(self.job, self.platform), self.keyring)
        for name, (namespace, key, slot, opened) in self._new.items():
            known = self.find(name)
            manifest = known.manifest if known else entries.manifest(namespace, key, slot)
            # What is not on disk any more is new to whoever uses it next.
            if manifest is not None:
                opened_ever = opened.union(known.opened if known else ())
                references.append(Reference(slot, manifest, sorted(opened_ever)))
        if not references:
            return None
        segment = Segment(
            profile=self.prefix,
            frames=profile.frames_of(references, lambda place: tier.digest(place.name)),
            catalog=catalog.build(references, self.keyring),
            unused=dict.fromkeys(sorted(self._digests() - self._used), 0 if self._has_voted else 1),
            writer=writer,
            count=self.highest_count + 1,
        )
        self._has_voted = True
        return segment

    def take_replaced(self, long_ago: float) -> list[str]:
        """Return, once, the segments in the bucket for which another one stands since `long_ago`."""
        taken = {
            name
            for segment in self.segments.values()
            if segment.written < long_ago
            for name in self._listed.intersection(segment.replaces)
        }
        self._listed -= taken
        return sorted(taken)

    def _digests(self) -> set[bytes]:
        return {digest for known in self._catalogs.values() for digest in known}

    def _find(self, name: str) -> tuple[str, Reference] | None:
        for segment, known in self._catalogs.items():
            with suppress(Corrupt):
                if reference := known.find(name):
                    return segment, reference
        return None
