"""Entries straight from the disk tier: synchronous, and never anything but the disk."""

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain

from s3cache import frame, names
from s3cache import manifest as manifests
from s3cache.catalog import Catalog, Reference
from s3cache.errors import Corrupt, Untrusted
from s3cache.keyring import Keyring
from s3cache.manifest import Entry, Manifest, Place
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

GROWN_BYTES = 16 << 20
"""What is kept of the frames that were read last: their neighbours are likely to be next."""


class LocalEntries:
    """What the disk tier has of a job's results that the keyring trusts.

    A manifest lies there by itself, or in a catalog of a profile, which came in one piece: the names of
    catalogs begin with one of `prefixes`. With `unsent`, what the bucket did not take counts, too.
    """

    def __init__(
        self, tier: DiskTier, prefixes: Sequence[str], keyring: Keyring, *, unsent: bool = False
    ) -> None:
        self._tier = tier
        self._keyring = keyring
        self._prefixes = prefixes
        self._places = [self._in_catalogs, self._by_itself, *([self._unsent] if unsent else [])]
        self._catalogs: dict[str, Catalog] = {}
        self._grown: OrderedDict[str, bytes] = OrderedDict()
        self.look_again()

    def manifest(self, namespace: str, key: str, slot: int) -> Manifest | None:
        """Return the manifest in a slot, or None when the tier has none that is that key's."""
        return next(self._manifests(namespace, key, slot), None)

    def find(
        self, namespace: str, key: str, slot: int, members: Collection[str] | None = None
    ) -> Entry | None:
        """Return the entry in a slot, or None when the tier lacks one of the members, or has it damaged.

        Without `members`, it has those that are not on demand.
        """
        found = (self.entry(manifest, slot, members) for manifest in self._manifests(namespace, key, slot))
        return next(filter(None, found), None)

    def entry(self, manifest: Manifest, slot: int, members: Collection[str] | None = None) -> Entry | None:
        """Return a manifest's entry, or None when the tier lacks one of the members, or has it damaged.

        Without `members`, it has those that are not on demand.
        """
        contents: dict[str, bytes] = {}
        try:
            for member in manifest.wanted(members):
                place = None if member.inline is not None else manifest.frames[member.frame]
                grown = self._grow(place) if place else None
                if place and grown is None:
                    return None
                contents[member.name] = manifests.content_of(member, grown)
        except Corrupt as error:
            logger.warning("%s %s slot %d is damaged: %s", manifest.namespace, manifest.key, slot, error)
            return None
        return manifests.entry_of(manifest, slot, contents)

    def references(self) -> Iterator[Reference]:
        """Yield what the catalogs say of each manifest: of several sayings, the newest."""
        seen: set[str] = set()
        for reference in chain(*(catalog.references() for catalog in self._catalogs.values())):
            if reference.name not in seen:
                seen.add(reference.name)
                yield reference

    def look_again(self) -> None:
        """Take notice of catalogs that came, or went, since."""
        catalogs: dict[str, Catalog] = {}
        # The newest first: what it says of where a result lies is what holds now.
        for name in chain(*(reversed(self._tier.names(prefix)) for prefix in self._prefixes)):
            if name in self._catalogs:
                catalogs[name] = self._catalogs[name]
            elif (data := self._tier.read(name)) is not None:
                with suppress(Corrupt):
                    catalogs[name] = Catalog(data, self._keyring)
        self._catalogs = catalogs

    def _manifests(self, namespace: str, key: str, slot: int) -> Iterator[Manifest]:
        """Yield what is known of a slot: first what the profile says, since packs are packed anew."""
        name = names.manifest_name(namespace, key, slot)
        for known in self._places:
            try:
                found = known(name)
            except Untrusted:
                # The agent, who is asked next, says so and takes it off the disk.
                continue
            except Corrupt as error:
                logger.warning("%s is skipped: %s", name, error)
                continue
            if found and (found.namespace, found.key) == (namespace, key):
                yield found

    def _by_itself(self, name: str) -> Manifest | None:
        data = self._tier.read(name)
        return None if data is None else manifests.decode(data, self._keyring)

    def _unsent(self, name: str) -> Manifest | None:
        return self._by_itself(names.unsent_name(name))

    def _in_catalogs(self, name: str) -> Manifest | None:
        for catalog in self._catalogs.values():
            with suppress(Corrupt):
                if reference := catalog.find(name):
                    return reference.manifest
        return None

    def _grow(self, place: Place) -> bytes | None:
        grown = self._grown.get(place.name)
        if grown is None:
            data = self._tier.read(place.name)
            if data is None:
                return None
            grown = self._grown[place.name] = frame.decompress(data, limit=place.size)
            while len(self._grown) > 1 and sum(map(len, self._grown.values())) > GROWN_BYTES:
                self._grown.popitem(last=False)
        else:
            self._grown.move_to_end(place.name)
        return grown
