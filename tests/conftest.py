"""Fixtures that every test may use; none of them lets a test see the user's own environment."""

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import Server, moto, seaweedfs

pytest.register_assert_rewrite("tests.store_conformance")

# How long an example takes says how busy the machine is.
settings.register_profile("s3cache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("s3cache")

BUCKET = "tests"
_FOREIGN = ("AWS_", "S3CACHE_", "_S3CACHE_", "BOTO_", "XDG_")
_prefixes = count()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def _isolated_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _isolate(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own HOME, in an environment that says nothing about a cloud or a cache."""
    folder = tmp_path_factory.mktemp("home")
    _isolate(monkeypatch, folder)
    return folder


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Server]:
    with moto() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[Server]:
    with seaweedfs() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture
def on_moto(moto_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL with nothing under it, on moto; the environment leads there."""
    return _url(moto_server, monkeypatch.setenv)


@pytest.fixture
def on_seaweedfs(seaweedfs_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL with nothing under it, on SeaweedFS; the environment leads there."""
    return _url(seaweedfs_server, monkeypatch.setenv)


def _url(server: Server, setenv: Callable[[str, str], None]) -> str:
    for name, value in server.environment().items():
        setenv(name, value)
    return f"s3://{BUCKET}/prefix-{next(_prefixes)}"


def _isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    # Set and removed again, so that what a test adds to the environment goes with it.
    foreign = [name for name in os.environ if name.startswith(_FOREIGN)]
    for name in [*foreign, "S3CACHE_JOB", "_S3CACHE_RUN"]:
        patch.setenv(name, "")
        patch.delenv(name)
    patch.setenv("HOME", str(folder))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
