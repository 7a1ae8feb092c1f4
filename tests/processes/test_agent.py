"""The agent comes when it is needed and goes when it is not."""

import json
import os
import signal
import time
from pathlib import Path

from s3cache.agent.server import NICENESS
from tests.processes.conftest import NewMachine
from tests.processes.machines import Bucket, Machine, children, ended, wait_for
from tests.processes.stubs import REFUSING, failing

# It lingers for half a second; the rest is for starting, storing and being noticed. One that does not
# see that its job is gone stays for ever.
SOON_SECONDS = 20.0


def test_agent_ends_soon_after_the_last_job(machine: Machine, bucket: Bucket) -> None:
    job = machine.run('cache.put("fx-graph", "key", {"graph": b"result"})')
    assert job.status == 0
    machine.wait_until_idle(SOON_SECONDS)
    assert bucket.keys("fx-graph") == ["key"]
    assert not machine.spooled()


def test_agent_stays_as_long_as_the_job(machine: Machine) -> None:
    job = machine.start('say(cache.get("fx-graph", "absent"))\nsys.stdin.read()')
    agent = machine.wait_for_agent()
    # Longer than it lingers without one.
    time.sleep(1.2)
    assert machine.agents() == [agent]
    assert ended(job)[:3] == (0, "None\n", "")
    machine.wait_until_idle(SOON_SECONDS)


def test_job_has_no_child_that_it_does_not_know_of(machine: Machine) -> None:
    job = machine.start("sys.stdin.read()")
    agent = machine.wait_for_agent()
    assert children(job.pid) == []
    assert os.getsid(agent) != os.getsid(job.pid)
    ended(job)
    machine.wait_until_idle(SOON_SECONDS)


def test_agent_steps_back_when_it_begins_to_upload(new_machine: NewMachine) -> None:
    machine = new_machine(is_unhurried=False)
    job = machine.start(
        """
        cache.get("fx-graph", "absent")
        say("looked up")
        sys.stdin.readline()
        cache.put("fx-graph", "key", {"graph": b"result"})
        cache.flush(10)
        say("stored")
        sys.stdin.readline()
        """
    )
    assert job.stdin
    assert job.stdout
    assert job.stdout.readline() == "looked up\n"
    agent = machine.wait_for_agent()
    assert os.getpriority(os.PRIO_PROCESS, agent) == 0
    job.stdin.write("\n")
    job.stdin.flush()
    assert job.stdout.readline() == "stored\n"
    assert os.getpriority(os.PRIO_PROCESS, agent) == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, job.pid) == 0
    autogroup = Path(f"/proc/{agent}/autogroup")
    if autogroup.exists():
        assert autogroup.read_text().endswith(f"nice {NICENESS}\n")
    assert ended(job, "\n").status == 0


def test_agent_has_no_signal_blocked_though_the_job_has(machine: Machine) -> None:
    blocking = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.execv(sys.executable, [sys.executable, sys.argv[1]])\n"
    )
    script = machine.script("sys.stdin.read()")
    job = machine.execute([machine.python, "-c", blocking, str(script)])
    agent = machine.wait_for_agent()
    assert "SigBlk:\t0000000000000000\n" in Path(f"/proc/{agent}/status").read_text()
    ended(job)


def test_one_agent_serves_jobs_that_start_at_once(machine: Machine) -> None:
    text = 'cache.get("fx-graph", "absent")\nsay("ready")\nsys.stdin.read()'
    jobs = [machine.start(text) for _ in range(4)]
    for job in jobs:
        assert job.stdout
        assert job.stdout.readline() == "ready\n"
    wait_for(lambda: len(machine.agents()) == 1, "the agents that came second to leave")
    assert [ended(job)[:1] for job in jobs] == [(0,)] * 4


def test_jobs_that_start_while_an_agent_is_leaving_are_served_at_once(machine: Machine) -> None:
    text = """
        began = time.monotonic()
        cache.get("fx-graph", "absent")
        say(time.monotonic() - began)
        """
    for pause in (0.45, 0.55, 0.65):
        job = machine.run(text)
        assert (job.status, job.stderr) == (0, "")
        # Who is not, waits on an unhurried machine for 20 s until another agent may be started.
        assert float(job.stdout) < 10
        time.sleep(pause)


def test_log_says_what_the_agent_did(machine: Machine, bucket: Bucket) -> None:
    put = 'cache.put("fx-graph", "key", {"graph": b"result"})'
    assert machine.run(put, S3CACHE_JOB="a-job").status == 0
    machine.wait_until_idle()
    assert "0 entries of a-job; " in machine.log()
    assert machine.run("time.sleep(1)", S3CACHE_JOB="a-job").status == 0
    machine.wait_until_idle()
    assert "1 entries of a-job; " in machine.log()


