"""One job's profile as the agent knows it: what earlier starts used, what this one adds."""

import anyio

from s3cache import manifest as manifests
from s3cache import names, profile
from s3cache.local import read_manifest
from s3cache.profile import Reference, Segment
from s3cache.tier import DiskTier


class JobProfile:
    """Collects references in the order of use; those that are new make the next segment."""

    def __init__(self, job: str, platform: str) -> None:
        self.job = job
        self.prefix = names.profile_prefix(job, platform)
        self._platform = platform
        self._known: set[str] = set()
        self._new: dict[str, tuple[str, str, int]] = {}
        self.references: list[Reference] = []
        self.is_asked_for = False
        """Whether reading it has begun."""
        self.read = anyio.Event()
        """Set when the profile was read, or could not be."""

    def learn(self, references: list[Reference]) -> None:
        """Take over references that are in the bucket."""
        self.references += references
        for reference in references:
            self._known.add(reference.name)
            self._new.pop(reference.name, None)

    def add(self, namespace: str, key: str, slot: int) -> None:
        """Note that a start used a slot."""
        name = names.manifest_name(namespace, key, slot)
        if name not in self._known:
            self._new.setdefault(name, (namespace, key, slot))

    def use(self, tier: DiskTier, namespace: str, key: str) -> None:
        """Note that a start used a key that it had already: all its slots that are known here."""
        slot = 0
        while tier.has(names.manifest_name(namespace, key, slot)):
            self.add(namespace, key, slot)
            slot += 1

    def next_segment(self, tier: DiskTier, writer: dict[str, str]) -> tuple[str, Segment] | None:
        """Return the next segment and its name, or None when nothing is new. `learn` it once stored."""
        if not self._new:
            return None
        references = [Reference(*new, _carried(tier, *new)) for new in self._new.values()]
        return profile.new_segment_name(self.job, self._platform), Segment(references, writer)


def _carried(tier: DiskTier, namespace: str, key: str, slot: int) -> bytes | None:
    manifest = read_manifest(tier, namespace, key, slot)
    data = manifests.encode(manifest) if manifest else b""
    return data if 0 < len(data) <= profile.CARRIED_BYTES else None
