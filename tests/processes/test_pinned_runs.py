"""Pinned runs: their processes find the same, whatever comes, goes or dies meanwhile."""

import json
import os
import shutil
import signal

import pytest

from s3cache.client import PATIENCE_SECONDS
from s3cache.prefetch import AT_ONCE
from tests.processes.conftest import NewMachine
from tests.processes.machines import Bucket, Machine, ended
from tests.processes.stubs import REFUSING, counting

SIZES = {"small": 1_000, "big": 300_000}
RECORD = """
for key, size in {"small": 1_000, "big": 300_000}.items():
    cache.put("fx-graph", key, {"graph": content(key, size)})
"""
RECORD_MORE = """
cache.put("fx-graph", "more", {"graph": content("more", 300_000)})
"""
READ = """
found = []
for key, size in {"small": 1_000, "big": 300_000, "more": 300_000}.items():
    if entry := cache.get("fx-graph", key):
        assert entry.members == {"graph": content(key, size)}
        found.append(key)
say(*found)
"""
NOTHING, BOTH, ALL = "\n", "small big\n", "small big more\n"


def rank(machine: Machine, run: str = "run", **variables: str) -> str:
    """Return what one process of a pinned run finds."""
    ended = machine.run(READ, **{"S3CACHE_PIN": "1", "_S3CACHE_RUN": run, **variables})
    assert (ended.status, ended.stderr) == (0, "")
    return ended.stdout


def record(machine: Machine, text: str = RECORD) -> None:
    assert machine.run(text)[:3] == (0, "", "")
    machine.wait_until_idle()


@pytest.mark.parametrize("pin", ["0", "1"])
def test_what_appears_in_the_bucket_meanwhile_is_seen_by_all_or_by_none(
    new_machine: NewMachine, pin: str
) -> None:
    """Without a pin the processes of a run differ, which shows that they would."""
    machine = new_machine()
    first = rank(machine, S3CACHE_PIN=pin)
    record(new_machine())
    later = [rank(machine, S3CACHE_PIN=pin) for _ in range(2)]
    assert first == NOTHING
    assert later == ([NOTHING] * 2 if pin == "1" else [BOTH] * 2)


def test_what_appears_in_the_disk_tier_meanwhile_is_not_seen(machine: Machine) -> None:
    record(machine)
    assert rank(machine) == BOTH
    record(machine, RECORD_MORE)
    assert [rank(machine) for _ in range(2)] == [BOTH] * 2
    assert rank(machine, run="the next") == ALL


def test_what_a_pinned_run_stores_is_for_the_next_one(machine: Machine, bucket: Bucket) -> None:
    pinned = {"S3CACHE_PIN": "1", "_S3CACHE_RUN": "run"}
    assert machine.run(RECORD + READ, **pinned)[:3] == (0, NOTHING, "")
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == sorted(SIZES)
    assert rank(machine) == NOTHING
    assert rank(machine, run="the next") == BOTH


def test_what_ranks_need_not_agree_on_is_seen_at_once(new_machine: NewMachine) -> None:
    """The job begins to use its GPU, and wants what the driver compiled, before ranks can have agreed."""
    record(new_machine(), 'cache.put("driver-kernel", "key", {"kernel": b"SASS"})')
    found = new_machine().run(
        """
        say(cache.get("driver-kernel", "key") is not None)
        """,
        S3CACHE_PIN="1",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="1",
    )
    assert found[:3] == (0, "True\n", "")


def test_a_fresh_machine_finds_all_without_a_look_up(new_machine: NewMachine) -> None:
    record(new_machine())
    machine = new_machine()
    path = machine.folder / "report.json"
    assert rank(machine, S3CACHE_REPORT=str(path)) == BOTH
    machine.wait_until_idle()
    report = json.loads(path.read_text())
    assert report["pinned"] == 2
    assert report["requests"] == {"GET": 1, "PUT": 0, "LIST": 1, "DELETE": 0}
    assert report["namespaces"]["fx-graph"]["misses"] == 1
    job = machine.s3cache("run", "--job", "job", "--", machine.python, "job.py", S3CACHE_PIN="1")
    assert (job.status, job.stdout) == (0, BOTH)
    assert "; pinned: 2 entries" in job.stderr


