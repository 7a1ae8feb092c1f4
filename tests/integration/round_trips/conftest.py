"""Round trips: machine A records a script, machine B starts it with nothing but the bucket."""

from functools import cache
from textwrap import dedent
from typing import Protocol

import pytest

from s3cache.digest import digest_of
from tests.integration.round_trips.trips import DEVICES, STEPS, Caches, Device, RoundTrip
from tests.integration.starts import Fleet


class MakeRoundTrip(Protocol):
    """Record a script on machine A and start it on machine B; once for each way to run it."""

    def __call__(
        self, script: str, caches: Caches = Caches.LOCAL, device: Device = Device.CPU
    ) -> RoundTrip: ...


@pytest.fixture(params=Caches, ids=lambda caches: caches.name.lower())
def caches(request: pytest.FixtureRequest) -> Caches:
    """Which of PyTorch's caches the user turned on: the local ones, or the remote ones as well."""
    found: Caches = request.param
    return found


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    """Where the script computes."""
    found: Device = request.param
    return found


@pytest.fixture(scope="session")
def round_trip(fleet: Fleet) -> MakeRoundTrip:
    """Make round trips. A may share a TMPDIR with other machines that record; B shares nothing."""

    @cache
    def attempt(script: str, caches: Caches, device: Device) -> RoundTrip | AssertionError:
        try:
            return make(script, caches, device)
        except AssertionError as error:
            return error

    def make(script: str, caches: Caches, device: Device) -> RoundTrip:
        # Scripts, and the ways to run one, do not find each other's graphs; they find its libraries.
        tag = f"{digest_of(script.encode())[:16]}-{caches.name}-{device.name}"
        apart = {"TORCH_COMPILE_CACHE_KEY_TAG": tag, "S3CACHE_JOB": tag}
        variables = apart | caches.variables | {"DEVICE": device.value, "ROLE": "b"}
        text = dedent(STEPS) + dedent(script)
        a, b = fleet.recorder(), fleet.fresh()
        recorded = a.start(text, **variables | {"ROLE": "a"})
        # What A left behind could be found by an absolute path.
        a.folder.rename(a.folder.with_name(f"{a.folder.name}-gone"))
        return RoundTrip(recorded, b.start(text, **variables), b, text, variables)

    def outcome(script: str, caches: Caches = Caches.LOCAL, device: Device = Device.CPU) -> RoundTrip:
        trip = attempt(script, caches, device)
        if isinstance(trip, AssertionError):
            raise trip
        return trip

    return outcome
