"""What is known of a fleet: of each job one machine that wrote, and whether it finds a kernel."""

from collections.abc import Mapping

import anyio
import pytest

from s3cache import catalog, fleet, names, profile
from s3cache.bucket import Bucket
from s3cache.errors import BucketAbsent, Unreachable
from s3cache.fleet import Report
from s3cache.keyring import NO_KEYS
from s3cache.machine import platform_tag
from s3cache.profile import Segment
from s3cache.settings import Settings

HERE = platform_tag()
NAME = f"profiles/job/{HERE}/0000000000001-{0:032x}"


def segment(prefix: str = "", **writer: str) -> Segment:
    return Segment([], catalog.build([], NO_KEYS), profile=prefix, writer=writer)


def write(url: str, objects: Mapping[str, bytes]) -> None:
    async def create() -> None:
        async with Bucket(url) as bucket:
            for name, data in objects.items():
                assert await bucket.create(name, data)

    anyio.run(create)


def segments(job: str, platform: str = HERE, gpus: str = "", **pythons: int) -> dict[str, bytes]:
    """Return segments by their names: of machines with these versions of Python, written then."""
    prefix = names.profile_prefix(job, platform)
    encoded = {
        python: profile.encode(segment(prefix, python=python, gpus=gpus), NO_KEYS) for python in pythons
    }
    return {
        profile.segment_name(prefix, at, encoded[python]): encoded[python] for python, at in pythons.items()
    }


def known(url: str) -> list[tuple[str, str, str]]:
    """Return what the reports at a URL say of jobs, platforms and versions of Python."""
    reports = fleet.reports(Settings.from_environment({"S3CACHE_URL": url}))
    return [(report.job, report.platform, report.python) for report in reports]


def test_a_report_says_what_the_writer_of_a_segment_said_of_itself() -> None:
    made = Report.of(NAME, segment(python="3.11.7", triton="3.9.0", gpus="8"))
    assert made == Report("job", HERE, "3.11.7", "3.9.0", has_gpus=True)
    assert str(made) == f"job: Python 3.11.7, triton 3.9.0, {HERE}"


def test_what_a_segment_does_not_say_is_not_known() -> None:
    made = Report.of(NAME, segment(gpus=""))
    assert made == Report("job", HERE, "", "", has_gpus=False)
    assert "triton none" in str(made)


@pytest.mark.parametrize(
    ("python", "triton", "finds"),
    [
        ("3.11.7", "3.9.0", True),
        ("3.11.12", "3.9.0", True),
        ("3.12.7", "3.9.0", False),
        ("3.1.7", "3.9.0", False),
        ("3.11.7", "3.9.1", False),
    ],
)
def test_a_machine_finds_what_its_minor_python_and_its_triton_compile(
    python: str, triton: str, finds: bool
) -> None:
    assert Report("job", HERE, "3.11.7", "3.9.0", has_gpus=True).finds(python, triton) is finds


def test_a_machine_of_another_platform_finds_nothing() -> None:
    assert not Report("job", "linux-riscv64", "3.11.7", "3.9.0", has_gpus=True).finds("3.11.7", "3.9.0")


def test_the_newest_segment_of_each_job_and_platform_counts(on_moto: str) -> None:
    write(on_moto, segments("train", p310=10, p311=30, p39=20))
    write(on_moto, segments("serve", p312=40) | segments("train", "linux-riscv64", p313=5))
    assert known(on_moto) == [
        ("serve", HERE, "p312"),
        ("train", HERE, "p311"),
        ("train", "linux-riscv64", "p313"),
    ]


def test_the_newest_by_a_machine_with_gpus_counts_where_there_is_one(on_moto: str) -> None:
    write(on_moto, segments("train", gpus="8", p310=10, p311=20) | segments("train", p312=30, p313=40))
    assert known(on_moto) == [("train", HERE, "p311")]


def test_no_more_than_a_few_segments_of_a_job_are_read(
    on_moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SEGMENTS", 2)
    write(on_moto, segments("train", gpus="8", p310=10) | segments("train", p312=30, p313=40))
    assert known(on_moto) == [("train", HERE, "p313")]


def test_what_is_no_segment_is_left_out(on_moto: str) -> None:
    good = segments("good", p311=1)
    ((name, data),) = segments("job", p312=2).items()
    stamp, _, digits = name.rpartition("-")
    write(on_moto, good | {name: b"damage", name.replace("job/", "job/deeper/"): data})
    write(on_moto, {f"{stamp}x-{digits}": data, "profiles/file": data})
    assert known(on_moto) == [("good", HERE, "p311")]


def test_only_the_jobs_that_wrote_last_are_read(on_moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "JOBS", 2)
    write(on_moto, segments("old", p311=10) | segments("newest", p311=30) | segments("new", p311=20))
    assert [job for job, _, _ in known(on_moto)] == ["newest", "new"]


def test_an_empty_bucket_knows_of_nobody(on_moto: str) -> None:
    assert known(on_moto) == []


@pytest.mark.usefixtures("on_moto")
def test_a_bucket_that_is_absent_is_an_error() -> None:
    with pytest.raises(BucketAbsent):
        known("s3://no-such-bucket/prefix")


def test_a_deadline_that_passes_is_an_error(on_moto: str) -> None:
    settings = Settings.from_environment({"S3CACHE_URL": on_moto, "S3CACHE_DEADLINE": "0"})
    with pytest.raises(Unreachable, match="S3CACHE_DEADLINE"):
        fleet.reports(settings)