def test_a_prefetch_is_waited_for_however_slow_the_bucket_is(
    new_machine: NewMachine, bucket: Bucket
) -> None:
    """It takes longer than a process waits for what gives nothing, though each request is short."""
    results = 2 * AT_ONCE + 6
    record(
        new_machine(),
        f"""
        for number in range({results}):
            cache.put("fx-graph", f"key-{{number}}", {{"graph": content(number, 1_200_000)}})
        """,
    )
    machine = new_machine(is_unhurried=False)
    with counting(bucket.settings["AWS_ENDPOINT_URL_S3"], pack_seconds=1.2) as proxy:
        job = machine.run(
            f"""
            say(sum(cache.get("fx-graph", f"key-{{number}}") is not None for number in range({results})))
            """,
            S3CACHE_PIN="1",
            AWS_ENDPOINT_URL_S3=proxy.endpoint,
        )
        machine.wait_until_idle()
    assert job[:3] == (0, f"{results}\n", "")
    assert len(proxy.paths("GET", "/packs/")) > 2 * AT_ONCE
    assert job.seconds > PATIENCE_SECONDS


def test_a_view_that_is_damaged_on_disk_is_what_it_was(machine: Machine) -> None:
    record(machine)
    waiting = machine.start("sys.stdin.read()", S3CACHE_PIN="1", _S3CACHE_RUN="run")
    assert rank(machine) == BOTH
    (path,) = machine.cache.glob("tier/*/objects/views/*")
    path.write_bytes(path.read_bytes()[:-1])
    job = machine.run(READ, S3CACHE_PIN="1", _S3CACHE_RUN="run")
    assert job[:2] == (0, BOTH)
    assert "does not match its digest" in job.stderr
    assert rank(machine) == BOTH
    assert ended(waiting).status == 0


def test_processes_that_start_at_once_find_the_same(new_machine: NewMachine) -> None:
    record(new_machine())
    machine = new_machine()
    pinned = {"S3CACHE_PIN": "1", "_S3CACHE_RUN": "run"}
    ranks = [machine.start(READ, **pinned) for _ in range(8)]
    assert {ended(each)[:2] for each in ranks} == {(0, BOTH)}


def test_an_agent_that_dies_changes_nothing(machine: Machine, new_machine: NewMachine) -> None:
    waiting = machine.start("sys.stdin.read()", S3CACHE_PIN="1", _S3CACHE_RUN="run")
    assert rank(machine) == NOTHING
    machine.kill_agent()
    record(new_machine())
    assert rank(machine) == NOTHING
    assert ended(waiting).status == 0


def test_what_vanishes_from_the_disk_comes_again(machine: Machine) -> None:
    record(machine)
    assert rank(machine) == BOTH
    for objects in machine.cache.glob("tier/*/objects"):
        for kind in ("packs", "catalogs", "profiles"):
            shutil.rmtree(objects / kind)
    assert rank(machine) == BOTH


def test_what_is_on_disk_is_seen_without_a_bucket(machine: Machine) -> None:
    record(machine)
    job = machine.run(READ, S3CACHE_PIN="1", AWS_ENDPOINT_URL_S3=REFUSING)
    assert job[:2] == (0, BOTH)
    assert "AWS_ENDPOINT_URL_S3" in job.stderr


def test_who_gets_no_answer_decides_that_nobody_sees_anything(machine: Machine) -> None:
    record(machine)
    machine.is_unhurried = False
    waiting = machine.start('cache.get("fx-graph", "absent"); say("up"); sys.stdin.read()')
    assert waiting.stdout
    assert waiting.stdout.readline() == "up\n"
    (agent,) = machine.agents()
    os.kill(agent, signal.SIGSTOP)
    try:
        job = machine.run(READ, S3CACHE_PIN="1", _S3CACHE_RUN="run")
    finally:
        os.kill(agent, signal.SIGCONT)
    assert job[:2] == (0, NOTHING)
    assert "did not answer in time" in job.stderr
    assert job.seconds < 8
    assert rank(machine) == NOTHING
    assert rank(machine, run="the next") == BOTH
    assert ended(waiting).status == 0
