"""The runs that an agent serves: which prefetch each waits for, and until when it is known."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from s3cache.agent import job_profile, jobs
from s3cache.agent.jobs import Jobs
from s3cache.agent.protocol import Hello
from s3cache.keyring import NO_KEYS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the monotonic clock shows."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_starts_that_follow_each_other_share_a_prefetch(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    first = known.run(Hello("first", "job", None)).prefetch
    assert known.run(Hello("second", "job", None)).prefetch is first
    first.end()
    clock[0] += job_profile.OLD_SECONDS - 1
    assert known.run(Hello("third", "job", None)).prefetch is first
    assert known.run(Hello("another", "another job", None)).prefetch is not first


def test_a_start_long_after_the_last_one_has_a_prefetch_of_its_own(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    first = known.run(Hello("first", "job", None))
    first.prefetch.end()
    clock[0] += job_profile.OLD_SECONDS + 1
    second = known.run(Hello("second", "job", None))
    assert second.prefetch is not first.prefetch
    assert known.run(Hello("first", "job", None)).prefetch is first.prefetch
    assert known.run(Hello("third", "job", None)).prefetch is second.prefetch


def test_a_prefetch_that_goes_on_is_not_old(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    first = known.run(Hello("first", "job", None))
    clock[0] += 10 * job_profile.OLD_SECONDS
    assert known.run(Hello("second", "job", None)).prefetch is first.prefetch


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


def end(ended: subprocess.Popen[bytes]) -> None:
    ended.kill()
    ended.wait()


def pass_by(known: Jobs, clock: list[float]) -> None:
    """Let an agent sweep often enough to forget what has ended."""
    for _ in range(3):
        known.forget_ended()
        clock[0] += jobs.KEPT_SECONDS / 2 + 1
    known.forget_ended()


def test_a_run_is_forgotten_a_while_after_its_last_process_has_ended(
    clock: list[float], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    known = Jobs(NO_KEYS)
    run = known.run(Hello("run", "job", str(report)))
    first, last = process(), process()
    for each in (first, last):
        run.enter(each.pid)
    end(first)
    # It may have lost its connection, and say nothing for long.
    pass_by(known, clock)
    assert known.runs
    end(last)
    known.forget_ended()
    assert known.runs
    pass_by(known, clock)
    assert not known.runs
    assert json.loads(report.read_text())["job"] == "job"


def test_a_run_of_which_no_process_has_connected_is_not_forgotten(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    known.run(Hello("run", "job", None))
    pass_by(known, clock)
    assert known.runs


def test_a_run_in_another_container_is_not_forgotten(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    known.run(Hello("run", "job", None)).enter(0)
    pass_by(known, clock)
    assert known.runs


def test_a_report_is_of_the_last_run_that_was_to_write_it(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    known = Jobs(NO_KEYS)
    first = known.run(Hello("first", "train", str(report)))
    last = known.run(Hello("last", "eval", str(report)))
    last.write_report()
    first.write_report()
    assert known.run(Hello("first", "train", str(report))) is first
    first.write_report()
    assert json.loads(report.read_text())["job"] == "eval"


def test_a_report_that_was_removed_is_written_again_when_there_is_something_new(tmp_path: Path) -> None:
    report = tmp_path / "folder" / "report.json"
    run = Jobs(NO_KEYS).run(Hello("run", "job", str(report)))
    run.write_report()
    report.unlink()
    report.parent.rmdir()
    run.write_report()
    assert not report.parent.exists()
    run.ledger.quarantined += 1
    run.write_report()
    assert json.loads(report.read_text())["quarantined"] == 1
