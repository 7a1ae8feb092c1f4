"""What a job looks up: brought into the disk tier, from where its profile says or from its slot."""

import logging
import time

import anyio
import msgspec
from anyio.abc import TaskGroup

from s3cache import names
from s3cache.agent.jobs import Run
from s3cache.agent.protocol import Lookup, Status
from s3cache.cache import Cache
from s3cache.errors import (
    Corrupt,
    CredentialsAbsent,
    DiskTierError,
    ObjectAbsent,
    Removed,
    StoreError,
    Unreachable,
)
from s3cache.namespaces import Rule, rule_of

logger = logging.getLogger(__name__)

VARIANTS_AHEAD = 4
"""Slots that are looked at together with the first one of a key that has variants."""


class LookUps:
    """Answers look-ups of all jobs; what nobody waits for any more goes on in `group`."""

    def __init__(self, url: str, cache: Cache, has_credentials: anyio.Event, group: TaskGroup) -> None:
        self._url = url
        self._cache = cache
        self._has_credentials = has_credentials
        self._group = group

    async def answer(self, run: Run, lookup: Lookup) -> Status:
        """Return what is in a slot for a job, once it is on disk, or when the deadline is over."""
        found: Status | None = None
        is_known = anyio.Event()

        async def fill() -> None:
            nonlocal found
            found = await self._fill(run, lookup)
            is_known.set()

        # The next start will need it, if this one does not wait for it.
        self._group.start_soon(fill)
        with anyio.move_on_after(lookup.deadline - time.monotonic()):
            await is_known.wait()
        if found is None:
            if run.late:
                run.warn(run.late)
            run.late = self.late()
            logger.info("%s", run.late)
        return found or "unavailable"

    def late(self) -> StoreError:
        """Return what is said of a result that does not come in time."""
        if not self._has_credentials.is_set():
            return CredentialsAbsent(
                f"{self._url}: credentials did not come in time; if none come, {CredentialsAbsent.remedy}"
            )
        return Unreachable(
            f"{self._url}: a result did not come in time; check the network and AWS_ENDPOINT_URL_S3"
        )

    async def _fill(self, run: Run, lookup: Lookup) -> Status:
        since = run.started
        if not self._has_credentials.is_set():
            await self._has_credentials.wait()
            since = time.monotonic()
        # What the profile names needs no request for a manifest, and is on its way.
        await run.until_profile_is_read(since)
        namespace, key, slot = lookup.namespace, lookup.key, lookup.slot
        name = names.manifest_name(namespace, key, slot)
        known = run.profile.find(name)
        try:
            if known:
                try:
                    await self._cache.bring(known.manifest, lookup.members)
                    return "ready"
                except (ObjectAbsent, Corrupt) as error:
                    logger.warning("%s is not where the profile says: %s", known.name, error)
            if name in run.found_absent:
                run.found_absent.remove(name)
                return "absent"
            is_of_many = slot and rule_of(namespace) is not Rule.FIRST
            if is_of_many and run.profile.find(names.manifest_name(namespace, key, slot - 1)):
                # Values that grow are all read, each time; the profile has those that its job knew.
                return "absent"
            manifest = await self._cache.manifest(namespace, key, slot)
            if slot == 0 and manifest.variant:
                self._group.start_soon(self._look_ahead, run, lookup)
            await self._cache.fill(manifest, slot, lookup.members)
        except ObjectAbsent:
            return "absent"
        except Removed:
            return "unusable"
        except Corrupt as error:
            logger.warning("%s %s slot %d is skipped: %s", namespace, key, slot, error)
            return "unusable"
        except (StoreError, DiskTierError) as error:
            run.warn(error)
            return "unavailable"
        return "ready"

    async def _look_ahead(self, run: Run, lookup: Lookup) -> None:
        """Bring the next variants while the first one comes: its guards may not hold."""

        async def look(slot: int) -> None:
            if await self._fill(run, msgspec.structs.replace(lookup, slot=slot)) == "absent":
                run.found_absent.add(names.manifest_name(lookup.namespace, lookup.key, slot))

        async with anyio.create_task_group() as group:
            for slot in range(1, 1 + VARIANTS_AHEAD):
                group.start_soon(look, slot)
