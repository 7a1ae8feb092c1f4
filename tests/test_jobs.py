"""The runs that an agent serves: which prefetch each waits for, and until when it is known."""

import json
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
    assert not second.prefetch.is_begun
    assert known.run(Hello("first", "job", None)).prefetch is first.prefetch
    assert known.run(Hello("third", "job", None)).prefetch is second.prefetch


def test_a_prefetch_that_goes_on_is_not_old(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    first = known.run(Hello("first", "job", None))
    clock[0] += 10 * job_profile.OLD_SECONDS
    assert known.run(Hello("second", "job", None)).prefetch is first.prefetch


def test_a_run_is_forgotten_a_while_after_its_last_process_with_its_report_written(
    clock: list[float], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    known = Jobs(NO_KEYS)
    run = known.run(Hello("run", "job", str(report)))
    for _ in range(2):
        run.enter()
    run.leave()
    clock[0] += 2 * jobs.KEPT_SECONDS
    known.forget_ended()
    assert known.runs
    run.leave()
    known.forget_ended()
    assert known.runs
    report.unlink()
    clock[0] += 2 * jobs.KEPT_SECONDS
    known.forget_ended()
    assert not known.runs
    assert json.loads(report.read_text())["job"] == "job"


def test_a_run_whose_process_comes_back_is_not_forgotten(clock: list[float]) -> None:
    known = Jobs(NO_KEYS)
    run = known.run(Hello("run", "job", None))
    run.enter()
    run.leave()
    run.enter()
    clock[0] += 2 * jobs.KEPT_SECONDS
    known.forget_ended()
    assert known.runs
