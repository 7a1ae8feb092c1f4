"""A SIGTERM reaches the job's own handler, and what was put still arrives."""

import os
import signal
import time

from tests.processes.machines import Bucket, Machine, ended, wait_for
from tests.processes.stubs import silent

# What the agent may take after a SIGTERM, and the time to notice that it is gone.
DEADLINE_SECONDS = 10.0 + 2.0


def test_sigterm_to_the_jobs_group_runs_its_handler(machine: Machine, bucket: Bucket) -> None:
    job = machine.start(
        """
        def leave(number, frame):
            cache.put("fx-graph", "in-the-handler", {"graph": b"result"})
            say("handler")
            sys.exit(9)

        signal.signal(signal.SIGTERM, leave)
        for number in range(20):
            cache.put("fx-graph", f"key-{number:02}", {"graph": content(number, 50_000)})
        say("ready")
        time.sleep(60)
        """
    )
    assert job.stdout
    assert job.stdout.readline() == "ready\n"
    os.killpg(job.pid, signal.SIGTERM)
    assert ended(job)[:3] == (9, "handler\n", "")
    machine.wait_until_idle(DEADLINE_SECONDS)
    assert bucket.keys("fx-graph") == ["in-the-handler", *(f"key-{number:02}" for number in range(20))]


def test_sigterm_without_a_handler_ends_the_job(machine: Machine, bucket: Bucket) -> None:
    job = machine.start(
        """
        cache.put("fx-graph", "key", {"graph": b"result"})
        say("ready")
        time.sleep(60)
        """
    )
    assert job.stdout
    assert job.stdout.readline() == "ready\n"
    os.killpg(job.pid, signal.SIGTERM)
    assert ended(job).status == -signal.SIGTERM
    machine.wait_until_idle(DEADLINE_SECONDS)
    assert bucket.keys("fx-graph") == ["key"]


def test_handler_may_put_while_the_same_thread_waits_for_an_answer(machine: Machine) -> None:
    with silent() as endpoint:
        job = machine.start(
            """
            def leave(number, frame):
                cache.put("fx-graph", "in-the-handler", {"graph": b"result"})
                say(cache.get("fx-graph", "in-the-handler"))
                sys.exit(9)

            signal.signal(signal.SIGTERM, leave)
            say("ready")
            cache.get("fx-graph", "key")
            """,
            AWS_ENDPOINT_URL_S3=endpoint,
        )
        assert job.stdout
        assert job.stdout.readline() == "ready\n"
        machine.wait_for_agent()
        time.sleep(0.5)
        began = time.monotonic()
        os.killpg(job.pid, signal.SIGTERM)
        end = ended(job)
        assert end.status == 9
        assert time.monotonic() - began < 5.0
        assert len(machine.spooled()) == 1


def test_agent_that_gets_a_sigterm_sends_what_waits_and_ends(machine: Machine, bucket: Bucket) -> None:
    job = machine.start(
        """
        for number in range(20):
            cache.put("fx-graph", f"key-{number:02}", {"graph": content(number, 50_000)})
        say("ready")
        time.sleep(60)
        """
    )
    assert job.stdout
    assert job.stdout.readline() == "ready\n"
    os.kill(machine.wait_for_agent(), signal.SIGTERM)
    machine.wait_until_idle(DEADLINE_SECONDS)
    assert bucket.keys("fx-graph") == [f"key-{number:02}" for number in range(20)]
    assert not machine.spooled()
    assert job.poll() is None


def test_agent_that_gets_a_sigterm_ends_though_the_bucket_never_answers(machine: Machine) -> None:
    with silent() as endpoint:
        job = machine.start(
            """
            cache.put("fx-graph", "key", {"graph": b"result"})
            say("ready")
            time.sleep(60)
            """,
            AWS_ENDPOINT_URL_S3=endpoint,
        )
        assert job.stdout
        assert job.stdout.readline() == "ready\n"
        os.kill(machine.wait_for_agent(), signal.SIGTERM)
        machine.wait_until_idle(DEADLINE_SECONDS)
        assert len(machine.spooled()) == 1


def test_job_goes_on_with_a_new_agent_after_its_agent_got_a_sigterm(
    machine: Machine, bucket: Bucket
) -> None:
    job = machine.start(
        """
        cache.get("fx-graph", "absent")
        say("ready")
        sys.stdin.readline()
        began = time.monotonic()
        say(cache.get("fx-graph", "absent"))
        cache.put("fx-graph", "key", {"graph": b"result"})
        """
    )
    assert job.stdout
    assert job.stdout.readline() == "ready\n"
    os.kill(machine.wait_for_agent(), signal.SIGTERM)
    machine.wait_until_idle(DEADLINE_SECONDS)
    assert ended(job, says="\n")[:3] == (0, "None\n", "")
    machine.wait_until_idle()
    wait_for(lambda: bucket.keys("fx-graph") == ["key"], "what was put later")
