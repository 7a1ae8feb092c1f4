"""Settings: each is read from its variable, and a wrong value is refused by that name."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3cache.errors import SettingsError
from s3cache.settings import Mode, Settings, job_of, parse_url

URL = {"S3CACHE_URL": "s3://bucket/prefix"}


def settings(command: Sequence[str] = ("python", "train.py"), **variables: str) -> Settings:
    return Settings.from_environment(URL | variables, command)


def test_a_url_alone_is_enough(home: Path) -> None:
    assert settings() == Settings(
        url="s3://bucket/prefix",
        directory=home / ".cache" / "s3cache",
        disk_limit=10 << 30,
        mode=Mode.READ_WRITE,
        job="train",
        report=None,
        exclude=frozenset(),
        deadline_seconds=120.0,
        pin=False,
    )


def test_every_setting_is_read_from_its_variable(tmp_path: Path) -> None:
    found = settings(
        S3CACHE_DIR=str(tmp_path),
        S3CACHE_DISK_LIMIT="500MB",
        S3CACHE_MODE="read-only",
        S3CACHE_JOB="my job",
        S3CACHE_REPORT=str(tmp_path / "report.json"),
        S3CACHE_EXCLUDE="triton, fx-graph,,",
        S3CACHE_DEADLINE="0.5",
        S3CACHE_PIN="1",
    )
    assert found == Settings(
        url="s3://bucket/prefix",
        directory=tmp_path,
        disk_limit=500_000_000,
        mode=Mode.READ_ONLY,
        job="my job",
        report=tmp_path / "report.json",
        exclude=frozenset({"triton", "fx-graph"}),
        deadline_seconds=0.5,
        pin=True,
    )


def test_the_process_s_own_environment_and_command_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3CACHE_URL", "s3://from-the-environment")
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "package.train"])
    found = Settings.from_environment()
    assert (found.url, found.job) == ("s3://from-the-environment", "package.train")


def test_an_empty_value_is_the_default() -> None:
    names = "DIR", "DISK_LIMIT", "MODE", "JOB", "REPORT", "EXCLUDE", "DEADLINE", "PIN"
    assert settings(**{f"S3CACHE_{name}": "" for name in names}) == settings()


def test_a_report_whose_path_is_no_utf8_is_refused() -> None:
    with pytest.raises(SettingsError, match="S3CACHE_REPORT must be a path in UTF-8"):
        settings(S3CACHE_REPORT=os.fsdecode(b"/tmp/caf\xe9.json"))


def test_a_namespace_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"S3CACHE_EXCLUDE must be namespaces as triton,dynamo-pgo: .*'fx graph'"
    ):
        settings(S3CACHE_EXCLUDE="triton,fx graph")


def test_without_a_url_it_says_which_variable_to_set() -> None:
    with pytest.raises(SettingsError, match="S3CACHE_URL is not set; set it to s3://bucket/prefix"):
        settings(S3CACHE_URL="")


def test_a_job_whose_name_is_no_utf8_has_a_name_that_is() -> None:
    job = settings(S3CACHE_JOB=os.fsdecode(b"caf\xe9")).job
    assert job.encode() == rb"caf\udce9"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3CACHE_DEADLINE", "soon"),
        ("S3CACHE_DEADLINE", "-1"),
        ("S3CACHE_DEADLINE", "inf"),
        ("S3CACHE_URL", "bucket/prefix"),
        ("S3CACHE_URL", "http://bucket/prefix"),
        ("S3CACHE_URL", "s3://"),
        ("S3CACHE_URL", "s3:///prefix"),
        ("S3CACHE_URL", "s3://bucket/prefix?region=eu"),
        ("S3CACHE_URL", "s3://bucket/prefix#fragment"),
        ("S3CACHE_URL", "s3://[bucket"),
        ("S3CACHE_URL", "s3://my bucket/prefix"),
        ("S3CACHE_URL", "s3://key:secret@bucket/prefix"),
        ("S3CACHE_DISK_LIMIT", "ten"),
        ("S3CACHE_DISK_LIMIT", "-1"),
        ("S3CACHE_DISK_LIMIT", "10 %"),
        ("S3CACHE_DISK_LIMIT", "10PiB"),
        ("S3CACHE_DISK_LIMIT", "1e9"),
        ("S3CACHE_DISK_LIMIT", "nan"),
        ("S3CACHE_MODE", "readonly"),
        ("S3CACHE_MODE", "READ-ONLY"),
        ("S3CACHE_MODE", "1"),
        ("S3CACHE_PIN", "2"),
        ("S3CACHE_PIN", "true"),
        ("S3CACHE_DIR", "~nobody-of-that-name/cache"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} ") as refused:
        settings(**{name: value})
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1024B", 1024),
        ("1K", 1000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1.5GiB", 3 << 29),
        ("20 GB", 20 * 10**9),
        (" 2mib ", 2 << 20),
        ("1TiB", 1 << 40),
        ("1T", 10**12),
    ],
)
def test_a_size_is_in_binary_or_decimal_units(text: str, size: int) -> None:
    assert settings(S3CACHE_DISK_LIMIT=text).disk_limit == size


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/prefix", ("bucket", "prefix")),
        ("s3://bucket/a/b/", ("bucket", "a/b")),
        ("s3://my.bucket-1_x/p", ("my.bucket-1_x", "p")),
    ],
)
def test_a_url_is_a_bucket_and_a_prefix(url: str, parts: tuple[str, str]) -> None:
    assert parse_url(url) == parts


def test_a_slash_at_the_end_makes_no_other_spool(home: Path) -> None:
    with_slash = settings(S3CACHE_URL="s3://bucket/prefix/")
    assert with_slash.spool_directory == settings().spool_directory
    assert settings(S3CACHE_URL="s3://bucket/other").spool_directory != settings().spool_directory


def test_a_relative_folder_is_one_of_the_present_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = settings(S3CACHE_DIR="cache", S3CACHE_REPORT="report.json")
    assert (found.directory, found.report) == (tmp_path / "cache", tmp_path / "report.json")


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_path", fail)
    with pytest.raises(SettingsError, match=r"^S3CACHE_DIR .*home directory"):
        settings()
    assert settings(S3CACHE_DIR="/cache").directory == Path("/cache")


def test_a_tilde_is_the_home(home: Path) -> None:
    assert settings(S3CACHE_DIR="~/cache").directory == home / "cache"


def test_a_job_may_have_any_name() -> None:
    assert settings(S3CACHE_JOB="größe/1").job == "größe/1"


@pytest.mark.parametrize(
    ("command", "job"),
    [
        ([], "python"),
        (["python"], "python"),
        (["python", "train.py"], "train"),
        (["/usr/bin/python3.11", "-u", "/home/me/my.train.py", "--lr", "1"], "my.train"),
        (["python", "-X", "importtime", "train.py"], "train"),
        (["python", "-m", "package.train", "--lr", "1"], "package.train"),
        (["python", "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"], "train"),
        (["torchrun", "--standalone", "train.py"], "train"),
        (["torchrun", "-m", "package.train"], "package.train"),
        (["python", "-c", "import torch"], "python"),
        (["python3", "-i"], "python"),
        (["python", "bin/train"], "train"),
        (["./bin/train", "--lr", "1"], "train"),
        (["accelerate", "launch", "train.py"], "train"),
        (["python", "-m"], "python"),
    ],
)
def test_a_job_is_named_after_its_script_module_or_program(command: list[str], job: str) -> None:
    assert job_of(command) == job


def test_a_program_of_an_odd_name_has_a_name_that_may_be() -> None:
    assert job_of(["./my program"]).startswith("~")


def test_no_test_sees_the_environment_of_the_user(home: Path) -> None:
    seen = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "S3CACHE_"))}
    assert seen == {"AWS_EC2_METADATA_DISABLED": "true"}
    assert Path.home() == home


@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_whether_a_group_shares_the_folder_is_0_or_1(value: str) -> None:
    assert not settings().shared_group
    assert settings(S3CACHE_SHARED_GROUP="1").shared_group
    with pytest.raises(SettingsError, match="S3CACHE_SHARED_GROUP"):
        settings(S3CACHE_SHARED_GROUP=value)