def test_results_that_cannot_be_stored_do_not_keep_the_agent_and_the_log_says_why(machine: Machine) -> None:
    put = 'cache.put("fx-graph", "key", {"graph": b"result"})'
    with failing(404, "NoSuchBucket") as endpoint:
        assert machine.run(put, AWS_ENDPOINT_URL_S3=endpoint).status == 0
        machine.wait_until_idle(SOON_SECONDS)
    assert len(machine.spooled()) == 1
    assert "there is no such bucket" in machine.log()


def test_cache_folder_may_be_named_from_anywhere(machine: Machine, bucket: Bucket) -> None:
    job = machine.run('cache.put("fx-graph", "key", {"graph": b"result"})', S3CACHE_DIR="cache")
    assert job.status == 0
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["key"]


def test_agent_that_did_not_answer_is_asked_again_later(new_machine: NewMachine) -> None:
    recording, machine = new_machine(), new_machine()
    recording.run('cache.put("fx-graph", "key", {"graph": b"result"})')
    recording.wait_until_idle()
    job = machine.start(
        """
        cache.get("fx-graph", "absent")
        say("ready")
        sys.stdin.readline()
        cache._cooldown, cache._patience = 0.2, 1.0
        began = time.monotonic()
        for number in range(20):
            cache.get("fx-graph", f"absent-{number}")
        say(time.monotonic() - began)
        sys.stdin.readline()
        while (entry := cache.get("fx-graph", "key")) is None:
            time.sleep(0.1)
        say(entry.members)
        """,
        S3CACHE_JOB="never-seen",
    )
    assert job.stdout
    assert job.stdin
    assert job.stdout.readline() == "ready\n"
    agent = machine.wait_for_agent()
    os.kill(agent, signal.SIGSTOP)
    job.stdin.write("\n")
    job.stdin.flush()
    # Each by itself would wait as long as the first one.
    assert float(job.stdout.readline()) < 10
    os.kill(agent, signal.SIGCONT)
    assert ended(job, says="\n").stdout == "{'graph': b'result'}\n"


def test_path_of_the_cache_folder_may_be_long(machine: Machine, bucket: Bucket) -> None:
    machine.cache = machine.folder / ("long-" * 20) / ("longer-" * 20)
    job = machine.run('cache.put("fx-graph", "key", {"graph": b"result"})')
    assert job.status == 0
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["key"]


def test_a_job_whose_results_were_uploaded_before_it_started_is_prefetched(
    new_machine: NewMachine, bucket: Bucket
) -> None:
    put = 'cache.put("fx-graph", "key", {"graph": b"result"})'
    recording = new_machine()
    recording.run(put, S3CACHE_JOB="eval")
    recording.wait_until_idle()
    machine = new_machine()
    # What this one could not upload is of the same job, and is uploaded by the agent of another.
    machine.run(
        'cache.put("fx-graph", "late", {"graph": b"result"})',
        S3CACHE_JOB="eval",
        AWS_ENDPOINT_URL_S3=REFUSING,
    )
    train = machine.start('say("up")\nsys.stdin.read()', S3CACHE_JOB="train")
    assert train.stdout
    assert train.stdout.readline() == "up\n"
    wait_for(lambda: not machine.spooled(), "the spool to be empty")
    asked = machine.run('say(cache.profile("fx-graph"))', S3CACHE_JOB="eval")
    # A profile that nobody reads is waited for in vain, for a minute.
    assert "'key'" in asked.stdout
    assert asked.seconds < 30
    train.communicate(timeout=30)
    machine.wait_until_idle()


def test_a_job_that_dies_of_sigpipe_does_not_when_its_agent_is_gone(machine: Machine) -> None:
    job = machine.start(
        """
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        cache.put("fx-graph", "key", {"graph": b"result"})
        cache.flush(5)
        say("up")
        sys.stdin.readline()
        for _ in range(3):
            cache.waited("something", 0.1)
            time.sleep(0.1)
        """
    )
    assert job.stdout
    assert job.stdin
    assert job.stdout.readline() == "up\n"
    machine.kill_agent()
    assert ended(job, "\n").status == 0


def test_what_is_said_to_an_agent_that_is_gone_is_said_to_the_next_one(machine: Machine) -> None:
    report = machine.folder / "report.json"
    job = machine.start(
        """
        cache.get("fx-graph", "absent")
        time.sleep(0.1)
        say("up")
        sys.stdin.readline()
        cache.waited("something", 7.0)
        cache.get("fx-graph", "absent as well")
        """,
        S3CACHE_REPORT=str(report),
    )
    assert job.stdout
    assert job.stdout.readline() == "up\n"
    machine.kill_agent()
    assert ended(job, "\n").status == 0
    assert json.loads(report.read_text())["seconds"]["something"] == 7.0
