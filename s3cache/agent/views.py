"""What a pinned run sees on this machine: decided once, the same for all its processes."""

from functools import cache

from s3cache import names
from s3cache.agent.job_profile import JobProfile
from s3cache.local import LocalEntries
from s3cache.machine import Machine
from s3cache.tier import DiskTier
from s3cache.view import View


def here(tier: DiskTier, job: JobProfile, machine: Machine) -> View:
    """Return what of a job's profile the disk tier has whole, and a process of this machine may use.

    Each frame is read: what is damaged is found now and not by one of the processes, and what was just
    read is what the tier parts with last.
    """
    entries = LocalEntries(tier, names.catalog_prefixes(job.job, job.platform), job.keyring)
    is_here = cache(lambda name: tier.read(name) is not None)
    return View.of(
        reference
        for reference in entries.references()
        if machine.may_meet(reference.manifest.requires)
        and all(is_here(place.name) for place in reference.places)
    )
