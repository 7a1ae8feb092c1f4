"""What the settings switch off stays off: no process, no file, no write."""

from tests.processes.conftest import NewMachine
from tests.processes.machines import Bucket, Machine
from tests.processes.stubs import REFUSING

PUT = 'cache.put("fx-graph", "key", {"graph": b"result"})'
GET = """
entry = cache.get("fx-graph", "key")
say(entry and entry.members)
"""
FOUND = "{'graph': b'result'}\n"


def test_nothing_happens_without_a_url(machine: Machine) -> None:
    job = machine.run("say(cache)", S3CACHE_URL=None)
    assert job[:3] == (0, "None\n", "")
    assert not machine.agents()
    assert not machine.cache.exists()
    assert not any((machine.folder / "home").iterdir())


def test_nothing_happens_when_the_mode_is_off(machine: Machine) -> None:
    job = machine.run("say(cache)", S3CACHE_MODE="off")
    assert job[:3] == (0, "None\n", "")
    assert not machine.agents()
    assert not machine.cache.exists()
    assert not any((machine.folder / "home").iterdir())


def test_read_only_reads_and_writes_nothing(new_machine: NewMachine, bucket: Bucket) -> None:
    recording = new_machine()
    recording.run(PUT)
    recording.wait_until_idle()
    before = bucket.names()
    machine = new_machine()
    put_more = 'cache.put("fx-graph", "other", {"graph": b"result"})'
    job = machine.run(GET + put_more, S3CACHE_MODE="read-only", S3CACHE_JOB="never-seen")
    assert job[:3] == (0, FOUND, "")
    machine.wait_until_idle()
    assert bucket.names() == before
    assert not machine.spooled()
    # The disk tier is filled all the same.
    assert machine.run(GET, S3CACHE_MODE="read-only", S3CACHE_URL=bucket.url).stdout == FOUND


def test_read_only_leaves_an_older_spool_alone(machine: Machine, bucket: Bucket) -> None:
    machine.run(PUT, AWS_ENDPOINT_URL_S3=REFUSING)
    machine.wait_until_idle()
    assert machine.run("", S3CACHE_MODE="read-only").status == 0
    machine.wait_until_idle()
    assert len(machine.spooled()) == 1
    assert bucket.names() == []


def test_excluded_namespace_is_neither_written_nor_read(new_machine: NewMachine, bucket: Bucket) -> None:
    put_both = PUT + '\ncache.put("autotune", "key", {"best": b"result"})'
    recording = new_machine()
    assert recording.run(put_both, S3CACHE_EXCLUDE="autotune, dynamo-pgo").status == 0
    recording.wait_until_idle()
    assert bucket.keys("fx-graph") == ["key"]
    assert bucket.keys("autotune") == []

    machine = new_machine()
    job = machine.run(GET, S3CACHE_EXCLUDE="fx-graph")
    assert job[:3] == (0, "None\n", "")
    machine.wait_until_idle()
    assert not list(machine.cache.glob("tier/*/objects/manifests/fx-graph/*/*"))
    assert not list(machine.cache.glob("tier/*/objects/packs/*/*"))


def test_results_of_one_url_are_not_taken_for_those_of_another(machine: Machine, bucket: Bucket) -> None:
    machine.run(PUT)
    machine.wait_until_idle()
    assert machine.run(GET).stdout == FOUND
    assert machine.run(GET, S3CACHE_URL=bucket.url + "/other").stdout == "None\n"
