"""Credentials that take their time: nothing is lost, nobody waits for long, and it is said."""

import json
import os
import signal
import time

from tests.processes.conftest import NewMachine
from tests.processes.machines import IDLE_SECONDS, Bucket, Machine, credentials_of
from tests.processes.stubs import counting

NEVER = "sleep 100"
PUT = 'cache.put("fx-graph", "key", {"graph": content("key", 200_000)})'


def late(machine: Machine, seconds: float) -> dict[str, str | None]:
    """Return what lets the machine's own credentials come so late."""
    program = machine.folder / "credentials"
    said = {
        "Version": 1,
        "AccessKeyId": machine.settings["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": machine.settings["AWS_SECRET_ACCESS_KEY"],
    }
    program.write_text(f"#!/bin/sh\nsleep {seconds}\necho '{json.dumps(said)}'\n")
    program.chmod(0o755)
    return credentials_of(machine, str(program))


def test_what_a_short_job_put_is_stored_before_its_launcher_ends(
    new_machine: NewMachine, bucket: Bucket
) -> None:
    machine = new_machine(is_unhurried=False)
    script = machine.script(PUT)
    job = machine.s3cache("run", "--", machine.python, str(script), **late(machine, 2.5))
    assert (job.status, job.stdout) == (0, "")
    assert bucket.keys("fx-graph") == ["key"]


def test_what_a_job_put_that_ended_before_they_came_is_stored(machine: Machine, bucket: Bucket) -> None:
    machine.run(PUT, **late(machine, 4.0))
    assert bucket.keys("fx-graph") == []
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["key"]
    assert not machine.spooled()


def test_a_fresh_machine_fetches_by_its_profile_and_is_told_nothing(
    new_machine: NewMachine, bucket: Bucket
) -> None:
    recording = new_machine()
    recording.run(PUT)
    recording.wait_until_idle()
    machine = new_machine(is_unhurried=False)
    with counting(bucket.settings["AWS_ENDPOINT_URL_S3"]) as proxy:
        settings = late(machine, 1.5) | {"AWS_ENDPOINT_URL_S3": proxy.endpoint}
        job = machine.run('assert cache.get("fx-graph", "key")', **settings)
    assert job[:3] == (0, "", "")
    assert len(proxy.paths("GET", "/preludes/")) == 1
    assert proxy.paths("GET", "/manifests/") == []


def test_who_asks_for_a_profile_alone_is_told(new_machine: NewMachine) -> None:
    machine = new_machine(is_unhurried=False)
    job = machine.run('cache.profile("driver-kernel")', **credentials_of(machine, NEVER))
    assert "credentials did not come in time; if none come, set AWS_PROFILE" in job.stderr


def test_an_agent_that_waits_for_them_ends_soon_after_a_sigterm(machine: Machine) -> None:
    machine.run(PUT, **credentials_of(machine, NEVER))
    (agent,) = machine.agents()
    # No process is left, and it has begun to wait.
    time.sleep(1.5)
    os.kill(agent, signal.SIGTERM)
    machine.wait_until_idle(IDLE_SECONDS / 5)
    assert len(machine.spooled()) == 1
