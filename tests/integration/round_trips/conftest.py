"""Round trips: machine A records a script, machine B starts it with nothing but the bucket."""

from functools import cache
from typing import Protocol

import pytest

from tests.integration.round_trips.trips import DEVICES, Caches, Device, RoundTrip, travel
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
            return travel(fleet, script, caches, device, b=fleet.fresh())
        except AssertionError as error:
            return error

    def outcome(script: str, caches: Caches = Caches.LOCAL, device: Device = Device.CPU) -> RoundTrip:
        trip = attempt(script, caches, device)
        if isinstance(trip, AssertionError):
            raise trip
        return trip

    return outcome
