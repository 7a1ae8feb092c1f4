"""The report: its keys as documented, there when the process has exited, final when the agent is gone."""

import json
from pathlib import Path
from typing import Any

from tests.processes.conftest import NewMachine
from tests.processes.machines import Bucket, Machine

COUNTS = {"bucket_hits", "disk_hits", "misses", "puts", "bytes_down", "bytes_up"}
REQUESTS = {"GET", "PUT", "LIST", "DELETE"}
RECORD = """
cache.get("fx-graph", "small")
cache.put("fx-graph", "small", {"graph": b"result"})
cache.put("fx-graph", "big", {"graph": content("big", 300_000)})
cache.put("autotune", "key", {"best": b"config"})
"""
# What is asked for before the prefetch has brought it is fetched by itself, which costs a request more.
READ = """
time.sleep(1.2)
for key in ("small", "big", "absent", "small"):
    cache.get("fx-graph", key)
cache.get("autotune", "key")
"""


def test_report_has_the_documented_keys(machine: Machine) -> None:
    report = machine.folder / "report.json"
    assert machine.run(RECORD, S3CACHE_REPORT=str(report))[:3] == (0, "", "")
    machine.wait_until_idle()
    said = _read(report)
    assert set(said) == {
        "job", "namespaces", "requests", "seconds", "faults", "prefetched_bytes", "quarantined",
        "versions", "machine", "pinned", "trusted_keys", "warnings",
    }  # fmt: skip
    assert said["job"] == "job"
    assert set(said["namespaces"]) == {"fx-graph", "autotune"}
    assert all(set(counts) == COUNTS for counts in said["namespaces"].values())
    assert set(said["requests"]) == REQUESTS
    assert set(said["seconds"]) <= {"lookup", "prefetch", "read", "spool", "start"}
    assert all(isinstance(value, float) for value in said["seconds"].values())
    assert {"python", "torch-s3cache", "aioboto3"} <= set(said["versions"])
    assert {"platform", "python", "cpu_flags", "glibc"} <= set(said["machine"])
    assert said["pinned"] is None
    assert said["warnings"] == []


def test_report_is_there_when_the_process_has_exited(machine: Machine) -> None:
    report = machine.folder / "report.json"
    job = machine.run('cache.get("fx-graph", "absent")', S3CACHE_REPORT=str(report))
    assert job.status == 0
    assert _read(report)["namespaces"]["fx-graph"]["misses"] == 1


def test_report_is_there_when_a_process_exits_before_its_agent_is_up(machine: Machine) -> None:
    report = machine.folder / "report.json"
    job = machine.run("", S3CACHE_REPORT=str(report))
    assert job[:3] == (0, "", "")
    assert _read(report)["job"] == "job"


def test_folder_of_the_report_is_made(machine: Machine) -> None:
    report = machine.folder / "reports" / "today" / "report.json"
    assert machine.run("", S3CACHE_REPORT=str(report))[:3] == (0, "", "")
    assert _read(report)["job"] == "job"


def test_final_report_of_a_recording_run(machine: Machine, bucket: Bucket) -> None:
    report = machine.folder / "report.json"
    assert machine.run(RECORD, S3CACHE_REPORT=str(report)).status == 0
    machine.wait_until_idle()
    said = _read(report)
    graphs = said["namespaces"]["fx-graph"]
    assert (graphs["bucket_hits"], graphs["disk_hits"], graphs["misses"], graphs["puts"]) == (0, 0, 1, 2)
    assert graphs["bytes_up"] > 300_000
    assert said["namespaces"]["autotune"]["puts"] == 1
    # A claim and its pack, three manifests, one segment, the prelude.
    assert said["requests"]["PUT"] == 7
    assert said["requests"]["DELETE"] == 1
    assert len(bucket.names()) == 6


def test_final_report_of_a_fresh_machine_and_of_a_hot_one(new_machine: NewMachine) -> None:
    recording = new_machine()
    recording.run(RECORD)
    recording.wait_until_idle()

    machine = new_machine()
    report = machine.folder / "report.json"
    assert machine.run(READ, S3CACHE_REPORT=str(report)).status == 0
    machine.wait_until_idle()
    said = _read(report)
    graphs = said["namespaces"]["fx-graph"]
    assert (graphs["bucket_hits"], graphs["disk_hits"], graphs["misses"], graphs["puts"]) == (2, 0, 1, 0)
    assert graphs["bytes_down"] > 300_000
    assert said["namespaces"]["autotune"]["bucket_hits"] == 1
    # The prelude, the absent key.
    assert said["requests"] == {"GET": 2, "PUT": 0, "LIST": 1, "DELETE": 0}

    assert machine.run(READ, S3CACHE_REPORT=str(report)).status == 0
    machine.wait_until_idle()
    said = _read(report)
    graphs = said["namespaces"]["fx-graph"]
    assert (graphs["bucket_hits"], graphs["disk_hits"], graphs["misses"], graphs["puts"]) == (0, 2, 1, 0)
    assert graphs["bytes_down"] == 0
    assert said["requests"] == {"GET": 1, "PUT": 0, "LIST": 1, "DELETE": 0}


def test_relative_report_is_relative_to_where_the_job_started(machine: Machine) -> None:
    job = machine.run('os.mkdir("elsewhere"); os.chdir("elsewhere")', S3CACHE_REPORT="report.json")
    assert job.status == 0
    machine.wait_until_idle()
    assert (machine.folder / "report.json").is_file()
    assert not list((machine.folder / "elsewhere").iterdir())


def _read(report: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(report.read_text())
    return said
